// A file, mapped whole and for as long as a program of it lives.
#pragma once

#include <executorch/runtime/core/data_loader.h>

// Where the library takes weights from. What it frees stays mapped: with packed weights in a file it frees what it then
// goes on to read, the operands that it does not pack. Only the memory behind is let go, and comes back when it is read.
class Mapped final : public executorch::runtime::DataLoader {
 public:
  // Throws Refused.
  explicit Mapped(const char* path);
  ~Mapped() override;
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  executorch::runtime::Result<executorch::runtime::FreeableBuffer> load(
      size_t offset, size_t size, const SegmentInfo& info) const override;
  executorch::runtime::Result<size_t> size() const override;

 private:
  void* data_;
  size_t size_;
};
