#include "coordinator_lines.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace pccl {

using membership::CoordinatorServer;
using membership::TakenOver;
using transport::Connection;
using transport::MemberAddress;

namespace {

// Pauses between calls at a coordinator that does not answer.
constexpr double kCallPauseSeconds = 0.01;
constexpr double kCallPauseSecondsMax = 1;
// How often who has taken over says so: whoever did not hear it the first time hears it then.
constexpr double kTellSeconds = 1;
// How long a goodbye may take. Whoever was cut off takes none, and is called anew: TCP alone would
// find out only some time after the cut, the later the longer that was.
constexpr double kGoodbyeSeconds = 1;

}  // namespace

CoordinatorLines::CoordinatorLines(transport::Endpoint& endpoint, membership::Member& member,
                                   const transport::EndpointOptions& options,
                                   std::string home_label,
                                   std::vector<transport::SocketAddress> home,
                                   const transport::Fingerprint& key,
                                   std::optional<transport::Token> token)
    : endpoint_(endpoint),
      member_(member),
      options_(options),
      home_label_(std::move(home_label)),
      home_addresses_(std::move(home)),
      home_key_(key),
      home_token_(token) {}

CoordinatorLines::~CoordinatorLines() { stop(); }

// --- connections ---------------------------------------------------------------------------------

void CoordinatorLines::call_home(TimePoint now) {
  call_at_ = TimePoint::max();
  home_ = &endpoint_.call(home_label_, home_addresses_, home_key_, home_token_);
  if (heard_home_at_ == TimePoint{}) heard_home_at_ = now;
  // What is said now goes out when the connection is there.
  if (current_ == nullptr) use(home_, now);
}

void CoordinatorLines::use(Connection* connection, TimePoint now) {
  if (current_ == connection) return;
  if (current_ != nullptr) member_.on_disconnected(now);
  current_ = connection;
  heard_at_ = now;
  if (current_ != nullptr) member_.on_connected(now);
}

void CoordinatorLines::on_heard(TimePoint now) {
  heard_at_ = now;
  if (current_ != home_) return;
  heard_home_at_ = now;
  call_pause_seconds_ = 0;
}

void CoordinatorLines::on_lost(Connection& connection, TimePoint now) {
  const bool was_home = &connection == home_;
  (was_home ? home_ : rival_) = nullptr;
  if (is_in_use(connection)) use(was_home ? nullptr : home_, now);
  endpoint_.forget(connection);
  if (!was_home || is_stopped_) return;
  call_pause_seconds_ =
      std::clamp(2 * call_pause_seconds_, kCallPauseSeconds, kCallPauseSecondsMax);
  call_at_ = after(now, call_pause_seconds_);
  endpoint_.engine().wake_at(call_at_);
}

void CoordinatorLines::drop_rival(TimePoint now) {
  if (current_ == rival_) use(home_, now);
  if (rival_ != nullptr) hang_up(*rival_, now);
}

void CoordinatorLines::hang_up(Connection& connection, TimePoint now) {
  endpoint_.hang_up(connection);
  give_up_at_ = after(now, kGoodbyeSeconds);
}

void CoordinatorLines::give_up_late(TimePoint now) {
  if (now < give_up_at_) return;
  give_up_at_ = TimePoint::max();
  for (Connection* connection : {home_, rival_}) {
    if (connection != nullptr && connection->said_goodbye)
      endpoint_.give_up(*connection, "the coordinator says nothing, and takes no goodbye");
  }
}

void CoordinatorLines::send(const membership::Message& message) {
  if (current_ != nullptr) send_to(*current_, message);
}

void CoordinatorLines::send_to(Connection& to, const membership::Message& message) {
  transport::OutFrame frame;
  frame.header.type = transport::FrameType::Membership;
  frame.owned = membership::encode(message);
  frame.header.length = static_cast<uint32_t>(frame.owned.size());
  to.send_control(std::move(frame));
  endpoint_.mark_unsent(to);
}

// --- which one -----------------------------------------------------------------------------------

void CoordinatorLines::on_told(const TakenOver& told) {
  if (!told_ || told.term > told_->term) told_ = told;
}

