// Calls of native/executorch with arrays of any kind and shape, for libFuzzer: sound programs, hostile callers.
// EDGE_PROGRAMS names the programs, one method `attention` each; scripts/fuzz-native builds and runs it.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "program.h"

extern "C" int32_t edge_executorch_open(const char*, const char* const*, int32_t, int32_t, Program**);
extern "C" int32_t edge_executorch_run(Program*, int32_t, const Array*, int32_t, Array*, int32_t);

namespace {

constexpr size_t kMost = size_t(1) << 20; // bytes of an array that is given
constexpr int32_t kGiven = 3;

std::vector<Program*>& programs = *new std::vector<Program*>; // they stay until the process ends

// Numbers until there are no more, zeros from then on.
struct Source {
  const uint8_t* at;
  const uint8_t* end;

  template <typename T>
  T next() {
    T found = 0;
    if (size_t(end - at) >= sizeof(T)) {
      std::memcpy(&found, at, sizeof(T));
      at += sizeof(T);
    }
    return found;
  }
};

// Its data holds what it says, so far as that is little: this is what a caller promises. `kept` owns it.
Array array(Source& from, std::vector<std::vector<uint8_t>>& kept) {
  static const int32_t kinds[] = {6, 6, 6, 4, 4, 3, 1, 0, 11, 5, 7, -1, 99};
  Array made{};
  made.kind = kinds[from.next<uint8_t>() % (sizeof kinds / sizeof *kinds)];
  made.rank = from.next<int8_t>() % 18;
  size_t size = 8;
  for (int32_t axis = 0; axis < made.rank && axis < 16; ++axis) {
    made.sizes[axis] = from.next<uint8_t>() == 255 ? from.next<int64_t>() : from.next<uint8_t>();
    if (made.sizes[axis] > 0 && __builtin_mul_overflow(size, size_t(made.sizes[axis]), &size)) {
      size = kMost;
    }
  }
  kept.emplace_back(size < kMost ? size : kMost);
  const int64_t first = from.next<int8_t>();
  std::memcpy(kept.back().data(), &first, sizeof first);
  made.data = kept.back().data();
  return made;
}

} // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  std::istringstream paths(std::getenv("EDGE_PROGRAMS"));
  const char* method = "attention";
  for (std::string path; std::getline(paths, path, ':');) {
    Program* program = nullptr;
    if (edge_executorch_open(path.c_str(), &method, 1, 1, &program) != 0) {
      std::abort();
    }
    programs.push_back(program);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Source from{data, data + size};
  Program* program = programs[from.next<uint8_t>() % programs.size()];
  const int32_t count = 1 + (from.next<uint8_t>() % 16 + 13) / 14; // one and three seldom
  std::vector<std::vector<uint8_t>> kept;
  Array given[kGiven] = {};
  for (int32_t i = 0; i < count; ++i) {
    given[i] = array(from, kept);
    size_t bytes = 8; // more than this is not there
    bool much = false;
    for (int32_t axis = 0; axis < given[i].rank && axis < 16; ++axis) {
      much = much || (given[i].sizes[axis] > 0 && __builtin_mul_overflow(bytes, size_t(given[i].sizes[axis]), &bytes));
    }
    if (much || bytes > kMost) {
      return -1;
    }
  }
  Array made[1] = {};
  edge_executorch_run(program, 0, given, count, made, 1);
  return 0;
}
