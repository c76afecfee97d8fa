#include "transport/endpoint.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

#include "base/random.h"
#include "transport/dialer.h"
#include "transport/examiner.h"
#include "transport/frame.h"
#include "transport/socket.h"
#include "transport/socket_link.h"

namespace pccl::transport {
namespace {

// A caller that has not said Hello by then is no member.
constexpr auto kHelloTimeout = std::chrono::seconds(5);
// Half-open handshakes that strangers can make us hold; 256 * kHandshakeBytesMax is about 1 MiB.
constexpr size_t kGreetersMax = 256;
// Callers accepted before others get their turn.
constexpr int kAcceptsPerTurn = 64;
constexpr auto kIdleTick = std::chrono::seconds(1);

std::string hex(const MemberId& id) {
  std::string text;
  for (const uint8_t byte : id) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

}  // namespace

Endpoint::Endpoint(EndpointOptions options, FrameSink& sink)
    : options_(std::move(options)),
      sink_(sink),
      engine_(*this),
      examinations_(std::make_unique<Examinations>(engine_)),
      source_limit_(options_.calls_per_second, options_.calls_at_once) {
  if (options_.run.empty() || options_.run.size() > 255) {
    throw std::invalid_argument("endpoint: the run's name must have 1 to 255 characters");
  }
  if (options_.sockets < 0 || options_.sockets > kSocketsMax) {
    throw std::invalid_argument("endpoint: sockets must be 0.." + std::to_string(kSocketsMax) +
                                ", not " + std::to_string(options_.sockets));
  }
  address_.member_id = random_value<MemberId>();
  address_.run = options_.run;
  if (has_key()) {
    identity_ = options_.identity ? options_.identity : Identity::generate();
    address_.fingerprint = identity_->fingerprint();
  }
  address_.graph = options_.graph;
  if (options_.accepts_calls) {
    FileDescriptor tcp = listen_tcp(options_.bind_host, options_.port);
    address_.port = local_port(tcp.get());
    tcp_listener_ = std::make_unique<Listener>(*this, std::move(tcp), false);
    engine_.add(tcp_listener_->socket.get(), tcp_listener_.get());
  }
  address_.hosts = options_.advertise_hosts;
  if (address_.hosts.empty()) {
    const bool is_any =
        options_.bind_host.empty() || options_.bind_host == "0.0.0.0" || options_.bind_host == "::";
    address_.hosts = is_any ? local_hosts() : std::vector<std::string>{options_.bind_host};
  }
  if (address_.hosts.size() > kHostsMax)
    throw std::invalid_argument("endpoint: too many advertised hosts");
  address_.host_key = local_host_key();
  if (!MemberAddress::decode(address_.encode())) {
    throw std::invalid_argument("endpoint: the advertised hosts do not fit into an address of " +
                                std::to_string(kAddressBytesMax) + " bytes, each of at most 255");
  }
  recorder_.identify({.member_id = to_text(address_.member_id),
                      .address = address_.describe(),
                      .run = address_.run,
                      .host_key = address_.host_key,
                      .protocol = kProtocolVersion,
                      .folder = options_.trace_folder});
  if (options_.shared_memory && !address_.host_key.empty()) {
    address_.memory_name = "pccl." + hex(address_.member_id);
    memory_listener_ = std::make_unique<Listener>(*this, listen_memory(address_.memory_name), true);
    engine_.add(memory_listener_->socket.get(), memory_listener_.get());
  }
}

Endpoint::~Endpoint() { close(Clock::now()); }

// --- accepting -----------------------------------------------------------------------------------

void Endpoint::Listener::on_events(uint32_t /*epoll_events*/) {
  for (int accepts = 0; socket; ++accepts) {
    if (accepts == kAcceptsPerTurn) {
      endpoint_.engine_.again(this);
      return;
    }
    FileDescriptor accepted(
        ::accept4(socket.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!accepted) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      // Out of descriptors or memory: the backlog keeps the caller until the next tick.
      if (errno != EAGAIN && errno != EWOULDBLOCK)
        endpoint_.engine_.wake_at(Clock::now() + kIdleTick);
      return;
    }
    const TimePoint now = Clock::now();
    const bool is_admitted =
        is_memory_ || endpoint_.source_limit_.admit(remote_address(accepted.get()), now);
    if (!is_admitted) {
      endpoint_.refused_rate_ += 1;
      continue;
    }
    endpoint_.make_room_for_greeter();
    if (!is_memory_) set_stream_options(accepted.get());
    const TimePoint deadline = now + kHelloTimeout;
    endpoint_.greeters_.push_back(
        std::make_unique<Greeter>(endpoint_, Stream(std::move(accepted)), is_memory_, deadline));
    endpoint_.engine_.wake_at(deadline);
  }
}

void Endpoint::make_room_for_greeter() {
  const auto is_waiting = [](const auto& greeter) { return !greeter->finished(); };
  const auto waiting = std::count_if(greeters_.begin(), greeters_.end(), is_waiting);
  if (static_cast<size_t>(waiting) < kGreetersMax) return;
  // A member says Hello at once, so the one that has been silent for longest is none.
  (*std::find_if(greeters_.begin(), greeters_.end(), is_waiting))->give_way();
}

// --- closing -------------------------------------------------------------------------------------

bool Endpoint::is_vital(const Dialer& dialer) {
  return dialer.resumes() && dialer.connection().state == Connection::State::Suspended;
}

bool Endpoint::is_finished() const {
  const std::vector<Connection*> all = connections();
  return std::none_of(all.begin(), all.end(),
                      [](const Connection* connection) {
                        // It hears why this member leaves as soon as its own dial is here.
                        const bool is_coming = connection->state == Connection::State::Dialing &&
                                               connection->is_expected && connection->has_unsent();
                        return is_coming || connection->state == Connection::State::Up ||
                               connection->state == Connection::State::Suspended;
                      }) &&
         std::all_of(dialers_.begin(), dialers_.end(),
                     [](const auto& dialer) { return dialer->finished(); });
}

void Endpoint::say_goodbye(Connection& connection) {
  OutFrame goodbye;
  goodbye.header.type = FrameType::Goodbye;
  connection.send(std::move(goodbye));
  connection.said_goodbye = true;
  mark_unsent(connection);
}

void Endpoint::hang_up(Connection& connection) {
  if (connection.state == Connection::State::Dialing) {
    end_connection(connection, {ErrorKind::Aborted, "its call was given up"});
    return;
  }
  has_hung_up_ = true;
  const bool is_there =
      connection.state == Connection::State::Up || connection.state == Connection::State::Suspended;
  if (is_there && !connection.said_goodbye) say_goodbye(connection);
}

void Endpoint::close(TimePoint deadline) {
  if (is_closed_) return;
  std::atomic<bool> begun{false};
  engine_.submit(
      [this, &begun] {
        is_closing_ = true;
        for (auto& dialer : dialers_) {
          // A socket that the peer may have taken already ends as the others do: closed with the
          // answer unread it would be reset, which looks like a death. And the peer may have to
          // hear why this member leaves.
          if (!dialer->is_asking() && !is_vital(*dialer) && !dialer->connection().has_unsent())
            dialer->cancel();
        }
        for (Connection* connection : connections()) {
          if (connection->state == Connection::State::Up) say_goodbye(*connection);
          // One that resumes says it when it has a socket again.
          if (connection->state == Connection::State::Suspended && !connection->is_numbered)
            end_connection(*connection, connection->error);
        }
        begun.store(true);
      },
      false);
  engine_.wait(begun, after(Clock::now(), 5));
  // Until every peer has read our last byte and closed its side, or the deadline.
  std::atomic<bool> finished{false};
  while (!finished.load() && Clock::now() < deadline) {
    engine_.submit([this, &finished] { finished.store(is_finished()); }, false);
    engine_.wait(finished, std::min(deadline, Clock::now() + std::chrono::milliseconds(5)));
  }
  engine_.stop();
  is_closed_ = true;
  for (Connection* connection : connections()) {
    if (connection->state == Connection::State::Up ||
        connection->state == Connection::State::Suspended)
      end_connection(*connection, {ErrorKind::Aborted, "closed"});
  }
  if (recorder_.file_due() != TimePoint::max()) recorder_.write_file(Clock::now());
  dialers_.clear();
  greeters_.clear();
  examinations_.reset();
  graveyard_.clear();
  forgotten_.clear();
  tcp_listener_.reset();
  memory_listener_.reset();
}

// Runs `question` on the driver and waits for it; on this thread where nobody drives any more.
void Endpoint::ask_driver(const std::function<void()>& question) {
  std::atomic<bool> done{false};
  const auto ask = [this, &question, &done] {
    question();
    done.store(true);
    engine_.notify_waiters();
  };
  if (is_closed_ || !engine_.submit(ask, false)) {
    question();
    return;
  }
  // The task refers to this frame, so wait for it however long a driver is busy.
  while (!done.load()) engine_.wait(done, after(Clock::now(), 60));
}

namespace {

bool is_alive(const Connection& connection) {
  return connection.state == Connection::State::Up ||
         connection.state == Connection::State::Suspended;
}

}  // namespace

Statistics Endpoint::statistics() {
  Statistics sum;
  ask_driver([this, &sum] { sum = count(); });
  return sum;
}

Statistics Endpoint::count() const {
  Statistics sum = ended_;
  for (const Connection* connection : connections()) {
    if (!is_alive(*connection)) continue;
    sum.connections += 1;
    add_traffic(sum, *connection);
  }
  sum.refused_connections = refused_.load();
  sum.refused_keys = refused_keys_.load();
  sum.refused_plain = refused_plain_.load();
  sum.refused_rate = refused_rate_.load();
  sum.refused_late = refused_late_.load();
  return sum;
}

std::vector<LinkTraffic> Endpoint::link_traffic() const {
  std::vector<LinkTraffic> all;
  for (const auto& [id, connection] : known_) {
    if (!is_alive(*connection)) continue;
    all.push_back(connection->counted());
  }
  return all;
}

std::string Endpoint::flight_record() {
  std::string text;
  ask_driver([this, &text] {
    if (!is_closed_) sink_.note_running(recorder_);
    text = recorder_.to_json_lines();
  });
  return text;
}

std::pair<std::string, uint64_t> Endpoint::flight_events(uint64_t seen) {
  std::pair<std::string, uint64_t> events;
  ask_driver([this, &events, seen] {
    events = {recorder_.events_since(seen), recorder_.event_count()};
  });
  return events;
}

void Endpoint::note(FlightEvent event, const Connection& connection, const Error& error) {
  const bool is_known = connection.peer.member_id != MemberId{};
  const std::string member = is_known ? to_text(connection.peer.member_id) : "";
  recorder_.note(
      event, {.member = member, .error = error.kind},
      error ? connection.peer.describe() + ": " + error.message : connection.peer.describe());
}

// --- the driver's rounds -------------------------------------------------------------------------

void Endpoint::mark_unsent(Connection& connection) {
  if (connection.is_marked) return;
  connection.is_marked = true;
  unsent_.push_back(&connection);
}

void Endpoint::flush() {
  // on_sent() may queue more, also on other connections; each pass sends at least one frame of
  // each, or finds its links full, and then they wake us.
  while (!unsent_.empty()) {
    std::vector<Connection*> connections;
    connections.swap(unsent_);
    for (Connection* connection : connections) {
      connection->is_marked = false;
      connection->flush();
    }
  }
}

void Endpoint::end_streams() {
  for (Connection* connection : connections()) {
    const bool is_over = connection->said_goodbye && connection->state == Connection::State::Up;
    const bool is_sent = !connection->has_unsent() && !connection->outgoing.has_unacknowledged();
    if (is_over && is_sent) connection->shutdown_writing();
  }
}

bool Endpoint::before_sleep() {
  graveyard_.clear();
  if (is_closing_) {
    // A member that does not answer at once is not waited for.
    for (auto& dialer : dialers_) {
      if (dialer->is_resting() && !is_vital(*dialer)) dialer->cancel();
    }
  }
  std::erase_if(dialers_, [](const auto& dialer) { return dialer->finished(); });
  std::erase_if(greeters_, [](const auto& greeter) { return greeter->finished(); });
  forgotten_.clear();
  // Links also send when their socket has room again, so no single place sees the last byte leave.
  if (is_closing_ || has_hung_up_) end_streams();
  bool has_work = false;
  for (MemoryLink* link : memory_links_) has_work |= link->before_sleep();
  return has_work;
}

void Endpoint::after_sleep() {
  for (MemoryLink* link : memory_links_) link->after_sleep();
}

TimePoint Endpoint::on_time(TimePoint now) {
  TimePoint next = std::min(now + kIdleTick, sink_.on_time(now));
  if (now >= recorder_.file_due()) {
    sink_.note_running(recorder_);
    recorder_.write_file(now);
  }
  next = std::min(next, recorder_.file_due());
  if (tcp_listener_) tcp_listener_->on_turn();
  if (memory_listener_) memory_listener_->on_turn();
  for (size_t i = 0; i < dialers_.size(); ++i) next = std::min(next, dialers_[i]->on_time(now));
  for (size_t i = 0; i < greeters_.size(); ++i) next = std::min(next, greeters_[i]->on_time(now));
  next = std::min(next, examinations_->on_time(now));
  // Who is told of a loss may forget the connection, which then lives until the driver sleeps.
  for (Connection* connection : connections()) next = std::min(next, watch(*connection, now));
  return next;
}

}  // namespace pccl::transport
