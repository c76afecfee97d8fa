// all_reduce in every codec, of every float type, by every planner, at every world size, with the
// kernels of every instruction set: the same bytes at every rank and with every kernel, and as near
// to the exact sum as the codec is.
//
// The real planners, executor and links, through memory, as N members in one process. Plans are
// those of a network of two sites whose links differ, so that trees are deep and shares uneven.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cluster.h"
#include "group_members.h"
#include "kernels/quantize.h"
#include "kernels/reduce.h"
#include "quantization/codec.h"
#include "share.h"
#include "topology/planners.h"

using namespace pccl;

namespace {

struct CodecRow {
  const char* name;
  double error;  // of normally distributed values, there and back; docs/codecs.md
};
constexpr std::array<CodecRow, 13> kCodecs = {{{"bf16", 0.0017},
                                               {"fp16", 0.0002},
                                               {"int8", 0.0071},
                                               {"int8:stochastic", 0.010},
                                               {"int6", 0.025},
                                               {"int6:stochastic", 0.036},
                                               {"int4", 0.10},
                                               {"int4:stochastic", 0.15},
                                               {"int4:mse_clip", 0.10},
                                               {"int4:hadamard", 0.10},
                                               {"int4:mse_clip:hadamard:stochastic", 0.15},
                                               {"fp8_e4m3", 0.026},
                                               {"fp8_e5m2", 0.051}}};
struct TypeRow {
  DataType dtype;
  double error;  // of rounding to it once
};
constexpr std::array<TypeRow, 4> kTypes = {{{DataType::Float64, 0},
                                            {DataType::Float32, 0},
                                            {DataType::Float16, 0.0002},
                                            {DataType::BFloat16, 0.0017}}};
constexpr std::array<const char*, 8> kPlanners = {
    "direct",       "ring",  "halving_doubling", "double_binary_tree",
    "packed_trees", "rings", "hierarchical",     "quickest_tree"};
constexpr std::array<const char*, 4> kTargets = {"baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4"};

// --- problems ------------------------------------------------------------------------------------

std::vector<double> numbers(const Bytes& bytes, DataType dtype) {
  const size_t count = bytes.size() / element_bytes(dtype);
  std::vector<double> values(count);
  if (dtype == DataType::Float64) {
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  std::vector<float> floats(count);
  kernels::widen(dtype, bytes.data(), count, floats.data(), false);
  return {floats.begin(), floats.end()};
}

// Contributions to one world, and their exact sums.
struct Problem {
  explicit Problem(int32_t size)
      : world_size(size),
        count(256 * static_cast<uint64_t>(size) + 33),
        links(two_sites(size)),
        routes(topology::find_routes(links)) {
    for (const TypeRow& type : kTypes) {
      std::vector<double>& sum = sums[type.dtype];
      sum.resize(count);
      for (int32_t rank = 0; rank < world_size; ++rank) {
        std::mt19937_64 random(static_cast<uint64_t>(rank) + 1);
        std::normal_distribution<double> normal;
        inputs[type.dtype].push_back(
            make(type.dtype, count, [&](uint64_t) { return normal(random); }));
        const std::vector<double> values = numbers(inputs[type.dtype].back(), type.dtype);
        for (size_t i = 0; i < count; ++i) sum[i] += values[i];
      }
    }
  }
  int32_t world_size;
  uint64_t count;  // a tile a rank at least, and one that is not whole
  topology::Links links;
  topology::Routes routes;
  std::map<DataType, std::vector<Bytes>> inputs;  // by rank
  std::map<DataType, std::vector<double>> sums;
};

void check_error(const Bytes& result, const Problem& problem, const CodecRow& codec,
                 const TypeRow& type) {
  const std::vector<double>& exact = problem.sums.at(type.dtype);
  const std::vector<double> found = numbers(result, type.dtype);
  double error = 0;
  double whole = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(found[i] - exact[i], 2);
    whole += std::pow(exact[i], 2);
  }
  const double relative = std::sqrt(error / whole);
  // Of independent contributions the most is lost where each partial sum is encoded on its way, as
  // in a ring: a variance of 1 + 2 + ... + n parts in a sum of n.
  const double encodings = (problem.world_size + 1) / 2.0;
  CHECK(relative < 1.3 * (std::sqrt(encodings) * codec.error + type.error));
  if (type.error < codec.error) CHECK(relative > 0.5 * codec.error);
}

// In all codecs, of all types, at once: the results, which all members have alike.
std::vector<Bytes> reduce_all(const Problem& problem, const topology::Schedule& schedule,
                              const Members& members) {
  std::vector<std::vector<Bytes>> tensors(members.size());
  std::vector<std::shared_ptr<Work>> works;
  for (size_t rank = 0; rank < members.size(); ++rank) {
    std::vector<CollectiveCall> calls;
    tensors[rank].reserve(kCodecs.size() * kTypes.size());
    const auto plan =
        std::make_shared<const RankPlan>(compile(schedule, static_cast<int32_t>(rank)));
    for (const CodecRow& codec : kCodecs) {
      for (const TypeRow& type : kTypes) {
        Bytes& tensor = tensors[rank].emplace_back(problem.inputs.at(type.dtype)[rank]);
        CollectiveCall& call = calls.emplace_back();
        call.signature = {
            transport::Collective::AllReduce,     type.dtype, ReduceOp::Sum, -1, problem.count,
            quantization::parse_codec(codec.name)};
        call.plan = plan;
        call.blocks = {{tensor.data(), tensor.data(), problem.count}};
        call.segment_bytes = 1024;  // whole tiles, and several
      }
    }
    const auto started = members[rank]->start(std::move(calls));
    works.insert(works.end(), started.begin(), started.end());
  }
  for (const auto& work : works) {
    REQUIRE(work->wait(after(Clock::now(), kSoonSeconds)));
    REQUIRE_MESSAGE(!work->error(), work->error().message);
  }
  for (const auto& found : tensors) REQUIRE(found == tensors.front());
  return tensors.front();
}

void check_planner(const std::string& planner, const Problem& problem, const Members& members) {
  CAPTURE(planner);
  const topology::Schedule schedule =
      topology::choose_coded_all_reduce(problem.links, problem.count, planner, &problem.routes);
  for (const topology::Chunk& chunk : schedule.chunks) CHECK(chunk.offset % 256 == 0);
  std::vector<Bytes> first;
  for (const char* target : kTargets) {
    if (!kernels::select_target(target)) continue;
    CAPTURE(target);
    // What stochastic rounding rounds up depends on the number of the call.
    for (const auto& member : members) member->enter(planner + target, members);
    const std::vector<Bytes> found = reduce_all(problem, schedule, members);
    for (const auto& member : members) member->leave();
    if (first.empty()) first = found;
    REQUIRE(found == first);
  }
  for (size_t i = 0; i < first.size(); ++i) {
    const CodecRow& codec = kCodecs[i / kTypes.size()];
    const TypeRow& type = kTypes[i % kTypes.size()];
    CAPTURE(std::string(codec.name));
    CAPTURE(std::string(data_type_name(type.dtype)));
    check_error(first[i], problem, codec, type);
  }
}

}  // namespace

TEST_CASE("every codec, type, planner, world size and kernel: the same bytes, near the exact sum") {
  const std::string selected(kernels::selected_target());
  // Instrumented code is ten times slower, and looks for other faults.
  std::vector<int32_t> sizes = {4, 1, 2, 3, 5, 7, 8};
  if (test_divisor() > 1) sizes.resize(1);
  for (const int32_t world_size : sizes) {
    CAPTURE(world_size);
    const Problem problem(world_size);
    Members members;
    for (int32_t rank = 0; rank < world_size; ++rank)
      members.push_back(std::make_unique<Member>(kWays.back()));
    for (const char* planner : kPlanners) {
      // Sites are there from two members each.
      if (planner == std::string("hierarchical") && world_size < 4) continue;
      check_planner(planner, problem, members);
    }
  }
  kernels::select_target(selected);
}
