#include "run.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "collective_planner.h"
#include "kernels/finite.h"
#include "run_driver.h"

namespace pccl {

using transport::Collective;
using transport::Signature;

namespace {

// How long leave() waits for others to take what is queued for them.
constexpr double kGoodbyeSeconds = 3;
// And before that for the word that they have every result which is complete here.
constexpr double kHandOverSeconds = 10;
// Waits are cut into pieces of this length, so that nothing depends on a single wake-up.
constexpr double kLookSeconds = 0.05;
// Callers' tags end below it.
constexpr uint32_t kStateTag = 0x80000000;

}  // namespace

Run::Run(const RunOptions& options)
    : timeout_seconds(options.timeout_seconds),
      driver_(std::make_unique<Driver>(*this, options)),
      endpoint_(options.endpoint, *driver_) {
  driver_->resolve();
  endpoint_.start();
  run_on_driver([this] { driver_->begin(); });
}

Run::~Run() { leave(); }

// --- waiting -------------------------------------------------------------------------------------

void Run::run_on_driver(const std::function<void()>& task) {
  std::atomic<bool> done{false};
  const bool is_accepted = endpoint_.engine().submit(
      [this, &task, &done] {
        task();
        done.store(true);
        endpoint_.engine().notify_waiters();
      },
      false);
  if (!is_accepted) throw Aborted("run: this member has left it");
  // The task refers to this frame; Engine::stop() runs what is left, so it ends.
  while (!done.load()) endpoint_.engine().wait(done, after(Clock::now(), 1));
}

Run::Seen Run::seen() const {
  std::lock_guard lock(mutex_);
  return seen_;
}

std::shared_ptr<PlanSource> Run::plans_of(const Place& place) const {
  std::lock_guard lock(mutex_);
  return place.quorum_id == seen_.place.quorum_id ? seen_.plans : nullptr;
}

bool Run::wait_for(const std::function<bool(const Seen&)>& is_there, TimePoint until) {
  while (true) {
    has_changed_.store(false);
    const Seen now = seen();
    if (now.ended) throw_error(now.ended);
    if (is_there(now)) return true;
    if (Clock::now() >= until) return false;
    endpoint_.engine().wait(has_changed_, std::min(until, after(Clock::now(), kLookSeconds)));
  }
}

bool Run::wait_until_joined(TimePoint until) {
  return wait_for([](const Seen& now) { return now.is_joined; }, until);
}

bool Run::wait_for_members(int32_t count, TimePoint until) {
  return wait_for([count](const Seen& now) { return now.place.world_size >= count; }, until);
}

bool Run::wait_for_change(uint64_t quorum_id, TimePoint until) {
  return wait_for([quorum_id](const Seen& now) { return now.place.quorum_id != quorum_id; }, until);
}

// --- newcomers and the shared state ---

void Run::gate_newcomers() {
  run_on_driver([this] { driver_->gate_newcomers(); });
}

void Run::admit(uint64_t quorum_id) {
  run_on_driver([this, quorum_id] { driver_->admit(quorum_id); });
}

void Run::set_revision(uint64_t revision, const membership::Digest& digest) {
  run_on_driver([this, revision, &digest] { driver_->set_revision(revision, digest); });
}

// --- telling -------------------------------------------------------------------------------------

std::string Run::trouble() const { return seen().trouble; }
CollectiveCalls::Place Run::here() const {
  std::lock_guard lock(mutex_);
  return seen_.pinned.value_or(seen_.place);
}
CollectiveCalls::Place Run::pin() {
  std::lock_guard lock(mutex_);
  seen_.pinned = seen_.place;
  return seen_.place;
}
void Run::unpin() {
  std::lock_guard lock(mutex_);
  seen_.pinned.reset();
}
std::pair<uint64_t, uint64_t> Run::recoveries() const { return driver_->recoveries(); }
std::vector<RunMember> Run::members() const { return seen().members; }
double Run::round_trip_seconds() const { return seen().round_trip_seconds; }
std::string Run::error() const { return seen().ended.message; }

std::string Run::plan(Collective collective, uint64_t count, DataType dtype) {
  const Seen now = seen();
  const auto planner = std::dynamic_pointer_cast<CollectivePlanner>(now.plans);
  if (!planner) throw Aborted("run: this member is not in any quorum");
  Signature signature{
      .collective = collective, .dtype = dtype, .op = ReduceOp::Sum, .root = -1, .count = count};
  const bool is_rooted = collective == Collective::Broadcast || collective == Collective::Reduce ||
                         collective == Collective::Gather || collective == Collective::Scatter;
  if (is_rooted) signature.root = 0;
  const std::vector<uint64_t> counts(static_cast<size_t>(now.place.world_size), count);
  return planner->algorithm(signature, counts);
}

topology::LinkTable Run::links() {
  topology::LinkTable table;
  const auto planner = std::dynamic_pointer_cast<CollectivePlanner>(seen().plans);
  if (!planner || planner->exchange() == nullptr) return table;
  run_on_driver([&] { table = planner->exchange()->known(); });
  return table;
}

// --- calls ---------------------------------------------------------------------------------------

Run::WorkPtr Run::make_work(const char* name, CallOptions& options) {
  const double seconds = options.timeout_seconds > 0 ? options.timeout_seconds : timeout_seconds;
  return std::make_shared<Work>(endpoint_.engine(), completions_, name,
                                after(Clock::now(), seconds), std::move(options.keep));
}

void Run::submit(std::function<void(recovery::OperationLog&)> task, const WorkPtr& work,
                 bool is_urgent) {
  {
    std::lock_guard lock(mutex_);
    if (!seen_.is_joined && !seen_.ended)
      throw Aborted(work->operation + ": this member is not in the run yet");
  }
  const bool is_accepted = endpoint_.engine().submit(
      [this, task = std::move(task)] { driver_->with_log(task); }, is_urgent);
  if (!is_accepted) throw Aborted(work->operation + ": this member has left the run");
}

Run::WorkPtr Run::start(const Place& place, Signature signature, std::vector<BlockMemory> blocks,
                        std::span<const uint64_t> block_counts, double factor,
                        CallOptions options) {
  // What is final is told apart, and sent again, by elements.
  if (options.is_encoded)
    throw std::invalid_argument("all_reduce: an elastic run takes no encoded contributions");
  if (const auto plans = plans_of(place)) plans->require_links(signature);
  auto call = std::make_shared<recovery::RunCall>();
  call->signature = signature;
  call->blocks = std::move(blocks);
  call->block_counts.assign(block_counts.begin(), block_counts.end());
  call->factor = factor;
  call->quorum_id = place.quorum_id;
  call->is_uniform = options.is_uniform;
  // A contribution that does not count may hold anything.
  const bool counts = signature.op != ReduceOp::WeightedAvg || factor != 0;
  // A codec has no word for infinity.
  const bool is_checked = options.checks_finite || signature.codec != Codec{};
  if (is_checked && counts) {
    const BlockMemory& block = call->blocks[0];
    call->nonfinite = kernels::find_nonfinite(block.input, block.count, signature.dtype);
  }
  const bool is_urgent = options.is_urgent;
  WorkPtr work = make_work(transport::collective_name(signature.collective), options);
  submit([call, work](recovery::OperationLog& log) { log.start(std::move(*call), work); }, work,
         is_urgent);
  return work;
}

Run::WorkPtr Run::start_message(const Place& place, const MessageCall& call, CallOptions options) {
  if (const auto plans = plans_of(place)) plans->require_link(call.peer);
  const bool is_urgent = options.is_urgent;
  WorkPtr work = make_work(call.is_send ? "send" : "recv", options);
  submit(
      [call, work, id = place.quorum_id](recovery::OperationLog& log) {
        call.is_send ? log.start_send(id, call.peer, call.tag, call.memory, work)
                     : log.start_receive(id, call.peer, call.tag, call.memory, work);
      },
      work, is_urgent);
  return work;
}

Run::WorkPtr Run::send_state(uint64_t quorum_id, int32_t destination, uint32_t tag, Block message,
                             CallOptions options) {
  const MessageMemory memory{message.data, message.count, DataType::UInt8, kMessageSegmentBytes};
  return start_message({.quorum_id = quorum_id}, {true, destination, tag | kStateTag, memory},
                       std::move(options));
}

Run::WorkPtr Run::receive_state(uint64_t quorum_id, int32_t source, uint32_t tag, Block message,
                                CallOptions options) {
  const MessageMemory memory{message.data, message.count, DataType::UInt8, kMessageSegmentBytes};
  return start_message({.quorum_id = quorum_id}, {false, source, tag | kStateTag, memory},
                       std::move(options));
}

// --- the end -------------------------------------------------------------------------------------

void Run::abort(const std::string& reason) {
  run_on_driver([this, &reason] {
    driver_->with_log([&reason](recovery::OperationLog& log) {
      log.fail({ErrorKind::Aborted, "a member aborted the run: " + reason + "."});
    });
  });
}

void Run::hand_over(TimePoint until) {
  std::atomic<bool> is_done{false};
  while (Clock::now() < until) {
    bool owes = false;
    run_on_driver([this, &owes] { owes = driver_->owes_results(); });
    if (!owes) return;
    endpoint_.engine().wait(is_done, std::min(until, after(Clock::now(), kLookSeconds)));
  }
}

void Run::leave() {
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(is_closed_, true)) return;
    if (!seen_.ended) seen_.ended = {ErrorKind::Aborted, "this member has left the run."};
  }
  hand_over(after(Clock::now(), kHandOverSeconds));
  endpoint_.engine().submit([this] { driver_->leave(); }, false);
  endpoint_.close(after(Clock::now(), kGoodbyeSeconds));
  completions_->close();
}

}  // namespace pccl
