#include "collective_calls.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "quantization/codec.h"

namespace pccl {

using transport::Collective;
using transport::Signature;

namespace {

std::vector<uint64_t> counts_of(std::span<const Block> blocks) {
  std::vector<uint64_t> counts;
  for (const Block& block : blocks) counts.push_back(block.count);
  return counts;
}

// The common count, or 0 where blocks differ.
uint64_t common_count(std::span<const Block> blocks) {
  const bool same = std::all_of(blocks.begin(), blocks.end(), [&blocks](const Block& block) {
    return block.count == blocks.front().count;
  });
  return same && !blocks.empty() ? blocks.front().count : 0;
}

void check_reducible(DataType dtype, ReduceOp op, const char* operation) {
  if (is_reducible(dtype, op)) return;
  throw std::invalid_argument(std::string(operation) + ": " + std::string(reduce_op_name(op)) +
                              " of " + std::string(data_type_name(dtype)) + " is not defined");
}

void check_codec(Codec codec, DataType dtype, ReduceOp op) {
  if (codec == Codec{}) return;
  quantization::check_dtype(codec, dtype);
  const bool is_sum = op == ReduceOp::Sum || op == ReduceOp::Avg || op == ReduceOp::PremulSum ||
                      op == ReduceOp::WeightedAvg;
  if (!is_sum) {
    throw std::invalid_argument("all_reduce: codec " + codec_name(codec) +
                                " is for sums and averages, not for " +
                                std::string(reduce_op_name(op)));
  }
  if (codec.id == CodecId::TopK || codec.id == CodecId::TopK2Bit) {
    throw std::invalid_argument("all_reduce: codec " + codec_name(codec) +
                                " leaves most elements out, which needs error feedback; use "
                                "pccl.codecs");
  }
}

void check_encoded(const CallOptions& options, ReduceOp op) {
  const bool is_sum = op == ReduceOp::Sum || op == ReduceOp::Avg;
  if (options.codec != Codec{} && is_sum && options.feedback.lost == nullptr) return;
  throw std::invalid_argument(
      "all_reduce: a contribution that is encoded already is for sums and averages in its codec, "
      "without factors and without error feedback");
}

void check_blocks(std::span<const Block> blocks, int32_t world_size, const char* operation,
                  const char* which) {
  if (blocks.size() == static_cast<size_t>(world_size)) return;
  throw std::invalid_argument(std::string(operation) + ": " + std::to_string(blocks.size()) + " " +
                              which + " given, one for each of " + std::to_string(world_size) +
                              " ranks is needed");
}

void check_root(int32_t root, int32_t world_size, const char* operation) {
  if (root >= 0 && root < world_size) return;
  throw std::invalid_argument(std::string(operation) + ": rank " + std::to_string(root) +
                              " is not in 0.." + std::to_string(world_size - 1));
}

}  // namespace

CollectiveCalls::WorkPtr CollectiveCalls::all_reduce(const std::byte* source, std::byte* target,
                                                     uint64_t count, DataType dtype, ReduceOp op,
                                                     double factor, CallOptions options) {
  const Place place = here();
  check_reducible(dtype, op, "all_reduce");
  check_codec(options.codec, dtype, op);
  const Feedback feedback = options.feedback;
  if (feedback.lost != nullptr && options.codec == Codec{})
    throw std::invalid_argument("all_reduce: error feedback is for a codec, and none is given");
  if (options.is_encoded) check_encoded(options, op);
  const Signature signature{.collective = Collective::AllReduce,
                            .dtype = dtype,
                            .op = op,
                            .root = -1,
                            .count = count,
                            .codec = options.codec};
  return start(place, signature, {{source, target, count, feedback}}, {}, factor,
               std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::reduce(const std::byte* source, std::byte* target,
                                                 uint64_t count, DataType dtype, ReduceOp op,
                                                 double factor, int32_t root, CallOptions options) {
  const Place place = here();
  check_reducible(dtype, op, "reduce");
  check_root(root, place.world_size, "reduce");
  const Signature signature{
      .collective = Collective::Reduce, .dtype = dtype, .op = op, .root = root, .count = count};
  return start(place, signature, {{source, target, count}}, {}, factor, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::broadcast(std::byte* tensor, uint64_t count,
                                                    DataType dtype, int32_t root,
                                                    CallOptions options) {
  const Place place = here();
  check_root(root, place.world_size, "broadcast");
  const Signature signature{.collective = Collective::Broadcast,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = root,
                            .count = count};
  return start(place, signature, {{tensor, tensor, count}}, {}, 1, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::all_gather(Block source, std::span<const Block> targets,
                                                     DataType dtype, CallOptions options) {
  const Place place = here();
  check_blocks(targets, place.world_size, "all_gather", "outputs");
  if (targets[static_cast<size_t>(place.rank)].count != source.count) {
    throw std::invalid_argument("all_gather: the input has " + std::to_string(source.count) +
                                " elements, output " + std::to_string(place.rank) + " has " +
                                std::to_string(targets[static_cast<size_t>(place.rank)].count));
  }
  const Signature signature{.collective = Collective::AllGather,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = -1,
                            .count = common_count(targets)};
  std::vector<BlockMemory> blocks;
  for (const Block& target : targets) blocks.push_back({nullptr, target.data, target.count});
  blocks[static_cast<size_t>(place.rank)].input = source.data;
  return start(place, signature, std::move(blocks), counts_of(targets), 1, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::reduce_scatter(std::span<const Block> sources,
                                                         Block target, DataType dtype, ReduceOp op,
                                                         double factor, CallOptions options) {
  const Place place = here();
  check_reducible(dtype, op, "reduce_scatter");
  check_blocks(sources, place.world_size, "reduce_scatter", "inputs");
  if (sources[static_cast<size_t>(place.rank)].count != target.count) {
    throw std::invalid_argument("reduce_scatter: input " + std::to_string(place.rank) + " has " +
                                std::to_string(sources[static_cast<size_t>(place.rank)].count) +
                                " elements, the output has " + std::to_string(target.count));
  }
  const Signature signature{.collective = Collective::ReduceScatter,
                            .dtype = dtype,
                            .op = op,
                            .root = -1,
                            .count = common_count(sources)};
  std::vector<BlockMemory> blocks;
  for (const Block& source : sources) blocks.push_back({source.data, nullptr, source.count});
  blocks[static_cast<size_t>(place.rank)].output = target.data;
  return start(place, signature, std::move(blocks), counts_of(sources), factor, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::gather(Block source, std::span<const Block> targets,
                                                 DataType dtype, int32_t root,
                                                 CallOptions options) {
  const Place place = here();
  check_root(root, place.world_size, "gather");
  const Signature signature{.collective = Collective::Gather,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = root,
                            .count = 0};
  std::vector<BlockMemory> blocks(static_cast<size_t>(place.world_size));
  if (place.rank == root) {
    check_blocks(targets, place.world_size, "gather", "outputs");
    for (size_t r = 0; r < blocks.size(); ++r)
      blocks[r] = {nullptr, targets[r].data, targets[r].count};
    if (targets[static_cast<size_t>(place.rank)].count != source.count) {
      throw std::invalid_argument("gather: the input and output " + std::to_string(place.rank) +
                                  " differ in size");
    }
  }
  blocks[static_cast<size_t>(place.rank)].input = source.data;
  blocks[static_cast<size_t>(place.rank)].count = source.count;
  return start(place, signature, std::move(blocks), {}, 1, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::scatter(std::span<const Block> sources, Block target,
                                                  DataType dtype, int32_t root,
                                                  CallOptions options) {
  const Place place = here();
  check_root(root, place.world_size, "scatter");
  const Signature signature{.collective = Collective::Scatter,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = root,
                            .count = 0};
  std::vector<BlockMemory> blocks(static_cast<size_t>(place.world_size));
  if (place.rank == root) {
    check_blocks(sources, place.world_size, "scatter", "inputs");
    for (size_t r = 0; r < blocks.size(); ++r)
      blocks[r] = {sources[r].data, nullptr, sources[r].count};
    if (sources[static_cast<size_t>(place.rank)].count != target.count) {
      throw std::invalid_argument("scatter: input " + std::to_string(place.rank) +
                                  " and the output differ in size");
    }
  }
  blocks[static_cast<size_t>(place.rank)].output = target.data;
  blocks[static_cast<size_t>(place.rank)].count = target.count;
  return start(place, signature, std::move(blocks), {}, 1, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::all_to_all(std::span<const Block> sources,
                                                     std::span<const Block> targets, DataType dtype,
                                                     CallOptions options) {
  const Place place = here();
  check_blocks(sources, place.world_size, "all_to_all", "inputs");
  check_blocks(targets, place.world_size, "all_to_all", "outputs");
  const auto own = static_cast<size_t>(place.rank);
  if (sources[own].count != targets[own].count) {
    throw std::invalid_argument("all_to_all: rank " + std::to_string(place.rank) +
                                " sends itself " + std::to_string(sources[own].count) +
                                " elements and expects " + std::to_string(targets[own].count));
  }
  const Signature signature{.collective = Collective::AllToAll,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = -1,
                            .count = 0};
  const auto n = static_cast<size_t>(place.world_size);
  std::vector<BlockMemory> blocks(n * n);
  for (size_t r = 0; r < n; ++r) {
    blocks[own * n + r] = {sources[r].data, nullptr, sources[r].count};
    blocks[r * n + own] = {nullptr, targets[r].data, targets[r].count};
  }
  blocks[own * n + own] = {sources[own].data, targets[own].data, sources[own].count};
  return start(place, signature, std::move(blocks), {}, 1, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::barrier(CallOptions options) {
  const Place place = here();
  const Signature signature{.collective = Collective::Barrier,
                            .dtype = DataType::UInt8,
                            .op = ReduceOp::Sum,
                            .root = -1,
                            .count = 1};
  return start(place, signature, {{}}, {}, 1, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::send(const std::byte* tensor, uint64_t count,
                                               DataType dtype, int32_t destination, uint32_t tag,
                                               CallOptions options) {
  const Place place = here();
  check_root(destination, place.world_size, "send");
  if (destination == place.rank) throw std::invalid_argument("send: a rank can't send to itself");
  const MessageMemory memory{const_cast<std::byte*>(tensor), count, dtype, kMessageSegmentBytes};
  return start_message(place, {true, destination, tag, memory}, std::move(options));
}

CollectiveCalls::WorkPtr CollectiveCalls::recv(std::byte* tensor, uint64_t count, DataType dtype,
                                               int32_t source, uint32_t tag, CallOptions options) {
  const Place place = here();
  if (source != -1) check_root(source, place.world_size, "recv");
  if (source == place.rank) throw std::invalid_argument("recv: a rank can't receive from itself");
  return start_message(place, {false, source, tag, {tensor, count, dtype, kMessageSegmentBytes}},
                       std::move(options));
}

}  // namespace pccl
