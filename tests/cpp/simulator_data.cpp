#include "simulator_data.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "simulator_plans.h"

namespace simulator {

namespace recovery = pccl::recovery;
namespace topology = pccl::topology;
using pccl::membership::Seat;

namespace {

constexpr uint64_t kSegmentElements = 3;
constexpr uint16_t kUp = 0;
constexpr uint16_t kDown = 1;
constexpr uint16_t kExchange = 2;

}  // namespace

DataPlane::DataPlane(const MemberId& self, Mutation mutation, Host host)
    : self_(self), mutation_(mutation), host_(std::move(host)) {}

// --- quorums -------------------------------------------------------------------------------------

uint64_t DataPlane::quorum_of(uint64_t number) const {
  const auto next = starts_.upper_bound(number);
  return next == starts_.begin() ? 0 : std::prev(next)->second;
}

const Quorum& DataPlane::quorum_at(uint64_t quorum_id) const { return quorums_.at(quorum_id); }

bool DataPlane::takes_part(const Quorum& quorum, size_t rank, uint64_t number) const {
  return mutation_ == Mutation::JoinedAtIgnored || quorum.seats[rank].joined_at <= number;
}

void DataPlane::hold(bool freezes) {
  is_held_ = true;
  is_frozen_ = is_frozen_ || freezes;
}

void DataPlane::enter(const Enter& enter) {
  const bool is_newcomer = quorum_.quorum_id == 0;
  quorum_ = enter.quorum;
  quorums_[quorum_.quorum_id] = quorum_;
  if (is_newcomer) {
    const auto rank = static_cast<size_t>(quorum_.rank_of(self_));
    const uint64_t joined_at = quorum_.seats[rank].joined_at;
    progress_ = {joined_at, joined_at};
    forgotten_ = joined_at;
  }
  // Those that are not frozen run to their end where they began.
  starts_[enter.drops ? std::min(enter.recover_from, enter.first_operation)
                      : enter.first_operation] = quorum_.quorum_id;
  starts_.erase(starts_.upper_bound(enter.drops ? enter.recover_from : enter.first_operation),
                starts_.end());
  if (enter.drops || is_frozen_) stands_still_below_ = enter.drops ? 0 : enter.first_operation;
  is_held_ = is_frozen_ = false;
  at_least_ = 0;
  for (const Seat& seat : quorum_.seats) {
    uint64_t& done = this->done(seat.member_id);
    done = std::max(done, seat.joined_at);
  }
  if (enter.drops) {
    recover_from_ = enter.recover_from;
    recover_to_ = enter.first_operation;
    for (uint64_t number = recover_from_; number < recover_to_; ++number) recover(number);
  }
  forget();
}

// --- operations ----------------------------------------------------------------------------------

DataPlane::Operation& DataPlane::prepare(uint64_t number) {
  Operation& operation = operations_[number];
  const uint64_t count = element_count(number);
  if (operation.values.size() != count) {
    operation.values.resize(count);
    for (uint64_t i = 0; i < count; ++i) operation.values[i] = contribution(self_, number, i);
  }
  return operation;
}

bool DataPlane::start() {
  if (is_held_ || quorum_.quorum_id == 0) return false;
  const uint64_t number = progress_.started++;
  Operation& operation = prepare(number);
  operation.is_started = true;
  if (number < stands_still_below_) return true;
  if (operation.is_recovery) {
    try_recovery(number);
  } else {
    operation.quorum_id = quorum_of(number);
    operation.schedule =
        plan(number, static_cast<int32_t>(quorum_at(operation.quorum_id).seats.size()),
             element_count(number));
    run(number);
  }
  forget();
  return true;
}

void DataPlane::recover(uint64_t number) {
  const auto self_rank = static_cast<size_t>(quorum_.rank_of(self_));
  if (!takes_part(quorum_, self_rank, number)) return;
  Operation& operation = prepare(number);
  operation.quorum_id = quorum_.quorum_id;
  operation.is_recovery = true;
  operation.is_running = false;
  if (mutation_ != Mutation::RetryCountsTwice) operation.parts.clear();
  operation.others.clear();
  if (mutation_ == Mutation::ResultDropped && operation.is_complete) operation.finals.clear();
  auto frame = std::make_shared<Frame>();
  frame->kind = Frame::Kind::Finals;
  frame->quorum_id = quorum_.quorum_id;
  frame->is_recovery = true;
  frame->operation = number;
  frame->finals = operation.finals;
  operation.others[self_] = operation.finals;
  if (mutation_ == Mutation::JoinedAtIgnored && number < quorum_.seats[self_rank].joined_at) {
    operation.is_started = true;
  }
  for (size_t rank = 0; rank < quorum_.seats.size(); ++rank) {
    if (rank == self_rank || !takes_part(quorum_, rank, number)) continue;
    host_.send(quorum_.seats[rank].member_id, frame);
  }
  empty_mailbox(number);
  try_recovery(number);
}

// When all survivors have told what they hold, and the caller has made the call.
void DataPlane::try_recovery(uint64_t number) {
  Operation& operation = operations_.at(number);
  if (operation.is_running || !operation.is_recovery) return;
  recovery::RecoveryRequest request;
  for (size_t rank = 0; rank < quorum_.seats.size(); ++rank) {
    if (!takes_part(quorum_, rank, number)) continue;
    const auto told = operation.others.find(quorum_.seats[rank].member_id);
    if (told == operation.others.end()) return;
    request.survivors.push_back({static_cast<int32_t>(rank), told->second});
  }
  if (!operation.is_started) return;
  request.world_size = static_cast<int32_t>(quorum_.seats.size());
  request.element_count = element_count(number);
  request.element_bytes = sizeof(uint64_t);
  operation.plan = plan_again(std::move(request));
  operation.schedule = std::make_shared<const Schedule>(operation.plan.schedule);
  operation.was_recovered = true;
  run(number);
}

void DataPlane::run(uint64_t number) {
  Operation& operation = operations_.at(number);
  operation.is_running = true;
  fill_parts(operation);
  for (uint32_t chunk = 0; chunk < operation.parts.size(); ++chunk) {
    const size_t segments = operation.parts[chunk].segments.size();
    for (uint32_t segment = 0; segment < segments; ++segment) advance(number, chunk, segment);
  }
  empty_mailbox(number);
  finish(number);
}

void DataPlane::fill_parts(Operation& operation) {
  const int32_t self = quorum_at(operation.quorum_id).rank_of(self_);
  const std::vector<Part> before = std::exchange(operation.parts, {});
  for (const topology::Chunk& chunk : operation.schedule->chunks) {
    Part part;
    int32_t missing = 0;
    for (const topology::Edge& edge : chunk.up) {
      if (edge.from == self) part.parent = edge.to;
      if (edge.to == self) ++missing;
    }
    for (const topology::Edge& edge : chunk.down) {
      if (edge.from == self) part.children.push_back(edge.to);
    }
    const auto core = std::find(chunk.core.begin(), chunk.core.end(), self);
    if (core != chunk.core.end())
      part.core_position = static_cast<int32_t>(core - chunk.core.begin());
    const bool is_source = chunk.reduces || part.core_position >= 0;
    for (uint64_t begin = chunk.offset; begin < chunk.offset + chunk.count;
         begin += kSegmentElements) {
      Segment segment;
      segment.begin = begin;
      segment.end = std::min(begin + kSegmentElements, chunk.offset + chunk.count);
      segment.missing = missing;
      const auto from = operation.values.begin() + static_cast<int64_t>(begin);
      if (is_source) segment.partial.assign(from, from + static_cast<int64_t>(segment.end - begin));
      const size_t index = operation.parts.size();
      const size_t at = part.segments.size();
      if (mutation_ == Mutation::RetryCountsTwice && operation.is_recovery && chunk.reduces &&
          index < before.size() && at < before[index].segments.size() &&
          before[index].segments[at].partial.size() == segment.partial.size()) {
        segment.partial = before[index].segments[at].partial;
      }
      part.segments.push_back(std::move(segment));
    }
    operation.parts.push_back(std::move(part));
  }
}

void DataPlane::advance(uint64_t number, uint32_t chunk_index, uint32_t index) {
  Operation& operation = operations_.at(number);
  const topology::Chunk& chunk = operation.schedule->chunks[chunk_index];
  Part& part = operation.parts[chunk_index];
  Segment& segment = part.segments[index];
  if (segment.missing > 0 || segment.is_final) return;
  if (part.core_position < 0) {
    if (part.parent < 0 || std::exchange(segment.is_sent, true)) return;
    return send(operation, number, part.parent, chunk_index, index, kUp, segment.partial);
  }
  const bool at_once = chunk.exchanges_at_once;
  for (size_t place = 0; at_once && !segment.is_sent && place < chunk.core.size(); ++place) {
    const auto stage = static_cast<uint16_t>(kExchange + part.core_position);
    if (place == static_cast<size_t>(part.core_position)) continue;
    send(operation, number, chunk.core[place], chunk_index, index, stage, segment.partial);
  }
  segment.is_sent |= at_once;
  if (at_once && segment.early.size() + 1 < chunk.core.size()) return;
  for (const auto& [place, early] : segment.early) {
    for (size_t i = 0; at_once && i < early.size(); ++i) segment.partial[i] += early[i];
  }
  const int32_t rounds = at_once ? 0 : std::bit_width(chunk.core.size()) - 1;
  while (segment.round < rounds) {
    const auto other = static_cast<size_t>(part.core_position ^ (1 << segment.round));
    const auto stage = static_cast<uint16_t>(kExchange + segment.round);
    if (!std::exchange(segment.is_sent, true)) {
      send(operation, number, chunk.core[other], chunk_index, index, stage, segment.partial);
    }
    const auto early = segment.early.find(segment.round);
    if (early == segment.early.end()) return;
    for (size_t i = 0; i < segment.partial.size(); ++i) segment.partial[i] += early->second[i];
    ++segment.round;
    segment.is_sent = false;
  }
  make_final(number, chunk_index, index, std::vector(segment.partial));
}

void DataPlane::make_final(uint64_t number, uint32_t chunk_index, uint32_t index,
                           const std::vector<uint64_t>& values) {
  Operation& operation = operations_.at(number);
  const topology::Chunk& chunk = operation.schedule->chunks[chunk_index];
  Part& part = operation.parts[chunk_index];
  Segment& segment = part.segments[index];
  if (std::exchange(segment.is_final, true)) return;
  for (uint64_t at = segment.begin; at < segment.end; ++at) {
    if (operation.finals.covers(at, at + 1)) continue;
    operation.values[at] = values[at - segment.begin];
    FinalMap::Range range{at, at + 1, operation.quorum_id, 1};
    if (operation.is_recovery && chunk.block == recovery::kBlockFinals) {
      for (const FinalMap::Range& origin : operation.plan.origin.ranges()) {
        if (at >= origin.begin && at < origin.end) range.quorum_id = origin.quorum_id;
      }
    }
    operation.finals.add(range);
  }
  for (const int32_t child : part.children) {
    send(operation, number, child, chunk_index, index, kDown, values);
  }
}

void DataPlane::send(const Operation& operation, uint64_t number, int32_t to, uint32_t chunk,
                     uint32_t segment, uint16_t stage, const std::vector<uint64_t>& payload) {
  auto frame = std::make_shared<Frame>();
  frame->quorum_id = operation.quorum_id;
  frame->is_recovery = operation.is_recovery;
  frame->operation = number;
  frame->chunk = chunk;
  frame->segment = segment;
  frame->stage = stage;
  frame->payload = payload;
  host_.send(quorum_at(operation.quorum_id).seats[static_cast<size_t>(to)].member_id, frame);
}

// --- frames --------------------------------------------------------------------------------------

void DataPlane::receive(const MemberId& from, const std::shared_ptr<const Frame>& frame) {
  if (frame->kind == Frame::Kind::Done) {
    uint64_t& done = this->done(from);
    if (done < frame->operation) {
      if (done == least_ && at_least_ > 0) --at_least_;
      done = frame->operation;
    }
    return forget();
  }
  const uint64_t number = frame->operation;
  if (number < forgotten_) return;
  const bool is_old = frame->quorum_id <= quorum_.quorum_id;
  const bool is_still = is_frozen_ || number < stands_still_below_;
  if (is_still && is_old && mutation_ != Mutation::FreezeIgnored) return;
  Operation& operation = operations_[number];
  const bool is_now = operation.takes(*frame);
  const bool is_forged = mutation_ == Mutation::OldFramesAccepted && operation.is_running &&
                         frame->kind == Frame::Kind::Data && frame->quorum_id < operation.quorum_id;
  if (is_now || is_forged) {
    take(number, from, *frame);
    finish(number);
    forget();
  } else if (!operation.is_complete || frame->quorum_id >= operation.quorum_id) {
    operation.mailbox.emplace_back(from, frame);
  }
}

void DataPlane::take(uint64_t number, const MemberId& from, const Frame& frame) {
  Operation& operation = operations_.at(number);
  if (frame.kind == Frame::Kind::Finals) {
    operation.others[from] = frame.finals;
    return try_recovery(number);
  }
  // Only a planted bug gets here with a frame of another schedule.
  if (frame.chunk >= operation.parts.size()) return;
  Part& part = operation.parts[frame.chunk];
  if (frame.segment >= part.segments.size()) return;
  Segment& segment = part.segments[frame.segment];
  if (frame.payload.size() != segment.end - segment.begin) return;
  if (frame.stage == kDown) return make_final(number, frame.chunk, frame.segment, frame.payload);
  if (segment.partial.size() != frame.payload.size()) return;
  if (frame.stage == kUp) {
    for (size_t i = 0; i < segment.partial.size(); ++i) segment.partial[i] += frame.payload[i];
    if (mutation_ == Mutation::InputOverwritten) {
      for (uint64_t at = segment.begin; at < segment.end; ++at) {
        operation.values[at] = segment.partial[at - segment.begin];
      }
    }
    --segment.missing;
  } else {
    segment.early[frame.stage - kExchange] = frame.payload;
  }
  advance(number, frame.chunk, frame.segment);
}

void DataPlane::empty_mailbox(uint64_t number) {
  Operation& operation = operations_.at(number);
  auto mailbox = std::exchange(operation.mailbox, {});
  for (auto& [from, frame] : mailbox) {
    if (operation.takes(*frame)) {
      take(number, from, *frame);
    } else if (frame->quorum_id >= operation.quorum_id || frame->quorum_id > quorum_.quorum_id) {
      operations_.at(number).mailbox.emplace_back(from, frame);
    }
  }
}

// --- completion ----------------------------------------------------------------------------------

void DataPlane::finish(uint64_t number) {
  const auto at = operations_.find(number);
  if (at == operations_.end()) return;
  Operation& operation = at->second;
  if (!operation.is_started || operation.is_complete || !operation.is_running) return;
  if (!operation.finals.covers(0, operation.values.size())) return;
  operation.is_complete = true;
  host_.complete(number, operation.values, operation.finals, operation.was_recovered);
  const uint64_t before = progress_.completed;
  while (progress_.completed < progress_.started) {
    const auto next = operations_.find(progress_.completed);
    if (next == operations_.end() || !next->second.is_complete) break;
    ++progress_.completed;
  }
  if (progress_.completed == before) return;
  auto frame = std::make_shared<Frame>();
  frame->kind = Frame::Kind::Done;
  frame->operation = progress_.completed;
  for (const Seat& seat : quorum_.seats) {
    if (seat.member_id != self_) host_.send(seat.member_id, frame);
  }
}

bool DataPlane::is_done_everywhere() const { return forgotten_ >= progress_.started; }

uint64_t& DataPlane::done(const MemberId& member) {
  const size_t number = number_of(member);
  if (number >= done_.size()) done_.resize(number + 1);
  return done_[number];
}

// What everybody has, nobody can ask for any more.
void DataPlane::forget() {
  if (at_least_ == 0) {
    least_ = UINT64_MAX;
    for (const Seat& seat : quorum_.seats) {
      if (seat.member_id == self_) continue;
      const uint64_t done = this->done(seat.member_id);
      if (done < least_) at_least_ = 0;
      least_ = std::min(least_, done);
      at_least_ += done == least_;
    }
  }
  forgotten_ = std::max(forgotten_, std::min(progress_.completed, least_));
  operations_.erase(operations_.begin(), operations_.lower_bound(forgotten_));
}

}  // namespace simulator
