// The calls of a Communicator: arguments are checked, put into blocks, and started.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "communicator.h"

namespace pccl {

using transport::Collective;
using transport::Signature;

namespace {

// Tags of monitored barriers; callers' tags are below.
constexpr uint32_t kBarrierTag = 0x80000000;
// 8 of them, so 2 MiB of a message, go out before its receiver asks, on every road.
constexpr uint32_t kMessageSegmentBytes = 256 << 10;

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

void check_blocks(std::span<const Block> blocks, int32_t world_size, const char* operation,
                  const char* which) {
  if (blocks.size() == static_cast<size_t>(world_size)) return;
  throw std::invalid_argument(std::string(operation) + ": " + std::to_string(blocks.size()) + " " +
                              which + " given, one for each of " + std::to_string(world_size) +
                              " ranks is needed");
}

}  // namespace

void Communicator::check_root(int32_t root, const char* operation) const {
  if (root >= 0 && root < world_size()) return;
  throw std::invalid_argument(std::string(operation) + ": rank " + std::to_string(root) +
                              " is not in 0.." + std::to_string(world_size() - 1));
}

Communicator::WorkPtr Communicator::all_reduce(const std::byte* source, std::byte* target,
                                               uint64_t count, DataType dtype, ReduceOp op,
                                               double factor, CallOptions options) {
  check_reducible(dtype, op, "all_reduce");
  const Signature signature{
      .collective = Collective::AllReduce, .dtype = dtype, .op = op, .root = -1, .count = count};
  return start(signature, {{source, target, count}}, {}, factor, std::move(options));
}

Communicator::WorkPtr Communicator::reduce(const std::byte* source, std::byte* target,
                                           uint64_t count, DataType dtype, ReduceOp op,
                                           double factor, int32_t root, CallOptions options) {
  check_reducible(dtype, op, "reduce");
  check_root(root, "reduce");
  const Signature signature{
      .collective = Collective::Reduce, .dtype = dtype, .op = op, .root = root, .count = count};
  return start(signature, {{source, target, count}}, {}, factor, std::move(options));
}

Communicator::WorkPtr Communicator::broadcast(std::byte* tensor, uint64_t count, DataType dtype,
                                              int32_t root, CallOptions options) {
  check_root(root, "broadcast");
  const Signature signature{.collective = Collective::Broadcast,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = root,
                            .count = count};
  return start(signature, {{tensor, tensor, count}}, {}, 1, std::move(options));
}

Communicator::WorkPtr Communicator::all_gather(Block source, std::span<const Block> targets,
                                               DataType dtype, CallOptions options) {
  check_blocks(targets, world_size(), "all_gather", "outputs");
  if (targets[static_cast<size_t>(rank_)].count != source.count) {
    throw std::invalid_argument("all_gather: the input has " + std::to_string(source.count) +
                                " elements, output " + std::to_string(rank_) + " has " +
                                std::to_string(targets[static_cast<size_t>(rank_)].count));
  }
  const Signature signature{.collective = Collective::AllGather,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = -1,
                            .count = common_count(targets)};
  std::vector<BlockMemory> blocks;
  for (const Block& target : targets) blocks.push_back({nullptr, target.data, target.count});
  blocks[static_cast<size_t>(rank_)].input = source.data;
  return start(signature, std::move(blocks), counts_of(targets), 1, std::move(options));
}

Communicator::WorkPtr Communicator::reduce_scatter(std::span<const Block> sources, Block target,
                                                   DataType dtype, ReduceOp op, double factor,
                                                   CallOptions options) {
  check_reducible(dtype, op, "reduce_scatter");
  check_blocks(sources, world_size(), "reduce_scatter", "inputs");
  if (sources[static_cast<size_t>(rank_)].count != target.count) {
    throw std::invalid_argument("reduce_scatter: input " + std::to_string(rank_) + " has " +
                                std::to_string(sources[static_cast<size_t>(rank_)].count) +
                                " elements, the output has " + std::to_string(target.count));
  }
  const Signature signature{.collective = Collective::ReduceScatter,
                            .dtype = dtype,
                            .op = op,
                            .root = -1,
                            .count = common_count(sources)};
  std::vector<BlockMemory> blocks;
  for (const Block& source : sources) blocks.push_back({source.data, nullptr, source.count});
  blocks[static_cast<size_t>(rank_)].output = target.data;
  return start(signature, std::move(blocks), counts_of(sources), factor, std::move(options));
}

Communicator::WorkPtr Communicator::gather(Block source, std::span<const Block> targets,
                                           DataType dtype, int32_t root, CallOptions options) {
  check_root(root, "gather");
  const Signature signature{.collective = Collective::Gather,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = root,
                            .count = 0};
  std::vector<BlockMemory> blocks(static_cast<size_t>(world_size()));
  if (rank_ == root) {
    check_blocks(targets, world_size(), "gather", "outputs");
    for (size_t r = 0; r < blocks.size(); ++r)
      blocks[r] = {nullptr, targets[r].data, targets[r].count};
    if (targets[static_cast<size_t>(rank_)].count != source.count) {
      throw std::invalid_argument("gather: the input and output " + std::to_string(rank_) +
                                  " differ in size");
    }
  }
  blocks[static_cast<size_t>(rank_)].input = source.data;
  blocks[static_cast<size_t>(rank_)].count = source.count;
  return start(signature, std::move(blocks), {}, 1, std::move(options));
}

Communicator::WorkPtr Communicator::scatter(std::span<const Block> sources, Block target,
                                            DataType dtype, int32_t root, CallOptions options) {
  check_root(root, "scatter");
  const Signature signature{.collective = Collective::Scatter,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = root,
                            .count = 0};
  std::vector<BlockMemory> blocks(static_cast<size_t>(world_size()));
  if (rank_ == root) {
    check_blocks(sources, world_size(), "scatter", "inputs");
    for (size_t r = 0; r < blocks.size(); ++r)
      blocks[r] = {sources[r].data, nullptr, sources[r].count};
    if (sources[static_cast<size_t>(rank_)].count != target.count) {
      throw std::invalid_argument("scatter: input " + std::to_string(rank_) +
                                  " and the output differ in size");
    }
  }
  blocks[static_cast<size_t>(rank_)].output = target.data;
  blocks[static_cast<size_t>(rank_)].count = target.count;
  return start(signature, std::move(blocks), {}, 1, std::move(options));
}

Communicator::WorkPtr Communicator::all_to_all(std::span<const Block> sources,
                                               std::span<const Block> targets, DataType dtype,
                                               CallOptions options) {
  check_blocks(sources, world_size(), "all_to_all", "inputs");
  check_blocks(targets, world_size(), "all_to_all", "outputs");
  const auto own = static_cast<size_t>(rank_);
  if (sources[own].count != targets[own].count) {
    throw std::invalid_argument("all_to_all: rank " + std::to_string(rank_) + " sends itself " +
                                std::to_string(sources[own].count) + " elements and expects " +
                                std::to_string(targets[own].count));
  }
  const Signature signature{.collective = Collective::AllToAll,
                            .dtype = dtype,
                            .op = ReduceOp::Sum,
                            .root = -1,
                            .count = 0};
  const auto n = static_cast<size_t>(world_size());
  std::vector<BlockMemory> blocks(n * n);
  for (size_t r = 0; r < n; ++r) {
    blocks[own * n + r] = {sources[r].data, nullptr, sources[r].count};
    blocks[r * n + own] = {nullptr, targets[r].data, targets[r].count};
  }
  blocks[own * n + own] = {sources[own].data, targets[own].data, sources[own].count};
  return start(signature, std::move(blocks), {}, 1, std::move(options));
}

Communicator::WorkPtr Communicator::barrier(CallOptions options) {
  const Signature signature{.collective = Collective::Barrier,
                            .dtype = DataType::UInt8,
                            .op = ReduceOp::Sum,
                            .root = -1,
                            .count = 1};
  return start(signature, {{}}, {}, 1, std::move(options));
}

Communicator::WorkPtr Communicator::send(const std::byte* tensor, uint64_t count, DataType dtype,
                                         int32_t destination, uint32_t tag, CallOptions options) {
  check_root(destination, "send");
  if (destination == rank_) throw std::invalid_argument("send: a rank can't send to itself");
  WorkPtr work = make_work("send", options);
  const MessageMemory memory{const_cast<std::byte*>(tensor), count, dtype, kMessageSegmentBytes};
  submit([=](Group& group) { group.start_send(destination, tag, memory, work); }, work,
         options.is_urgent);
  return work;
}

Communicator::WorkPtr Communicator::recv(std::byte* tensor, uint64_t count, DataType dtype,
                                         int32_t source, uint32_t tag, CallOptions options) {
  if (source != -1) check_root(source, "recv");
  if (source == rank_) throw std::invalid_argument("recv: a rank can't receive from itself");
  WorkPtr work = make_work("recv", options);
  const MessageMemory memory{tensor, count, dtype, kMessageSegmentBytes};
  submit([=](Group& group) { group.start_receive(source, tag, memory, work); }, work,
         options.is_urgent);
  return work;
}

void Communicator::monitored_barrier(double timeout, bool wait_all_ranks,
                                     const std::function<void()>& meanwhile) {
  const uint32_t tag = kBarrierTag | (monitored_barriers_.fetch_add(1) & ~kBarrierTag);
  const auto shared = std::make_shared<std::byte>();
  const double seconds = timeout > 0 ? timeout : timeout_seconds;
  const CallOptions options{.timeout_seconds = seconds, .is_urgent = true, .keep = shared};
  const std::string limit = std::to_string(static_cast<int64_t>(seconds * 1000)) + " ms";
  const TimePoint deadline =
      after(Clock::now(), seconds + 5);  // the works' own deadlines come first
  const auto wait = [&deadline, &meanwhile](const WorkPtr& work) {
    while (!work->wait(std::min(deadline, after(Clock::now(), 0.2)))) {
      if (Clock::now() >= deadline) return false;
      if (meanwhile) meanwhile();
    }
    return !work->error();
  };
  if (rank_ != 0) {
    const WorkPtr sent = send(shared.get(), 1, DataType::UInt8, 0, tag, options);
    const WorkPtr answer = recv(shared.get(), 1, DataType::UInt8, 0, tag, options);
    if (wait(sent) && wait(answer)) return;
    const WorkPtr& failed = sent->is_completed() && !sent->error() ? answer : sent;
    throw CollectiveTimeout("[Rank " + std::to_string(rank_) +
                            "]: Rank 0 failed to pass monitoredBarrier in " + limit + " (" +
                            (failed->is_completed() ? failed->error().message : "no answer") + ")");
  }
  std::vector<WorkPtr> arrivals(static_cast<size_t>(world_size()));
  for (int32_t r = 1; r < world_size(); ++r) {
    arrivals[static_cast<size_t>(r)] = recv(shared.get(), 1, DataType::UInt8, r, tag, options);
  }
  std::string missing;
  int missing_count = 0;
  for (int32_t r = 1; r < world_size(); ++r) {
    if (wait(arrivals[static_cast<size_t>(r)])) continue;
    missing += (missing_count++ > 0 ? ", " : "") + std::to_string(r);
    if (!wait_all_ranks) break;
  }
  if (missing_count > 0) {
    throw CollectiveTimeout("[Rank 0]: " + std::string(wait_all_ranks ? "Ranks " : "Rank ") +
                            missing + " failed to pass monitoredBarrier in " + limit);
  }
  for (int32_t r = 1; r < world_size(); ++r) {
    arrivals[static_cast<size_t>(r)] = send(shared.get(), 1, DataType::UInt8, r, tag, options);
  }
  for (int32_t r = 1; r < world_size(); ++r) {
    const WorkPtr& work = arrivals[static_cast<size_t>(r)];
    if (!wait(work))
      throw_error(work->is_completed() ? work->error()
                                       : Error{ErrorKind::Timeout, "monitored_barrier"});
  }
}

}  // namespace pccl
