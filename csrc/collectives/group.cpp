#include "collectives/group.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace pccl {

using transport::Connection;
using transport::FrameHeader;
using transport::FrameType;
using transport::Payload;

namespace {

// A call that lasts longer sends its grants again, which carry its signature: ranks that wait for
// each other in different calls then find out.
constexpr double kAskSeconds = 0.5;
// How an error begins that another rank found.
const std::string kTold = "told by ";
bool is_told(const Error& error) { return error.message.starts_with(kTold); }

// Connections that are made for no other purpose than to say that a call was wrong, or that this
// member gives up.
constexpr int kDialedToTell = 64;

}  // namespace

Group::Group(transport::Endpoint& endpoint, std::string group_name, uint64_t its_id,
             int32_t own_rank, std::vector<Connection*> connections)
    : name(std::move(group_name)),
      id(its_id),
      rank(own_rank),
      endpoint_(endpoint),
      connections_(std::move(connections)),
      is_sparse_(std::count(connections_.begin(), connections_.end(), nullptr) > 1),
      messages_(*this) {
  recorder().note(FlightEvent::GroupMade, {.group = id, .number = static_cast<uint64_t>(rank)},
                  name);
}

Group::~Group() = default;

uint64_t group_id(const std::string& run, const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  std::string text = run;
  text.append("/").append(name);
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

// --- starting ------------------------------------------------------------------------------------

bool Group::ready_to_talk(Operation& operation, const std::vector<int32_t>& peers) {
  if (broken_) {
    operation.fail({broken_.kind, "the group was broken before this call: " + broken_.message});
    return false;
  }
  for (const int32_t peer : peers) {
    if (!is_neighbour(peer)) {
      operation.fail({ErrorKind::Connect,
                      "there is no edge to " + describe(peer) + " in the graph of the members."});
      return false;
    }
    Connection& connection = to(peer);
    if (connection.state == Connection::State::Idle) endpoint_.dial(connection);
    if (operation.is_finished()) return false;
    if (connection.state == Connection::State::Closed && observer_ == nullptr) {
      on_connection_lost(peer, connection.error);
      if (operation.is_finished()) return false;
      const Error left{ErrorKind::MemberLost, describe(peer) + " has left before this call."};
      const bool is_message = operation.signature().collective == transport::Collective::SendRecv;
      // The other ranks of a collective wait for this one, so they must hear of it.
      is_message ? operation.fail(left) : fail(left);
      return false;
    }
  }
  return true;
}

void Group::start_collective(CollectiveCall call, std::shared_ptr<Work> work,
                             std::vector<uint64_t> block_counts) {
  waiting_.push_back({std::move(call), std::move(work), std::move(block_counts)});
  start_waiting();
}

void Group::start_waiting() {
  while (!waiting_.empty()) {
    Waiting& next = waiting_.front();
    const bool is_planned = next.call.plan != nullptr;
    if (!is_planned && !broken_ && !plans_->is_ready(next.call.signature)) {
      endpoint_.engine().wake_at(after(Clock::now(), kPlanSeconds));
      return;
    }
    Waiting ready = std::move(next);
    waiting_.pop_front();
    if (!is_planned) {
      // Of a broken group: it fails as soon as it starts.
      if (broken_)
        ready.call.plan = std::make_shared<RankPlan>();
      else
        plans_->prepare(ready.call, ready.block_counts);
    }
    start_numbered(calls_.next(), std::move(ready.call), std::move(ready.work));
  }
}

void Group::start_numbered(uint64_t number, CollectiveCall call, std::shared_ptr<Work> work) {
  calls_.insert(number);
  const std::vector<int32_t> peers = call.plan->peers;
  auto created = std::make_unique<CollectiveOperation>(*this, std::move(call), std::move(work));
  CollectiveOperation& operation = *created;
  operation.number = number;
  collectives_[number] = std::move(created);
  const TimePoint now = Clock::now();
  operation.record(FlightEvent::Started, now);
  if (!ready_to_talk(operation, peers)) return;
  operation.ask_at = after(now, kAskSeconds);
  endpoint_.engine().wake_at(std::min(operation.deadline(), operation.ask_at));
  operation.start();
  if (is_crowded(peers)) operation.grant_all();
  const auto early = early_.find(number);
  if (early == early_.end()) return;
  std::vector<EarlyFrame> frames = std::move(early->second);
  early_.erase(early);
  for (EarlyFrame& frame : frames) {
    take_out_of_mailbox(frame.header);
    on_data(frame.header, std::move(frame.payload));
  }
}

void Group::start_send(int32_t destination, uint32_t tag, MessageMemory memory,
                       std::shared_ptr<Work> work) {
  auto operation =
      std::make_unique<SendOperation>(*this, destination, tag, memory, std::move(work));
  operation->record(FlightEvent::Started, Clock::now());
  if (!ready_to_talk(*operation, {destination})) return;
  endpoint_.engine().wake_at(operation->deadline());
  messages_.send(std::move(operation));
}

void Group::start_receive(int32_t source, uint32_t tag, MessageMemory memory,
                          std::shared_ptr<Work> work) {
  auto operation = std::make_unique<ReceiveOperation>(*this, source, tag, memory, std::move(work));
  operation->record(FlightEvent::Started, Clock::now());
  std::vector<int32_t> peers;
  if (source >= 0) peers.push_back(source);
  // A message of a member that has left since may lie here.
  const bool is_closed =
      source >= 0 && is_neighbour(source) && to(source).state == Connection::State::Closed;
  if (!is_closed) {
    if (!ready_to_talk(*operation, peers)) return;
  }
  endpoint_.engine().wake_at(operation->deadline());
  ReceiveOperation& posted = *operation;
  messages_.receive(std::move(operation));
  if (source >= 0 && is_crowded(peers)) messages_.grant_posted();
  if (source >= 0 && to(source).state == Connection::State::Closed && !posted.is_finished()) {
    posted.fail(
        {ErrorKind::MemberLost, describe(source) + " has left without sending such a message."});
  }
}

// --- ending --------------------------------------------------------------------------------------

void Group::on_finished(Operation& operation) {
  if (std::unique_ptr<Operation> taken = messages_.take(operation)) {
    ended_.push_back(std::move(taken));
    return;
  }
  const auto found = collectives_.find(operation.number);
  if (found == collectives_.end() || found->second.get() != &operation) return;
  remembered_.emplace_back(operation.number, operation.signature());
  if (remembered_.size() > kRememberedCalls) remembered_.pop_front();
  ended_.push_back(std::move(found->second));
  collectives_.erase(found);
}

std::vector<Operation*> Group::running() {
  std::vector<Operation*> all = messages_.running();
  for (auto& [number, operation] : collectives_) all.push_back(operation.get());
  return all;
}

void Group::fail(const Error& error) {
  if (broken_) return;
  broken_ = error;
  // Each that hears of it passes it on: on a graph it is the only way. Else only who made no call
  // yet may have no connection to anyone, and of a wrong call or an abort it must hear, too,
  // however soon this member ends.
  const bool is_wanted = error.kind == ErrorKind::CallMismatch || error.kind == ErrorKind::Aborted;
  int to_dial = is_wanted && (is_sparse_ || !is_told(error)) ? kDialedToTell : 0;
  for (int32_t step = 1; step < world_size(); ++step) {
    const int32_t peer = (rank + step) % world_size();
    if (!is_neighbour(peer)) continue;
    Connection& connection = to(peer);
    if (connection.state == Connection::State::Idle && to_dial-- > 0) endpoint_.dial(connection);
    const bool is_known = connection.state != Connection::State::Idle &&
                          connection.state != Connection::State::Closed;
    if (is_known) tell_broken(peer);
  }
  close(error);
  if (observer_ != nullptr) observer_->on_broken(*this, error);
}

CollectiveOperation* Group::find(uint64_t number) {
  const auto found = collectives_.find(number);
  return found == collectives_.end() ? nullptr : found->second.get();
}

void Group::freeze() {
  if (is_frozen_) return;
  is_frozen_ = true;
  for (Operation* operation : messages_.running()) {
    operation->fail({ErrorKind::MemberLost,
                     "the quorum changed before it was complete: " + operation->progress() + "."});
  }
  for (Operation* operation : running()) operation->discard();
  drop_early();
}

void Group::tell_broken(int32_t peer) {
  if (!told_.insert(peer).second) return;
  transport::OutFrame frame;
  frame.header.type = FrameType::Abort;
  frame.header.group = id;
  frame.header.source_rank = rank;
  frame.header.stage = static_cast<uint16_t>(broken_.kind);
  const std::string text = broken_.message.substr(0, transport::kAbortBytesMax);
  frame.owned.resize(text.size());
  std::memcpy(frame.owned.data(), text.data(), text.size());
  frame.header.length = static_cast<uint32_t>(text.size());
  to(peer).send_control(std::move(frame));
  mark_unsent(peer);
}

void Group::close(const Error& error) {
  if (!broken_) broken_ = error;
  note_broken(error);
  // Whoever is told of a timeout may wait for somebody else than the one who tells.
  const bool is_told_timeout = error.kind == ErrorKind::Timeout && is_told(error);
  for (Operation* operation : running()) {
    const std::string here = is_told_timeout ? " Here: " + operation->progress() + "." : "";
    operation->fail({error.kind, error.message + here});
  }
  start_waiting();
  drop_early();
}

void Group::drop(const std::vector<EarlyFrame>& frames) {
  for (const EarlyFrame& frame : frames) {
    take_out_of_mailbox(frame.header);
    give_credit(frame.header);
  }
}

void Group::drop(uint64_t number) {
  calls_.insert(number);
  if (CollectiveOperation* operation = find(number)) operation->discard();
  std::erase_if(remembered_, [number](const auto& entry) { return entry.first == number; });
  const auto early = early_.find(number);
  if (early == early_.end()) return;
  drop(early->second);
  early_.erase(early);
}

void Group::drop_early() {
  for (const auto& [number, frames] : early_) drop(frames);
  early_.clear();
  messages_.clear();
}

void Group::on_connection_lost(int32_t peer, const Error& error) {
  if (observer_ != nullptr) {
    observer_->on_member_lost(*this, peer, error);
    return;
  }
  if (error) {
    const bool is_told =
        error.kind == ErrorKind::Connect || error.kind == ErrorKind::RemoteProtocol;
    const ErrorKind kind = is_told ? error.kind : ErrorKind::MemberLost;
    fail({kind, describe(peer) + " is lost: " + error.message +
                    ". Destroy the group and start the job again."});
    return;
  }
  // It left politely: whoever still needs it can't go on, the others can.
  for (Operation* operation : running()) {
    if (operation->is_finished() || !operation->needs(peer)) continue;
    const bool is_collective = operation->signature().collective != transport::Collective::SendRecv;
    const Error left{ErrorKind::MemberLost,
                     describe(peer) + " has left (it closed its group or ended) before this " +
                         "call was complete: " + operation->progress() + "."};
    if (!is_collective) {
      operation->fail(left);
      continue;
    }
    fail(left);
    return;
  }
}

TimePoint Group::on_time(TimePoint now) {
  sweep();
  start_waiting();
  TimePoint next = waiting_.empty() ? TimePoint::max() : after(now, kPlanSeconds);
  if (plans_ && !broken_ && !is_frozen_) next = std::min(next, plans_->on_time(now));
  for (const Waiting& waiting : waiting_) {
    if (now < waiting.work->deadline) continue;
    fail({ErrorKind::Timeout, waiting.call.signature.describe() + " on rank " +
                                  std::to_string(rank) +
                                  ": not done before its deadline: it "
                                  "waits for an earlier call, or for its plan."});
    return TimePoint::max();
  }
  for (Operation* operation : running()) {
    if (operation->is_finished()) continue;
    if (now < operation->deadline()) {
      if (now >= operation->ask_at) {
        operation->ask_at = TimePoint::max();
        operation->grant_all();
      }
      next = std::min({next, operation->deadline(), operation->ask_at});
      continue;
    }
    const Error error{ErrorKind::Timeout,
                      "not done before its deadline: " + operation->progress() + "."};
    if (operation->signature().collective == transport::Collective::SendRecv) {
      operation->fail(error);
      continue;
    }
    fail({error.kind,
          operation->describe() + " on rank " + std::to_string(rank) + ": " + error.message});
    return TimePoint::max();
  }
  return next;
}

// --- receiving -----------------------------------------------------------------------------------

int32_t Group::rank_of(const Connection& connection) const {
  const auto found = std::find(connections_.begin(), connections_.end(), &connection);
  return found == connections_.end() ? -1 : static_cast<int32_t>(found - connections_.begin());
}

transport::Placement Group::place(const FrameHeader& header) {
  if (broken_ || is_frozen_) return {};
  if (header.type == FrameType::Message) return messages_.place(header);
  if (header.type != FrameType::Data) return {};
  const auto found = collectives_.find(header.operation);
  return found == collectives_.end() ? transport::Placement{} : found->second->place(header);
}

void Group::on_frame(const FrameHeader& header, Payload payload) {
  sweep();
  if (header.type == FrameType::Abort) {
    on_abort(header, payload);
    return;
  }
  if (broken_) {
    // Late data of a broken group; its sender must not wait for credit, nor for an answer. It could
    // not be told before if there was no connection.
    give_credit(header);
    tell_broken(header.source_rank);
    return;
  }
  if (is_frozen_) {
    give_credit(header);
    return;
  }
  if (header.type == FrameType::Turn) {
    if (plans_) plans_->on_turn(header.source_rank, header.operation);
    return;
  }
  if (header.type == FrameType::Figures) {
    if (plans_) plans_->on_figures(header.source_rank, {payload.data(), payload.size()});
    return;
  }
  if (header.type >= FrameType::Membership && header.type < FrameType::Claim) {
    if (observer_ != nullptr) {
      observer_->on_elastic_frame(*this, header, std::move(payload));
      return;
    }
    fail({ErrorKind::RemoteProtocol, describe(header.source_rank) +
                                         " sent a frame that only members of an elastic run "
                                         "send."});
    return;
  }
  if (header.type == FrameType::Message) {
    messages_.on_message(header, std::move(payload));
  } else if (header.type == FrameType::Grant &&
             header.collective == transport::Collective::SendRecv) {
    messages_.on_grant(header);
  } else {
    on_data(header, std::move(payload));
  }
}

void Group::on_data(const FrameHeader& header, Payload payload) {
  const auto found = collectives_.find(header.operation);
  if (found == collectives_.end() && !calls_.contains(header.operation)) {
    if (!put_into_mailbox(header)) return;
    payload.keep();
    early_[header.operation].push_back({header, std::move(payload)});
    return;
  }
  give_credit(header);
  if (found != collectives_.end()) {
    found->second->on_frame(header, std::move(payload));
    return;
  }
  // Data for a call that has ended here without it: the sender made another call. A grant or an
  // answer may be late.
  for (const auto& [number, signature] : remembered_) {
    if (number != header.operation) continue;
    if (header.type != FrameType::Data && header.signature() == signature) return;
    fail({ErrorKind::CallMismatch,
          "the ranks made different calls as number " + std::to_string(number) + " of group '" +
              name + "': " + signature.describe() + " on rank " + std::to_string(rank) + ", " +
              header.signature().describe() + " on " + describe(header.source_rank) + "."});
    return;
  }
}

void Group::on_abort(const FrameHeader& header, const Payload& payload) {
  const std::string text(reinterpret_cast<const char*>(payload.data()), payload.size());
  const auto kind = header.stage >= 1 && header.stage <= static_cast<uint16_t>(ErrorKind::NonFinite)
                        ? static_cast<ErrorKind>(header.stage)
                        : ErrorKind::Aborted;
  fail({kind, text.starts_with(kTold) ? text : kTold + describe(header.source_rank) + ": " + text});
}

// --- sending -------------------------------------------------------------------------------------

void Group::send(int32_t peer, transport::OutFrame frame) {
  Connection& connection = to(peer);
  connection.send(std::move(frame));
  endpoint_.mark_unsent(connection);
}

void Group::send_control(int32_t peer, const FrameHeader& header) {
  to(peer).send_control(header);
  endpoint_.mark_unsent(to(peer));
}

void Group::mark_unsent(int32_t peer) { endpoint_.mark_unsent(to(peer)); }

}  // namespace pccl
