#include "program.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <optional>

#include <executorch/runtime/core/exec_aten/util/scalar_type_util.h>
#include <executorch/runtime/executor/method.h>

#include "pools.h"
#include "reasons.h"

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::MallocMemoryAllocator;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::HierarchicalAllocator;
using executorch::runtime::MemoryManager;
using executorch::runtime::Result;
using executorch::runtime::Span;

namespace {

constexpr size_t kSlack = 256;           // bytes behind an array: XNNPACK's kernels read up to 128
constexpr int64_t kMost = int64_t(1) << 40; // bytes of a memory that a method was planned for
constexpr int32_t kRank = 16;

[[noreturn]] void refuse(const std::string& what, Error error) {
  const std::string said = reasons::said();
  throw Refused{said.empty() ? what + " (error " + std::to_string(static_cast<int>(error)) + ")" : said};
}

template <typename T>
T taken(Result<T>&& result, const std::string& what) {
  if (!result.ok()) {
    refuse(what, result.error());
  }
  return std::move(result.get());
}

} // namespace

Pages::Pages(size_t size) : size_(size) {
  data_ = mmap(nullptr, size + kSlack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data_ == MAP_FAILED) {
    throw std::bad_alloc();
  }
}

Pages::~Pages() {
  munmap(data_, size_ + kSlack);
}

struct Program::Method {
  MallocMemoryAllocator own, scratch;
  std::vector<std::shared_ptr<Pages>> memory;
  std::vector<Span<uint8_t>> spans;
  std::optional<HierarchicalAllocator> planned;
  std::optional<MemoryManager> manager;
  std::vector<std::unique_ptr<Pages>> given;
  std::optional<executorch::runtime::Method> method; // goes first: it refers to the others
};

Program::Program(const char* path, const char* const* names, size_t count, size_t threads, int packed)
    : file_(path),
      packed_(packed),
      program_(taken(
          executorch::runtime::Program::load(&file_, executorch::runtime::Program::Verification::InternalConsistency),
          "it is no program")),
      threads_(threads) {
  pools::use(threads_);
  for (size_t i = 0; i < count; ++i) {
    names_.emplace_back(names[i]);
    methods_.push_back(load(names_.back()));
  }
}

Program::~Program() = default;

// What methods keep for each other is planned in a second memory of each, which is of one size then: so the exporter
// says that they share it (`share_mutable_buffers`). The first is a method's own.
std::shared_ptr<Pages> Program::memory(int64_t size, size_t place) {
  if (size < 0 || size > kMost) {
    throw Refused{"a memory of " + std::to_string(size) + " bytes"};
  }
  if (place == 0) {
    return std::make_shared<Pages>(size);
  }
  std::shared_ptr<Pages>& pages = shared_[{place, size}];
  if (!pages) {
    pages = std::make_shared<Pages>(size);
  }
  return pages;
}

std::unique_ptr<Program::Method> Program::load(const std::string& name) {
  auto meta = taken(program_.method_meta(name.c_str()), "no method " + name);
  auto found = std::make_unique<Method>();
  for (size_t place = 0; place < meta.num_memory_planned_buffers(); ++place) {
    found->memory.push_back(memory(taken(meta.memory_planned_buffer_size(place), "a memory"), place));
    found->spans.push_back({found->memory.back()->data(), found->memory.back()->size()});
  }
  found->planned.emplace(Span<Span<uint8_t>>(found->spans.data(), found->spans.size()));
  found->manager.emplace(&found->own, &*found->planned, &found->scratch);
  found->method.emplace(taken(
      program_.load_method(name.c_str(), &*found->manager, nullptr, nullptr, packed_.options()),
      name + " does not load"));
  for (size_t i = 0; i < meta.num_inputs(); ++i) {
    const auto bound = meta.input_tensor_meta(i); // the tensor may grow that far, whatever is given
    found->given.push_back(bound.ok() ? std::make_unique<Pages>(bound.get().nbytes()) : nullptr);
  }
  return found;
}

