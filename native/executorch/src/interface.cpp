// What Python calls. Nothing is thrown through it, and one call runs at a time: the caller sees to that.

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include "pools.h"
#include "program.h"
#include "reasons.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Status : int32_t { kDone = 0, kRefused = 1, kNoMemory = 2, kSpoiled = 3 };

constexpr int32_t kMostThreads = 1024; // the library divides by what it makes of more

std::string reason;

template <typename Body>
int32_t guarded(Body&& body) {
  reason.clear();
  if (reasons::spoiled()) {
    reason = "it failed in a way that it does not recover from; only a new process can use it";
    return kSpoiled;
  }
  reasons::Call call;
  try {
    body();
    return kDone;
  } catch (const Refused& refused) {
    reason = refused.why;
  } catch (const reasons::Ended&) {
    reason = reasons::said();
    return kSpoiled;
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  } catch (const std::exception& error) {
    reason = error.what();
  }
  return kRefused;
}

} // namespace

// Why the last call was not done.
EXPORT const char* edge_executorch_reason() {
  return reason.c_str();
}

// The operators that methods may call, one a line, while `operators` is not 0; else the backends. Good until the next.
EXPORT const char* edge_executorch_registered(int32_t operators) {
  static std::string text;
  text.clear();
  if (operators) {
    for (const auto& kernel : executorch::runtime::get_registered_kernels()) {
      text.append(kernel.name_).append("\n");
    }
    return text.c_str();
  }
  for (size_t i = 0; i < executorch::runtime::get_num_registered_backends(); ++i) {
    const auto name = executorch::runtime::get_backend_name(i);
    text.append(name.ok() ? name.get() : "").append("\n");
  }
  return text.c_str();
}

EXPORT int32_t edge_executorch_threads() {
  return static_cast<int32_t>(pools::threads());
}

// `packed`: a file for packed weights, below 0 for none.
EXPORT int32_t edge_executorch_open(
    const char* path,
    const char* const* names,
    int32_t count,
    int32_t threads,
    int32_t packed,
    Program** program) {
  return guarded([&] {
    if (threads < 1 || threads > kMostThreads) {
      throw Refused{std::to_string(threads) + " threads: it takes 1 to " + std::to_string(kMostThreads)};
    }
    *program = new Program(path, names, count, threads, packed);
  });
}

EXPORT int32_t edge_executorch_run(
    Program* program, int32_t method, const Array* given, int32_t count, Array* made, int32_t room) {
  return guarded([&] { program->run(method, given, count, made, room); });
}

// Bytes of a memory that a method was planned for, copied to `data`, or from there where `write` is not 0.
EXPORT int32_t edge_executorch_copy(
    Program* program, int32_t method, int32_t place, int64_t offset, int64_t size, void* data, int32_t write) {
  return guarded([&] {
    uint8_t* there = program->planned(method, place, offset, size);
    std::memcpy(write ? there : data, write ? data : there, size);
  });
}

// What a call left that ended the library stays where it is.
EXPORT void edge_executorch_close(Program* program) {
  if (!reasons::spoiled()) {
    delete program;
  }
}
