#include "mapped.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "refused.h"

using executorch::runtime::Error;
using executorch::runtime::FreeableBuffer;
using executorch::runtime::Result;

namespace {

// Whole pages inside; those at the ends may be another's, too.
void let_go(void*, void* data, size_t size) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + size) / page * page;
  if (last > first) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  }
}

[[noreturn]] void refuse(int number) {
  throw Refused{std::string("it cannot be mapped: ") + std::strerror(number)};
}

} // namespace

Mapped::Mapped(const char* path) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat found;
  if (file < 0) {
    refuse(errno);
  }
  const int looked = fstat(file, &found);
  size_ = looked == 0 ? static_cast<size_t>(found.st_size) : 0;
  data_ = mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0); // of nothing it fails
  const int number = errno;
  close(file);
  if (data_ == MAP_FAILED) {
    refuse(number);
  }
}

Mapped::~Mapped() {
  munmap(data_, size_);
}

Result<FreeableBuffer> Mapped::load(size_t offset, size_t size, const SegmentInfo&) const {
  if (offset > size_ || size > size_ - offset) {
    return Error::InvalidArgument;
  }
  return FreeableBuffer(static_cast<const uint8_t*>(data_) + offset, size, let_go);
}

Result<size_t> Mapped::size() const {
  return size_;
}