// The run's own one first, as soon as it answers; else whoever took over last.
void CoordinatorLines::choose(TimePoint now) {
  const double patience = member_.takeover_seconds();
  const bool is_home_there =
      home_ != nullptr && home_->state == Connection::State::Up && !home_->said_goodbye;
  if (current_ != home_ && is_home_there) {
    use(home_, now);
    drop_rival(now);
    return;
  }
  if (current_ != nullptr && current_ == rival_) {
    const bool is_silent = now >= after(heard_at_, patience);
    const bool is_old = told_ && told_->term > rival_term_;
    // If it is there, it says so again.
    if (is_silent && !is_old) told_.reset();
    if (is_silent || is_old) drop_rival(now);
    return;
  }
  const bool is_away = now >= after(heard_home_at_, patience);
  if (!is_away || !told_ || rival_ != nullptr) return;
  if (told_->term < member_.term()) {
    told_.reset();
    return;
  }
  const auto address = MemberAddress::decode(told_->address);
  if (!address) return;
  // It stands still: what it finds when it goes on is a goodbye, and then it is called anew.
  if (is_home_there) hang_up(*home_, now);
  rival_term_ = told_->term;
  rival_ = &endpoint_.call("the coordinator that took over, at " + address->describe(),
                           transport::resolve(*address), address->fingerprint, std::nullopt);
  use(rival_, now);
}

TimePoint CoordinatorLines::on_time(TimePoint now) {
  if (is_stopped_) return TimePoint::max();
  give_up_late(now);
  if (now >= call_at_) call_home(now);
  choose(now);
  const bool is_superseded = server_ && member_.term() > server_term_;
  if (server_ && (is_superseded || server_->has_retired())) end_server();
  if (now >= tell_at_) tell(now);
  return std::min({call_at_, tell_at_, give_up_at_});
}

// --- taking over ---------------------------------------------------------------------------------

std::string CoordinatorLines::take_over(uint64_t term, TimePoint now) {
  end_server();
  const membership::Rules& rules = member_.rules();
  membership::CoordinatorServerOptions options{.bind_host = options_.bind_host,
                                               .advertise_hosts = options_.advertise_hosts,
                                               .tls = options_.tls,
                                               .heartbeat_seconds = 1e-3 * rules.heartbeat_ms,
                                               .silence_seconds = 1e-3 * rules.silence_ms,
                                               .link_grace_seconds = 1e-3 * rules.link_grace_ms,
                                               .takeover_seconds = 1e-3 * rules.takeover_ms};
  options.taken_over = {options_.run, membership::durable_from(member_.report(true), term),
                        static_cast<int32_t>(rules.world_size_min)};
  options.taken_over->durable.revision = member_.committed_revision();
  options.taken_over->durable.digest = member_.committed_digest();
  try {
    server_ = std::make_unique<CoordinatorServer>(std::move(options));
  } catch (const std::exception& error) {
    return error.what();
  }
  server_term_ = term;
  on_told({term, server_->address().encode()});
  tell(now);
  return {};
}

void CoordinatorLines::tell(TimePoint now) {
  tell_at_ = after(now, kTellSeconds);
  const TakenOver told{server_term_, server_->address().encode()};
  for (const membership::Seat& seat : member_.quorum().seats) {
    if (seat.member_id == endpoint_.address().member_id) continue;
    const auto address = MemberAddress::decode(seat.address);
    if (!address) continue;
    // It has been there since the quorum was entered, with what its names resolved to.
    Connection& connection = endpoint_.connection(*address, {});
    if (connection.state == Connection::State::Idle) {
      endpoint_.dial(connection);
    } else if (connection.state == Connection::State::Up) {
      send_to(connection, told);
    }
  }
}

void CoordinatorLines::end_server() {
  tell_at_ = TimePoint::max();
  if (!server_) return;
  std::erase_if(ending_, [](const auto& ended) {
    return ended.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  });
  // Its goodbyes take a moment.
  ending_.push_back(
      std::async(std::launch::async, [server = std::move(server_)] { server->close(); }));
}

void CoordinatorLines::stop() {
  is_stopped_ = true;
  end_server();
}

}  // namespace pccl
