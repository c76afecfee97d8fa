// How the connections of an endpoint begin, are answered, break and end.
#include <algorithm>
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

bool is_nobody(const MemberId& id) { return id == MemberId{}; }

}  // namespace

std::vector<Connection*> Endpoint::connections() const {
  std::vector<Connection*> all;
  all.reserve(known_.size() + others_.size());
  for (const auto& [id, connection] : known_) all.push_back(connection.get());
  for (const auto& connection : others_) all.push_back(connection.get());
  return all;
}

// --- answering -----------------------------------------------------------------------------------

Reply Endpoint::judge(const Hello& hello, Connection*& connection) {
  // Where a connection broke, it matters who answers: the member that was there, or another.
  const Answer refusal = hello.intent == Intent::Open ? Answer::Refused : Answer::Stranger;
  if (hello.from.run != options_.run && !options_.accepts_any_run) {
    return {refusal, "wrong run: this member is in '" + options_.run + "', the caller in '" +
                         hello.from.run + "' (a process of another or an earlier job?)"};
  }
  const bool wants_coordinator = is_nobody(hello.to) && options_.accepts_any_run;
  if (hello.to != address_.member_id && !wants_coordinator) {
    return {refusal, "wrong member: the caller wants " + to_text(hello.to) + ", this is " +
                         to_text(address_.member_id) + " (an address of a process that is gone?)"};
  }
  if (is_nobody(hello.from.member_id)) return {Answer::Refused, "the caller has no member id"};
  if (hello.from.member_id == address_.member_id)
    return {Answer::Refused, "a member can't connect to itself"};
  if (hello.intent == Intent::Probe) return {Answer::Alive, ""};
  if (hello.intent == Intent::Resume) return {Answer::Over, "that connection was closed"};
  connection = &this->connection(hello.from, {});
  // Unless there is something left to tell the caller.
  if (is_closing_ && !connection->has_unsent()) return {Answer::Refused, "this member is leaving"};
  const bool joins = hello.nonce == connection->nonce && hello.socket_index > 0;
  const bool may_call_again = options_.accepts_any_run && !joins;
  if (may_call_again && connection->state != Connection::State::Idle)
    connection = &make_way(*connection);
  return judge_open(hello, *connection);
}

Reply Endpoint::judge_open(const Hello& hello, Connection& connection) {
  switch (connection.state) {
    case Connection::State::Idle:
      return {};
    case Connection::State::Dialing:
      // Both sides dial. The smaller id's dial stands once its Hello is on the way. Until then it
      // may be one that never gets through, to a member behind NAT, so the other's is taken.
      for (const auto& dialer : dialers_) {
        const bool is_ours = &dialer->connection() == &connection && !dialer->finished();
        if (is_ours && dialer->is_asking() && address_.member_id < hello.from.member_id)
          return {Answer::Duplicate, "already dialing you"};
      }
      cancel_dials(connection);
      return {};
    case Connection::State::Up:
      if (hello.nonce == connection.nonce && hello.socket_index > 0 &&
          connection.link_count() < kSocketsMax)
        return {};
      return {Answer::Duplicate, "already connected"};
    case Connection::State::Suspended:
    case Connection::State::Closed:
      break;
  }
  return {Answer::Refused, "the connection between these members was closed"};
}

// A member calls a coordinator again: whatever became of its last connection, it has given it up.
Connection& Endpoint::make_way(Connection& connection) {
  const MemberAddress peer = connection.peer;
  end_connection(connection, {ErrorKind::MemberLost, "it has called again"});
  // Unless who was told has forgotten it.
  const auto found = known_.find(peer.member_id);
  if (found != known_.end()) {
    others_.push_back(std::move(found->second));
    known_.erase(found);
  }
  return this->connection(peer, {});
}

// --- connecting ----------------------------------------------------------------------------------

Connection& Endpoint::connection(const MemberAddress& peer,
                                 const std::vector<SocketAddress>& resolved) {
  std::unique_ptr<Connection>& known = known_[peer.member_id];
  if (!known) known = std::make_unique<Connection>(peer);
  if (known->resolved.empty()) known->resolved = resolved;
  return *known;
}

Connection& Endpoint::call(const std::string& label, std::vector<SocketAddress> resolved) {
  MemberAddress peer;
  peer.hosts = {label};
  others_.push_back(std::make_unique<Connection>(std::move(peer)));
  Connection& connection = *others_.back();
  connection.is_called = true;
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
  dialers_.push_back(
      std::make_unique<Dialer>(*this, connection, Dialer::Options{.deadline = deadline}));
  dialers_.back()->begin(now);
}

