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
#include <utility>

#include "transport/endpoint.h"
#include "transport/socket.h"

namespace pccl::transport {
namespace {

// One address gets this long before the next is tried; a handshake likewise.
constexpr auto kCandidateTimeout = std::chrono::seconds(5);
constexpr auto kRetryPause = std::chrono::milliseconds(100);
// A coordinator that was killed starts again within a tenth of a second, and members wait for it.
constexpr auto kCallRetryPause = std::chrono::milliseconds(10);
// After a break. Most are over at once, and a process that dies may close its listener some
// microseconds after its sockets; one that lasts is not to be asked more often than this.
constexpr auto kRedialPauseMin = std::chrono::milliseconds(1);
constexpr auto kRedialPauseMax = std::chrono::milliseconds(250);
// Round trips that an address gets after a break, at least kRedialTimeoutMin: the kernel repeats a
// lost SYN after a second, and a new dial does so as well.
constexpr double kRedialRoundTrips = 8;
constexpr double kRedialSecondsMin = 1;
constexpr double kRedialSecondsMax = 5;
// If every address of a member refuses or declines this many times in a row, its process is gone:
// its listener was there before its address was published.
constexpr int kFinalRoundsMax = 3;

}  // namespace

Dialer::Dialer(Endpoint& endpoint, Connection& connection, const Options& options)
    : endpoint_(endpoint), connection_(connection), options_(options) {
  const MemberAddress& own = endpoint.address();
  const MemberAddress& peer = connection.peer;
  const bool same_host = !own.host_key.empty() && own.host_key == peer.host_key;
  const bool is_open = options.intent == Intent::Open;
  const auto open_pause = connection.is_called ? kCallRetryPause : kRetryPause;
  pause_ = is_open ? open_pause : kRedialPauseMin;
  if (is_open) {
    has_memory_ = same_host && options.socket_index == 0 && !own.memory_name.empty() &&
                  !peer.memory_name.empty();
    candidates_ = connection.resolved;
    std::stable_partition(
        candidates_.begin(), candidates_.end(),
        [same_host](const SocketAddress& address) { return address.is_loopback() == same_host; });
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
    if (now >= options_.deadline || (is_open && final_rounds_ >= kFinalRoundsMax)) {
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
      final_rounds_ = all_final_ ? final_rounds_ + 1 : 0;
      all_final_ = true;
      memory_pending_ = has_memory_ && !is_open;
      if (candidates_.empty() && is_open)
        last_reason_ = "its host name does not resolve, or it told no address";
      rest(now);
      return;
    }
    std::string error;
    socket_ = Stream(begin_connect(candidates_[next_], error));
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
  socket_ = Stream(connect_memory(connection_.peer.memory_name, error));
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
  if (socket_.is_secure() && connection_.token) {
    hello_.token_id = id_of(connection_.token->key());
    hello_.proof = connection_.token->prove(socket_.tls().channel());
  }
  std::vector<int> descriptors;
  if (road == Road::Memory) {
    for (const FileDescriptor& descriptor : descriptors_) descriptors.push_back(descriptor.get());
  }
  const std::vector<std::byte> bytes = hello_.encode();
  const bool is_sent = road == Road::Memory ? send_all(socket_.get(), bytes, descriptors)
                                            : socket_.send_whole(bytes);
  if (!is_sent) fail_candidate("the handshake could not be sent");
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
    const bool names_key = connection_.is_called && connection_.peer.fingerprint != Fingerprint{};
    if (endpoint_.has_key() && (names_key || endpoint_.secures(candidates_[next_]))) {
      if (connection_.peer.fingerprint == Fingerprint{}) {
        fail_candidate("it named no key, and without TLS nothing is said here (insecure=True?)",
                       true);
        return;
      }
      socket_.secure(endpoint_.identity(), TlsSession::Role::Dials);
      stage_ = Stage::Securing;
    } else {
      ask(Road::Tcp);
    }
  }
  if (stage_ == Stage::Securing) secure();
  if (stage_ == Stage::Asking) read_reply();
}

void Dialer::secure() {
  std::string error;
  const int progress = socket_.shake_hands(error);
  if (progress < 0) fail_securing(error);
  if (progress <= 0) return;
  const Fingerprint& found = socket_.tls().peer();
  if (found == connection_.peer.fingerprint) {
    ask(Road::Tcp);
  } else if (!is_peer_gone(true)) {
    // As with a Stranger: only one process can listen at an address.
    fail_candidate("wrong key: it has " + to_text(found) + ", wanted is " +
                       to_text(connection_.peer.fingerprint),
                   true);
  }
}

// Who has no TLS says so in plain words.
void Dialer::fail_securing(const std::string& error) {
  const std::span<const std::byte> said = socket_.first_bytes();
  std::string fault;
  const auto whole = handshake_bytes(said, kReplyMagic, fault);
  if (whole && said.size() >= *whole) {
    const auto reply = decode_reply(said.first(*whole));
    if (reply) fault = reply->reason;
  }
  const std::string reason = error.empty() ? "it closed the connection during TLS" : error;
  fail_candidate(fault.empty() ? reason : "it declined: " + fault, !fault.empty());
}

void Dialer::read_reply() {
  std::array<std::byte, 2048> bytes;
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
    std::string error;
    const long count = socket_.receive(bytes.data(), std::min(wanted, bytes.size()), error);
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
        connection_.is_expected = true;
        finish();  // the endpoint watches the deadline
      }
      return;
    case Answer::NotYet:
      fail_candidate("it declined: " + reply.reason);
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
  Stream socket = std::exchange(socket_, Stream());
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

}  // namespace pccl::transport
