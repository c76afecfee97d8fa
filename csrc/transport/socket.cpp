#include "transport/socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/errors.h"

namespace pccl::transport {
namespace {

constexpr int kBacklog = 512;

// A dead peer is noticed after kKeepaliveIdle + kKeepaliveCount * kKeepaliveInterval = 20 s of
// silence.
constexpr int kKeepaliveIdle = 5;
constexpr int kKeepaliveInterval = 5;
constexpr int kKeepaliveCount = 3;
// Where the connection outlives its socket: after 3 + 3 * 1 s, well within the grace.
constexpr int kResumableIdle = 3;
constexpr int kResumableInterval = 1;

// Within a host: the kernel doubles it, and what lies in the socket then stays in a core's cache
// between the sender's copy and the receiver's. The default (megabytes) costs half of the rate.
// Other links need what bandwidth x delay needs, so there the kernel adjusts.
constexpr int kLocalSendBufferBytes = 256 << 10;

template <typename T>
void set_option(int socket, int level, int name, T value) {
  // An option that the kernel lacks costs comfort, not correctness.
  setsockopt(socket, level, name, &value, sizeof(value));
}

sockaddr_un memory_address(const std::string& name, socklen_t& length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t size = std::min(name.size(), sizeof(address.sun_path) - 1);
  std::memcpy(address.sun_path + 1, name.data(), size);  // the leading 0 makes it abstract
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + size);
  return address;
}

// Whether both ends of a connected socket have the same address, and so are on one host.
bool is_local(int socket) {
  SocketAddress own;
  SocketAddress remote;
  own.length = remote.length = sizeof(own.storage);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&own.storage), &own.length) != 0 ||
      getpeername(socket, reinterpret_cast<sockaddr*>(&remote.storage), &remote.length) != 0 ||
      own.storage.ss_family != remote.storage.ss_family) {
    return false;
  }
  if (own.storage.ss_family == AF_INET) {
    return reinterpret_cast<sockaddr_in*>(&own.storage)->sin_addr.s_addr ==
           reinterpret_cast<sockaddr_in*>(&remote.storage)->sin_addr.s_addr;
  }
  return std::memcmp(&reinterpret_cast<sockaddr_in6*>(&own.storage)->sin6_addr,
                     &reinterpret_cast<sockaddr_in6*>(&remote.storage)->sin6_addr,
                     sizeof(in6_addr)) == 0;
}

std::string try_listen(const SocketAddress& address, bool dual_stack, FileDescriptor& listener) {
  const int family = address.storage.ss_family;
  FileDescriptor socket(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return std::strerror(errno);
  set_option(socket.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (family == AF_INET6) set_option(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, dual_stack ? 0 : 1);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length) !=
          0 ||
      ::listen(socket.get(), kBacklog) != 0) {
    return std::strerror(errno);
  }
  listener = std::move(socket);
  return "";
}

}  // namespace

FileDescriptor listen_tcp(const std::string& host, uint16_t port) {
  const bool is_any = host.empty();
  std::vector<SocketAddress> addresses = is_any ? resolve("::", port) : resolve(host, port);
  if (is_any) {
    const auto v4 = resolve("0.0.0.0", port);
    addresses.insert(addresses.end(), v4.begin(), v4.end());
  }
  std::string reason = "the name does not resolve";
  for (const SocketAddress& address : addresses) {
    FileDescriptor listener;
    reason = try_listen(address, is_any, listener);
    if (reason.empty()) return listener;
  }
  throw ConnectError(
      "listen: cannot listen on " + (is_any ? std::string("any address") : host) + ", port " +
      std::to_string(port) + ": " + reason +
      ". Choose another address (PCCL_BIND) or port (PCCL_PORT; 0 takes a free one).");
}

FileDescriptor listen_memory(const std::string& name) {
  FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  socklen_t length = 0;
  const sockaddr_un address = memory_address(name, length);
  if (!socket || ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::listen(socket.get(), kBacklog) != 0) {
    throw ConnectError(std::string("listen: cannot make a UNIX socket for shared memory: ") +
                       std::strerror(errno));
  }
  return socket;
}

