#include "pools.h"

#include <map>

// Of ExecuTorch's `extension/threadpool/threadpool.h`, which its wheel does not bring. The library makes and reads what
// is in it (64 bytes in 1.5.1); here it is a place that is large enough.
namespace executorch::extension::threadpool {

class ThreadPool final {
 public:
  explicit ThreadPool(size_t thread_count = 0);
  size_t get_thread_count() const;

 private:
  alignas(64) unsigned char place_[512];
};

namespace {
ThreadPool* current = nullptr;
} // namespace

// Stands before the library's own function of this name, which resets its one pool for another number of threads:
// what XNNPACK prepared for the former one would go on to use it.
__attribute__((visibility("default"))) ThreadPool* get_threadpool() {
  if (current == nullptr) {
    pools::use(1);
  }
  return current;
}

} // namespace executorch::extension::threadpool

namespace pools {

using executorch::extension::threadpool::ThreadPool;

void use(size_t threads) {
  static std::map<size_t, ThreadPool*> made; // for as long as the process lives: what was prepared refers to them
  ThreadPool*& pool = made[threads];
  if (pool == nullptr) {
    pool = new ThreadPool(threads);
  }
  executorch::extension::threadpool::current = pool;
}

size_t threads() {
  return executorch::extension::threadpool::get_threadpool()->get_thread_count();
}

} // namespace pools
