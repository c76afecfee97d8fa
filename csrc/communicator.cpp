#include "communicator.h"

#include <algorithm>
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
// Segments: through memory both copies of one stay in a core's first caches; over TCP fewer system
// calls count for more.
constexpr uint32_t kMemorySegmentBytes = 32 << 10;
constexpr uint32_t kTcpSegmentBytes = 512 << 10;

uint64_t hash_name(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
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
  const bool is_accepted = endpoint_.engine().submit(
      [this, &task, &done] {
        task();
        done.store(true);
        endpoint_.engine().notify_waiters();
      },
      false);
  if (!is_accepted) throw Aborted("context: it is closed");
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
        router_.close({ErrorKind::Aborted, "the context was closed while this ran."});
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

Communicator::WorkPtr Communicator::make_work(const char* name, CallOptions& options) {
  const double seconds = options.timeout_seconds > 0 ? options.timeout_seconds : timeout_seconds;
  return std::make_shared<Work>(context_->endpoint_.engine(), context_->completions_, name,
                                after(Clock::now(), seconds), std::move(options.keep));
}

void Communicator::submit(std::function<void(Group&)> task, const WorkPtr& work, bool is_urgent) {
  {
    std::lock_guard lock(context_->close_mutex_);
    if (context_->is_closed_) throw Aborted(work->operation + ": the context is closed");
  }
  Router& router = context_->router_;
  const bool is_accepted = context_->endpoint_.engine().submit(
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
  if (!is_accepted) throw Aborted(work->operation + ": the context is closed");
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
  WorkPtr work = make_work(transport::collective_name(signature.collective), options);
  if (signature.collective == Collective::Barrier) {
    call.scratch.resize(1);
    call.blocks[0] = {call.scratch.data(), call.scratch.data(), 1};
  }
  submit([shared = std::make_shared<CollectiveCall>(std::move(call)),
          work](Group& group) { group.start_collective(std::move(*shared), work); },
         work, options.is_urgent);
  return work;
}

}  // namespace pccl
