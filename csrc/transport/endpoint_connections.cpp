// How the connections of an endpoint begin, break and end.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <stdexcept>

#include "base/random.h"
#include "transport/dialer.h"
#include "transport/endpoint.h"
#include "transport/socket.h"
#include "transport/socket_link.h"

namespace pccl::transport {
namespace {

// How long it may take to find out whether a peer's process is there, where its connection is lost
// in either case: a refusal takes one round trip.
constexpr double kProbeSeconds = 1;

// How often the sockets of a connection are looked at while something is unacknowledged.
constexpr auto kWatchPeriod = std::chrono::milliseconds(250);

std::string seconds_text(Clock::duration duration) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", std::chrono::duration<double>(duration).count());
  return text;
}

}  // namespace

std::vector<Connection*> Endpoint::connections() const {
  std::vector<Connection*> all;
  all.reserve(known_.size() + others_.size());
  for (const auto& [id, connection] : known_) all.push_back(connection.get());
  for (const auto& connection : others_) all.push_back(connection.get());
  return all;
}

// --- connecting ----------------------------------------------------------------------------------

Connection& Endpoint::connection(const MemberAddress& peer,
                                 const std::vector<SocketAddress>& resolved) {
  Connection& known = known_or_new(peer);
  known.is_wanted = true;
  if (known.resolved.empty()) known.resolved = resolved;
  return known;
}

Connection& Endpoint::known_or_new(const MemberAddress& peer) {
  std::unique_ptr<Connection>& known = known_[peer.member_id];
  if (!known) {
    known = std::make_unique<Connection>(peer, &pool_);
    known->number = ++connections_made_;
  }
  return *known;
}

Connection& Endpoint::call(const std::string& label, std::vector<SocketAddress> resolved,
                           const Fingerprint& fingerprint, const std::optional<Token>& token) {
  MemberAddress peer;
  peer.hosts = {label};
  peer.fingerprint = fingerprint;
  others_.push_back(std::make_unique<Connection>(std::move(peer), &pool_));
  Connection& connection = *others_.back();
  connection.is_called = true;
  connection.token = token;
  connection.resolved = std::move(resolved);
  dial(connection);
  return connection;
}

void Endpoint::forget(Connection& connection) {
  if (connection.state != Connection::State::Closed && connection.state != Connection::State::Idle)
    throw std::logic_error("endpoint: a connection that is in use can't be forgotten");
  cancel_dials(connection);
  std::erase(unsent_, &connection);
  const auto known = known_.find(connection.peer.member_id);
  if (known != known_.end() && known->second.get() == &connection) {
    forgotten_.push_back(std::move(known->second));
    known_.erase(known);
    return;
  }
  const auto other = std::find_if(others_.begin(), others_.end(), [&connection](const auto& entry) {
    return entry.get() == &connection;
  });
  if (other == others_.end()) return;
  forgotten_.push_back(std::move(*other));
  others_.erase(other);
}

void Endpoint::dial(Connection& connection) {
  if (connection.state != Connection::State::Idle) return;
  connection.state = Connection::State::Dialing;
  connection.nonce = random_value<uint64_t>();
  const TimePoint now = Clock::now();
  const TimePoint deadline = after(now, options_.connect_timeout_seconds);
  connection.dial_deadline = deadline;
  engine_.wake_at(deadline);
  const bool can_be_called =
      connection.is_called || connection.peer.accepts_calls() || may_share_memory(connection.peer);
  if (can_be_called) {
    begin_dial(connection, Intent::Open, 0, deadline);
  } else if (address_.accepts_calls()) {
    connection.is_expected = true;  // it calls; what is sent waits
  } else {
    on_dial_failed(connection, "both members only connect outwards");
  }
}

bool Endpoint::may_share_memory(const MemberAddress& peer) const {
  return !address_.host_key.empty() && address_.host_key == peer.host_key &&
         !address_.memory_name.empty() && !peer.memory_name.empty();
}

