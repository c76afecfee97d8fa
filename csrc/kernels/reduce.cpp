#include "kernels/reduce.h"

#include <array>
#include <atomic>
#include <cassert>
#include <cstdlib>
#include <cstring>

#include "kernels/reduce_table.h"

namespace pccl::kernels {
namespace {

struct Target {
  std::string_view name;
  const KernelTable* kernels;
  bool (*is_available)();
};

#ifdef PCCL_KERNELS_X86
// Whether this CPU, and the kernel it runs under, have what -march=x86-64-v2 to -v4 let the
// compiler use. Feature by feature, since not every compiler knows the levels by name; those that
// clang 14 has no word for (f16c, lzcnt, movbe) come with AVX2 and BMI2 in every CPU built so far.
bool has_v2() {
  return __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
         __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
}
bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd");
}
#endif

// Best first; the last one runs everywhere.
constexpr std::array kTargets = {
#ifdef PCCL_KERNELS_X86
    Target{"x86-64-v4", &v4::kKernels, &has_v4},
    Target{"x86-64-v3", &v3::kKernels, &has_v3},
    Target{"x86-64-v2", &v2::kKernels, &has_v2},
#endif
    Target{"baseline", &baseline::kKernels, [] { return true; }},
};

// By its name, or what follows "x86-64-" in it.
const Target* find_target(std::string_view name) {
  for (const Target& target : kTargets) {
    const bool is_short = name.size() == 2 && name.front() == 'v' && target.name.ends_with(name);
    if ((target.name == name || is_short) && target.is_available()) return &target;
  }
  return nullptr;
}

// PCCL_SIMD where it names a target this machine has, else the best one: every target gives the
// same bytes, so a name from another machine costs speed, never a result.
const Target* choose_target() {
  const char* name = std::getenv("PCCL_SIMD");
  if (name != nullptr) {
    if (const Target* target = find_target(name)) return target;
  }
  for (const Target& target : kTargets) {
    if (target.is_available()) return &target;
  }
  return &kTargets.back();
}

// The choice of this process. It is kept in one function: the machine does not change.
std::atomic<const Target*>& selection() {
  static std::atomic<const Target*> selected{choose_target()};
  return selected;
}

const Target& selected() { return *selection().load(std::memory_order_relaxed); }

}  // namespace

void reduce(void* target, std::span<const void* const> sources, size_t count, DataType dtype,
            ReduceOp op, int64_t divisor) {
  assert(is_reducible(dtype, op));
  assert(!sources.empty() && sources.size() <= kSourcesMax && divisor >= 1);
  if (count == 0) return;
  if (op != ReduceOp::Avg) divisor = 1;
  // Nothing to compute; only a Bool must still become 0 or 1.
  if (sources.size() == 1 && divisor == 1 && dtype != DataType::Bool) {
    if (target != sources[0]) std::memcpy(target, sources[0], count * element_bytes(dtype));
    return;
  }
  selected().kernels->reduce(
      ReduceCall{target, sources.data(), sources.size(), count, dtype, op, divisor});
}

void scale(void* target, const void* source, size_t count, DataType dtype, double factor) {
  assert(is_reducible(dtype, ReduceOp::PremulSum));
  if (count == 0) return;
  selected().kernels->scale(ScaleCall{target, source, count, dtype, factor});
}

const KernelTable& selected_kernels() { return *selected().kernels; }

std::string_view selected_target() { return selected().name; }

bool select_target(std::string_view name) {
  const Target* target = find_target(name);
  if (target == nullptr) return false;
  selection().store(target, std::memory_order_relaxed);
  return true;
}

}  // namespace pccl::kernels
