// What is thrown where something cannot be done.
#pragma once

#include <string>

// Why, in the library's words or ours.
struct Refused {
  std::string why;
};
