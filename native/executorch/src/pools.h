// The pools of threads: one for each number of threads that was asked for.
#pragma once

#include <cstddef>

namespace pools {

// What runs from now on, or is made to run, takes so many threads. Throws std::bad_alloc.
void use(size_t threads);

// How many that is.
size_t threads();

} // namespace pools
