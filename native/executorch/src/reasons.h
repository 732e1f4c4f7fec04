// What the library says when it fails, and what keeps it from ending the process.
#pragma once

#include <string>

namespace reasons {

// Thrown where the library would end the process. What it held then stays held: see `spoiled`.
struct Ended {};

// Begins a call: what was said is forgotten, and this thread is kept from ending the process until it is destroyed.
class Call {
 public:
  Call();
  ~Call();
};

// The first error of the call, or nothing. Without where in the library it was.
std::string said();

// Whether a call ended so: the library cannot be used any more.
bool spoiled();

} // namespace reasons