uint16_t local_port(int socket) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0)
    return 0;
  return ntohs(address.storage.ss_family == AF_INET
                   ? reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port
                   : reinterpret_cast<sockaddr_in6*>(&address.storage)->sin6_port);
}

SocketAddress remote_address(int socket) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0)
    return {};
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address.storage);
  if (address.storage.ss_family != AF_INET6 || IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) == 0)
    return address;
  SocketAddress mapped;
  mapped.length = sizeof(sockaddr_in);
  auto* v4 = reinterpret_cast<sockaddr_in*>(&mapped.storage);
  v4->sin_family = AF_INET;
  v4->sin_port = v6->sin6_port;
  std::memcpy(&v4->sin_addr, v6->sin6_addr.s6_addr + 12, sizeof(v4->sin_addr));
  return mapped;
}

FileDescriptor begin_connect(const SocketAddress& address, std::string& error) {
  FileDescriptor socket(
      ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) {
    error = std::strerror(errno);
    return socket;
  }
  const int rc =
      ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length);
  if (rc != 0 && errno != EINPROGRESS) {
    error = std::strerror(errno);
    socket.reset();
  }
  return socket;
}

FileDescriptor connect_memory(const std::string& name, std::string& error) {
  FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  socklen_t length = 0;
  const sockaddr_un address = memory_address(name, length);
  if (!socket ||
      ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    error = std::strerror(errno);
    socket.reset();
  }
  return socket;
}

std::string connect_error(int socket) {
  int code = 0;
  socklen_t length = sizeof(code);
  if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &code, &length) != 0) code = errno;
  return code == 0 ? "" : std::strerror(code);
}

void set_stream_options(int socket) {
  set_option(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveIdle);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveInterval);
  set_option(socket, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveCount);
  if (is_local(socket)) {
    set_option(socket, SOL_SOCKET, SO_SNDBUF, kLocalSendBufferBytes);
  } else {
    set_unsent_max(socket, kUnsentBytesMax);
  }
}

bool set_unsent_max(int socket, uint32_t bytes) {
  const auto value = static_cast<int>(bytes);
  return setsockopt(socket, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &value, sizeof(value)) == 0;
}

void set_resumable_options(int socket) {
  set_option(socket, IPPROTO_TCP, TCP_KEEPIDLE, kResumableIdle);
  set_option(socket, IPPROTO_TCP, TCP_KEEPINTVL, kResumableInterval);
}

std::string congestion_control(int socket) {
  std::array<char, 16> name{};  // as long as the kernel's
  socklen_t length = name.size();
  if (getsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, name.data(), &length) != 0) return "";
  return {name.data(), strnlen(name.data(), name.size())};
}

bool set_congestion_control(int socket, const std::string& name) {
  return setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, name.data(),
                    static_cast<socklen_t>(name.size())) == 0;
}

bool renew_bbr(int socket) {
  // A socket may have inherited what its process may not choose: nothing is given up that can't be
  // had again.
  const FileDescriptor trial(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!set_congestion_control(trial.get(), "reno") || !set_congestion_control(trial.get(), "bbr"))
    return false;
  return set_congestion_control(socket, "reno") && set_congestion_control(socket, "bbr");
}

bool send_all(int socket, std::span<const std::byte> bytes, std::span<const int> descriptors) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* attached = CMSG_FIRSTHDR(&message);
    attached->cmsg_level = SOL_SOCKET;
    attached->cmsg_type = SCM_RIGHTS;
    attached->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(attached), descriptors.data(), descriptors.size_bytes());
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

long receive_with_descriptors(int socket, std::byte* target, size_t size,
                              std::vector<FileDescriptor>& descriptors) {
  iovec part{target, size};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t count = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
  for (cmsghdr* entry = CMSG_FIRSTHDR(&message); entry != nullptr;
       entry = CMSG_NXTHDR(&message, entry)) {
    if (entry->cmsg_level != SOL_SOCKET || entry->cmsg_type != SCM_RIGHTS) continue;
    const size_t found = (entry->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < found; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(entry) + i * sizeof(int), sizeof(int));
      descriptors.emplace_back(fd);
    }
  }
  return count == 0 ? -1 : count;
}

int64_t peer_user(int socket) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return -1;
  return credentials.uid;
}

}  // namespace pccl::transport