void Endpoint::dial_more(Connection& connection) {
  if (connection.is_called) return;
  const TimePoint deadline = after(Clock::now(), options_.connect_timeout_seconds);
  for (int index = 1; index < options_.sockets; ++index)
    begin_dial(connection, Intent::Open, static_cast<uint16_t>(index), deadline);
}

void Endpoint::begin_dial(Connection& connection, Intent intent, uint16_t socket_index,
                          TimePoint deadline) {
  cancel_dials(connection, socket_index);
  dialers_.push_back(std::make_unique<Dialer>(
      *this, connection,
      Dialer::Options{.intent = intent, .socket_index = socket_index, .deadline = deadline}));
  dialers_.back()->begin(Clock::now());
}

void Endpoint::cancel_dials(const Connection& connection, int socket_index) {
  for (auto& dialer : dialers_) {
    const bool is_meant = socket_index < 0 || dialer->socket_index() == socket_index;
    if (&dialer->connection() == &connection && is_meant) dialer->cancel();
  }
}

void Endpoint::adopt(Connection& connection, Stream stream, std::vector<FileDescriptor> descriptors,
                     const Agreement& agreement) {
  const bool is_lost =
      connection.state == Connection::State::Closed ||
      (connection.state == Connection::State::Suspended && !connection.is_numbered);
  if (is_lost) return;
  const Hello& hello = agreement.hello;
  const bool is_first =
      connection.state == Connection::State::Dialing || connection.state == Connection::State::Idle;
  if (agreement.side == 1) connection.nonce = hello.nonce;
  if (is_first && agreement.resumes) {
    connection.is_numbered = true;
    connection.outgoing.keep();
  }
  if (connection.is_numbered && !connection.outgoing.acknowledge(agreement.consumed)) {
    end_connection(connection,
                   {ErrorKind::RemoteProtocol, "it says that it has consumed what was not sent"});
    return;
  }
  if (hello.road == Road::Memory) {
    std::shared_ptr<SharedRings> rings;
    try {
      rings = std::make_shared<SharedRings>(descriptors[0].get());
    } catch (const std::exception& error) {
      on_dial_failed(connection, error.what());
      return;
    }
    // The dialing side listens to descriptor 1, the other to descriptor 2.
    const int side = agreement.side;
    FileDescriptor own = std::move(descriptors[side == 0 ? 1 : 2]);
    FileDescriptor peer = std::move(descriptors[side == 0 ? 2 : 1]);
    auto link = std::make_unique<MemoryLink>(*this, connection, stream.release(), std::move(rings),
                                             side, std::move(own), std::move(peer));
    memory_links_.push_back(link.get());
    connection.shared_memory = true;
    connection.add_link(std::move(link));
  } else {
    add_socket(connection, std::move(stream), hello.socket_index);
  }
  if (connection.state == Connection::State::Suspended) {
    ended_.resumed_connections += 1;
    note(FlightEvent::ConnectionResumed, connection);
  } else if (is_first) {
    note(FlightEvent::ConnectionUp, connection);
  }
  connection.state = Connection::State::Up;
  connection.is_expected = false;
  mark_unsent(connection);
  if (is_closing_ && !connection.said_goodbye) say_goodbye(connection);
}

void Endpoint::add_socket(Connection& connection, Stream stream, uint16_t index) {
  if (stream.is_secure()) ended_.secure_sockets += 1;
  if (connection.is_numbered) {
    set_resumable_options(stream.get());
    cancel_dials(connection, index);
    // The other side has given the one before it up, or this one has.
    if (auto before = connection.take_link(index)) graveyard_.push_back(std::move(before));
  }
  const std::string& control = options_.congestion_control;
  auto link =
      std::make_unique<SocketLink>(*this, connection, std::move(stream), control != "kernel");
  link->index = index;
  if (control != "auto" && control != "kernel") link->set_congestion_control(control);
  if (connection.stripes && connection.stripes->uses_bbr())
    link->set_congestion_control(Stripes::kBbr);
  connection.add_link(std::move(link));
}

