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

Dialer::Dialer(Endpoint& endpoint, Connection& connection, uint16_t socket_index,
               TimePoint deadline)
    : endpoint_(endpoint),
      connection_(connection),
      socket_index_(socket_index),
      deadline_(deadline) {
  const MemberAddress& own = endpoint.address();
  const MemberAddress& peer = connection.peer;
  const bool same_host = !own.host_key.empty() && own.host_key == peer.host_key;
  memory_pending_ =
      same_host && socket_index == 0 && !own.memory_name.empty() && !peer.memory_name.empty();
  candidates_ = endpoint.resolved(connection);
  std::stable_partition(
      candidates_.begin(), candidates_.end(),
      [same_host](const SocketAddress& address) { return is_loopback(address) == same_host; });
  hello_.from = own;
  hello_.to = peer.member_id;
  hello_.nonce = connection.nonce;
  hello_.socket_index = socket_index;
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

void Dialer::try_next(TimePoint now) {
  while (!finished_) {
    if (now >= deadline_ || (rounds_ >= kFinalRoundsMax && all_final_)) {
      finish();
      const std::string reason = last_reason_.empty() ? "no answer" : last_reason_;
      endpoint_.on_dial_failed(connection_, reason);
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
      if (candidates_.empty())
        last_reason_ = "its host name does not resolve, or it told no address";
      stage_ = Stage::Resting;
      retry_at_ = now + kRetryPause;
      endpoint_.engine().wake_at(retry_at_);
      return;
    }
    std::string error;
    socket_ = begin_connect(candidates_[next_], error);
    if (!socket_) {
      last_reason_ = candidates_[next_].describe() + ": " + error;
      all_final_ = false;
      next_ += 1;
      continue;
    }
    stage_ = Stage::Connecting;
    candidate_deadline_ = std::min(deadline_, now + kCandidateTimeout);
    endpoint_.engine().wake_at(candidate_deadline_);
    endpoint_.engine().add(socket_.get(), this);
    return;
  }
}

bool Dialer::try_memory() {
  std::string error;
  socket_ = connect_memory(connection_.peer.memory_name, error);
  if (!socket_) {
    last_reason_ = "shared memory: " + error;
    return false;
  }
  descriptors_.clear();
  try {
    descriptors_.push_back(SharedRings::create());
  } catch (const std::exception& failure) {
    // Out of descriptors or memory: TCP needs less of both.
    last_reason_ = failure.what();
    socket_.reset();
    return false;
  }
  for (int i = 0; i < 2; ++i) descriptors_.emplace_back(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  endpoint_.engine().add(socket_.get(), this);
  candidate_deadline_ = std::min(deadline_, Clock::now() + kCandidateTimeout);
  endpoint_.engine().wake_at(candidate_deadline_);
  ask(Road::Memory);
  return !finished_;
}

void Dialer::ask(Road road) {
  hello_.road = road;
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
    if (!error.empty()) {
      fail_candidate(error, error == std::strerror(ECONNREFUSED));
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
  } else if (reply->answer == Answer::Refused) {
    // It may be somebody else, who has an address that the member has in another network.
    fail_candidate("it declined: " + reply->reason, true);
  } else if (reply->answer == Answer::Duplicate) {
    finish();  // the peer's own dial stands; the endpoint watches the deadline
  } else {
    endpoint_.engine().remove(socket_.get(), this);
    FileDescriptor socket = std::move(socket_);
    finished_ = true;
    endpoint_.adopt(connection_, std::move(socket), hello_, std::move(descriptors_), 0);
    if (socket_index_ == 0 && hello_.road == Road::Tcp) endpoint_.dial_more(connection_);
  }
}

TimePoint Dialer::on_time(TimePoint now) {
  if (finished_) return TimePoint::max();
  if (stage_ == Stage::Resting && now >= retry_at_) {
    try_next(now);
  } else if (stage_ != Stage::Resting && now >= candidate_deadline_) {
    fail_candidate(
        "no answer within " +
        std::to_string(
            std::chrono::duration_cast<std::chrono::seconds>(kCandidateTimeout).count()) +
        " s");
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
      (is_memory_ &&
       (descriptors_.size() != kDescriptorsMax || peer_user(socket_.get()) != geteuid()))) {
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
  endpoint_.engine().remove(socket_.get(), this);
  FileDescriptor socket = std::move(socket_);
  finished_ = true;
  endpoint_.adopt(*connection, std::move(socket), *hello, std::move(descriptors_), 1);
}

TimePoint Greeter::on_time(TimePoint now) {
  if (!finished_ && now >= deadline_) refuse(Answer::Refused, "no handshake came in time");
  return finished_ ? TimePoint::max() : deadline_;
}

}  // namespace pccl::transport
