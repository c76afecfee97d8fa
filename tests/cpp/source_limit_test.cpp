// How often one source may call.
#include "transport/source_limit.h"

#include <doctest/doctest.h>

#include <string>

using namespace pccl;
using namespace pccl::transport;

namespace {

SocketAddress from(const std::string& host) { return resolve(host, 1).at(0); }

}  // namespace

TEST_CASE("a source may call so often at once, and then at its rate") {
  SourceLimit limit(10, 3);
  TimePoint now;
  const SocketAddress caller = from("203.0.113.7");
  for (int calls = 0; calls < 3; ++calls) CHECK(limit.admit(caller, now));
  CHECK_FALSE(limit.admit(caller, now));
  CHECK_FALSE(limit.admit(from("::ffff:203.0.113.7"), now));
  CHECK(limit.admit(from("203.0.113.8"), now));
  now = after(now, 0.11);
  CHECK(limit.admit(caller, now));
  CHECK_FALSE(limit.admit(caller, now));
  now = after(now, 1000);
  for (int calls = 0; calls < 3; ++calls) CHECK(limit.admit(caller, now));
  CHECK_FALSE(limit.admit(caller, now));
}

TEST_CASE("the addresses of one IPv6 network are one source, and loopback is none") {
  SourceLimit limit(1, 1);
  const TimePoint now{};
  CHECK(limit.admit(from("2001:db8::1"), now));
  CHECK_FALSE(limit.admit(from("2001:db8::ffff:1"), now));
  CHECK(limit.admit(from("2001:db8:0:1::1"), now));
  for (int calls = 0; calls < 100; ++calls) {
    CHECK(limit.admit(from("127.0.0.1"), now));
    CHECK(limit.admit(from("::1"), now));
  }
  SourceLimit none(0, 0);
  for (int calls = 0; calls < 100; ++calls) CHECK(none.admit(from("2001:db8::1"), now));
}

TEST_CASE("many sources cost bounded memory, and none of them is locked out") {
  SourceLimit limit(1, 1);
  const TimePoint now{};
  for (size_t i = 0; i < 3 * SourceLimit::kSourcesMax; ++i) {
    const std::string host = "10." + std::to_string(i / 65536) + "." +
                             std::to_string(i / 256 % 256) + "." + std::to_string(i % 256);
    CHECK(limit.admit(from(host), now));
  }
}
