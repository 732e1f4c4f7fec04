// Attention of some rows of queries over one head of keys and values, a block of keys at a time.
#pragma once

#include <cstddef>
#include <cstdint>

// Row (s, g) of the queries begins at `queries + s * query_step + g * width`, and so does its result; key n at
// `keys + n * key_step`, and so does its value. All in floats.
struct Flash {
  const float* queries;
  float* results;
  const float* keys;
  const float* values;
  int64_t query_step;
  int64_t key_step;
  int64_t positions; // s
  int64_t group;     // g: heads of queries that share this head of keys
  int64_t width;
  int64_t visible; // keys that the first position sees
  int64_t more;    // by how many each next one sees more: 1, or 0 where all see the same
  float scale;
};

// Floats that it needs beside: aligned to 64 bytes.
size_t flash_floats(int64_t rows, int64_t width);

// One for each instruction set that it was compiled for; see `CMakeLists.txt`.
using FlashFunction = void (*)(const Flash&, float* memory);
void flash_base(const Flash& flash, float* memory);
void flash_avx2(const Flash& flash, float* memory);
void flash_avx512(const Flash& flash, float* memory);

// The best one for this processor.
FlashFunction flash_function();
