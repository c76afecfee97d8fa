#include "recovery/operation_log.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace pccl::recovery {

using transport::Collective;
using transport::FrameHeader;
using transport::FrameType;

namespace {

// Results up to this size are copied for others, so that their callers need not wait for anybody;
// above, waiting for one message costs less than the copy does, unless the others are far.
constexpr uint64_t kCopyBytesMax = 256 << 10;
constexpr uint64_t kKeptBytesMax = 4 << 20;
constexpr uint64_t kKeptBytesMaxFar = 64 << 20;
constexpr double kCopyBytesPerSecond = 2e9;  // with the memory's first touch
// Others let go of what they keep when they hear that it is here. One word for so many operations,
// or bytes, or after so long.
constexpr uint64_t kAnnounceOperations = 64;
constexpr uint64_t kAnnounceBytes = 1 << 20;
constexpr double kAnnounceSeconds = 0.05;
// Operations of which a flight record says what they wait for.
constexpr size_t kNotedMax = 8;

}  // namespace

OperationLog::OperationLog(transport::Endpoint& endpoint, Router& router, std::string run,
                           MemberId own, Host host)
    : endpoint_(endpoint),
      router_(router),
      run_(std::move(run)),
      own_(own),
      host_(std::move(host)) {}

// --- small questions -----------------------------------------------------------------------------

bool OperationLog::is_recoverable(const Record& record) {
  const Collective collective = record.call.signature.collective;
  return collective == Collective::AllReduce || collective == Collective::Barrier ||
         collective == Collective::Broadcast;
}

// Operations that end everywhere or nowhere count as one element.
uint64_t OperationLog::element_count(const Record& record) {
  return is_recoverable(record) ? record.call.signature.count : 1;
}

OperationLog::Layer& OperationLog::layer_of(uint64_t number) {
  for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) {
    if (layer->first <= number) return *layer;
  }
  return layers_.front();
}

std::vector<int32_t> OperationLog::participants(const RunQuorum& quorum, uint64_t number) {
  std::vector<int32_t> ranks;
  for (size_t rank = 0; rank < quorum.members.size(); ++rank) {
    if (quorum.joined_at[rank] <= number) ranks.push_back(static_cast<int32_t>(rank));
  }
  return ranks;
}

const RunQuorum* OperationLog::home_of(uint64_t number) const {
  for (auto past = history_.rbegin(); past != history_.rend(); ++past) {
    if (past->first <= number) return &past->quorum;
  }
  return nullptr;
}

const std::byte* OperationLog::input_of(const Record& record) const {
  if (!record.scratch.empty()) return record.scratch.data();
  return record.input.empty() ? record.call.blocks[0].input : record.input.data();
}

std::byte* OperationLog::result_of(Record& record) const {
  if (!record.scratch.empty()) return record.scratch.data();
  return record.copy.empty() ? record.call.blocks[0].output : record.copy.data();
}

uint64_t OperationLog::operations_us(TimePoint now) const {
  return settled_us_ + (unsettled_ == 0 ? 0 : microseconds(now - unsettled_since_));
}

OperationLog::Progress OperationLog::progress() const { return {launched_, completed_.below()}; }

// --- starting ------------------------------------------------------------------------------------

void OperationLog::start(RunCall call, std::shared_ptr<Work> work) {
  if (broken_) {
    std::string text =
        work->operation + ": the run was broken before this call: " + broken_.message;
    if (call.signature.collective == Collective::AllReduce) text += " The tensor holds its input.";
    work->complete({broken_.kind, std::move(text)});
    return;
  }
  const uint64_t number = next_number_++;
  Record& record = records_[number];
  record.number = number;
  record.deadline = work->deadline;
  record.call = std::move(call);
  record.work = std::move(work);
  if (unsettled_++ == 0) unsettled_since_ = Clock::now();
  if (record.call.signature.collective == Collective::Barrier) record.scratch.resize(1);
  endpoint_.engine().wake_at(record.deadline);
  if (!is_held_) launch_waiting();
}

void OperationLog::launch_waiting() {
  while (!is_held_ && !broken_ && launched_ < next_number_) {
    const auto found = records_.find(launched_);
    const Layer& layer = layer_of(launched_);
    const bool needs_plan =
        found != records_.end() && launched_ >= recover_end_ && !layer.is_frozen;
    if (needs_plan && !layer.quorum.plans->is_ready(found->second.call.signature)) {
      endpoint_.engine().wake_at(after(Clock::now(), kPlanSeconds));
      return;
    }
    launched_ += 1;
    // One whose deadline passed while the run was held has been failed, and with it the run.
    if (found != records_.end()) launch(found->second);
  }
}

