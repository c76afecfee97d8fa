#include "membership/coordinator_server.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <variant>

namespace pccl::membership {

using transport::Connection;
using transport::FrameHeader;
using transport::FrameType;
using transport::MemberAddress;
using transport::OutFrame;
using transport::to_text;

namespace {

// How long close() waits for members to take what is queued for them.
constexpr double kGoodbyeSeconds = 2;

double wall_clock_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

double seconds_between(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

CoordinatorServer::CoordinatorServer(CoordinatorServerOptions options)
    : options_(std::move(options)),
      database_(options_.taken_over ? std::optional<Database>()
                                    : std::optional<Database>(std::in_place, options_.database)),
      endpoint_(endpoint_options(), *this) {
  counters_.address = endpoint_.address().describe();
  if (database_) {
    counters_.database = database_->path();
    if (!database_->has_quorum()) first_quorum_at_ = after(Clock::now(), options_.listen_seconds);
  }
  endpoint_.start();
}

CoordinatorServer::~CoordinatorServer() { close(); }

void CoordinatorServer::close() {
  {
    std::lock_guard lock(events_mutex_);
    if (is_closed_) return;
    is_closed_ = true;
  }
  events_changed_.notify_all();
  is_stopping_.store(true);
  endpoint_.close(after(Clock::now(), kGoodbyeSeconds));
  database_.reset();
  keys_.reset();
}

// --- what members say ----------------------------------------------------------------------------

transport::Placement CoordinatorServer::place(Connection& /*from*/, const FrameHeader& /*header*/) {
  return {};
}

void CoordinatorServer::on_frame(Connection& from, const FrameHeader& header,
                                 transport::Payload payload) {
  if (header.type == FrameType::Goodbye) {
    from.goodbye = true;
    return;
  }
  if (!is_at_work() || from.said_goodbye) return;
  if (header.type != FrameType::Membership) {
    hang_up(from, "a frame that no coordinator takes");
    return;
  }
  const auto message = decode({payload.data(), payload.size()});
  if (!message) {
    hang_up(from, "a membership message of " + std::to_string(payload.size()) +
                      " bytes that can't be understood");
    return;
  }
  counters_.messages += 1;
  const TimePoint now = Clock::now();
  if (const auto* report = std::get_if<Report>(&*message)) {
    on_report(from, *report, now);
  } else if (std::holds_alternative<Accept>(*message)) {
    const auto found = runs_.find(from.peer.run);
    // What it answers was said by a server that is gone, or on an earlier connection: the next
    // report tells the same.
    if (found == runs_.end()) return;
    const auto member = found->second->members.find(from.peer.member_id);
    if (member == found->second->members.end() || member->second.connection != &from) return;
    found->second->machine.on_message(from.peer.member_id, *message, now);
    perform_actions(*found->second);
  } else {
    hang_up(from, "a message that only coordinators send (" + membership::describe(*message) + ")");
  }
}

void CoordinatorServer::on_report(Connection& from, const Report& report, TimePoint now) {
  const auto address = MemberAddress::decode(report.seat.address);
  if (report.seat.member_id != from.peer.member_id || !address ||
      address->member_id != from.peer.member_id || address->run != from.peer.run ||
      address->fingerprint != from.peer.fingerprint) {
    hang_up(from, "a report with the seat of another member");
    return;
  }
  Run* run = find_or_make(from, now);
  if (run == nullptr) return;
  Heard& heard = run->members[from.peer.member_id];
  if (heard.connection != nullptr && heard.connection != &from)
    run->machine.on_disconnected(from.peer.member_id, false, "it called again", now);
  if (heard.address.empty() || seconds_between(heard.window_begin, now) >= kRateSeconds) {
    const uint64_t count = report.progress.completed - heard.window_completed;
    if (!heard.address.empty()) {
      heard.operations_per_second =
          static_cast<double>(count) / seconds_between(heard.window_begin, now);
    }
    heard.window_begin = now;
    heard.window_completed = report.progress.completed;
  }
  heard.connection = &from;
  heard.address = address->describe();
  if (address->fingerprint != Fingerprint{}) heard.key = transport::to_text(address->fingerprint);
  heard.progress = report.progress;
  heard.revision = report.revision;
  heard.round_trip_seconds = report.round_trip_us * 1e-6;
  heard.at = now;
  heard.figures = report.figures;
  heard.figures.links.clear();
  run->machine.on_message(from.peer.member_id, report, now);
  perform_actions(*run);
  watch_pace(*run, report, now);
}

CoordinatorServer::Run* CoordinatorServer::find_or_make(Connection& from, TimePoint now) {
  const std::string& name = from.peer.run;
  const auto found = runs_.find(name);
  if (found != runs_.end()) return found->second.get();
  if (options_.taken_over && name != options_.taken_over->run) {
    refuse(from, RefuseKind::WrongRun,
           "a member of run '" + options_.taken_over->run +
               "' looks after that one alone, in place of its coordinator");
    return nullptr;
  }
  if (!options_.runs.empty()) {
    const auto wanted = options_.runs.find(name);
    if (wanted == options_.runs.end()) {
      std::string names;
      for (const auto& [known, world_size_min] : options_.runs) names += " '" + known + "'";
      refuse(from, RefuseKind::WrongRun,
             "this coordinator looks after" + names + ", not after '" + name + "'");
      return nullptr;
    }
  }
  try {
    auto durable = database_ ? database_->load(name) : options_.taken_over->durable;
    if (!make_room_for_run() || (!durable && database_->run_count() >= kStoredRunsMax)) {
      refuse(from, RefuseKind::Full, "this coordinator looks after too many runs already");
      return nullptr;
    }
    Run& run = make_run(name, durable.value_or(Durable{}), now);
    return is_at_work() ? &run : nullptr;
  } catch (const DatabaseError& error) {
    fail(error.what());
    return nullptr;
  }
}

CoordinatorServer::Run& CoordinatorServer::make_run(const std::string& name, const Durable& durable,
                                                    TimePoint now) {
  const auto wanted = options_.runs.find(name);
  const int32_t taken_over_min = options_.taken_over ? options_.taken_over->world_size_min : 1;
  const CoordinatorOptions options{
      .run = name,
      .world_size_min = wanted == options_.runs.end() ? taken_over_min : wanted->second,
      .heartbeat_seconds = options_.heartbeat_seconds,
      .silence_seconds = options_.silence_seconds,
      .link_grace_seconds = options_.link_grace_seconds,
      .takeover_seconds = options_.takeover_seconds,
      .has_taken_over = options_.taken_over.has_value(),
      .first_term = static_cast<uint64_t>(wall_clock_seconds()),
      .first_quorum_at = first_quorum_at_};
  Run& run = *runs_.emplace(name, std::make_unique<Run>(options, durable, now)).first->second;
  perform_actions(run);
  return run;
}

std::string CoordinatorServer::abandon(const std::string& run) {
  std::string why_not;
  run_on_driver([&] {
    if (!is_at_work()) {
      why_not = counters_.failure.empty() ? "the coordinator is closed" : counters_.failure;
      return;
    }
    const TimePoint now = Clock::now();
    try {
      const auto found = runs_.find(run);
      const auto durable = database_ ? database_->load(run) : std::nullopt;
      if (found == runs_.end() && !durable) {
        why_not = "its database knows no such run";
        return;
      }
      Run& abandoned = found != runs_.end() ? *found->second : make_run(run, *durable, now);
      why_not = abandoned.machine.abandon(now);
      perform_actions(abandoned);
      if (!is_at_work()) why_not = counters_.failure;
    } catch (const DatabaseError& error) {
      fail(error.what());
      why_not = error.what();
    }
  });
  return why_not;
}

bool CoordinatorServer::make_room_for_run() {
  if (runs_.size() < kRunsMax) return true;
  const auto idle = std::find_if(runs_.begin(), runs_.end(), [](const auto& entry) {
    const auto& members = entry.second->members;
    return std::none_of(members.begin(), members.end(),
                        [](const auto& member) { return member.second.connection != nullptr; });
  });
  if (idle == runs_.end()) return false;
  // To the run this is as if the coordinator had been restarted.
  runs_.erase(idle);
  return true;
}

void CoordinatorServer::hang_up(Connection& from, const std::string& fault) {
  counters_.malformed_messages += 1;
  add_event(nullptr, "hung up on " + to_text(from.peer.member_id) + " (" + from.peer.describe() +
                         ") of run '" + from.peer.run + "', which sent " + fault);
  send(from, Refuse{.kind = RefuseKind::Stopped,
                    .reason = "the coordinator hung up: it received " + fault});
  endpoint_.hang_up(from);
}

void CoordinatorServer::on_lost(Connection& connection, const Error& error) {
  ended_.push_back(&connection);
  endpoint_.engine().wake_at(Clock::now());
  const auto found = runs_.find(connection.peer.run);
  if (found == runs_.end() || !is_at_work()) return;
  Run& run = *found->second;
  const auto member = run.members.find(connection.peer.member_id);
  if (member == run.members.end() || member->second.connection != &connection) return;
  member->second.connection = nullptr;
  // A goodbye alone is that of a member that changes over to another coordinator, and lives; one
  // that leaves has said so in its report before.
  const bool has_ended = connection.has_ended && !connection.goodbye;
  run.machine.on_disconnected(connection.peer.member_id, has_ended,
                              error ? error.message : "it said goodbye", Clock::now());
  perform_actions(run);
}

TimePoint CoordinatorServer::on_time(TimePoint now) {
  for (Connection* connection : std::exchange(ended_, {})) endpoint_.forget(*connection);
  TimePoint next = put_out_barred(now);
  for (auto& [name, run] : runs_) {
    if (!is_at_work()) break;
    next = std::min(next, run->machine.on_time(now));
    perform_actions(*run);
  }
  return next;
}

// --- what the state machines want ----------------------------------------------------------------

void CoordinatorServer::perform_actions(Run& run) {
  for (CoordinatorAction& action : run.machine.take_actions()) {
    if (!is_at_work()) return;
    if (auto* outgoing = std::get_if<SendTo>(&action)) {
      const auto member = run.members.find(outgoing->to);
      if (member != run.members.end() && member->second.connection != nullptr)
        send(*member->second.connection, outgoing->message);
    } else if (auto* durable = std::get_if<Persist>(&action)) {
      persist(run, durable->durable);
    } else if (auto* note = std::get_if<Note>(&action)) {
      add_event(&run, std::move(note->text));
    }
  }
  if (run.machine.has_retired()) has_retired_.store(true);
  // Who left is not remembered: a stranger could make us remember many.
  std::erase_if(run.members, [&run](const auto& member) {
    return member.second.connection == nullptr &&
           !run.machine.durable().quorum.contains(member.first);
  });
}

void CoordinatorServer::persist(Run& run, const Durable& durable) {
  if (!database_) return;  // what it decides is found again at the members
  const TimePoint begin = Clock::now();
  try {
    database_->save(run.options.run, durable);
  } catch (const DatabaseError& error) {
    fail(error.what());
    return;
  }
  counters_.writes += 1;
  counters_.write_seconds_max =
      std::max(counters_.write_seconds_max, seconds_between(begin, Clock::now()));
}

void CoordinatorServer::send(Connection& to, const Message& message) {
  OutFrame frame;
  frame.header.type = FrameType::Membership;
  frame.owned = encode(message);
  frame.header.length = static_cast<uint32_t>(frame.owned.size());
  to.send_control(std::move(frame));
  endpoint_.mark_unsent(to);
}

void CoordinatorServer::refuse(Connection& to, RefuseKind kind, const std::string& reason) {
  counters_.refused_members += 1;
  send(to, Refuse{.kind = kind, .reason = reason});
}

// What is not on disk must not be said: from here on this coordinator is as good as dead, until
// somebody mends the disk and starts it again.
void CoordinatorServer::fail(const std::string& reason) {
  counters_.failure = reason;
  add_event(nullptr, reason);
}

// --- what people see -----------------------------------------------------------------------------

void CoordinatorServer::add_event(Run* run, std::string text) {
  Event event{wall_clock_seconds(), run == nullptr ? "" : run->options.run, std::move(text)};
  if (run != nullptr) {
    run->events.push_back(event);
    if (run->events.size() > kEventsMax) run->events.pop_front();
  }
  {
    std::lock_guard lock(events_mutex_);
    events_.push_back(std::move(event));
    if (events_.size() > kEventsMax) events_.pop_front();
  }
  events_changed_.notify_all();
}

std::vector<Event> CoordinatorServer::next_events(TimePoint deadline) {
  std::unique_lock lock(events_mutex_);
  events_changed_.wait_until(lock, deadline, [this] { return !events_.empty() || is_closed_; });
  std::vector<Event> result(events_.begin(), events_.end());
  events_.clear();
  return result;
}

}  // namespace pccl::membership
