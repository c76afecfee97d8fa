// What the log does when the quorum changes: it stands still, enters, compares, runs the rest.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "base/bytes.h"
#include "recovery/operation_log.h"
#include "topology/overlay.h"

namespace pccl::recovery {

using transport::Collective;
using transport::FrameHeader;
using transport::FrameType;

namespace {

// Quorums whose members may still be asked for: an operation rarely outlives two.
constexpr size_t kHistoryMax = 64;
// Calls that others have refused before they were made here; more than anybody has in flight.
constexpr size_t kRefusedMax = 4096;

}  // namespace

OperationLog::Progress OperationLog::hold(bool freezes) {
  is_held_ = true;
  if (!freezes) return progress();
  if (!frozen_at_) frozen_at_ = Clock::now();
  for (Layer& layer : layers_) {
    for (auto& [number, record] : records_) {
      if (record.state != State::Running || record.quorum_id != layer.quorum.quorum_id) continue;
      if (const CollectiveOperation* operation = layer.group->find(number))
        take_finals(record, *operation, layer);
      record.state = State::Collecting;
    }
    layer.group->freeze();
    layer.is_frozen = true;
  }
  for (auto& [number, record] : records_) record.is_helping = false;
  return progress();
}

void OperationLog::enter(RunQuorum quorum, uint64_t first_operation, uint64_t recover_from,
                         bool drops) {
  if (broken_) return;
  if (drops) {
    hold(true);
    recovery_began_ = *frozen_at_;
    frozen_at_.reset();
    for (const Layer& layer : layers_)
      router_.remove(layer.group->id, {ErrorKind::Aborted, "the quorum has changed."});
    layers_.clear();
    recover_from_ = recover_from;
    recover_end_ = first_operation;
    early_finals_.clear();
  }
  const bool is_first = history_.empty();
  if (is_first) {
    // A newcomer's operations begin where it enters.
    const uint64_t first = quorum.joined_at[static_cast<size_t>(quorum.rank)];
    // Calls that came before have no number yet that means anything.
    next_number_ = launched_ = first;
    completed_.insert_all_below(first);
  }
  const std::string name = "quorum " + std::to_string(quorum.quorum_id);
  auto group = std::make_unique<Group>(endpoint_, name, group_id(run_, name), quorum.rank,
                                       quorum.connections);
  Layer layer{std::move(quorum), group.get(), drops ? 0 : first_operation, {}};
  if (layer.quorum.graph) {
    const auto size = static_cast<int32_t>(layer.quorum.members.size());
    layer.beside =
        topology::spanning_tree(size, *layer.quorum.graph)[static_cast<size_t>(layer.quorum.rank)];
  }
  group->observe(this);
  group->skip_below(drops ? recover_from : first_operation);
  history_.push_back({first_operation, layer.quorum});
  if (history_.size() > kHistoryMax) history_.erase(history_.begin());
  layers_.push_back(std::move(layer));
  is_held_ = false;
  if (drops) {
    // Everybody has those below. A recovery may end at once, and its record with it.
    std::vector<uint64_t> numbers;
    for (const auto& [number, record] : records_) {
      if (number >= recover_from && number < launched_) numbers.push_back(number);
    }
    for (const uint64_t number : numbers) {
      const auto found = records_.find(number);
      if (found != records_.end()) begin_recovery(found->second);
    }
  }
  // What was told in another quorum may not have arrived.
  announced_ = 0;
  announce();
  release_known();
  const std::shared_ptr<PlanSource> plans = layers_.back().quorum.plans;
  if (plans) group->plan_by(plans);
  // Frames of the others may be waiting for this group.
  router_.add(std::move(group));
  for (const auto& start : std::exchange(held_messages_, {})) start(layers_.back());
  launch_waiting();
}

// --- comparing -----------------------------------------------------------------------------------

void OperationLog::begin_recovery(Record& record) {
  if (record.state != State::Complete) record.state = State::Collecting;
  record.quorum_id = layer_of(record.number).quorum.quorum_id;
  record.is_recovering = true;
  record.told.clear();
  endpoint_.recorder().note(FlightEvent::RecoveryBegun, {.number = record.number},
                            record.call.signature.describe() + ": " + phase(record));
  // The root has everything, also if it had not called yet when members were lost.
  const RunQuorum* home = home_of(record.number);
  const auto root = static_cast<size_t>(record.call.signature.root);
  if (record.call.signature.collective == Collective::Broadcast && home != nullptr &&
      root < home->members.size() && home->members[root] == own_) {
    record.finals.add({0, element_count(record), home->quorum_id, 1});
  }
  send_finals(record);
  const auto early = early_finals_.find(record.number);
  if (early != early_finals_.end()) {
    const auto told = std::move(early->second);
    early_finals_.erase(early);
    for (const auto& [member, bytes] : told) {
      if (const auto map = FinalMap::decode(bytes, element_count(record)))
        record.told[member] = *map;
    }
  }
  maybe_recover(record);
}

void OperationLog::send_finals(Record& record) {
  Layer& layer = layer_of(record.number);
  transport::OutFrame frame;
  frame.header.type = FrameType::Finals;
  frame.header.operation = record.number;
  frame.header.set_signature(record.call.signature);
  frame.owned = record.finals.encode();
  tell(layer, record.number, frame);
}

void OperationLog::on_finals(const MemberId& from, const FrameHeader& header,
                             std::span<const std::byte> bytes) {
  if ((header.flags & transport::kFlagRefused) != 0) {
    on_refusal(from, header.operation, bytes);
    return;
  }
  const auto found = records_.find(header.operation);
  const bool has_begun = found != records_.end() && header.operation < launched_;
  if (!has_begun) {
    const auto refused = ended_refused_.find(header.operation);
    if (refused != ended_refused_.end()) {
      send_refusal(layer_of(header.operation), header.operation, refused->second);
      return;
    }
    // Its caller is not here yet.
    if (header.operation >= std::max(recover_from_, launched_) && header.operation < recover_end_)
      early_finals_[header.operation][from].assign(bytes.begin(), bytes.end());
    return;
  }
  Record& record = found->second;
  if (header.signature() != record.call.signature) {
    fail({ErrorKind::CallMismatch,
          "the members made different calls as operation " + std::to_string(record.number) + ": " +
              record.call.signature.describe() + " here, " + header.signature().describe() +
              " on member " + transport::to_text(from) + "."});
    return;
  }
  const auto map = FinalMap::decode(bytes, element_count(record));
  if (!map) {
    fail({ErrorKind::RemoteProtocol,
          "member " + transport::to_text(from) + " told what it holds of operation " +
              std::to_string(record.number) + " in bytes that say nothing."});
    return;
  }
  record.told[from] = *map;
  if (record.is_recovering) maybe_recover(record);
}

void OperationLog::maybe_recover(Record& record) {
  const RunQuorum& quorum = layer_of(record.number).quorum;
  const std::vector<int32_t> ranks = participants(quorum, record.number);
  if (record.told.size() + 1 < ranks.size()) return;
  record.is_recovering = false;
  is_recoverable(record) ? recover(record, ranks) : end_whole(record);
}

// --- running the rest ----------------------------------------------------------------------------

void OperationLog::recover(Record& record, const std::vector<int32_t>& ranks) {
  Layer& layer = layer_of(record.number);
  RecoveryRequest request;
  request.world_size = static_cast<int32_t>(layer.quorum.members.size());
  request.element_count = element_count(record);
  request.element_bytes = element_bytes(record.call.signature.dtype);
  request.links = layer.quorum.links;
  request.is_uniform = record.call.is_uniform;
  request.is_coded = record.call.signature.codec != Codec{};
  request.can_reduce = record.call.signature.collective != Collective::Broadcast;
  for (const int32_t rank : ranks) {
    const MemberId& member = layer.quorum.members[static_cast<size_t>(rank)];
    const bool is_own = rank == layer.quorum.rank;
    request.survivors.push_back({rank, is_own ? record.finals : record.told.at(member)});
  }
  RecoveryPlan plan;
  try {
    plan = plan_recovery(request);
  } catch (const std::invalid_argument& fault) {
    fail({ErrorKind::Connect, "those that are left of operation " + std::to_string(record.number) +
                                  " can't reach each other: " + fault.what()});
    return;  // on every member alike
  }
  record.told.clear();
  if (plan.elements_lost > 0) {
    const Error lost{ErrorKind::MemberLost,
                     record.call.signature.describe() + ", operation " +
                         std::to_string(record.number) + " of run '" + run_ +
                         "': its root is lost, and no survivor has " +
                         std::to_string(plan.elements_lost) + " of its " +
                         std::to_string(request.element_count) +
                         " elements. The tensor holds the root's values in some places and its "
                         "own in others: do not use it."};
    const uint64_t number = record.number;
    settle(record, lost);
    kept_bytes_ -= record.copy.size();
    completed_.insert(number);
    records_.erase(number);
    announce();
    return;
  }
  if (plan.starts_over) record.finals.clear();
  record.origin = std::move(plan.origin);
  auto part = std::make_shared<const RankPlan>(compile(plan.schedule, layer.quorum.rank));
  if (part->chunks.empty()) {
    if (record.state != State::Complete) complete(record);
    return;
  }
  CollectiveCall call;
  call.signature = record.call.signature;
  call.plan = std::move(part);
  std::byte* const result = result_of(record);
  call.blocks = {{input_of(record), result, request.element_count, record.call.blocks[0].feedback},
                 {result, result, request.element_count}};
  call.factor = record.call.factor;
  call.divisor = record.call.signature.op == ReduceOp::Avg ? static_cast<int64_t>(ranks.size()) : 1;
  call.segment_bytes = layer.quorum.segment_bytes;
  call.keeps_inputs = true;
  call.on_end = [this, number = record.number](CollectiveOperation& operation, const Error& error) {
    on_attempt_end(number, operation, error);
  };
  // Who has its result only sends. Nobody waits for that here, so the others' deadlines count.
  record.is_helping = record.state == State::Complete;
  if (!record.is_helping) record.state = State::Running;
  std::shared_ptr<Work> work = record.work;
  if (!work) {
    work =
        std::make_shared<Work>(endpoint_.engine(), nullptr, "recovery", TimePoint::max(), nullptr);
  }
  layer.group->start_numbered(record.number, std::move(call), std::move(work));
}

// All survivors have it, or it ends in the same error on all.
void OperationLog::end_whole(Record& record) {
  const bool is_whole = record.finals.covers(0, 1) &&
                        std::all_of(record.told.begin(), record.told.end(),
                                    [](const auto& told) { return told.second.covers(0, 1); });
  record.told.clear();
  if (is_whole) {
    complete(record);
    return;
  }
  const RunQuorum& quorum = layer_of(record.number).quorum;
  const uint64_t number = record.number;
  settle(record,
         {ErrorKind::MemberLost,
          record.call.signature.describe() + ", operation " + std::to_string(number) + " of run '" +
              run_ + "': members were lost while it ran; quorum " +
              std::to_string(quorum.quorum_id) + " has " + std::to_string(quorum.members.size()) +
              ". It ends so on every survivor. Outputs may be partly written: do not use "
              "them. Inputs are unchanged. Call it again with outputs for the new world."});
  completed_.insert(number);
  records_.erase(number);
  announce();
}

// --- refused calls ---

// They end in the same error on every member. Nothing is final then: every element lacks the
// contribution of who refused, unless a quorum without it has formed.
void OperationLog::refuse(Record& record, const Refusal& refusal) {
  send_refusal(layer_of(record.number), record.number, refusal);
  end_refused(record.number, refusal);
}

void OperationLog::send_refusal(Layer& layer, uint64_t number, const Refusal& refusal) {
  transport::OutFrame frame;
  frame.header.type = FrameType::Finals;
  frame.header.operation = number;
  frame.header.flags = transport::kFlagRefused;
  ByteWriter out;
  out.put(static_cast<uint8_t>(refusal.reason));
  out.put(refusal.element);
  out.put(refusal.member);
  frame.owned = out.bytes();
  tell(layer, number, frame);
}

void OperationLog::on_refusal(const MemberId& from, uint64_t number,
                              std::span<const std::byte> bytes) {
  ByteReader in(bytes);
  const auto reason = in.get<uint8_t>();
  Refusal refusal{static_cast<Refusal::Reason>(reason), in.get<uint64_t>()};
  refusal.member = in.get<MemberId>();
  if (!in.ok() || reason > static_cast<uint8_t>(Refusal::Reason::NonFinite)) {
    fail({ErrorKind::RemoteProtocol, "member " + transport::to_text(from) + " refused operation " +
                                         std::to_string(number) +
                                         " for a reason that this version does not know."});
  } else if (number < launched_) {
    end_refused(number, refusal);
  } else if (refused_.size() < kRefusedMax) {
    refused_[number] = refusal;
  }
}

void OperationLog::end_refused(uint64_t number, const Refusal& refusal) {
  const auto found = records_.find(number);
  if (found == records_.end()) return;
  Record& record = found->second;
  const Layer& layer = layer_of(number);
  layer.group->drop(number);
  ended_refused_[number] = refusal;
  if (ended_refused_.size() > kRefusedMax) ended_refused_.erase(ended_refused_.begin());
  const std::string who =
      refusal.member == own_ ? "this member" : "member " + transport::to_text(refusal.member);
  const std::string begin = record.call.signature.describe() + ", operation " +
                            std::to_string(number) + " of run '" + run_ + "': ";
  if (refusal.reason == Refusal::Reason::NonFinite) {
    settle(record, {ErrorKind::NonFinite, begin + "element " + std::to_string(refusal.element) +
                                              " of the contribution of " + who +
                                              " is NaN or infinite. Nobody's is mixed in; it ends "
                                              "so on every member, and the run goes on."});
  } else {
    settle(record, {ErrorKind::MemberLost,
                    begin + who + " called it for an older quorum; quorum " +
                        std::to_string(layer.quorum.quorum_id) + " has " +
                        std::to_string(layer.quorum.members.size()) +
                        " members. It ends so on every one of them. Outputs may be partly written: "
                        "do not use them. Inputs are unchanged. Call it again."});
  }
  kept_bytes_ -= record.copy.size();
  completed_.insert(number);
  records_.erase(found);
  announce();
}

}  // namespace pccl::recovery