void OperationLog::launch(Record& record) {
  if (record.call.is_uniform && record.call.blocks[0].input == record.call.blocks[0].output) {
    const BlockMemory& block = record.call.blocks[0];
    const size_t bytes = block.count * element_bytes(record.call.signature.dtype);
    record.input.assign(block.input, block.input + bytes);
  }
  // One that is refused counts for the plans of later ones: the others may have begun it.
  const auto skip = [this, &record] {
    if (record.number >= recover_end_)
      layer_of(record.number).quorum.plans->skip(record.call.signature);
  };
  const auto refused = refused_.find(record.number);
  if (refused != refused_.end()) {
    const Refusal refusal = refused->second;
    refused_.erase(refused);
    skip();
    end_refused(record.number, refusal);
    return;
  }
  if (record.call.nonfinite) {
    skip();
    refuse(record, {Refusal::Reason::NonFinite, *record.call.nonfinite, own_});
    return;
  }
  Layer& layer = layer_of(record.number);
  if (layer.is_frozen) {  // the quorum in force has recovered nothing: a later one will
    record.state = State::Collecting;
    return;
  }
  if (record.number < recover_end_) {
    begin_recovery(record);
    return;
  }
  if (is_stale(record, layer)) {
    skip();
    refuse(record, {Refusal::Reason::Stale, 0, own_});
    return;
  }
  record.state = State::Running;
  record.quorum_id = layer.quorum.quorum_id;
  layer.group->start_numbered(record.number, call_of(record, layer), record.work);
}

bool OperationLog::is_stale(const Record& record, const Layer& layer) const {
  const uint64_t meant = record.call.quorum_id;
  const Collective collective = record.call.signature.collective;
  if (meant == 0 || meant == layer.quorum.quorum_id || collective == Collective::AllReduce ||
      collective == Collective::Barrier)
    return false;
  if (collective != Collective::Broadcast) return true;
  // Newcomers come last, so a root mostly keeps its rank.
  const auto root = static_cast<size_t>(record.call.signature.root);
  for (const Past& past : history_) {
    if (past.quorum.quorum_id != meant) continue;
    return root >= past.quorum.members.size() || root >= layer.quorum.members.size() ||
           past.quorum.members[root] != layer.quorum.members[root];
  }
  return true;
}

CollectiveCall OperationLog::call_of(Record& record, const Layer& layer) {
  CollectiveCall call;
  call.signature = record.call.signature;
  call.blocks = record.call.blocks;
  if (!record.input.empty()) call.blocks[0].input = record.input.data();
  if (!record.scratch.empty())
    call.blocks = {{record.scratch.data(), record.scratch.data(), record.scratch.size()}};
  call.factor = record.call.factor;
  const auto members = static_cast<int64_t>(layer.quorum.members.size());
  call.divisor = record.call.signature.op == ReduceOp::Avg ? members : 1;
  call.segment_bytes = layer.quorum.segment_bytes;
  call.keeps_inputs = call.signature.collective == Collective::AllReduce;
  call.on_end = [this, number = record.number](CollectiveOperation& operation, const Error& error) {
    on_attempt_end(number, operation, error);
  };
  layer.quorum.plans->prepare(call, record.call.block_counts);
  return call;
}

void OperationLog::run_message(uint64_t quorum_id, const std::shared_ptr<Work>& work,
                               std::function<void(Group&)> start) {
  // A rank is somebody else in another quorum, or nobody.
  const auto start_there = [this, quorum_id, work, start = std::move(start)](const Layer& layer) {
    if (broken_) {
      work->complete({broken_.kind, work->operation + ": the run was broken before this call: " +
                                        broken_.message});
      return;
    }
    const uint64_t now = layer.quorum.quorum_id;
    if (quorum_id == now) return start(*layer.group);
    work->complete({ErrorKind::MemberLost, work->operation + ": its rank was meant in quorum " +
                                               std::to_string(quorum_id) + "; now quorum " +
                                               std::to_string(now) + " is in force."});
  };
  if (is_held_ && !broken_) {
    held_messages_.push_back(start_there);
  } else {
    start_there(layers_.back());
  }
}

void OperationLog::start_send(uint64_t quorum_id, int32_t destination, uint32_t tag,
                              MessageMemory memory, const std::shared_ptr<Work>& work) {
  run_message(quorum_id, work,
              [=](Group& group) { group.start_send(destination, tag, memory, work); });
}

void OperationLog::start_receive(uint64_t quorum_id, int32_t source, uint32_t tag,
                                 MessageMemory memory, const std::shared_ptr<Work>& work) {
  run_message(quorum_id, work,
              [=](Group& group) { group.start_receive(source, tag, memory, work); });
}

// --- ending --------------------------------------------------------------------------------------

void OperationLog::on_attempt_end(uint64_t number, CollectiveOperation& operation,
                                  const Error& error) {
  const auto found = records_.find(number);
  if (found == records_.end()) return;
  Record& record = found->second;
  for (const Layer& layer : layers_) {
    if (layer.quorum.quorum_id == record.quorum_id) take_finals(record, operation, layer);
  }
  if (!error) {
    complete(record);
    return;
  }
  settle(record, error);
  completed_.insert(number);
  records_.erase(found);
}

