// A file of ExecuTorch's and some of its methods, with the memory that they were planned for.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/core/hierarchical_allocator.h>
#include <executorch/runtime/executor/memory_manager.h>
#include <executorch/runtime/executor/program.h>

#include "mapped.h"
#include "packed.h"
#include "refused.h"

// Zeros, in pages that come when they are touched. Kernels read a little further than it is long.
class Pages {
 public:
  explicit Pages(size_t size);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  uint8_t* data() const {
    return static_cast<uint8_t*>(data_);
  }
  size_t size() const {
    return size_;
  }

 private:
  void* data_;
  size_t size_;
};

// An array: of what numbers (ExecuTorch's ScalarType), how long each axis is, and where they are.
struct Array {
  int32_t kind;
  int32_t rank;
  int64_t sizes[16];
  void* data;
};

class Program {
 public:
  // `packed`: see Packed. Throws Refused, and what memory throws.
  Program(const char* path, const char* const* names, size_t count, size_t threads, int packed);
  ~Program();

  // Of the numbered one of `names`. What is given is copied; what comes back lies in the method's own memory until it
  // runs again. Throws Refused.
  void run(size_t method, const Array* given, size_t count, Array* made, size_t room);

  // So many bytes of a memory that the numbered one of `names` was planned for. Throws Refused where it has fewer.
  uint8_t* planned(size_t method, int64_t place, int64_t offset, int64_t size);

 private:
  struct Method;
  std::unique_ptr<Method> load(const std::string& name);
  Method& loaded(size_t method);
  std::shared_ptr<Pages> memory(int64_t size, size_t place);

  Mapped file_;
  Packed packed_;
  executorch::runtime::Program program_;
  size_t threads_;
  std::map<std::pair<size_t, int64_t>, std::shared_ptr<Pages>> shared_; // by which of a method's, and its size
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<Method>> methods_; // none where a run failed: it is loaded anew
};
