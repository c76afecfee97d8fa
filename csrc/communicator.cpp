#include "communicator.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <utility>

namespace pccl {

using transport::Collective;
using transport::MemberAddress;
using transport::Signature;

namespace {

// How long close() waits for peers to take what is queued for them.
constexpr double kGoodbyeSeconds = 3;
// Tags of monitored barriers; callers' tags are below.
constexpr uint32_t kBarrierTag = 0x80000000;

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
                           const std::vector<std::vector<std::byte>>& addresses,
                           const CommunicatorOptions& options)
    : timeout_seconds(options.timeout_seconds),
      context_(std::move(context)),
      name_(std::move(name)),
      rank_(rank) {
  const auto world_size = static_cast<int32_t>(addresses.size());
  if (rank < 0 || rank >= world_size) {
    throw std::invalid_argument("communicator: rank " + std::to_string(rank) + " is not in 0.." +
                                std::to_string(world_size - 1));
  }
  const MemberAddress& own = context_->endpoint_.address();
  std::vector<MemberAddress> members;
  std::vector<std::vector<transport::SocketAddress>> resolved;
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
    const bool is_dialed = r != rank && address->accepts_calls();
    resolved.push_back(!is_dialed ? std::vector<transport::SocketAddress>{}
                                  : transport::resolve(*address));
    members.push_back(std::move(*address));
  }
  if (members[static_cast<size_t>(rank)].member_id != own.member_id) {
    throw std::invalid_argument("communicator '" + name_ + "': the address at rank " +
                                std::to_string(rank) + " is not this member's own");
  }
  const auto connections = std::make_shared<std::vector<transport::Connection*>>();
  planner_ =
      std::make_shared<CollectivePlanner>(PlannerOptions{host_numbers(members),
                                                         is_one_machine(members),
                                                         rank,
                                                         options.algorithm,
                                                         options.deterministic,
                                                         options.graph,
                                                         {},
                                                         options.probes},
                                          [connections] { return traffic_of(*connections); });
  segment_bytes_ = planner_->segment_bytes(!own.memory_name.empty());
  id_ = group_id(own.run, name_);
  bool added = false;
  context_->run([&] {
    for (size_t r = 0; r < members.size(); ++r) {
      const auto peer = static_cast<int32_t>(r);
      const bool has_edge = peer != rank_ && planner_->links().connects(rank_, peer);
      connections->push_back(has_edge ? &context_->endpoint_.connection(members[r], resolved[r])
                                      : nullptr);
      // The others wait for its call.
      if (has_edge && !own.accepts_calls()) context_->endpoint_.dial(*connections->back());
    }
    auto group = std::make_unique<Group>(context_->endpoint_, name_, id_, rank_, *connections);
    group->plan_by(planner_);
    added = context_->router_.add(std::move(group));
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

std::string Communicator::plan(Collective collective, uint64_t count, DataType dtype) {
  Signature signature{
      .collective = collective, .dtype = dtype, .op = ReduceOp::Sum, .root = -1, .count = count};
  const bool is_rooted = collective == Collective::Broadcast || collective == Collective::Reduce ||
                         collective == Collective::Gather || collective == Collective::Scatter;
  if (is_rooted) signature.root = 0;
  const std::vector<uint64_t> counts(static_cast<size_t>(world_size()), count);
  return planner_->algorithm(signature, counts);
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

Communicator::WorkPtr Communicator::start(const Place& /*place*/, Signature signature,
                                          std::vector<BlockMemory> blocks,
                                          std::span<const uint64_t> counts, double factor,
                                          CallOptions options) {
  planner_->require_links(signature);
  CollectiveCall call;
  call.signature = signature;
  call.blocks = std::move(blocks);
  call.factor = factor;
  call.divisor = signature.op == ReduceOp::Avg ? world_size() : 1;
  call.is_encoded = options.is_encoded;
  call.segment_bytes = segment_bytes_;
  // Segments hold whole elements; the largest has 16 bytes, and both sizes are multiples of it.
  WorkPtr work = make_work(transport::collective_name(signature.collective), options);
  if (signature.collective == Collective::Barrier) {
    call.scratch.resize(1);
    call.blocks[0] = {call.scratch.data(), call.scratch.data(), 1};
  }
  std::vector<uint64_t> planned_counts;
  if (planner_->adapts()) {
    planned_counts.assign(counts.begin(), counts.end());
  } else {
    planner_->prepare(call, counts);
  }
  submit([shared = std::make_shared<CollectiveCall>(std::move(call)),
          planned_counts = std::move(planned_counts),
          work](Group& group) { group.start_collective(std::move(*shared), work, planned_counts); },
         work, options.is_urgent);
  return work;
}

Communicator::WorkPtr Communicator::start_message(const Place& /*place*/, const MessageCall& call,
                                                  CallOptions options) {
  planner_->require_link(call.peer);
  WorkPtr work = make_work(call.is_send ? "send" : "recv", options);
  submit(
      [=](Group& group) {
        call.is_send ? group.start_send(call.peer, call.tag, call.memory, work)
                     : group.start_receive(call.peer, call.tag, call.memory, work);
      },
      work, options.is_urgent);
  return work;
}

void Communicator::monitored_barrier(double timeout, bool wait_all_ranks,
                                     const std::function<void()>& meanwhile) {
  planner_->require_links({.collective = Collective::Gather, .root = 0});
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
