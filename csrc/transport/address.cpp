#include "transport/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/bytes.h"
#include "transport/frame.h"

namespace pccl::transport {
namespace {

constexpr uint32_t kAddressMagic = 0x41434350;  // "PCCA"

std::string socket_host(const sockaddr* address, socklen_t length) {
  char host[NI_MAXHOST] = "";
  if (getnameinfo(address, length, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) != 0) return "?";
  return host;
}

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
  }
  if (address->sa_family != AF_INET6) return false;
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr) != 0;
}

}  // namespace

std::string to_text(const MemberId& id) {
  char text[9];
  std::snprintf(text, sizeof(text), "%02x%02x%02x%02x", id[0], id[1], id[2], id[3]);
  return text;
}

std::vector<std::byte> MemberAddress::encode() const {
  ByteWriter out;
  out.put(kAddressMagic);
  out.put(kProtocolVersion);
  out.put(member_id);
  out.put(fingerprint);
  out.put_text(run);
  out.put_text(host_key);
  out.put_text(memory_name);
  out.put(port);
  out.put(static_cast<uint8_t>(hosts.size()));
  for (const std::string& host : hosts) out.put_text(host);
  out.put_text(graph);
  return out.bytes();
}

std::optional<MemberAddress> MemberAddress::decode(std::span<const std::byte> bytes) {
  if (bytes.size() > kAddressBytesMax) return std::nullopt;
  ByteReader in(bytes);
  if (in.get<uint32_t>() != kAddressMagic || in.get<uint16_t>() != kProtocolVersion)
    return std::nullopt;
  MemberAddress address;
  address.member_id = in.get<MemberId>();
  address.fingerprint = in.get<Fingerprint>();
  address.run = in.get_text(255);
  address.host_key = in.get_text(255);
  address.memory_name = in.get_text(100);
  address.port = in.get<uint16_t>();
  const size_t host_count = in.get<uint8_t>();
  if (host_count > kHostsMax) return std::nullopt;
  for (size_t i = 0; i < host_count && in.ok(); ++i) address.hosts.push_back(in.get_text(255));
  address.graph = in.get_text(255);
  if (!in.ok() || !in.at_end()) return std::nullopt;
  return address;
}

std::string MemberAddress::describe() const {
  std::string host = hosts.empty() ? "?" : hosts.front();
  if (port == 0) return host;
  const bool is_v6 = host.find(':') != std::string::npos;
  return (is_v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::string SocketAddress::describe() const {
  const auto* address = reinterpret_cast<const sockaddr*>(&storage);
  if (address->sa_family != AF_INET && address->sa_family != AF_INET6) return "?";
  const uint16_t port = ntohs(address->sa_family == AF_INET
                                  ? reinterpret_cast<const sockaddr_in*>(address)->sin_port
                                  : reinterpret_cast<const sockaddr_in6*>(address)->sin6_port);
  const std::string host = socket_host(address, length);
  return (address->sa_family == AF_INET6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

bool SocketAddress::operator==(const SocketAddress& other) const {
  return length == other.length && std::memcmp(&storage, &other.storage, length) == 0;
}

bool SocketAddress::has_host(const std::string& host) const {
  if (storage.ss_family == AF_INET) {
    in_addr number{};
    const auto* own = reinterpret_cast<const sockaddr_in*>(&storage);
    return inet_pton(AF_INET, host.c_str(), &number) == 1 && number.s_addr == own->sin_addr.s_addr;
  }
  in6_addr number{};
  const auto* own = reinterpret_cast<const sockaddr_in6*>(&storage);
  return storage.ss_family == AF_INET6 && inet_pton(AF_INET6, host.c_str(), &number) == 1 &&
         std::memcmp(&number, &own->sin6_addr, sizeof(number)) == 0;
}

bool SocketAddress::is_loopback() const {
  return transport::is_loopback(reinterpret_cast<const sockaddr*>(&storage));
}

void SocketAddress::set_port(uint16_t port) {
  if (storage.ss_family == AF_INET) {
    reinterpret_cast<sockaddr_in*>(&storage)->sin_port = htons(port);
  } else {
    reinterpret_cast<sockaddr_in6*>(&storage)->sin6_port = htons(port);
  }
}

std::vector<SocketAddress> resolve(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return {};
  std::vector<SocketAddress> addresses;
  for (const addrinfo* entry = found; entry != nullptr && addresses.size() < kHostsMax;
       entry = entry->ai_next) {
    SocketAddress address;
    std::memcpy(&address.storage, entry->ai_addr, entry->ai_addrlen);
    address.length = entry->ai_addrlen;
    addresses.push_back(address);
  }
  freeaddrinfo(found);
  return addresses;
}

std::vector<SocketAddress> resolve(const MemberAddress& address) {
  std::vector<SocketAddress> all;
  for (const std::string& host : address.hosts) {
    const auto found = resolve(host, address.port);
    all.insert(all.end(), found.begin(), found.end());
  }
  return all;
}

std::string local_host_key() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  std::getline(file, boot);
  struct stat network {};
  if (boot.empty() || stat("/proc/self/ns/net", &network) != 0) return {};
  return boot + "/" + std::to_string(network.st_ino) + "/" + std::to_string(geteuid());
}

std::vector<std::string> local_hosts() {
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) return {"127.0.0.1"};
  std::vector<std::string> global;
  std::vector<std::string> loopback;
  for (const ifaddrs* entry = interfaces; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    if (family == AF_INET6) {
      // Link-local addresses need an interface index, which means nothing to another machine.
      const auto* v6 = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) continue;
    }
    const socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    auto& list = is_loopback(entry->ifa_addr) ? loopback : global;
    list.push_back(socket_host(entry->ifa_addr, length));
  }
  freeifaddrs(interfaces);
  global.insert(global.end(), loopback.begin(), loopback.end());
  if (global.size() > kHostsMax) global.resize(kHostsMax);
  return global;
}

}  // namespace pccl::transport
