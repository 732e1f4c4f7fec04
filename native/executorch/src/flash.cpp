// Compiled once for each instruction set: FLASH names the function, LANES is how many floats a register has, and
// COLUMNS how many registers of a product's row are computed at a time.
//
// Nothing here may be an inline function of a library: the linker keeps one copy of those, perhaps for a processor that
// is not there.

#include "flash.h"

namespace {

constexpr int64_t kKeys = 64; // of a block: their scores, and the block itself, stay in the cache
constexpr int64_t kFew = 8;   // rows below which putting keys in another order costs more than it saves
constexpr int kRows = 4;      // of a product that are computed at a time
constexpr int kWide = 8;      // registers, where there is one row
constexpr float kNothing = -3e38f;

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES)));

inline Lanes load(const float* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline void store(float* to, Lanes lanes) {
  __builtin_memcpy(to, &lanes, sizeof lanes);
}

inline Lanes all(float value) {
  return value - Lanes{}; // of -0 too
}

inline float total(Lanes lanes) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) {
    sum += lanes[i];
  }
  return sum;
}

inline int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

inline int64_t padded(int64_t count) {
  return (count + LANES - 1) / LANES * LANES;
}

// e^x for x <= 0, to 2e-7 of it; 0 below -87. Cody and Waite's reduction, and a series on |r| <= ln 2 / 2.
inline Lanes exponential(Lanes x) {
  const Lanes magic = all(12582912.0f); // 1.5 * 2^23: adding it rounds to a whole number, in the low bits
  Lanes shifted = x * 1.44269504088896341f + magic;
  Lanes n = shifted - magic;
  Lanes r = x - n * 0.693145751953125f - n * 1.42860682030941723e-6f;
  Lanes y = all(1.0f / 5040);
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  Whole bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  Lanes power;
  __builtin_memcpy(&power, &bits, sizeof power);
  y *= power;
  Whole kept;
  __builtin_memcpy(&kept, &y, sizeof kept);
  kept &= ~(x < all(-87.0f)); // and what is no number stays so
  __builtin_memcpy(&y, &kept, sizeof y);
  return y;
}

inline float exponential(float x) {
  return exponential(all(x))[0];
}

// ROWS x (WIDE * LANES) of sum + left x right.
template <int ROWS, int WIDE>
inline void tile(
    int64_t depth,
    const float* left,
    int64_t left_step,
    const float* right,
    int64_t right_step,
    float* sum,
    int64_t sum_step) {
  Lanes held[ROWS][WIDE];
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 8
    for (int column = 0; column < WIDE; ++column) {
      held[row][column] = load(sum + row * sum_step + column * LANES);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Lanes there[WIDE];
#pragma GCC unroll 8
    for (int column = 0; column < WIDE; ++column) {
      there[column] = load(right + k * right_step + column * LANES);
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
      const Lanes factor = all(left[row * left_step + k]);
#pragma GCC unroll 8
      for (int column = 0; column < WIDE; ++column) {
        held[row][column] += factor * there[column];
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 8
    for (int column = 0; column < WIDE; ++column) {
      store(sum + row * sum_step + column * LANES, held[row][column]);
    }
  }
}

template <int ROWS, int WIDE>
inline int64_t tiles(
    int64_t from,
    int64_t columns,
    int64_t depth,
    const float* left,
    int64_t left_step,
    const float* right,
    int64_t right_step,
    float* sum,
    int64_t sum_step) {
  for (; from + WIDE * LANES <= columns; from += WIDE * LANES) {
    tile<ROWS, WIDE>(depth, left, left_step, right + from, right_step, sum + from, sum_step);
  }
  return from;
}

// sum[rows, columns] += left[rows, depth] x right[depth, columns]; columns are whole registers.
void product(
    int64_t rows,
    int64_t columns,
    int64_t depth,
    const float* left,
    int64_t left_step,
    const float* right,
    int64_t right_step,
    float* sum,
    int64_t sum_step) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    const float* l = left + row * left_step;
    float* s = sum + row * sum_step;
    int64_t at = tiles<kRows, COLUMNS>(0, columns, depth, l, left_step, right, right_step, s, sum_step);
    tiles<kRows, 1>(at, columns, depth, l, left_step, right, right_step, s, sum_step);
  }
  for (; row < rows; ++row) {
    const float* l = left + row * left_step;
    float* s = sum + row * sum_step;
    int64_t at = tiles<1, kWide>(0, columns, depth, l, left_step, right, right_step, s, sum_step);
    tiles<1, 1>(at, columns, depth, l, left_step, right, right_step, s, sum_step);
  }
}

