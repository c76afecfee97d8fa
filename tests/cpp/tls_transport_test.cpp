// Members over TLS: the same frames, resets included, and strangers that are told why not.
#include <doctest/doctest.h>

#include <string>

#include "transport_nodes.h"

using namespace pccl;
using namespace pccl::transport;

namespace {

EndpointOptions tls_options(int sockets = 1, TlsUse tls = TlsUse::Always) {
  EndpointOptions options = tcp_options("127.0.0.1", sockets);
  options.tls = tls;
  return options;
}

void introduce(Node& node, const Node& to) {
  node.run([&] { node.connection_to(to.endpoint.address()); });
}

// Why a dial from `from` to `address` failed.
std::string refusal(Node& from, const MemberAddress& address) {
  from.run([&] { from.send(address, 0, 10); });
  REQUIRE(from.wait_for([&] { return !from.lost.empty(); }));
  return from.lost.front().error.message;
}

}  // namespace

TEST_CASE("frames of every size come through TLS, over one socket and several") {
  for (const int sockets : {1, 4}) {
    Node a(tls_options(sockets));
    Node b(tls_options(sockets));
    introduce(a, b);
    introduce(b, a);
    uint32_t count = 0;
    for (const size_t size : {0, 1, 79, 4099, 65536, 300007, 524288}) {
      for (int times = 0; times < 5; ++times, ++count) {
        a.run([&] { a.send(b.endpoint.address(), count, size); });
        b.run([&] { b.send(a.endpoint.address(), count, size); });
      }
    }
    CHECK(b.wait_for([&] { return b.received.size() == count; }));
    CHECK(a.wait_for([&] { return a.received.size() == count; }));
    CHECK(a.has_all(count));
    CHECK(b.has_all(count));
    CHECK(a.endpoint.statistics().secure_sockets >= 1);
    CHECK(a.endpoint.statistics().refused_keys == 0);
  }
}

TEST_CASE("on loopback bytes stay plain unless TLS is asked for") {
  Node a(tls_options(1, TlsUse::Remote));
  Node b(tls_options(1, TlsUse::Remote));
  a.run([&] { a.send(b.endpoint.address(), 0, 1000); });
  CHECK(b.wait_for([&] { return b.has_all(1); }));
  CHECK(a.endpoint.statistics().secure_sockets == 0);
}

TEST_CASE("a caller waits until its key is known, and then is welcome") {
  Node a(tls_options());
  Node b(tls_options());
  a.run([&] { a.send(b.endpoint.address(), 0, 1000); });
  // b has answered at least once that it does not know a.
  CHECK_FALSE(b.has_all(1));
  introduce(b, a);
  CHECK(b.wait_for([&] { return b.has_all(1); }));
}

TEST_CASE("a man in the middle, who ends TLS with a key of his own, hears nothing") {
  Node a(tls_options());
  Node b(tls_options());
  Node middle(tls_options());
  introduce(b, a);
  introduce(middle, a);
  MemberAddress address = b.endpoint.address();
  address.port = middle.endpoint.address().port;
  CHECK(refusal(a, address).find("wrong key") != std::string::npos);
  CHECK(middle.received.empty());
  CHECK(b.received.empty());
}

TEST_CASE("a caller with another key than the one known is refused, and counted") {
  Node b(tls_options());
  Node a(tls_options());
  MemberAddress other = a.endpoint.address();
  other.fingerprint[0] ^= 1;
  b.run([&] { b.connection_to(other); });
  CHECK(refusal(a, b.endpoint.address()).find("wrong key") != std::string::npos);
  CHECK(b.endpoint.statistics().refused_keys > 0);
}

TEST_CASE("plain meets TLS, and TLS meets plain: refused in words, and counted") {
  Node secure(tls_options());
  Node plain(tls_options(1, TlsUse::Never));
  CHECK(refusal(plain, secure.endpoint.address()).find("plain TCP") != std::string::npos);
  CHECK(secure.endpoint.statistics().refused_plain > 0);
  Node caller(tls_options());
  MemberAddress address = plain.endpoint.address();
  CHECK(refusal(caller, address).find("named no key") != std::string::npos);
  Node other(tls_options());
  address.fingerprint[0] = 1;
  CHECK(refusal(other, address).find("TLS meets a member without it") != std::string::npos);
  CHECK(plain.endpoint.statistics().refused_plain > 0);
}