void Endpoint::on_dial_failed(Connection& connection, const std::string& reason) {
  // A stripe that can't be had is no loss of the connection; one that is suspended has a deadline
  // of its own.
  if (connection.state == Connection::State::Up) return;
  if (connection.state == Connection::State::Suspended) {
    connection.last_dial = reason;
    return;
  }
  end_connection(connection,
                 {ErrorKind::Connect, connection.peer.describe() + " can't be reached: " + reason});
}

// --- breaking and ending -------------------------------------------------------------------------

// An error after a goodbye only says that one side was faster with closing than the other with
// writing; the end of the stream is also the answer to our own goodbye.
bool Endpoint::is_over(const Connection& connection) const {
  if (!connection.is_numbered) return connection.goodbye || connection.said_goodbye;
  return (connection.goodbye && connection.has_all()) ||
         (connection.said_goodbye && !connection.has_unsent() &&
          !connection.outgoing.has_unacknowledged());
}

void Endpoint::on_link_down(Connection& connection, Link& link, const Error& error) {
  if (connection.state != Connection::State::Up) return;
  if (error.kind == ErrorKind::RemoteProtocol) {
    end_connection(connection, error);
    return;
  }
  const Error closed{ErrorKind::MemberLost, "its connection was closed without a goodbye"};
  const bool over = is_over(connection);
  if (connection.is_numbered && !over) {
    replace_link(connection, link, error ? error : closed);
    return;
  }
  if (!error) {
    connection.links_ended += 1;
    if (connection.links_ended < connection.link_count()) return;
  }
  over ? end_connection(connection, {}) : suspend(connection, error ? error : closed, 0);
}

// One socket of a connection that resumes has broken.
void Endpoint::replace_link(Connection& connection, Link& link, const Error& error) {
  const uint16_t index = link.index;
  graveyard_.push_back(connection.take_link(index));
  ended_.replaced_sockets += 1;
  connection.traffic.replaced_sockets += 1;
  note(FlightEvent::SocketReplaced, connection, error);
  if (connection.link_count() == 0) {
    suspend(connection, error, index);
    return;
  }
  mark_unsent(connection);  // what it carried goes over the others
  if (!connection.proven.empty())
    begin_dial(connection, Intent::Resume, index, after(Clock::now(), options_.grace_seconds));
}

// The connection has no socket. Where it can't be resumed it is lost; whether its peer's process
// is, too, is asked where that listened.
void Endpoint::suspend(Connection& connection, const Error& error, uint16_t index) {
  bury_links(connection);
  const bool resumes = connection.is_numbered;
  if (!resumes) cancel_dials(connection);
  const bool can_dial = !connection.proven.empty() || connection.shared_memory;
  connection.state = Connection::State::Suspended;
  connection.error = error;
  note(FlightEvent::ConnectionBroken, connection, error);
  connection.last_dial.clear();
  if (!can_dial && !resumes) {
    end_connection(connection, error);
    return;
  }
  connection.suspended_since = Clock::now();
  connection.suspended_until =
      after(connection.suspended_since, resumes ? options_.grace_seconds : kProbeSeconds);
  engine_.wake_at(connection.suspended_until);
  if (!can_dial) return;  // the peer may be able to
  begin_dial(connection, resumes ? Intent::Resume : Intent::Probe, index,
             connection.suspended_until);
}

bool Endpoint::on_peer_ended(Connection& connection) {
  if (connection.state == Connection::State::Up) return false;
  if (connection.state != Connection::State::Suspended) return true;
  connection.has_ended = true;
  const Error gone{connection.error.kind, connection.error.message + ": the process is gone"};
  end_connection(connection, connection.said_goodbye ? Error{} : gone);
  return true;
}

void Endpoint::on_peer_alive(Connection& connection) {
  const bool is_broken =
      connection.state == Connection::State::Up || connection.state == Connection::State::Suspended;
  if (!is_broken) return;
  const Error ended{
      ErrorKind::MemberLost,
      connection.error.message + (connection.is_numbered ? ", and the other side has given it up"
                                                         : ", although its process is there")};
  end_connection(connection, connection.said_goodbye ? Error{} : ended);
}

