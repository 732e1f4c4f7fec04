// Which of the compiled attentions a processor runs.

#include "flash.h"

size_t flash_floats(int64_t rows, int64_t width) {
  constexpr int64_t keys = 64, lanes = 16; // at most, of any set; each piece begins at 64 bytes
  const int64_t wide = (width + lanes - 1) / lanes * lanes;
  const int64_t pieces = rows * width + rows * wide + rows * keys + width * keys + keys * wide + 2 * rows;
  return static_cast<size_t>(pieces + 7 * lanes);
}

FlashFunction flash_function() {
#ifdef FLASH_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    return flash_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return flash_avx2;
  }
#endif
  return flash_base;
}
