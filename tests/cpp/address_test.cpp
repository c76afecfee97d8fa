// Addresses: what a member publishes comes back, hostile bytes do not, and names resolve.
#include "transport/address.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <string>

#include "transport/frame.h"

using namespace pccl::transport;

namespace {

using Bytes = std::vector<std::byte>;

MemberAddress full_address() {
  MemberAddress address;
  for (size_t i = 0; i < address.member_id.size(); ++i) {
    address.member_id[i] = static_cast<uint8_t>(i * 17);
  }
  address.fingerprint.fill(200);
  address.run = "my run/äöü";
  address.host_key = "boot/4026531840/1000";
  address.memory_name = "pccl.00112233";
  address.port = 65535;
  address.hosts = {"10.0.0.7", "fd00::7", "host.example"};
  return address;
}

void check_equal(const MemberAddress& a, const MemberAddress& b) {
  CHECK(a.member_id == b.member_id);
  CHECK(a.fingerprint == b.fingerprint);
  CHECK(a.run == b.run);
  CHECK(a.host_key == b.host_key);
  CHECK(a.memory_name == b.memory_name);
  CHECK(a.port == b.port);
  CHECK(a.hosts == b.hosts);
}

}  // namespace

TEST_CASE("an address comes out as it went in") {
  const MemberAddress full = full_address();
  const auto got = MemberAddress::decode(full.encode());
  REQUIRE(got);
  check_equal(*got, full);
  const auto empty = MemberAddress::decode(MemberAddress{}.encode());
  REQUIRE(empty);
  check_equal(*empty, MemberAddress{});
}

TEST_CASE("an address with bytes missing, left over, or of another version is none") {
  const Bytes bytes = full_address().encode();
  for (size_t size = 0; size < bytes.size(); ++size) {
    CHECK_FALSE(MemberAddress::decode(std::span(bytes).first(size)));
  }
  Bytes other = bytes;
  other.emplace_back();
  CHECK_FALSE(MemberAddress::decode(other));
  other = bytes;
  other[0] ^= std::byte{1};
  CHECK_FALSE(MemberAddress::decode(other));
  other = bytes;
  const uint16_t version = kProtocolVersion + 1;
  std::memcpy(other.data() + 4, &version, sizeof(version));
  CHECK_FALSE(MemberAddress::decode(other));
}

TEST_CASE("an address with too many or too long texts is none") {
  MemberAddress address = full_address();
  address.hosts.assign(kHostsMax, "h");
  CHECK(MemberAddress::decode(address.encode()));
  address.hosts.assign(kHostsMax + 1, "h");
  CHECK_FALSE(MemberAddress::decode(address.encode()));
  address = full_address();
  address.run.assign(255, 'r');
  CHECK(MemberAddress::decode(address.encode()));
  address.run.assign(256, 'r');
  CHECK_FALSE(MemberAddress::decode(address.encode()));
  address = full_address();
  address.memory_name.assign(101, 'm');  // a UNIX socket's name has 107 characters at most
  CHECK_FALSE(MemberAddress::decode(address.encode()));
  address = full_address();
  address.hosts.assign(kHostsMax, std::string(255, 'h'));
  CHECK(address.encode().size() > kAddressBytesMax);
  CHECK_FALSE(MemberAddress::decode(address.encode()));
}

TEST_CASE("random changes never give more than an address of the limits") {
  constexpr uint32_t kSeed = 11;
  CAPTURE(kSeed);
  std::mt19937 random(kSeed);
  const Bytes whole = full_address().encode();
  for (int i = 0; i < 20000; ++i) {
    Bytes bytes = whole;
    for (size_t change = random() % 5; change > 0; --change) {
      bytes[6 + random() % (bytes.size() - 6)] = static_cast<std::byte>(random());
    }
    if (random() % 2 == 0) bytes.resize(random() % (2 * bytes.size()));
    const auto got = MemberAddress::decode(bytes);
    if (!got) continue;
    CHECK(got->hosts.size() <= kHostsMax);
    CHECK(got->encode() == bytes);
  }
}

TEST_CASE("an address is described by its first host, IPv6 in brackets") {
  MemberAddress address;
  address.port = 4123;
  CHECK(address.describe() == "?:4123");
  address.hosts = {"10.0.0.7", "fd00::7"};
  CHECK(address.describe() == "10.0.0.7:4123");
  address.hosts = {"fd00::7"};
  CHECK(address.describe() == "[fd00::7]:4123");
  address.hosts = {"host.example"};
  CHECK(address.describe() == "host.example:4123");
}

TEST_CASE("numbers of both families and local names resolve") {
  const auto v4 = resolve("127.0.0.1", 80);
  REQUIRE(v4.size() == 1);
  CHECK(v4[0].describe() == "127.0.0.1:80");
  const auto v6 = resolve("::1", 81);
  REQUIRE(v6.size() == 1);
  CHECK(v6[0].describe() == "[::1]:81");
  const auto names = resolve("localhost", 82);
  REQUIRE_FALSE(names.empty());
  for (const SocketAddress& address : names) {
    const std::string text = address.describe();
    const bool is_local = text == "127.0.0.1:82" || text == "[::1]:82";
    CHECK_MESSAGE(is_local, text);
  }
}

TEST_CASE("what is no host resolves to nothing") {
  // RFC 6761: names under .invalid never exist.
  for (const char* host :
       {"no-such-host.invalid", "256.256.256.256", "fd00::7::8", "a b", "[::1]"}) {
    CAPTURE(host);
    CHECK(resolve(host, 80).empty());
  }
  CHECK(SocketAddress{}.describe() == "?");
}

TEST_CASE("all hosts of a member are resolved, in their order, unknown ones left out") {
  MemberAddress address;
  address.port = 99;
  address.hosts = {"::1", "no-such-host.invalid", "127.0.0.1"};
  const auto found = resolve(address);
  REQUIRE(found.size() == 2);
  CHECK(found[0].describe() == "[::1]:99");
  CHECK(found[1].describe() == "127.0.0.1:99");
}

TEST_CASE("this machine has a host key that does not change, and hosts that resolve") {
  CHECK_FALSE(local_host_key().empty());
  CHECK(local_host_key() == local_host_key());
  const auto hosts = local_hosts();
  REQUIRE_FALSE(hosts.empty());
  CHECK(hosts.size() <= kHostsMax);
  CHECK(std::set<std::string>(hosts.begin(), hosts.end()).size() == hosts.size());
  for (const std::string& host : hosts) CHECK_FALSE(resolve(host, 1).empty());
  // Loopback is the last resort.
  const auto is_loopback = [](const std::string& host) {
    return host.starts_with("127.") || host == "::1";
  };
  CHECK(std::is_partitioned(hosts.begin(), hosts.end(),
                            [&](const std::string& host) { return !is_loopback(host); }));
}

TEST_CASE("a member's short name is the first eight hex digits of its id") {
  MemberId id{};
  id[0] = 0x0A;
  id[3] = 0xFF;
  CHECK(to_text(id) == "0a0000ff");
}
