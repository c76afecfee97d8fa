#include "run_driver.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "topology/overlay.h"

namespace pccl {

using membership::Message;
using transport::Connection;
using transport::FrameHeader;
using transport::FrameType;
using transport::MemberAddress;
using transport::MemberId;
using transport::to_text;

namespace {

membership::Progress to_membership(const recovery::OperationLog::Progress& progress) {
  return {progress.started, progress.completed};
}

}  // namespace

Run::Driver::Driver(Run& run, const RunOptions& options) : run_(run), options_(options) {}

void Run::Driver::resolve() {
  if (!topology::fits_any_size(options_.graph)) {
    throw std::invalid_argument("graph: \"" + options_.graph +
                                "\" is one of a certain number of members, and those of an elastic "
                                "run come and go: name one like \"regular:4\"");
  }
  coordinator_addresses_ = transport::resolve(options_.coordinator_host, options_.coordinator_port);
  if (coordinator_addresses_.empty()) {
    throw ConnectError("run '" + options_.endpoint.run + "': the coordinator's host '" +
                       options_.coordinator_host + "' does not resolve");
  }
  const bool is_keyed = options_.coordinator_key != transport::Fingerprint{};
  const bool is_here = std::all_of(coordinator_addresses_.begin(), coordinator_addresses_.end(),
                                   [](const auto& address) { return address.is_loopback(); });
  if (!is_keyed && !is_here && options_.endpoint.tls != transport::TlsUse::Never) {
    throw std::invalid_argument(
        "address: it names no key, and '" + options_.coordinator_host +
        "' is another host. Paste the whole address that `pccl coordinator` prints, with what "
        "follows '#'; or say insecure=True in code, on every member and at the coordinator "
        "(--insecure)");
  }
}

void Run::Driver::begin() {
  const MemberAddress& own = run_.endpoint_.address();
  log_ = std::make_unique<recovery::OperationLog>(
      run_.endpoint_, router_, own.run, own.member_id,
      recovery::OperationLog::Host{
          [this](const transport::MemberId& peer, const Error& error) {
            const Connection& connection =
                run_.endpoint_.connection(MemberAddress{.member_id = peer}, {});
            lost_links_.push_back({peer, connection.has_ended, error.message});
            run_.endpoint_.engine().wake_at(Clock::now());
          },
          [this](const Error& error) { show([&error](Seen& seen) { seen.ended = error; }); }});
  const TimePoint now = Clock::now();
  membership::MemberOptions options;
  options.seat.member_id = own.member_id;
  options.seat.address = own.encode();
  options.takeover_seconds = options_.takeover_seconds;
  member_ = std::make_unique<membership::Member>(std::move(options), now);
  lines_ = std::make_unique<CoordinatorLines>(run_.endpoint_, *member_, options_.endpoint,
                                              "the coordinator at " + options_.coordinator_host +
                                                  ":" + std::to_string(options_.coordinator_port),
                                              coordinator_addresses_, options_.coordinator_key,
                                              options_.token);
  lines_->begin(now);
  perform();
}

void Run::Driver::with_log(const std::function<void(recovery::OperationLog&)>& task) {
  router_.sweep();
  task(*log_);
}

void Run::Driver::show(const std::function<void(Seen&)>& change) {
  {
    std::lock_guard lock(run_.mutex_);
    change(run_.seen_);
  }
  run_.has_changed_.store(true);
  run_.endpoint_.engine().notify_waiters();
}

// --- frames --------------------------------------------------------------------------------------

transport::Placement Run::Driver::place(Connection& from, const FrameHeader& header) {
  const bool is_message = header.type == FrameType::Membership || (lines_ && lines_->owns(from));
  return is_message ? transport::Placement{} : router_.place(from, header);
}

void Run::Driver::on_frame(Connection& from, const FrameHeader& header,
                           transport::Payload payload) {
  if (header.type == FrameType::Goodbye) from.goodbye = true;
  const bool is_coordinator = lines_ && lines_->owns(from);
  if (header.type != FrameType::Membership) {
    if (!is_coordinator) router_.on_frame(from, header, std::move(payload));
    return;
  }
  if (!lines_) return;
  const auto message = membership::decode({payload.data(), payload.size()});
  const auto* told = message ? std::get_if<membership::TakenOver>(&*message) : nullptr;
  if (told != nullptr && member_->quorum().contains(from.peer.member_id)) lines_->on_told(*told);
  if (!lines_->is_in_use(from)) return;
  if (!message) {
    show([](Seen& seen) {
      seen.trouble = "the coordinator said something that this version does not understand";
    });
    return;
  }
  const TimePoint now = Clock::now();
  lines_->on_heard(now);
  is_coordinator_heard_ = true;
  if (const auto* status = std::get_if<membership::Status>(&*message)) note_clock(*status, now);
  member_->set_progress(to_membership(log_->progress()));
  member_->on_message(*message, now);
  const double round_trip = member_->round_trip_seconds();
  const std::string waits_for =
      member_->waits_for().empty() ? "" : "the coordinator waits: " + member_->waits_for();
  if (std::exchange(waits_for_, waits_for) != waits_for)
    run_.endpoint_.recorder().note(FlightEvent::CoordinatorWaits, {},
                                   waits_for.empty() ? "the coordinator goes on" : waits_for);
  const Revision committed{member_->committed_revision(), member_->committed_digest()};
  show([round_trip, committed, &waits_for](Seen& seen) {
    seen.trouble = waits_for;
    seen.round_trip_seconds = round_trip;
    seen.committed_revision = committed;
  });
  perform();
}

void Run::Driver::on_lost(Connection& connection, const Error& error) {
  if (lines_ && lines_->owns(connection)) {
    // Not each of the calls at one that stays away.
    if (std::exchange(is_coordinator_heard_, false))
      run_.endpoint_.recorder().note(FlightEvent::CoordinatorLost, {.error = error.kind},
                                     error.message);
    if (lines_->is_in_use(connection) && error)
      show([&error](Seen& seen) { seen.trouble = error.message; });
    lines_->on_lost(connection, Clock::now());
    perform();
    return;
  }
  router_.on_lost(connection, error);
}

TimePoint Run::Driver::on_time(TimePoint now) {
  if (!member_) return TimePoint::max();
  for (const LostLink& lost : std::exchange(lost_links_, {}))
    member_->on_link_lost(lost.peer, lost.has_ended, lost.reason, now);
  TimePoint next = std::min(router_.on_time(now), log_->on_time(now));
  next = std::min(next, lines_->on_time(now));
  member_->set_progress(to_membership(log_->progress()));
  next = std::min(next, member_->on_time(now));
  perform();
  return next;
}

// --- actions -------------------------------------------------------------------------------------

void Run::Driver::perform() {
  // Actions may bring more; the outer call performs them.
  if (std::exchange(is_performing_, true)) return;
  for (auto actions = member_->take_actions(); !actions.empty();
       actions = member_->take_actions()) {
    for (const membership::MemberAction& action : actions) {
      if (!has_ended_) std::visit([this](const auto& what) { act(what); }, action);
    }
  }
  is_performing_ = false;
}

void Run::Driver::act(const membership::SendToCoordinator& action) {
  Message message = action.message;
  if (auto* report = std::get_if<membership::Report>(&message)) report->figures = figures();
  lines_->send(message);
}

membership::Figures Run::Driver::figures() {
  const transport::Statistics sum = run_.endpoint_.count();
  membership::Figures figures{.operations_us = log_->operations_us(Clock::now()),
                              .resumed_connections = sum.resumed_connections,
                              .replaced_sockets = sum.replaced_sockets,
                              .resent_bytes = sum.resent_bytes,
                              .recovered_operations = log_->recovered_operations(),
                              .recovery_us = log_->recovery_us(),
                              .cap = {},
                              .links = {}};
  std::vector<transport::LinkTraffic> links = run_.endpoint_.link_traffic();
  if (links.size() > membership::kLinksMax) {
    // By turns, in the order of their ids.
    const auto next = std::find_if(links.begin(), links.end(),
                                   [this](const auto& link) { return link.to > last_told_; });
    std::rotate(links.begin(), next, links.end());
    links.resize(membership::kLinksMax);
    last_told_ = links.back().to;
  }
  const LinkExchange* exchange = planner_ ? planner_->exchange() : nullptr;
  if (exchange != nullptr) figures.cap = exchange->own_cap();
  for (const transport::LinkTraffic& link : links) {
    LinkExchange::Measured measured;
    const int32_t rank = member_->quorum().rank_of(link.to);
    if (exchange != nullptr && rank >= 0) measured = exchange->measured(rank, Clock::now());
    figures.links.push_back({link.to, link.bytes_sent, link.busy_us,
                             static_cast<uint32_t>(link.round_trip_seconds * 1e6),
                             link.replaced_sockets, measured.sends, measured.receives,
                             measured.seconds_ago});
  }
  return figures;
}

void Run::Driver::act(const membership::Hold& action) {
  run_.endpoint_.recorder().note(
      FlightEvent::QuorumProposed, {.number = action.quorum_id},
      action.freezes ? "without members that are lost" : "with newcomers");
  const bool waits = is_gated_ && !action.freezes && !member_->quorum().seats.empty() &&
                     action.quorum_id > admitted_quorum_id_;
  if (!waits) {
    answer_hold(action);
    return;
  }
  gated_hold_ = action;
  show([&action](Seen& seen) { seen.pending_quorum_id = action.quorum_id; });
}

void Run::Driver::answer_hold(const membership::Hold& hold) {
  gated_hold_.reset();
  show([](Seen& seen) { seen.pending_quorum_id = 0; });
  const auto progress = log_->hold(hold.freezes);
  member_->on_held(hold, to_membership(progress), Clock::now());
}

void Run::Driver::admit(uint64_t quorum_id) {
  admitted_quorum_id_ = std::max(admitted_quorum_id_, quorum_id);
  if (gated_hold_ && gated_hold_->quorum_id <= quorum_id) answer_hold(*gated_hold_);
  perform();
}

void Run::Driver::set_revision(uint64_t revision, const membership::Digest& digest) {
  member_->set_revision(revision, digest);
  perform();
}

std::optional<topology::Graph> Run::Driver::graph_of(
    const std::vector<MemberAddress>& members) const {
  // That of the member which has been in for longest: who names another one leaves.
  if (members[0].graph != options_.graph) {
    throw std::invalid_argument("graph: this member has \"" + options_.graph + "\", the run (" +
                                members[0].describe() + ") \"" + members[0].graph +
                                "\"; all members must name the same one");
  }
  std::vector<bool> accepts;
  accepts.reserve(members.size());
  for (const MemberAddress& member : members) accepts.push_back(member.accepts_calls());
  return topology::overlay_graph(options_.graph, accepts);
}

recovery::RunQuorum Run::Driver::quorum_of(const membership::Quorum& quorum,
                                           std::vector<RunMember>& members) {
  recovery::RunQuorum result;
  result.quorum_id = quorum.quorum_id;
  std::vector<MemberAddress> addresses;
  for (const membership::Seat& seat : quorum.seats) {
    const bool is_own = seat.member_id == run_.member_id();
    const auto address = MemberAddress::decode(seat.address);
    addresses.push_back(address.value_or(MemberAddress{.member_id = seat.member_id}));
    if (is_own) result.rank = static_cast<int32_t>(result.members.size());
    result.members.push_back(seat.member_id);
    result.joined_at.push_back(seat.joined_at);
    members.push_back({seat.member_id, addresses.back().describe(), seat.joined_at});
  }
  result.graph = graph_of(addresses);
  const auto connections = std::make_shared<std::vector<Connection*>>();
  auto planner = std::make_shared<CollectivePlanner>(
      PlannerOptions{host_numbers(addresses), is_one_machine(addresses), result.rank,
                     options_.algorithm, options_.deterministic, result.graph, quorum.table,
                     options_.probes},
      [connections] { return traffic_of(*connections); });
  for (size_t peer = 0; peer < addresses.size(); ++peer) {
    const MemberAddress& address = addresses[peer];
    const bool is_dialed = address.accepts_calls();
    const bool has_edge = planner->links().connects(result.rank, static_cast<int32_t>(peer));
    connections->push_back(has_edge
                               ? &run_.endpoint_.connection(
                                     address, is_dialed ? transport::resolve(address)
                                                        : std::vector<transport::SocketAddress>{})
                               : nullptr);
    // The others wait for its call.
    if (has_edge && !run_.endpoint_.address().accepts_calls())
      run_.endpoint_.dial(*connections->back());
  }
  result.connections = *connections;
  result.links = planner->links();
  result.segment_bytes = planner->segment_bytes(!run_.endpoint_.address().memory_name.empty());
  planner_ = planner;
  result.plans = std::move(planner);
  return result;
}

void Run::Driver::act(const membership::Enter& action) {
  std::vector<RunMember> members;
  recovery::RunQuorum quorum;
  try {
    quorum = quorum_of(action.quorum, members);
  } catch (const std::invalid_argument& fault) {
    // The caller leaves with it.
    const Error error{ErrorKind::CallMismatch, fault.what()};
    log_->close(error);
    show([&error](Seen& seen) { seen.ended = error; });
    return;
  }
  const Place place{quorum.rank, static_cast<int32_t>(members.size()), quorum.quorum_id};
  const auto plans = quorum.plans;
  const auto graph = quorum.graph;
  note_quorum(quorum, action);
  std::vector<Connection*> closed;
  for (Connection* connection : quorum.connections) {
    if (connection != nullptr && connection->state == Connection::State::Closed)
      closed.push_back(connection);
  }
  log_->enter(std::move(quorum), action.first_operation, action.recover_from, action.drops);
  // Somebody may have been lost before this quorum was entered.
  for (const Connection* connection : closed) {
    lost_links_.push_back(
        {connection->peer.member_id, connection->has_ended, connection->error.message});
  }
  if (!lost_links_.empty()) run_.endpoint_.engine().wake_at(Clock::now());
  show([&](Seen& seen) {
    seen.place = place;
    seen.members = std::move(members);
    seen.plans = plans;
    seen.graph = graph;
    seen.is_joined = true;
  });
}

void Run::Driver::note_quorum(const recovery::RunQuorum& quorum, const membership::Enter& action) {
  const auto& ids = quorum.members;
  std::string text = "rank " + std::to_string(quorum.rank) + " of " + std::to_string(ids.size());
  for (const MemberId& id : last_members_) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) text += ", without " + to_text(id);
  }
  for (const MemberId& id : ids) {
    const bool was_in =
        std::find(last_members_.begin(), last_members_.end(), id) != last_members_.end();
    if (!was_in) text += ", with " + to_text(id);
  }
  text += "; from operation " + std::to_string(action.first_operation);
  if (action.drops) text += ", recovers from " + std::to_string(action.recover_from);
  for (size_t peer = 0; quorum.graph && peer < ids.size(); ++peer) {
    if (quorum.connections[peer] != nullptr) text += "; beside " + to_text(ids[peer]);
  }
  run_.endpoint_.recorder().note(FlightEvent::QuorumEntered, {.number = quorum.quorum_id}, text);
  last_members_ = ids;
}

