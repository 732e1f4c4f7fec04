// The two operators of ExecuTorch's language models that its libraries have for torch only: `llama::update_cache.out`
// and `llama::custom_sdpa.out`. A file may name any shapes: all are looked at here, and a wrong one is an error.

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/kernel_runtime_context.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "flash.h"

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Kernel;
using executorch::runtime::KernelRuntimeContext;
using executorch::runtime::Span;

using Arguments = Span<EValue*>;

constexpr int64_t kRows = 64; // of queries that are computed at a time

// Fails the call with the reason, where something does not hold.
#define REQUIRE(holds, ...)                 \
  do {                                      \
    if (!(holds)) {                         \
      ET_LOG(Error, __VA_ARGS__);           \
      context.fail(Error::InvalidArgument); \
      return;                               \
    }                                       \
  } while (0)

// Floats [B, S, H, D], one after another.
bool is_plain(const Tensor& tensor) {
  return tensor.dim() == 4 && tensor.scalar_type() == ScalarType::Float &&
      executorch::runtime::tensor_is_default_dim_order(tensor) &&
      (tensor.numel() == 0 || tensor.const_data_ptr() != nullptr);
}

bool are_tensors(Arguments arguments, std::initializer_list<size_t> places) {
  for (size_t place : places) {
    if (!arguments[place]->isTensor()) {
      return false;
    }
  }
  return true;
}

// value f32 [B, S, KV, D], cache f32 [B, T, KV, D], the first one's position: the values go into the cache. The result
// says nothing.
void update_cache(KernelRuntimeContext& context, Arguments arguments) {
  REQUIRE(arguments.size() >= 4, "update_cache with %zu arguments", arguments.size());
  REQUIRE(are_tensors(arguments, {0, 1, 3}) && arguments[2]->isInt(), "update_cache of other arguments");
  const Tensor& value = arguments[0]->toTensor();
  Tensor& cache = arguments[1]->toTensor();
  const int64_t start = arguments[2]->toInt();
  REQUIRE(is_plain(value) && is_plain(cache), "update_cache is for float32 of four axes");
  REQUIRE(
      value.size(0) == cache.size(0) && value.size(2) == cache.size(2) && value.size(3) == cache.size(3),
      "update_cache of [%zd, S, %zd, %zd] into [%zd, T, %zd, %zd]",
      value.size(0), value.size(2), value.size(3), cache.size(0), cache.size(2), cache.size(3));
  const int64_t count = value.size(1), room = cache.size(1);
  REQUIRE(
      start >= 0 && count <= room && start <= room - count,
      "a cache of %zd positions has no room for %zd after %zd", (ssize_t)room, (ssize_t)count, (ssize_t)start);
  const size_t row = static_cast<size_t>(cache.size(2)) * cache.size(3);
  const float* from = value.const_data_ptr<float>();
  float* to = cache.mutable_data_ptr<float>() + start * row;
  for (ssize_t batch = 0; batch < cache.size(0) && count && row; ++batch) {
    std::memmove(to + batch * room * row, from + batch * count * row, count * row * sizeof(float));
  }
}

struct Query {
  const Tensor& q;
  const Tensor& k;
  const Tensor& v;
  Tensor& out;
  int64_t start;
  bool causal;
  float scale;
};

// One piece of work is some positions of all heads that share one of keys.
Flash piece(const Query& query, int64_t at, int64_t pieces, int64_t positions) {
  const int64_t count = query.q.size(1), width = query.q.size(3), shared = query.k.size(2);
  const int64_t first = at % pieces * positions, head = at / pieces % shared, batch = at / pieces / shared;
  Flash flash;
  flash.group = query.q.size(2) / shared;
  flash.width = width;
  flash.query_step = query.q.size(2) * width;
  flash.key_step = shared * width;
  flash.positions = first + positions <= count ? positions : count - first;
  flash.visible = query.start + (query.causal ? first + 1 : count);
  flash.more = query.causal ? 1 : 0;
  flash.scale = query.scale;
  const int64_t rows = (batch * count + first) * flash.query_step + head * flash.group * width;
  const int64_t keys = batch * query.k.size(1) * flash.key_step + head * width;
  flash.queries = query.q.const_data_ptr<float>() + rows;
  flash.results = query.out.mutable_data_ptr<float>() + rows;
  flash.keys = query.k.const_data_ptr<float>() + keys;
  flash.values = query.v.const_data_ptr<float>() + keys;
  return flash;
}

