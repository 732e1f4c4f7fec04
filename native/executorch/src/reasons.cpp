#include "reasons.h"

#include <atomic>
#include <cstdlib>
#include <mutex>

#include <executorch/runtime/platform/platform.h>

namespace reasons {

namespace {

constexpr size_t kLongest = 1000;

std::mutex mutex; // threads of the pool say things too
std::string first;
std::atomic<bool> ended{false};
thread_local bool calling = false;

void hear(
    et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t length) {
  if (level != kError && level != kFatal) {
    return;
  }
  std::lock_guard<std::mutex> lock(mutex);
  if (first.empty()) {
    first.assign(message, length < kLongest ? length : kLongest);
  }
}

void end() {
  if (!calling) {
    std::abort(); // on a thread of the pool: nothing above it could take what is thrown
  }
  ended = true;
  throw Ended();
}

[[maybe_unused]] const bool heard = executorch::runtime::register_pal(executorch::runtime::PalImpl::create(
    nullptr, end, nullptr, nullptr, hear, nullptr, nullptr, __FILE__));

} // namespace

Call::Call() {
  std::lock_guard<std::mutex> lock(mutex);
  first.clear();
  calling = true;
}

Call::~Call() {
  calling = false;
}

std::string said() {
  std::lock_guard<std::mutex> lock(mutex);
  return first;
}

bool spoiled() {
  return ended;
}

} // namespace reasons
