#include "communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

#include "topology/planners.h"

namespace pccl {

using transport::Collective;
using transport::MemberAddress;
using transport::Signature;

namespace {

// How long close() waits for peers to take what is queued for them.
constexpr double kGoodbyeSeconds = 3;
// Segments: through memory both copies of one stay in a core's cache; over TCP fewer system calls
// count for more.
constexpr uint32_t kMemorySegmentBytes = 256 << 10;
constexpr uint32_t kTcpSegmentBytes = 512 << 10;
// Tags of monitored barriers; callers' tags are below.
constexpr uint32_t kBarrierTag = 0x80000000;

uint64_t hash_name(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

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

// Only the two ends of each block know its length.
topology::Schedule with_whole_blocks(topology::Schedule schedule) {
  for (topology::Chunk& chunk : schedule.chunks) {
    chunk.offset = 0;
    chunk.count = topology::Chunk::kWholeBlock;
  }
  return schedule;
}

}  // namespace

// --- Context -------------------------------------------------------------------------------------

Context::Context(transport::EndpointOptions options) : endpoint_(std::move(options), router_) {
  endpoint_.start();
}

Context::~Context() { close(); }

void Context::run(const std::function<void()>& task) {
  {
    std::lock_guard lock(close_mutex_);
    if (is_closed_) throw Aborted("context: it is closed");
  }
  std::atomic<bool> done{false};
  endpoint_.engine().submit(
      [this, &task, &done] {
        task();
        done.store(true);
        endpoint_.engine().notify_waiters();
      },
      false);
  // The task refers to this frame; Engine::stop() runs what is left, so it ends.
  while (!done.load()) endpoint_.engine().wait(done, after(Clock::now(), 1));
}

void Context::close() {
  {
    std::lock_guard lock(close_mutex_);
    if (is_closed_) return;
    is_closed_ = true;
  }
  endpoint_.engine().submit(
      [this] {
        for (Group* group : router_.groups()) {
          router_.remove(group->id, {ErrorKind::Aborted, "the context was closed while this ran."});
        }
      },
      false);
  endpoint_.close(after(Clock::now(), kGoodbyeSeconds));
  completions_->close();
}

// --- Communicator --------------------------------------------------------------------------------

Communicator::Communicator(std::shared_ptr<Context> context, std::string name, int32_t rank,
                           const std::vector<std::vector<std::byte>>& addresses, double timeout,
                           std::string algorithm)
    : timeout_seconds(timeout),
      context_(std::move(context)),
      name_(std::move(name)),
      algorithm_(std::move(algorithm)),
      rank_(rank) {
  const auto world_size = static_cast<int32_t>(addresses.size());
  if (rank < 0 || rank >= world_size) {
    throw std::invalid_argument("communicator: rank " + std::to_string(rank) + " is not in 0.." +
                                std::to_string(world_size - 1));
  }
  const MemberAddress& own = context_->endpoint_.address();
  std::vector<MemberAddress> members;
  std::vector<std::vector<transport::SocketAddress>> resolved;
  std::vector<int32_t> hosts;
  std::map<std::string, int32_t> host_numbers;
  std::set<transport::MemberId> seen;
  for (int32_t r = 0; r < world_size; ++r) {
    auto address = MemberAddress::decode(addresses[static_cast<size_t>(r)]);
    const std::string who = "communicator '" + name_ + "': rank " + std::to_string(r);
    if (!address)
      throw ConnectError(who +
                         " published no address of this version: install the same pccl everywhere");
    if (address->run != own.run)
      throw ConnectError(who + " is in run '" + address->run + "', this is '" + own.run + "'");
    if (!seen.insert(address->member_id).second)
      throw std::invalid_argument(who + " is another rank, too");
    const bool has_memory = !address->memory_name.empty();
    const std::string host = has_memory ? address->host_key : "alone:" + std::to_string(r);
    hosts.push_back(
        host_numbers.emplace(host, static_cast<int32_t>(host_numbers.size())).first->second);
    resolved.push_back(r == rank ? std::vector<transport::SocketAddress>{}
                                 : transport::resolve(*address));
    members.push_back(std::move(*address));
  }
  if (members[static_cast<size_t>(rank)].member_id != own.member_id) {
    throw std::invalid_argument("communicator '" + name_ + "': the address at rank " +
                                std::to_string(rank) + " is not this member's own");
  }
  links_ = topology::host_links(hosts);
  segment_bytes_ =
      host_numbers.size() == 1 && !own.memory_name.empty() ? kMemorySegmentBytes : kTcpSegmentBytes;
  id_ = hash_name(own.run + "/" + name_);
  // An unknown algorithm is refused now, not by the first call.
  topology::choose_all_reduce(links_, 1, 1, algorithm_);
  bool added = false;
  context_->run([&] {
    std::vector<transport::Connection*> connections;
    for (size_t r = 0; r < members.size(); ++r) {
      const bool is_self = static_cast<int32_t>(r) == rank_;
      connections.push_back(is_self ? nullptr
                                    : &context_->endpoint_.connection(members[r], resolved[r]));
    }
    added = context_->router_.add(
        std::make_unique<Group>(context_->endpoint_, name_, id_, rank_, std::move(connections)));
  });
  if (!added)
    throw std::invalid_argument("communicator: the name '" + name_ +
                                "' was used before in this context");
}

Communicator::~Communicator() { close(); }

void Communicator::close() {
  {
    std::lock_guard lock(mutex_);
    if (is_closed_) return;
    is_closed_ = true;
  }
  try {
    context_->run([this] {
      context_->router_.remove(id_, {ErrorKind::Aborted, "the group was closed while this ran."});
    });
  } catch (const Aborted&) {
    // The context is closed, and with it every group.
  }
}

void Communicator::abort(const std::string& reason) {
  context_->run([&] {
    Group* group = context_->router_.find(id_);
    if (group != nullptr)
      group->fail(
          {ErrorKind::Aborted, "rank " + std::to_string(rank_) + " aborted: " + reason + "."});
  });
}

std::string Communicator::error() {
  std::string text;
  try {
    context_->run([&] {
      Group* group = context_->router_.find(id_);
      text = group == nullptr ? "the group is closed" : group->broken().message;
    });
  } catch (const Aborted& closed) {
    text = closed.what();
  }
  return text;
}

// --- planning ------------------------------------------------------------------------------------

topology::Schedule Communicator::schedule(const Signature& signature,
                                          std::span<const uint64_t> counts) const {
  const uint64_t bytes = element_bytes(signature.dtype);
  const int32_t n = links_.world_size;
  const std::vector<uint64_t> ones(static_cast<size_t>(n), 1);
  // An algorithm chosen by name is meant for all_reduce; others take it where they have one of that
  // name.
  const auto named = [this](std::initializer_list<std::string_view> known) {
    return std::find(known.begin(), known.end(), algorithm_) != known.end()
               ? std::string_view(algorithm_)
               : "auto";
  };
  switch (signature.collective) {
    case Collective::AllReduce:
      return topology::choose_all_reduce(links_, signature.count, bytes, algorithm_);
    case Collective::Barrier:
      return topology::plan_all_reduce_doubling(n, 1);
    case Collective::Broadcast:
      return topology::choose_broadcast(links_, signature.root, signature.count, bytes,
                                        named({"binomial", "double_binary_tree"}));
    case Collective::Reduce:
      return topology::choose_reduce(links_, signature.root, signature.count, bytes,
                                     named({"binomial", "double_binary_tree"}));
    case Collective::AllGather:
      return topology::choose_all_gather(links_, counts, bytes, named({"ring", "direct"}));
    case Collective::ReduceScatter:
      return topology::choose_reduce_scatter(links_, counts, bytes, named({"ring", "direct"}));
    case Collective::Gather:
      return with_whole_blocks(topology::plan_gather_direct(signature.root, ones));
    case Collective::Scatter:
      return with_whole_blocks(topology::plan_scatter_direct(signature.root, ones));
    case Collective::AllToAll:
      return topology::plan_all_to_all_pairwise(n);
    case Collective::None:
    case Collective::SendRecv:
      break;
  }
  throw std::invalid_argument("no schedule for this collective");
}

Communicator::Planned Communicator::planned(const Signature& signature,
                                            std::span<const uint64_t> counts) {
  std::string key(reinterpret_cast<const char*>(&signature.count), sizeof(signature.count));
  key += static_cast<char>(signature.collective);
  key += static_cast<char>(element_bytes(signature.dtype));
  key.append(reinterpret_cast<const char*>(&signature.root), sizeof(signature.root));
  key.append(reinterpret_cast<const char*>(counts.data()), counts.size_bytes());
  std::lock_guard lock(mutex_);
  const auto found = plans_.find(key);
  if (found != plans_.end()) return found->second;
  if (plans_.size() >= kPlansMax) plans_.clear();
  const topology::Schedule made = schedule(signature, counts);
  Planned result{std::make_shared<const RankPlan>(compile(made, rank_)), made.algorithm};
  plans_[key] = result;
  return result;
}

std::string Communicator::plan(Collective collective, uint64_t count, DataType dtype) {
  Signature signature{
      .collective = collective, .dtype = dtype, .op = ReduceOp::Sum, .root = -1, .count = count};
  const bool is_rooted = collective == Collective::Broadcast || collective == Collective::Reduce ||
                         collective == Collective::Gather || collective == Collective::Scatter;
  if (is_rooted) signature.root = 0;
  const std::vector<uint64_t> counts(static_cast<size_t>(world_size()), count);
  return planned(signature, counts).algorithm;
}

// --- calls ---------------------------------------------------------------------------------------

Communicator::WorkPtr Communicator::make_work(const char* operation, CallOptions& options) {
  const double seconds = options.timeout_seconds > 0 ? options.timeout_seconds : timeout_seconds;
  return std::make_shared<Work>(context_->endpoint_.engine(), context_->completions_, operation,
                                after(Clock::now(), seconds), std::move(options.keep));
}

void Communicator::submit(std::function<void(Group&)> task, const WorkPtr& work, bool is_urgent) {
  {
    std::lock_guard lock(context_->close_mutex_);
    if (context_->is_closed_) throw Aborted(work->operation + ": the context is closed");
  }
  Router& router = context_->router_;
  context_->endpoint_.engine().submit(
      [&router, id = id_, work, task = std::move(task)] {
        router.sweep();
        Group* group = router.find(id);
        if (group == nullptr) {
          work->complete({ErrorKind::Aborted, work->operation + ": the group is closed."});
          return;
        }
        task(*group);
      },
      is_urgent);
}

Communicator::WorkPtr Communicator::start(Signature signature, std::vector<BlockMemory> blocks,
                                          std::span<const uint64_t> counts, double factor,
                                          CallOptions options) {
  CollectiveCall call;
  call.signature = signature;
  call.plan = planned(signature, counts).plan;
  call.blocks = std::move(blocks);
  call.factor = factor;
  call.divisor = signature.op == ReduceOp::Avg ? world_size() : 1;
  call.segment_bytes = segment_bytes_;
  // Segments hold whole elements; the largest has 16 bytes, and both sizes are multiples of it.
  const WorkPtr work = make_work(transport::collective_name(signature.collective), options);
  if (signature.collective == Collective::Barrier) {
    call.scratch.resize(1);
    call.blocks[0] = {call.scratch.data(), call.scratch.data(), 1};
  }
  submit([shared = std::make_shared<CollectiveCall>(std::move(call)),
          work](Group& group) { group.start_collective(std::move(*shared), work); },
         work, options.is_urgent);
  return work;
}

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
  const WorkPtr work = make_work("send", options);
  const MessageMemory memory{const_cast<std::byte*>(tensor), count, dtype, segment_bytes_};
  submit([=](Group& group) { group.start_send(destination, tag, memory, work); }, work,
         options.is_urgent);
  return work;
}

Communicator::WorkPtr Communicator::recv(std::byte* tensor, uint64_t count, DataType dtype,
                                         int32_t source, uint32_t tag, CallOptions options) {
  if (source != -1) check_root(source, "recv");
  if (source == rank_) throw std::invalid_argument("recv: a rank can't receive from itself");
  const WorkPtr work = make_work("recv", options);
  const MessageMemory memory{tensor, count, dtype, segment_bytes_};
  submit([=](Group& group) { group.start_receive(source, tag, memory, work); }, work,
         options.is_urgent);
  return work;
}

void Communicator::monitored_barrier(double timeout, bool wait_all_ranks) {
  const uint32_t tag = kBarrierTag | (monitored_barriers_.fetch_add(1) & ~kBarrierTag);
  const auto shared = std::make_shared<std::byte>();
  const double seconds = timeout > 0 ? timeout : timeout_seconds;
  const CallOptions options{.timeout_seconds = seconds, .is_urgent = true, .keep = shared};
  const std::string limit = std::to_string(static_cast<int64_t>(seconds * 1000)) + " ms";
  const TimePoint deadline =
      after(Clock::now(), seconds + 5);  // the works' own deadlines come first
  const auto wait = [&deadline](const WorkPtr& work) {
    return work->wait(deadline) && !work->error();
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
