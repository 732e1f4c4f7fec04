// What the system tells of this process's memory, in bytes; -1 where it does not tell.
#pragma once
#include <stdint.h>

/// That it may still take before the system ends it.
int64_t machine_available_memory(void);

/// That it takes now.
int64_t machine_memory(void);

/// That it took at most, so far.
int64_t machine_peak_memory(void);
