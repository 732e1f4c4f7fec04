// Where XNNPACK's packed weights lie: in a file, or in memory.
#pragma once

#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>

// The library packs into an empty file, and maps a full one; it takes what is in it as it is, and looks for each weight
// by the name and the bias that the program gives it. So long as another has it locked for reading, it is not written.
class Packed {
 public:
  // `file`: a descriptor, of which a duplicate is kept; below 0, weights are packed into memory. Throws Refused.
  explicit Packed(int file);
  ~Packed();
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;

  // What a method is to be loaded with.
  const executorch::runtime::LoadBackendOptionsMap* options() const;

 private:
  int file_;
  executorch::runtime::BackendOptions<2> chosen_;
  executorch::runtime::LoadBackendOptionsMap map_;
};