void Endpoint::dial_more(Connection& connection) {
  if (connection.is_called) return;
  const TimePoint now = Clock::now();
  for (int index = 1; index < options_.sockets; ++index) {
    dialers_.push_back(std::make_unique<Dialer>(
        *this, connection,
        Dialer::Options{.socket_index = static_cast<uint16_t>(index),
                        .deadline = after(now, options_.connect_timeout_seconds)}));
    dialers_.back()->begin(now);
  }
}

void Endpoint::cancel_dials(const Connection& connection) {
  for (auto& dialer : dialers_) {
    if (&dialer->connection() == &connection) dialer->cancel();
  }
}

void Endpoint::adopt(Connection& connection, FileDescriptor socket, const Hello& hello,
                     std::vector<FileDescriptor> descriptors, int side) {
  if (connection.state == Connection::State::Closed) return;
  if (side == 1) connection.nonce = hello.nonce;
  if (hello.road == Road::Memory) {
    std::shared_ptr<SharedRings> rings;
    try {
      rings = std::make_shared<SharedRings>(descriptors[0].get());
    } catch (const std::exception& error) {
      on_dial_failed(connection, error.what());
      return;
    }
    // The dialing side listens to descriptor 1, the other to descriptor 2.
    FileDescriptor own = std::move(descriptors[side == 0 ? 1 : 2]);
    FileDescriptor peer = std::move(descriptors[side == 0 ? 2 : 1]);
    auto link = std::make_unique<MemoryLink>(*this, connection, std::move(socket), std::move(rings),
                                             side, std::move(own), std::move(peer));
    memory_links_.push_back(link.get());
    connection.shared_memory = true;
    connection.add_link(std::move(link));
  } else {
    connection.add_link(std::make_unique<SocketLink>(*this, connection, std::move(socket)));
  }
  connection.state = Connection::State::Up;
  mark_unsent(connection);
  if (is_closing_ && !connection.said_goodbye) say_goodbye(connection);
}

void Endpoint::on_dial_failed(Connection& connection, const std::string& reason) {
  // A stripe that can't be had is no loss of the connection.
  if (connection.state == Connection::State::Up) return;
  if (connection.state == Connection::State::Suspended) {
    end_connection(connection, connection.error);
    return;
  }
  end_connection(connection,
                 {ErrorKind::Connect, connection.peer.describe() + " can't be reached: " + reason});
}

// --- breaking and ending -------------------------------------------------------------------------

void Endpoint::on_link_down(Connection& connection, const Error& error) {
  if (connection.state != Connection::State::Up) return;
  if (!error) {
    connection.links_ended += 1;
    if (connection.links_ended < connection.link_count()) return;
  }
  // An error after a goodbye only says that one side was faster with closing than the other with
  // writing; the end of the stream is also the answer to our own goodbye.
  if (connection.goodbye || connection.said_goodbye) {
    end_connection(connection, {});
  } else if (error.kind == ErrorKind::RemoteProtocol) {
    end_connection(connection, error);
  } else {
    const Error closed{ErrorKind::MemberLost, "its connection was closed without a goodbye"};
    suspend(connection, error ? error : closed);
  }
}

// The connection is lost; whether its peer's process is, too, is asked where that listened.
void Endpoint::suspend(Connection& connection, const Error& error) {
  bury_links(connection);
  connection.state = Connection::State::Suspended;
  connection.error = error;
  if (connection.proven.empty() && !connection.shared_memory) {
    end_connection(connection, error);
    return;
  }
  const TimePoint now = Clock::now();
  connection.suspended_until = after(now, kProbeSeconds);
  engine_.wake_at(connection.suspended_until);
  dialers_.push_back(std::make_unique<Dialer>(
      *this, connection,
      Dialer::Options{.intent = Intent::Probe, .deadline = connection.suspended_until}));
  dialers_.back()->begin(now);
}

void Endpoint::on_peer_ended(Connection& connection) {
  if (connection.state != Connection::State::Suspended) return;
  connection.has_ended = true;
  end_connection(connection,
                 {connection.error.kind, connection.error.message + ": the process is gone"});
}

void Endpoint::on_peer_alive(Connection& connection) {
  if (connection.state != Connection::State::Suspended) return;
  end_connection(connection, {connection.error.kind,
                              connection.error.message + ", although its process is there"});
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
}

void Endpoint::on_bad_frame(Connection& connection, const std::string& fault) {
  connection.error = {ErrorKind::RemoteProtocol, fault};
}

TimePoint Endpoint::watch(Connection& connection, TimePoint now) {
  if (connection.state == Connection::State::Dialing) {
    if (now < connection.dial_deadline) return connection.dial_deadline;
    on_dial_failed(connection,
                   "no answer within " + std::to_string(options_.connect_timeout_seconds) + " s");
  } else if (connection.state == Connection::State::Suspended) {
    if (now < connection.suspended_until) return connection.suspended_until;
    end_connection(connection, connection.error);
  }
  return TimePoint::max();
}

}  // namespace pccl::transport