void Run::Driver::note_clock(const membership::Status& status, TimePoint now) {
  const double own = std::chrono::duration<double>(now.time_since_epoch()).count();
  const double asked = 1e-6 * static_cast<double>(status.clock);
  if (status.clock == 0 || asked > own) return;
  const double answered = 1e-6 * static_cast<double>(status.coordinator_clock);
  run_.endpoint_.recorder().note_clock(answered - (own + asked) / 2, own - asked);
}

void Run::Driver::note_running(FlightRecorder& recorder) {
  router_.note_running(recorder);
  if (log_) log_->note_running(recorder);
}

void Run::Driver::act(const membership::Evicted& action) {
  run_.endpoint_.recorder().note(FlightEvent::Evicted, {}, action.reason);
  end({ErrorKind::MemberLost, "this member is out of run '" + options_.endpoint.run +
                                  "': " + action.reason +
                                  ". The others go on without it; join again, and sync the state "
                                  "before contributing."});
}

void Run::Driver::act(const membership::TakeOver& action) {
  const bool is_reached = options_.graph.empty() && run_.endpoint_.address().accepts_calls();
  const std::string fault = is_reached ? lines_->take_over(action.term, Clock::now())
                                       : "not every member can reach it (graph, outward)";
  const std::string text =
      fault.empty() ? "the coordinator stays away, and this member takes over"
                    : "the coordinator stays away, and this member can't take over: " + fault;
  run_.endpoint_.recorder().note(FlightEvent::TakenOver, {}, text);
  show([&text](Seen& seen) { seen.trouble = text; });
}

void Run::Driver::end(const Error& error) {
  has_ended_ = true;
  lines_->stop();
  log_->close(error);
  show([&error](Seen& seen) { seen.ended = error; });
}

bool Run::Driver::owes_results() {
  if (has_ended_ || !log_) return false;
  router_.sweep();
  log_->announce();
  return log_->owes_results();
}

void Run::Driver::leave() {
  if (std::exchange(is_leaving_, true) || !member_) return;
  run_.endpoint_.recorder().note(FlightEvent::Left, {}, "this member leaves the run");
  member_->leave(Clock::now());
  perform();
  lines_->stop();
  has_ended_ = true;
  log_->close({ErrorKind::Aborted, "this member has left the run."});
  router_.close({ErrorKind::Aborted, "this member has left the run."});
}

}  // namespace pccl
