#include "transport/dialer.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <exception>

#include "transport/endpoint.h"
#include "transport/socket.h"

namespace pccl::transport {
namespace {

// One address gets this long before the next is tried; a handshake likewise.
constexpr auto kCandidateTimeout = std::chrono::seconds(5);
constexpr auto kRetryPause = std::chrono::milliseconds(100);
// After a break. Most are over at once, and a process that dies may close its listener some
// microseconds after its sockets; one that lasts is not to be asked more often than this.
constexpr auto kRedialPauseMin = std::chrono::milliseconds(1);
constexpr auto kRedialPauseMax = std::chrono::milliseconds(250);
// Round trips that an address gets after a break, at least kRedialTimeoutMin: the kernel repeats a
// lost SYN after a second, and a new dial does so as well.
constexpr double kRedialRoundTrips = 8;
constexpr double kRedialSecondsMin = 1;
constexpr double kRedialSecondsMax = 5;
// If every address of a member refuses or declines this many times, its process is gone: its
// listener was there before its address was published.
constexpr int kFinalRoundsMax = 3;
constexpr size_t kDescriptorsMax = 3;

bool is_loopback(const SocketAddress& address) {
  const std::string text = address.describe();
  return text.starts_with("127.") || text.starts_with("[::1]");
}

}  // namespace

// --- Dialer --------------------------------------------------------------------------------------

Dialer::Dialer(Endpoint& endpoint, Connection& connection, const Options& options)
    : endpoint_(endpoint), connection_(connection), options_(options) {
  const MemberAddress& own = endpoint.address();
  const MemberAddress& peer = connection.peer;
  const bool same_host = !own.host_key.empty() && own.host_key == peer.host_key;
  const bool is_open = options.intent == Intent::Open;
  pause_ = is_open ? kRetryPause : kRedialPauseMin;
  if (is_open) {
    has_memory_ = same_host && options.socket_index == 0 && !own.memory_name.empty() &&
                  !peer.memory_name.empty();
    candidates_ = connection.resolved;
    std::stable_partition(
        candidates_.begin(), candidates_.end(),
        [same_host](const SocketAddress& address) { return is_loopback(address) == same_host; });
  } else {
    has_memory_ = connection.shared_memory;
    if (!has_memory_) candidates_ = connection.proven;
  }
  memory_pending_ = has_memory_;
  hello_.from = own;
  // Who serves every run speaks as one of the peer's; else it would be a stranger there.
  if (endpoint.options().accepts_any_run) hello_.from.run = peer.run;
  hello_.to = peer.member_id;
  hello_.nonce = connection.nonce;
  hello_.socket_index = options.socket_index;
  hello_.intent = options.intent;
}

Dialer::~Dialer() {
  if (socket_) endpoint_.engine().remove(socket_.get(), this);
}

void Dialer::begin(TimePoint now) { try_next(now); }

void Dialer::cancel() { finish(); }

void Dialer::finish() {
  if (socket_) {
    endpoint_.engine().remove(socket_.get(), this);
    socket_.reset();
  }
  finished_ = true;
}

void Dialer::rest(TimePoint now) {
  stage_ = Stage::Resting;
  retry_at_ = now + pause_;
  if (options_.intent != Intent::Open)
    pause_ = std::min<Clock::duration>(2 * pause_, kRedialPauseMax);
  endpoint_.engine().wake_at(retry_at_);
}

// Whether nobody listens where the peer's process did; then this dialer has ended.
bool Dialer::is_peer_gone(bool is_refused) {
  if (!is_refused || options_.intent == Intent::Open) return false;
  if (!endpoint_.on_peer_ended(connection_)) return false;
  finish();
  return true;
}

void Dialer::try_next(TimePoint now) {
  const bool is_open = options_.intent == Intent::Open;
  while (!finished_) {
    if (now >= options_.deadline || (is_open && rounds_ >= kFinalRoundsMax && all_final_)) {
      finish();
      endpoint_.on_dial_failed(connection_, last_reason_.empty() ? "no answer" : last_reason_);
      return;
    }
    if (memory_pending_) {
      memory_pending_ = false;
      if (try_memory()) return;
      continue;
    }
    if (next_ == candidates_.size()) {
      next_ = 0;
      rounds_ += 1;
      memory_pending_ = has_memory_ && !is_open;
      if (candidates_.empty() && is_open)
        last_reason_ = "its host name does not resolve, or it told no address";
      rest(now);
      return;
    }
    std::string error;
    socket_ = begin_connect(candidates_[next_], error);
    if (!socket_) {
      last_reason_ = candidates_[next_].describe() + ": " + error;
      if (is_peer_gone(error == std::strerror(ECONNREFUSED))) return;
      all_final_ = false;
      next_ += 1;
      continue;
    }
    stage_ = Stage::Connecting;
    candidate_deadline_ = std::min(options_.deadline, now + candidate_timeout());
    endpoint_.engine().wake_at(candidate_deadline_);
    endpoint_.engine().add(socket_.get(), this);
    return;
  }
}

Clock::duration Dialer::candidate_timeout() const {
  if (options_.intent == Intent::Open) return kCandidateTimeout;
  const double seconds = std::clamp(kRedialRoundTrips * connection_.round_trip_seconds,
                                    kRedialSecondsMin, kRedialSecondsMax);
  return after({}, seconds) - TimePoint{};
}

bool Dialer::try_memory() {
  std::string error;
  socket_ = connect_memory(connection_.peer.memory_name, error);
  if (!socket_) {
    last_reason_ = "shared memory: " + error;
    return is_peer_gone(error == std::strerror(ECONNREFUSED));
  }
  descriptors_.clear();
  if (options_.intent == Intent::Open && !make_memory()) return false;
  endpoint_.engine().add(socket_.get(), this);
  candidate_deadline_ = std::min(options_.deadline, Clock::now() + candidate_timeout());
  endpoint_.engine().wake_at(candidate_deadline_);
  ask(Road::Memory);
  return !finished_;
}

bool Dialer::make_memory() {
  try {
    descriptors_.push_back(SharedRings::create());
  } catch (const std::exception& failure) {
    // Out of descriptors or memory: TCP needs less of both.
    last_reason_ = failure.what();
    socket_.reset();
    return false;
  }
  for (int i = 0; i < 2; ++i) descriptors_.emplace_back(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  return true;
}

void Dialer::ask(Road road) {
  hello_.road = road;
  hello_.resumes = road == Road::Tcp && endpoint_.wants_to_resume(connection_);
  hello_.attempt = ++connection_.attempts;
  hello_.consumed = connection_.incoming.consumed();
  stage_ = Stage::Asking;
  received_.clear();
  std::vector<int> descriptors;
  if (road == Road::Memory) {
    for (const FileDescriptor& descriptor : descriptors_) descriptors.push_back(descriptor.get());
  }
  if (!send_all(socket_.get(), hello_.encode(), descriptors))
    fail_candidate("the handshake could not be sent");
}

void Dialer::fail_candidate(const std::string& reason, bool is_final) {
  const bool was_memory = stage_ == Stage::Asking && hello_.road == Road::Memory;
  last_reason_ = (was_memory ? "shared memory" : candidates_[next_].describe()) + ": " + reason;
  all_final_ = all_final_ && is_final;
  endpoint_.engine().remove(socket_.get(), this);
  socket_.reset();
  if (!was_memory) next_ += 1;
  stage_ = Stage::Resting;
  retry_at_ = {};
  endpoint_.engine().wake_at(Clock::now());
}

void Dialer::on_events(uint32_t epoll_events) {
  if (finished_) return;
  if (stage_ == Stage::Connecting) {
    if ((epoll_events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) == 0) return;
    const std::string error = connect_error(socket_.get());
    const bool is_refused = error == std::strerror(ECONNREFUSED);
    if (is_peer_gone(is_refused)) return;
    if (!error.empty()) {
      fail_candidate(error, is_refused);
      return;
    }
    set_stream_options(socket_.get());
    ask(Road::Tcp);
  }
  if (stage_ == Stage::Asking) read_reply();
}

void Dialer::read_reply() {
  std::array<std::byte, 2048> bytes;
  std::vector<FileDescriptor> none;
  // No more than the reply itself: frames may follow it at once, and they belong to the link.
  while (true) {
    std::string fault;
    const auto whole = handshake_bytes(received_, kReplyMagic, fault);
    if (!fault.empty()) {
      fail_candidate("it answered, but not as a pccl member of this version does (" + fault + ")");
      return;
    }
    if (whole && received_.size() >= *whole) break;
    const size_t wanted = (whole ? *whole : kHandshakePrefixBytes) - received_.size();
    const long count =
        receive_with_descriptors(socket_.get(), bytes.data(), std::min(wanted, bytes.size()), none);
    if (count == 0) return;
    if (count < 0) {
      fail_candidate("it closed the connection during the handshake");
      return;
    }
    received_.insert(received_.end(), bytes.begin(), bytes.begin() + count);
  }
  const auto reply = decode_reply(received_);
  if (!reply) {
    fail_candidate("malformed answer to the handshake");
  } else {
    take_reply(*reply);
  }
}

void Dialer::take_reply(const Reply& reply) {
  switch (reply.answer) {
    case Answer::Refused:
      // It may be somebody else, who has an address that the member has in another network.
      fail_candidate("it declined: " + reply.reason, true);
      return;
    case Answer::Duplicate:
      // The peer's own dial stands. After a break it may break as well, so this one waits with
      // patience for its turn.
      if (resumes()) {
        fail_candidate("it is dialing as well");
      } else {
        finish();  // the endpoint watches the deadline
      }
      return;
    case Answer::Stranger:
      // Of two processes only one can listen at an address, and there this one has.
      if (!is_peer_gone(true)) fail_candidate("it is another member: " + reply.reason);
      return;
    case Answer::Alive:
    case Answer::Over:
      finish();
      endpoint_.on_peer_alive(connection_);
      return;
    case Answer::Welcome:
      break;
  }
  if (options_.intent == Intent::Probe) {
    fail_candidate("it gave no answer to the question whether it is there");
    return;
  }
  if (hello_.road == Road::Tcp) connection_.prove(candidates_[next_]);
  endpoint_.engine().remove(socket_.get(), this);
  FileDescriptor socket = std::move(socket_);
  finished_ = true;
  endpoint_.adopt(connection_, std::move(socket), std::move(descriptors_),
                  {.hello = hello_, .resumes = reply.resumes, .consumed = reply.consumed});
  const bool is_first = options_.socket_index == 0 && options_.intent == Intent::Open;
  if (is_first && hello_.road == Road::Tcp) endpoint_.dial_more(connection_);
}

TimePoint Dialer::on_time(TimePoint now) {
  if (finished_) return TimePoint::max();
  if (stage_ == Stage::Resting && now >= retry_at_) {
    try_next(now);
  } else if (stage_ != Stage::Resting && now >= candidate_deadline_) {
    fail_candidate(
        "no answer within " +
        std::to_string(
            std::chrono::duration_cast<std::chrono::milliseconds>(candidate_timeout()).count()) +
        " ms");
    try_next(now);
  }
  if (finished_) return TimePoint::max();
  return stage_ == Stage::Resting ? retry_at_ : candidate_deadline_;
}

// --- Greeter -------------------------------------------------------------------------------------

Greeter::Greeter(Endpoint& endpoint, FileDescriptor socket, bool is_memory, TimePoint deadline)
    : endpoint_(endpoint), socket_(std::move(socket)), is_memory_(is_memory), deadline_(deadline) {
  endpoint_.engine().add(socket_.get(), this);
}

Greeter::~Greeter() {
  if (socket_) endpoint_.engine().remove(socket_.get(), this);
}

void Greeter::finish() {
  if (socket_) endpoint_.engine().remove(socket_.get(), this);
  socket_.reset();
  finished_ = true;
}

void Greeter::refuse(Answer answer, const std::string& reason) {
  if (answer == Answer::Refused) endpoint_.count_refused();
  send_all(socket_.get(), Reply{answer, reason}.encode());
  // Closing with unread bytes would reset the connection, and the answer with it.
  std::array<std::byte, 4096> rest;
  for (int reads = 0; reads < 16; ++reads) {
    if (::recv(socket_.get(), rest.data(), rest.size(), MSG_DONTWAIT) <= 0) break;
  }
  finish();
}

void Greeter::on_events(uint32_t /*epoll_events*/) {
  std::array<std::byte, 2048> bytes;
  while (!finished_) {
    std::string fault;
    const auto whole = handshake_bytes(received_, kHelloMagic, fault);
    if (!fault.empty()) {
      refuse(Answer::Refused, fault);
      return;
    }
    if (whole && received_.size() >= *whole) break;
    const size_t wanted = (whole ? *whole : kHandshakePrefixBytes) - received_.size();
    const long count = receive_with_descriptors(socket_.get(), bytes.data(),
                                                std::min(wanted, bytes.size()), descriptors_);
    if (count == 0) return;
    if (count < 0 || descriptors_.size() > kDescriptorsMax) {
      // Without a word it was a dial that became superfluous, or a probe of the port.
      if (!received_.empty()) endpoint_.count_refused();
      finish();
      return;
    }
    received_.insert(received_.end(), bytes.begin(), bytes.begin() + count);
  }
  if (finished_) return;
  const auto hello = decode_hello(received_);
  if (!hello || (hello->road == Road::Memory) != is_memory_ ||
      (is_memory_ && peer_user(socket_.get()) != geteuid()) ||
      (is_memory_ && hello->intent == Intent::Resume) ||
      (is_memory_ &&
       descriptors_.size() != (hello->intent == Intent::Open ? kDescriptorsMax : 0))) {
    refuse(Answer::Refused, "malformed handshake");
    return;
  }
  Connection* connection = nullptr;
  const Reply reply = endpoint_.judge(*hello, connection);
  if (reply.answer != Answer::Welcome) {
    refuse(reply.answer, reply.reason);
    return;
  }
  if (!send_all(socket_.get(), reply.encode())) {
    finish();
    return;
  }
  if (!is_memory_) prove(*hello, *connection);
  endpoint_.engine().remove(socket_.get(), this);
  FileDescriptor socket = std::move(socket_);
  finished_ = true;
  endpoint_.adopt(
      *connection, std::move(socket), std::move(descriptors_),
      {.hello = *hello, .side = 1, .resumes = reply.resumes, .consumed = hello->consumed});
}

// The caller's listener is where its call comes from, if it says that it is to be reached there.
void Greeter::prove(const Hello& hello, Connection& connection) {
  SocketAddress source = remote_address(socket_.get());
  source.set_port(hello.from.port);
  const bool is_published =
      std::any_of(hello.from.hosts.begin(), hello.from.hosts.end(),
                  [&source](const std::string& host) { return source.has_host(host); }) ||
      std::any_of(connection.resolved.begin(), connection.resolved.end(),
                  [&source](const SocketAddress& address) { return address == source; });
  if (is_published) connection.prove(source);
}

TimePoint Greeter::on_time(TimePoint now) {
  if (!finished_ && now >= deadline_) refuse(Answer::Refused, "no handshake came in time");
  return finished_ ? TimePoint::max() : deadline_;
}

}  // namespace pccl::transport
