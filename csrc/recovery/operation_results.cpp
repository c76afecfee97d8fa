// What an operation's result holds, who is told, and until when it is kept for others.
#include <algorithm>
#include <cstring>
#include <utility>

#include "collectives/element_ranges.h"
#include "recovery/operation_log.h"

namespace pccl::recovery {

using transport::Collective;
using transport::FrameHeader;
using transport::FrameType;

namespace {

// Memory of small copies that is used again: fresh memory costs more than the copying.
constexpr size_t kSpareBytesMax = 256 << 10;
constexpr size_t kSparesMax = 16;

}  // namespace

void OperationLog::take_finals(Record& record, const CollectiveOperation& operation,
                               const Layer& layer) {
  if (!is_recoverable(record)) return;
  // What moved here was final before, in another quorum.
  FinalMap fresh;
  const bool is_weighted = record.call.signature.op == ReduceOp::WeightedAvg;
  const auto contributors = static_cast<double>(participants(layer.quorum, record.number).size());
  for (const FinalRange& range : operation.finals()) {
    fresh.add({range.begin, range.end, layer.quorum.quorum_id,
               is_weighted ? range.weight : contributors});
  }
  for (const FinalMap::Range& origin : record.origin.ranges()) {
    for (const FinalMap::Range& range : fresh.ranges()) {
      FinalMap::Range both = origin;
      both.begin = std::max(origin.begin, range.begin);
      both.end = std::min(origin.end, range.end);
      if (both.begin < both.end) record.finals.add(both);
    }
  }
  for (const FinalMap::Range& range : fresh.ranges()) record.finals.add(range);
}

void OperationLog::settle(Record& record, const Error& error) {
  if (!record.work) return;
  const std::shared_ptr<Work> work = std::move(record.work);
  record.work = nullptr;
  if (--unsettled_ == 0) settled_us_ += microseconds(Clock::now() - unsettled_since_);
  if (error) {
    FlightRecorder& recorder = endpoint_.recorder();
    recorder.note(FlightEvent::OperationError, {.number = record.number, .error = error.kind},
                  error.message);
    recorder.want_file();
    endpoint_.engine().wake_at(Clock::now());
  }
  Error told = error;
  if (error && record.call.signature.collective == Collective::AllReduce) {
    told.message += " " + restore_input(record);
  }
  work->set_contributions(contributions(record));
  work->complete(std::move(told));
}

// Puts back the input that was kept, and says what the caller's memory then holds.
std::string OperationLog::restore_input(Record& record) {
  const BlockMemory& block = record.call.blocks[0];
  const bool is_in_place = block.input == block.output;
  const bool is_whole = record.finals.covers(0, block.count);
  if (!record.input.empty() && !is_whole) {
    std::memcpy(block.output, record.input.data(), record.input.size());
    record.finals.clear();
  }
  std::vector<ElementRange> results;
  for (const FinalMap::Range& range : record.finals.ranges())
    results.push_back({range.begin, range.end});
  return describe_reduced(std::move(results), {}, block.count, is_in_place);
}

std::vector<Contribution> OperationLog::contributions(const Record& record) const {
  std::vector<Contribution> all;
  if (record.call.signature.collective != Collective::AllReduce) return all;
  for (const FinalMap::Range& range : record.finals.ranges()) {
    Contribution contribution{range.begin, range.end, {}, range.weight};
    for (const Past& past : history_) {
      if (past.quorum.quorum_id != range.quorum_id) continue;
      for (const int32_t rank : participants(past.quorum, record.number))
        contribution.members.push_back(past.quorum.members[static_cast<size_t>(rank)]);
    }
    all.push_back(std::move(contribution));
  }
  return all;
}

// Whether the member of that rank may not have the result of operation `number` yet. Whose process
// has left or died needs none any more.
bool OperationLog::may_need(const RunQuorum& quorum, size_t rank, uint64_t number) const {
  const MemberId& member = quorum.members[rank];
  if (member == own_ || quorum.joined_at[rank] > number) return false;
  // Of one that has no edge to this member the quorum tells, by its end.
  const transport::Connection* connection = quorum.connections[rank];
  const bool is_closed =
      connection != nullptr && connection->state == transport::Connection::State::Closed;
  if (is_closed && connection->has_ended) return false;
  const auto done = done_.find(member);
  return done == done_.end() || done->second <= number;
}

bool OperationLog::owes_results() const {
  return !broken_ && std::any_of(records_.begin(), records_.end(), [](const auto& item) {
    return item.second.state == State::Complete;
  });
}

// Lets go of results that everybody has.
void OperationLog::release_known() {
  if (layers_.empty()) return;
  const RunQuorum& quorum = layers_.back().quorum;
  while (!records_.empty()) {
    Record& record = records_.begin()->second;
    if (record.state != State::Complete || record.is_helping) break;
    bool is_known = true;
    for (size_t rank = 0; rank < quorum.members.size() && is_known; ++rank)
      is_known = !may_need(quorum, rank, record.number);
    if (!is_known) break;
    kept_bytes_ -= record.copy.size();
    const size_t capacity = record.copy.capacity();
    if (0 < capacity && capacity <= kSpareBytesMax && spare_copies_.size() < kSparesMax)
      spare_copies_.push_back(std::move(record.copy));
    settle(record, {});
    records_.erase(records_.begin());
  }
}

// What it waits for, and whom.
std::string OperationLog::phase(const Record& record) const {
  if (record.state == State::Waiting)
    return is_held_ ? "waiting for the quorum to change" : "waiting for an earlier call";
  const bool is_collecting = record.state == State::Collecting;
  std::string text = is_collecting ? "waiting for what other survivors hold of it"
                                   : "complete here, waiting for others to have all of it, too";
  if (layers_.empty()) return text;
  const RunQuorum& quorum = layers_.back().quorum;
  const char* separator = ": ";
  for (size_t rank = 0; rank < quorum.members.size(); ++rank) {
    if (!may_need(quorum, rank, record.number)) continue;
    if (is_collecting && record.told.contains(quorum.members[rank])) continue;
    text += separator + ("rank " + std::to_string(rank));
    if (const transport::Connection* connection = quorum.connections[rank])
      text += " (" + connection->peer.describe() + ")";
    separator = ", ";
  }
  return text + " in quorum " + std::to_string(quorum.quorum_id);
}

// --- telling -------------------------------------------------------------------------------------

void OperationLog::send_to(Layer& layer, int32_t rank, transport::OutFrame frame) {
  transport::Connection* connection = layer.quorum.connections[static_cast<size_t>(rank)];
  if (connection->state == transport::Connection::State::Idle) endpoint_.dial(*connection);
  if (connection->state == transport::Connection::State::Closed) return;
  frame.header.group = layer.group->id;
  frame.header.source_rank = layer.quorum.rank;
  frame.header.length = static_cast<uint32_t>(frame.owned.size());
  connection->send_control(std::move(frame));
  endpoint_.mark_unsent(*connection);
}

void OperationLog::announce() {
  announce_at_ = TimePoint::max();
  unannounced_bytes_ = 0;
  if (layers_.empty() || completed_.below() == announced_) return;
  announced_ = completed_.below();
  Layer& layer = layers_.back();
  transport::OutFrame frame;
  frame.header.type = FrameType::Done;
  frame.header.count = announced_;
  tell(layer, announced_ - 1, frame);
}

void OperationLog::tell(Layer& layer, uint64_t number, const transport::OutFrame& frame) {
  if (layer.quorum.graph) {
    pass_on(layer, frame.header, layer.quorum.rank, frame.owned);
    return;
  }
  for (const int32_t rank : participants(layer.quorum, number)) {
    if (rank == layer.quorum.rank) continue;
    transport::OutFrame copy;
    copy.header = frame.header;
    copy.owned = frame.owned;
    send_to(layer, rank, std::move(copy));
  }
}

void OperationLog::pass_on(Layer& layer, const FrameHeader& header, int32_t origin,
                           std::span<const std::byte> payload) {
  for (const int32_t rank : layer.beside) {
    // Where it came from; in what this member says itself, nowhere.
    if (rank == header.source_rank && origin != layer.quorum.rank) continue;
    transport::OutFrame copy;
    copy.header = header;
    copy.header.sequence = 0;
    copy.header.chunk = static_cast<uint32_t>(1 + origin);
    copy.owned.assign(payload.begin(), payload.end());
    send_to(layer, rank, std::move(copy));
  }
}

void OperationLog::on_elastic_frame(Group& group, const FrameHeader& header,
                                    transport::Payload payload) {
  for (Layer& layer : layers_) {
    if (layer.group != &group) continue;
    const auto size = static_cast<uint32_t>(layer.quorum.members.size());
    const bool is_passed_on = layer.quorum.graph && header.chunk >= 1 && header.chunk <= size;
    const int32_t origin =
        is_passed_on ? static_cast<int32_t>(header.chunk) - 1 : header.source_rank;
    if (origin == layer.quorum.rank) return;  // it comes back: the members have other graphs
    if (is_passed_on) pass_on(layer, header, origin, {payload.data(), payload.size()});
    const MemberId from = layer.quorum.members[static_cast<size_t>(origin)];
    if (header.type == FrameType::Done) {
      uint64_t& done = done_[from];
      done = std::max(done, header.count);
      release_known();
    } else if (header.type == FrameType::Finals && &layer == &layer_of(header.operation)) {
      on_finals(from, header, {payload.data(), payload.size()});
    }
    return;
  }
}

}  // namespace pccl::recovery
