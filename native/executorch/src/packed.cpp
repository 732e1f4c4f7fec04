#include "packed.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "refused.h"

namespace {

// Of ExecuTorch's `backends/xnnpack/runtime/XNNPACKBackend.h`, which its wheel does not bring.
constexpr char kBackend[] = "XnnpackBackend", kCache[] = "weight_cache_enabled", kPath[] = "packed_cache_path";

} // namespace

// The library knows a file by its path. The number of a descriptor that stays open is one that no other file gets.
Packed::Packed(int file) : file_(file < 0 ? -1 : fcntl(file, F_DUPFD_CLOEXEC, 0)) {
  if (file < 0) {
    return;
  }
  if (file_ < 0) {
    throw Refused{std::string("its packed weights: ") + std::strerror(errno)};
  }
  chosen_.set_option(kCache, true);
  chosen_.set_option(kPath, ("/proc/self/fd/" + std::to_string(file_)).c_str());
  map_.set_options(kBackend, chosen_.view());
}

Packed::~Packed() {
  if (file_ >= 0) {
    close(file_);
  }
}

const executorch::runtime::LoadBackendOptionsMap* Packed::options() const {
  return file_ < 0 ? nullptr : &map_;
}