void Endpoint::bury_links(Connection& connection) {
  for (auto& link : connection.take_links()) {
    link->cut();
    std::erase(memory_links_, dynamic_cast<MemoryLink*>(link.get()));
    graveyard_.push_back(std::move(link));
  }
}

void Endpoint::end_connection(Connection& connection, const Error& error) {
  if (connection.state == Connection::State::Closed) return;
  cancel_dials(connection);
  connection.state = Connection::State::Closed;
  connection.error = error;
  connection.has_ended |= connection.goodbye;
  note(FlightEvent::ConnectionLost, connection, error);
  connection.clear();
  add_traffic(ended_, connection);
  connection.traffic = {};
  bury_links(connection);
  sink_.on_lost(connection, connection.error);
}

void Endpoint::add_traffic(Statistics& sum, const Connection& connection) {
  const Traffic& traffic = connection.traffic;
  (connection.shared_memory ? sum.bytes_sent_memory : sum.bytes_sent_tcp) += traffic.bytes_sent;
  (connection.shared_memory ? sum.bytes_received_memory : sum.bytes_received_tcp) +=
      traffic.bytes_received;
  sum.resent_frames += traffic.resent_frames;
  sum.resent_bytes += traffic.resent_bytes;
}

void Endpoint::on_bad_frame(Connection& connection, const std::string& fault) {
  connection.error = {ErrorKind::RemoteProtocol, fault};
}

TimePoint Endpoint::watch(Connection& connection, TimePoint now) {
  if (connection.state == Connection::State::Dialing) {
    if (now < connection.dial_deadline) return connection.dial_deadline;
    const bool calls = !connection.is_called && !connection.peer.accepts_calls();
    on_dial_failed(connection, (calls ? "it only connects outwards, and has not called within "
                                      : "no answer within ") +
                                   std::to_string(options_.connect_timeout_seconds) + " s");
  } else if (connection.state == Connection::State::Suspended) {
    if (now < connection.suspended_until) return connection.suspended_until;
    Error error = connection.error;
    if (connection.is_numbered) {
      error.message +=
          "; it could not be had again within " + seconds_text(now - connection.suspended_since);
      if (!connection.last_dial.empty()) error.message += " (" + connection.last_dial + ")";
    }
    end_connection(connection, error);
  } else if (connection.state == Connection::State::Up && connection.is_numbered) {
    return watch_numbered(connection, now);
  }
  return TimePoint::max();
}

TimePoint Endpoint::watch_numbered(Connection& connection, TimePoint now) {
  if (now >= connection.ack_at()) {
    connection.make_ack_due();
    mark_unsent(connection);
  }
  const TimePoint ack_at = connection.is_ack_due() ? TimePoint::max() : connection.ack_at();
  if (!connection.outgoing.has_unacknowledged()) {
    connection.progress_at = now;
    return ack_at;
  }
  if (now < connection.watch_at) return std::min(ack_at, connection.watch_at);
  connection.watch_at = now + kWatchPeriod;
  uint64_t progress = connection.traffic.bytes_received + connection.outgoing.acknowledged();
  for (Link* link : connection.links()) {
    link->watch(now);
    progress += link->progress();
  }
  choose_stripes(connection, now);
  if (progress != connection.progress) connection.progress_at = now;
  connection.progress = progress;
  // A process that is stopped takes nothing any more, though its kernel answers.
  if (now < after(connection.progress_at, options_.grace_seconds))
    return std::min(ack_at, connection.watch_at);
  for (Link* link : connection.links()) {
    if (connection.state != Connection::State::Up) break;
    link->cut();
    replace_link(connection, *link,
                 {ErrorKind::MemberLost,
                  "no acknowledgement for " + seconds_text(now - connection.progress_at)});
  }
  return ack_at;
}

}  // namespace pccl::transport
