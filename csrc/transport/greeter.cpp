// The answering side of a handshake.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "transport/dialer.h"
#include "transport/endpoint.h"
#include "transport/examiner.h"
#include "transport/socket.h"

namespace pccl::transport {
namespace {

// Memory, and an eventfd for each side.
constexpr size_t kDescriptorsMax = 3;

}  // namespace

Greeter::Greeter(Endpoint& endpoint, Stream socket, bool is_memory, TimePoint deadline)
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

void Greeter::count_refused(const std::string& reason) {
  endpoint_.count_refused(is_memory_ ? "this host" : remote_address(socket_.get()).describe(),
                          reason);
}

void Greeter::refuse(Answer answer, const std::string& reason) {
  if (answer == Answer::Refused) count_refused(reason);
  socket_.send_whole(Reply{answer, reason}.encode());
  // Closing with unread bytes would reset the connection, and the answer with it.
  std::array<std::byte, 4096> rest;
  for (int reads = 0; reads < 16; ++reads) {
    if (::recv(socket_.get(), rest.data(), rest.size(), MSG_DONTWAIT) <= 0) break;
  }
  finish();
}

void Greeter::give_way() {
  endpoint_.count_late();
  refuse(Answer::Refused, "too many callers, and this one was silent for longest");
}

// The first byte tells TLS from a Hello. False: it has not come, or the caller was refused.
bool Greeter::meet() {
  if (has_begun_ || is_memory_) return true;
  constexpr char kTlsHandshake = 22;  // RFC 8446, 5.1
  char first = 0;
  const ssize_t count = ::recv(socket_.get(), &first, 1, MSG_PEEK | MSG_DONTWAIT);
  if (count <= 0) {
    const bool is_waiting = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    if (!is_waiting) finish();
    return false;
  }
  has_begun_ = true;
  if (first != kTlsHandshake) return true;
  if (!endpoint_.has_key()) {
    endpoint_.count_plain();
    refuse(Answer::Refused, "TLS meets a member without it: insecure=True is set here");
    return false;
  }
  socket_.secure(endpoint_.identity(), TlsSession::Role::Answers);
  return true;
}

// False: it is not whole, or the caller was refused.
bool Greeter::read_hello() {
  std::array<std::byte, 2048> bytes;
  while (true) {
    std::string fault;
    const auto whole = handshake_bytes(received_, kHelloMagic, fault);
    if (!fault.empty()) {
      refuse(Answer::Refused, fault);
      return false;
    }
    if (whole && received_.size() >= *whole) return true;
    const size_t wanted =
        std::min((whole ? *whole : kHandshakePrefixBytes) - received_.size(), bytes.size());
    std::string error;
    const long count =
        is_memory_ ? receive_with_descriptors(socket_.get(), bytes.data(), wanted, descriptors_)
                   : socket_.receive(bytes.data(), wanted, error);
    if (count == 0) return false;
    if (count < 0 || descriptors_.size() > kDescriptorsMax) {
      // Without a word it was a dial that became superfluous, or a probe of the port. One that is
      // given up while TLS begins resets its socket; what is no TLS is a stranger's.
      if (!received_.empty() || error.starts_with("TLS"))
        count_refused(error.empty() ? "it hung up during the handshake" : error);
      finish();
      return false;
    }
    received_.insert(received_.end(), bytes.begin(), bytes.begin() + count);
  }
}

void Greeter::on_events(uint32_t /*epoll_events*/) {
  if (finished_ || !meet() || !read_hello()) return;
  if (!is_memory_ && !socket_.is_secure() && endpoint_.secures(remote_address(socket_.get()))) {
    endpoint_.count_plain();
    refuse(Answer::Refused,
           "plain TCP meets a member that wants TLS (insecure=True is set at the caller only?)");
    return;
  }
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
  const TlsSession* tls = socket_.is_secure() ? &socket_.tls() : nullptr;
  const Reply reply = endpoint_.judge(*hello, tls, connection);
  if (reply.answer == Answer::Alive && hello->intent == Intent::Examine) {
    examine(hello->from.port);
    return;
  }
  if (reply.answer != Answer::Welcome) {
    refuse(reply.answer, reply.reason);
    return;
  }
  if (!socket_.send_whole(reply.encode())) {
    finish();
    return;
  }
  if (!is_memory_) prove(*hello, *connection);
  endpoint_.engine().remove(socket_.get(), this);
  Stream socket = std::exchange(socket_, Stream());
  finished_ = true;
  endpoint_.adopt(
      *connection, std::move(socket), std::move(descriptors_),
      {.hello = *hello, .side = 1, .resumes = reply.resumes, .consumed = hello->consumed});
}

void Greeter::examine(uint16_t port) {
  const TimePoint now = Clock::now();
  const std::string why_not = endpoint_.examinations().why_not(remote_address(socket_.get()), now);
  if (!why_not.empty()) {
    refuse(Answer::Refused, why_not);
  } else if (!socket_.send_whole(Reply{Answer::Alive, ""}.encode())) {
    finish();
  } else {
    endpoint_.engine().remove(socket_.get(), this);
    finished_ = true;
    endpoint_.examinations().begin(std::exchange(socket_, Stream()), port, now);
  }
}

// The caller's listener is where its call comes from, if it says that it is to be reached there.
void Greeter::prove(const Hello& hello, Connection& connection) {
  if (!hello.from.accepts_calls()) return;
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
  if (!finished_ && now >= deadline_) {
    endpoint_.count_late();
    refuse(Answer::Refused, "no handshake came in time");
  }
  return finished_ ? TimePoint::max() : deadline_;
}

}  // namespace pccl::transport