bool attend(const Query& query) {
  static const FlashFunction function = flash_function();
  const int64_t count = query.q.size(1), group = query.q.size(2) / query.k.size(2);
  int64_t positions = group < kRows ? kRows / group : 1;
  positions = positions < count ? positions : count;
  const int64_t pieces = (count + positions - 1) / positions;
  const size_t floats = flash_floats(positions * group, query.q.size(3));
  std::atomic<bool> failed{false};
  const bool done = executorch::extension::parallel_for(
      0, query.q.size(0) * query.k.size(2) * pieces, 1, [&](int64_t begin, int64_t end) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, floats * sizeof(float)) != 0) {
          failed = true;
          return;
        }
        for (int64_t at = begin; at < end; ++at) {
          function(piece(query, at, pieces, positions), static_cast<float*>(memory));
        }
        std::free(memory);
      });
  return done && !failed;
}

// q f32 [B, S, H, D]; k, v f32 [B, T, KV, D], whose positions up to the last of q are filled; the first one's position;
// no mask; no dropout; whether a position sees only itself and what is before it; what scores are multiplied by, or
// none: 1 / sqrt(D) -> f32 [B, S, H, D].
void custom_sdpa(KernelRuntimeContext& context, Arguments arguments) {
  REQUIRE(arguments.size() >= 9, "custom_sdpa with %zu arguments", arguments.size());
  const EValue &mask = *arguments[4], &dropout = *arguments[5], &causal = *arguments[6], &scale = *arguments[7];
  REQUIRE(are_tensors(arguments, {0, 1, 2, 8}) && arguments[3]->isInt(), "custom_sdpa of other arguments");
  REQUIRE(mask.isNone(), "custom_sdpa with a mask is not known here");
  REQUIRE(
      (dropout.isDouble() && dropout.toDouble() == 0) || (dropout.isInt() && dropout.toInt() == 0),
      "custom_sdpa with dropout is not known here");
  REQUIRE(causal.isBool() && (scale.isNone() || scale.isDouble()), "custom_sdpa of other arguments");
  Tensor& out = arguments[8]->toTensor();
  Query query{arguments[0]->toTensor(), arguments[1]->toTensor(), arguments[2]->toTensor(), out, 0, false, 0};
  const Tensor &q = query.q, &k = query.k, &v = query.v;
  REQUIRE(is_plain(q) && is_plain(k) && is_plain(v), "custom_sdpa is for float32 of four axes");
  REQUIRE(
      out.unsafeGetTensorImpl() != k.unsafeGetTensorImpl() && out.unsafeGetTensorImpl() != v.unsafeGetTensorImpl(),
      "custom_sdpa whose result is its keys or values");
  REQUIRE(
      k.size(0) == q.size(0) && k.size(3) == q.size(3) && v.size(0) == k.size(0) && v.size(1) == k.size(1) &&
          v.size(2) == k.size(2) && v.size(3) == k.size(3),
      "custom_sdpa of queries [%zd, S, H, %zd], keys [%zd, %zd, %zd, %zd] and values [%zd, %zd, %zd, %zd]",
      q.size(0), q.size(3), k.size(0), k.size(1), k.size(2), k.size(3), v.size(0), v.size(1), v.size(2), v.size(3));
  REQUIRE(
      k.size(2) > 0 && q.size(2) % k.size(2) == 0, "%zd heads cannot share %zd of keys", q.size(2), k.size(2));
  query.start = arguments[3]->toInt();
  REQUIRE(
      query.start >= 0 && q.size(1) <= k.size(1) && query.start <= k.size(1) - q.size(1),
      "a cache of %zd positions does not hold %zd after %zd", k.size(1), q.size(1), (ssize_t)query.start);
  REQUIRE(
      executorch::runtime::resize_tensor(out, q.sizes()) == Error::Ok && is_plain(out),
      "custom_sdpa has no room for its result");
  query.causal = causal.toBool();
  query.scale = static_cast<float>(scale.isNone() ? 1 / std::sqrt(double(q.size(3))) : scale.toDouble());
  if (q.numel() > 0) {
    REQUIRE(attend(query), "no memory for attention");
  }
}

const Kernel kKernels[] = {
    Kernel("llama::update_cache.out", update_cache),
    Kernel("llama::custom_sdpa.out", custom_sdpa),
};
[[maybe_unused]] const Error kRegistered = executorch::runtime::register_kernels({kKernels, 2});

} // namespace