namespace {

// The array's bytes, copied to where a method may read them.
void keep(const std::unique_ptr<Pages>& place, const Array& array, size_t item) {
  if (array.rank < 0 || array.rank > kRank) {
    throw Refused{"an array of " + std::to_string(array.rank) + " axes"};
  }
  size_t size = item;
  for (int32_t axis = 0; axis < array.rank; ++axis) {
    if (array.sizes[axis] < 0 || array.sizes[axis] > INT32_MAX ||
        __builtin_mul_overflow(size, static_cast<size_t>(array.sizes[axis]), &size)) {
      throw Refused{"an axis of " + std::to_string(array.sizes[axis])};
    }
  }
  if (!place || size > place->size()) {
    const std::string most = place ? std::to_string(place->size()) : "no array";
    throw Refused{"it was given an array of " + std::to_string(size) + " bytes, where it takes at most " + most};
  }
  if (size) {
    std::memcpy(place->data(), array.data, size);
  }
}

void tell(const EValue& value, Array& array) {
  if (!value.isTensor()) {
    throw Refused{"a result that is no array"};
  }
  const Tensor& tensor = value.toTensor();
  if (tensor.dim() > kRank) {
    throw Refused{"a result of " + std::to_string(tensor.dim()) + " axes"};
  }
  array.kind = static_cast<int32_t>(tensor.scalar_type());
  array.rank = static_cast<int32_t>(tensor.dim());
  for (int32_t axis = 0; axis < array.rank; ++axis) {
    array.sizes[axis] = tensor.size(axis);
  }
  array.data = const_cast<void*>(tensor.const_data_ptr());
}

} // namespace

Program::Method& Program::loaded(size_t method) {
  if (method >= methods_.size()) {
    throw Refused{"no method " + std::to_string(method)};
  }
  if (!methods_[method]) {
    methods_[method] = load(names_[method]);
  }
  return *methods_[method];
}

uint8_t* Program::planned(size_t method, int64_t place, int64_t offset, int64_t size) {
  const Method& one = loaded(method);
  if (place < 0 || static_cast<size_t>(place) >= one.memory.size()) {
    throw Refused{"no memory " + std::to_string(place)};
  }
  const Pages& pages = *one.memory[place];
  const auto room = static_cast<int64_t>(pages.size());
  if (offset < 0 || size < 0 || offset > room || size > room - offset) {
    throw Refused{
        "bytes " + std::to_string(offset) + " and " + std::to_string(size) + " more, of a memory of " +
        std::to_string(room)};
  }
  return pages.data() + offset;
}

void Program::run(size_t method, const Array* given, size_t count, Array* made, size_t room) {
  Method& one = loaded(method);
  if (count != one.method->inputs_size() || room != one.method->outputs_size()) {
    throw Refused{
        "it takes " + std::to_string(one.method->inputs_size()) + " arrays and gives " +
        std::to_string(one.method->outputs_size()) + "; it was given " + std::to_string(count) + " for " +
        std::to_string(room)};
  }
  pools::use(threads_);
  for (size_t i = 0; i < count; ++i) {
    const auto kind = static_cast<ScalarType>(given[i].kind);
    if (!executorch::runtime::isValid(kind)) {
      throw Refused{"numbers of the type " + std::to_string(given[i].kind)};
    }
    keep(one.given[i], given[i], executorch::runtime::elementSize(kind));
    int32_t sizes[kRank], strides[kRank];
    uint8_t order[kRank];
    int64_t step = 1;
    for (int32_t axis = given[i].rank - 1; axis >= 0; --axis) {
      sizes[axis] = static_cast<int32_t>(given[i].sizes[axis]);
      strides[axis] = static_cast<int32_t>(step);
      order[axis] = static_cast<uint8_t>(axis);
      step *= sizes[axis];
    }
    TensorImpl tensor(kind, given[i].rank, sizes, one.given[i]->data(), order, strides);
    const Error error = one.method->set_input(EValue(Tensor(&tensor)), i);
    if (error != Error::Ok) {
      refuse("it does not take what it was given", error);
    }
  }
  const Error error = one.method->execute();
  if (error != Error::Ok) {
    methods_[method].reset(); // XNNPACK takes what it prepared by half for prepared: anew, when it is asked for again
    refuse("it failed", error);
  }
  for (size_t i = 0; i < room; ++i) {
    tell(one.method->get_output(i), made[i]);
  }
}