void OperationLog::complete(Record& record) {
  record.state = State::Complete;
  record.is_helping = false;
  const uint64_t number = record.number;
  if (number >= recover_from_ && number < recover_end_) {
    recovered_operations_ += 1;
    recovery_us_ += microseconds(Clock::now() - recovery_began_);
    endpoint_.recorder().note(FlightEvent::RecoveryEnded, {.number = number}, "complete here");
  }
  if (!is_recoverable(record)) record.finals.add({0, 1, record.quorum_id, 1});
  completed_.insert(number);
  if (record.work && can_keep_copy(record)) {
    const uint64_t bytes = element_count(record) * element_bytes(record.call.signature.dtype);
    if (record.scratch.empty() && bytes > 0) {
      if (!spare_copies_.empty()) {
        record.copy = std::move(spare_copies_.back());
        spare_copies_.pop_back();
      }
      record.copy.assign(record.call.blocks[0].output, record.call.blocks[0].output + bytes);
    }
    kept_bytes_ += record.copy.size();
    unannounced_bytes_ += record.copy.size();
    settle(record, {});
    const bool is_due = completed_.below() - announced_ >= kAnnounceOperations ||
                        unannounced_bytes_ >= kAnnounceBytes;
    if (is_due) {
      announce();
    } else if (announce_at_ == TimePoint::max()) {
      announce_at_ = after(Clock::now(), kAnnounceSeconds);
      endpoint_.engine().wake_at(announce_at_);
    }
  } else {
    announce();
  }
  release_known();
}

bool OperationLog::can_keep_copy(const Record& record) const {
  if (!is_recoverable(record)) return false;
  const uint64_t bytes = element_count(record) * element_bytes(record.call.signature.dtype);
  if (bytes <= kCopyBytesMax && kept_bytes_ + bytes <= kKeptBytesMax) return true;
  // The others' word takes half a round trip.
  double farthest = 0;
  for (const transport::Connection* connection : layers_.back().quorum.connections) {
    if (connection != nullptr) farthest = std::max(farthest, connection->round_trip_seconds);
  }
  return static_cast<double>(bytes) / kCopyBytesPerSecond < farthest / 2 &&
         kept_bytes_ + bytes <= kKeptBytesMaxFar;
}

// Quorums that nothing runs in any more. Not from inside their groups.
void OperationLog::remove_old_layers() {
  const uint64_t first = records_.empty() ? completed_.below() : records_.begin()->first;
  while (layers_.size() > 1 && layers_[1].first <= first) {
    router_.remove(layers_.front().group->id, {ErrorKind::Aborted, "the quorum has changed."});
    layers_.erase(layers_.begin());
  }
}

// --- breaking ------------------------------------------------------------------------------------

void OperationLog::on_member_lost(Group& group, int32_t rank, const Error& error) {
  for (const Layer& layer : layers_) {
    if (layer.group == &group)
      host_.on_link_lost(layer.quorum.members[static_cast<size_t>(rank)], error);
  }
  release_known();
}

void OperationLog::on_broken(Group& /*group*/, const Error& error) { fail(error); }

void OperationLog::fail(const Error& error) {
  if (broken_) return;
  close(error);
  if (!layers_.empty()) layers_.back().group->fail(error);
  host_.on_broken(error);
}

void OperationLog::close(const Error& error) {
  if (broken_) return;
  broken_ = error;
  for (Layer& layer : layers_) {
    if (&layer != &layers_.back()) layer.group->close(error);
  }
  for (const auto& start : std::exchange(held_messages_, {})) start(layers_.back());
  std::map<uint64_t, Record> records = std::move(records_);
  records_.clear();
  kept_bytes_ = 0;
  for (auto& [number, record] : records) {
    // What runs stands still before its memory is the caller's again.
    for (const Layer& layer : layers_) {
      const bool runs = record.state == State::Running || record.is_helping;
      if (!runs || layer.quorum.quorum_id != record.quorum_id) continue;
      if (const CollectiveOperation* operation = layer.group->find(number))
        take_finals(record, *operation, layer);
      layer.group->drop(number);
    }
    settle(record,
           {error.kind, record.call.signature.describe() + ", operation " + std::to_string(number) +
                            " of run '" + run_ + "': " + error.message});
  }
}

void OperationLog::note_running(FlightRecorder& recorder) const {
  size_t noted = 0;
  for (const auto& [number, record] : records_) {
    if (!record.work || record.state == State::Running) continue;
    if (noted++ == kNotedMax) break;
    recorder.note(FlightEvent::Running, {.number = number},
                  record.call.signature.describe() + " " + phase(record));
  }
}

TimePoint OperationLog::on_time(TimePoint now) {
  if (broken_) return TimePoint::max();  // and the groups may be gone
  remove_old_layers();
  launch_waiting();
  const bool is_waiting = !is_held_ && launched_ < next_number_;
  TimePoint next = is_waiting ? std::min(announce_at_, after(now, kPlanSeconds)) : announce_at_;
  if (now >= announce_at_) {
    announce();
    next = std::min(next, announce_at_);
  }
  for (const auto& [number, record] : records_) {
    // What runs in a group has its deadline there.
    if (!record.work || record.state == State::Running) continue;
    if (now < record.deadline) {
      next = std::min(next, record.deadline);
      continue;
    }
    fail({ErrorKind::Timeout, record.call.signature.describe() + ", operation " +
                                  std::to_string(number) +
                                  ", was not done before its deadline: " + phase(record) + "."});
    break;
  }
  return next;
}

}  // namespace pccl::recovery