float dot(const float* a, const float* b, int64_t width) {
  Lanes sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= width; i += 4 * LANES) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[j] += load(a + i + j * LANES) * load(b + i + j * LANES);
    }
  }
  for (; i + LANES <= width; i += LANES) {
    sums[0] += load(a + i) * load(b + i);
  }
  float sum = total((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < width; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

void zero(float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = 0;
  }
}

// One row's scores of `seen` keys -> their weights, and 0 for the rest of `count`. What the row has so far, `sum` and
// `result`, is made smaller where a new score is larger than `most`.
void weigh(float* scores, int64_t seen, int64_t count, float* most, float* sum, float* result, int64_t width) {
  const int64_t whole = padded(seen);
  for (int64_t n = seen; n < whole; ++n) {
    scores[n] = kNothing;
  }
  Lanes largest = all(kNothing);
  for (int64_t n = 0; n < whole; n += LANES) {
    const Lanes now = load(scores + n);
    largest = now > largest ? now : largest;
  }
  float top = *most;
  for (int i = 0; i < LANES; ++i) {
    top = largest[i] > top ? largest[i] : top;
  }
  if (top > *most) {
    const float less = exponential(*most - top);
    for (int64_t d = 0; d < width; d += LANES) {
      store(result + d, load(result + d) * less);
    }
    *sum *= less;
    *most = top;
  }
  Lanes weights = {};
  for (int64_t n = 0; n < whole; n += LANES) {
    const Lanes now = exponential(load(scores + n) - top);
    store(scores + n, now);
    weights += now;
  }
  *sum += total(weights);
  zero(scores + seen, count - seen);
}

// Where the pieces of the memory lie.
struct Places {
  float* queries; // [rows, width], scaled
  float* results; // [rows, padded width]
  float* scores;  // [rows, kKeys]
  float* keys;    // [width, kKeys]
  float* values;  // [kKeys, padded width]
  float* most;    // [rows]
  float* sums;    // [rows]
};

Places places(float* memory, int64_t rows, int64_t width) {
  Places found;
  float* at = memory;
  auto take = [&at](int64_t count) {
    float* taken = at;
    at += (count + 15) / 16 * 16;
    return taken;
  };
  found.queries = take(rows * width);
  found.results = take(rows * padded(width));
  found.scores = take(rows * kKeys);
  found.keys = take(width * kKeys);
  found.values = take(kKeys * padded(width));
  found.most = take(rows);
  found.sums = take(rows);
  return found;
}

void score(const Flash& flash, const Places& at, int64_t rows, int64_t begin, int64_t count) {
  const float* keys = flash.keys + begin * flash.key_step;
  if (rows < kFew) {
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t row = 0; row < rows; ++row) {
        at.scores[row * kKeys + n] = dot(at.queries + row * flash.width, keys + n * flash.key_step, flash.width);
      }
    }
    return;
  }
  const int64_t whole = padded(count);
  for (int64_t n = 0; n < whole; ++n) {
    for (int64_t d = 0; d < flash.width; ++d) {
      at.keys[d * kKeys + n] = n < count ? keys[n * flash.key_step + d] : 0;
    }
  }
  zero(at.scores, rows * kKeys);
  product(rows, whole, flash.width, at.queries, flash.width, at.keys, kKeys, at.scores, kKeys);
}

void add(const Flash& flash, const Places& at, int64_t rows, int64_t begin, int64_t count) {
  const float* values = flash.values + begin * flash.key_step;
  int64_t step = flash.key_step;
  const int64_t wide = padded(flash.width);
  if (rows >= kFew || wide != flash.width) {
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t d = 0; d < wide; ++d) {
        at.values[n * wide + d] = d < flash.width ? values[n * step + d] : 0;
      }
    }
    values = at.values;
    step = wide;
  }
  product(rows, wide, count, at.scores, kKeys, values, step, at.results, wide);
}

} // namespace

void FLASH(const Flash& flash, float* memory) {
  const int64_t rows = flash.positions * flash.group, width = flash.width, wide = padded(width);
  const Places at = places(memory, rows, width);
  for (int64_t row = 0; row < rows; ++row) {
    const float* query = flash.queries + row / flash.group * flash.query_step + row % flash.group * width;
    for (int64_t d = 0; d < width; ++d) {
      at.queries[row * width + d] = query[d] * flash.scale;
    }
    at.most[row] = kNothing;
    at.sums[row] = 0;
  }
  zero(at.results, rows * wide);
  const int64_t end = flash.visible + (flash.positions - 1) * flash.more;
  for (int64_t begin = 0; begin < end; begin += kKeys) {
    const int64_t count = least(kKeys, end - begin);
    score(flash, at, rows, begin, count);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t sees = flash.visible + row / flash.group * flash.more - begin;
      const int64_t seen = sees < 0 ? 0 : least(sees, count);
      weigh(at.scores + row * kKeys, seen, count, at.most + row, at.sums + row, at.results + row * wide, wide);
    }
    add(flash, at, rows, begin, count);
  }
  for (int64_t row = 0; row < rows; ++row) {
    float* result = flash.results + row / flash.group * flash.query_step + row % flash.group * width;
    const float share = 1.0f / at.sums[row];
    for (int64_t d = 0; d < width; ++d) {
      result[d] = at.results[row * wide + d] * share;
    }
  }
}
