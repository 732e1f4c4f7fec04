// A C target has a source; this one is its header alone.
#include "COrt.h"
