// Who may call whom, which process is gone for certain, and what is forgotten.
#include <doctest/doctest.h>
#include <signal.h>

#include <string>
#include <vector>

#include "child_process.h"
#include "raw_socket.h"
#include "transport/examiner.h"
#include "transport_nodes.h"

using namespace pccl;
using namespace pccl::transport;

namespace {

EndpointOptions coordinator_options() {
  EndpointOptions options = tcp_options();
  options.run = "coordinator";
  options.accepts_any_run = true;
  return options;
}

// A frame of one byte, as the membership floor sends them.
OutFrame message(uint32_t number) {
  OutFrame frame;
  frame.header.type = FrameType::Membership;
  frame.header.chunk = number;
  frame.header.length = 1;
  frame.owned.assign(1, std::byte{7});
  return frame;
}

void say(Node& node, Connection& connection, uint32_t number) {
  connection.send(message(number));
  node.endpoint.mark_unsent(connection);
}

Connection& call(Node& from, const Node& to) {
  return from.endpoint.call("the coordinator", resolve(to.endpoint.address()));
}

double milliseconds_since(TimePoint begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// Far more than it takes, far less than any timeout.
constexpr double kAtOnceMs = 500;

}  // namespace

TEST_CASE("one source may ask to be examined three times at once, then once in 10 s") {
  Node node(coordinator_options());
  node.run([&] {
    Examinations& examinations = node.endpoint.examinations();
    const TimePoint now = Clock::now();
    const SocketAddress caller = resolve("203.0.113.7", 1).front();
    for (int times = 0; times < 3; ++times) CHECK(examinations.why_not(caller, now).empty());
    CHECK(examinations.why_not(caller, now).find("several times") != std::string::npos);
    CHECK(examinations.why_not(resolve("203.0.113.8", 1).front(), now).empty());
    CHECK(examinations.why_not(caller, after(now, 10.5)).empty());
    CHECK_FALSE(examinations.why_not(caller, after(now, 10.6)).empty());
  });
}

TEST_CASE("a coordinator takes callers of every run that do not know its member id") {
  Node coordinator(coordinator_options());
  for (const char* run : {"first", "second"}) {
    EndpointOptions options = tcp_options("127.0.0.1", 3);
    options.run = run;
    options.shared_memory = true;
    Node member(options);
    Connection* connection = nullptr;
    coordinator.run([&] { coordinator.received.clear(); });
    member.run([&] {
      connection = &call(member, coordinator);
      say(member, *connection, 1);
    });
    CHECK(coordinator.wait_for([&] { return coordinator.received.size() == 1; }));
    CHECK(member.endpoint.statistics().connections == 1);
    CHECK(member.endpoint.statistics().bytes_sent_tcp > 0);
    member.run([&] { CHECK(connection->link_count() == 1); });
  }
}

TEST_CASE("a member refuses callers of other runs, and those that do not know its member id") {
  Node ordinary(tcp_options());
  Node member(tcp_options());
  Connection* connection = nullptr;
  member.run([&] { connection = &call(member, ordinary); });
  REQUIRE(member.wait_for([&] { return !member.lost.empty(); }));
  const std::string message = member.lost[0].error.message;
  CHECK_MESSAGE(message.find("the coordinator can't be reached") == 0, message);
  CHECK_MESSAGE(message.find("wrong member") != std::string::npos, message);
}

TEST_CASE("several calls to one coordinator stand one after the other, and are given back") {
  Node coordinator(coordinator_options());
  Node member(tcp_options());
  for (uint32_t round = 0; round < 20; ++round) {
    Connection* connection = nullptr;
    member.run([&] {
      connection = &call(member, coordinator);
      say(member, *connection, round);
    });
    REQUIRE(coordinator.wait_for([&] { return coordinator.received.size() == round + 1; }));
    // The coordinator answers, then the newer call ends the older one at both sides.
    coordinator.run([&] {
      Connection& back = coordinator.endpoint.connection(member.endpoint.address(), {});
      CHECK(back.state == Connection::State::Up);
      say(coordinator, back, round);
    });
    REQUIRE(member.wait_for([&] { return member.received.size() == round + 1; }));
    member.run([&] {
      CHECK_THROWS_AS(member.endpoint.forget(*connection), std::logic_error);
      call(member, coordinator);
    });
    REQUIRE(member.wait_for([&] { return connection->state == Connection::State::Closed; }));
    REQUIRE(coordinator.wait_for([&] { return coordinator.lost.size() > 2 * round; }));
    member.run([&] { member.endpoint.forget(*connection); });
  }
}

TEST_CASE("a member whose connection to a coordinator has closed calls again under the same id") {
  Node coordinator(coordinator_options());
  Hello hello = hello_to(coordinator.endpoint.address());
  hello.to = {};
  hello.from.run = "another";
  for (size_t round = 0; round < 3; ++round) {
    RawSocket raw = RawSocket::connect_to(coordinator.endpoint.address());
    hello.nonce += 1;
    raw.send(hello.encode());
    CHECK(raw.read_reply().answer == Answer::Welcome);
    FrameHeader header;
    header.type = FrameType::Membership;
    raw.send(bytes_of(header));
    REQUIRE(coordinator.wait_for([&] { return coordinator.received.size() == round + 1; }));
    raw.close();
    REQUIRE(coordinator.wait_for([&] { return coordinator.lost.size() == round + 1; }));
  }
  coordinator.run([&] {
    for (const Lost& lost : coordinator.lost) CHECK(lost.has_ended);
  });
}

TEST_CASE("a closed connection that is forgotten is as if it never was") {
  Node node(tcp_options());
  const Hello hello = hello_to(node.endpoint.address());
  for (size_t round = 0; round < 3; ++round) {
    RawSocket raw = RawSocket::connect_to(node.endpoint.address());
    raw.send(hello.encode());
    CHECK(raw.read_reply().answer == Answer::Welcome);
    raw.close();
    REQUIRE(node.wait_for([&] { return node.lost.size() == round + 1; }));
    RawSocket refused = RawSocket::connect_to(node.endpoint.address());
    refused.send(hello.encode());
    CHECK(refused.read_reply().reason.find("was closed") != std::string::npos);
    node.run([&] { node.endpoint.forget(node.endpoint.connection(hello.from, {})); });
  }
}

TEST_CASE("a probe hears that the wanted member is there, or that it is another") {
  Node node(tcp_options());
  const auto answer = [&](const Hello& hello) {
    RawSocket raw = RawSocket::connect_to(node.endpoint.address());
    raw.send(hello.encode());
    const Answer heard = raw.read_reply().answer;
    CHECK(raw.is_closed_by_peer());
    return heard;
  };
  Hello hello = hello_to(node.endpoint.address());
  hello.intent = Intent::Probe;
  CHECK(answer(hello) == Answer::Alive);
  hello.to[3] ^= 1;
  CHECK(answer(hello) == Answer::Stranger);
  hello = hello_to(node.endpoint.address());
  hello.intent = Intent::Probe;
  hello.from.run = "other";
  CHECK(answer(hello) == Answer::Stranger);
  CHECK(node.endpoint.statistics().connections == 0);
}

// --- whose process is gone
// ------------------------------------------------------------------------

TEST_CASE("child: a member that answers until it is killed" * doctest::skip()) {
  EndpointOptions options = tcp_options();
  options.shared_memory = true;
  Node node(options);
  say_and_wait(node.endpoint.address().encode());
}

TEST_CASE("a process that was killed has ended, which is known in milliseconds") {
  for (const bool is_memory : {false, true}) {
    CAPTURE(is_memory);
    EndpointOptions options = tcp_options();
    options.shared_memory = is_memory;
    Node node(options);
    ChildProcess child("child: a member that answers until it is killed");
    const auto address = MemberAddress::decode(child.hear());
    REQUIRE(address);
    node.run([&] { node.send(*address, 0, 997); });
    REQUIRE(node.wait_for([&] { return node.sent == 1; }));
    const TimePoint begin = Clock::now();
    child.kill();
    REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
    const double took = milliseconds_since(begin);
    CHECK_MESSAGE(took < kAtOnceMs, took, " ms");
    CHECK(node.lost[0].has_ended);
    CHECK(node.lost[0].error.kind == ErrorKind::MemberLost);
  }
}

TEST_CASE("who closes its socket and still listens has not ended") {
  Node node(tcp_options());
  Node other(tcp_options());
  // The caller is played by hand, under the name of a member that is there.
  Hello hello = hello_to(node.endpoint.address());
  hello.from = other.endpoint.address();
  RawSocket raw = RawSocket::connect_to(node.endpoint.address());
  raw.send(hello.encode());
  CHECK(raw.read_reply().answer == Answer::Welcome);
  const TimePoint begin = Clock::now();
  raw.close();
  REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
  CHECK(milliseconds_since(begin) < kAtOnceMs);
  CHECK_FALSE(node.lost[0].has_ended);
  CHECK(node.lost[0].error.message.find("its process is there") != std::string::npos);
}

TEST_CASE("a caller that is not where it says it listens is not known to have ended") {
  Node node(tcp_options());
  Hello hello = hello_to(node.endpoint.address());
  hello.from.hosts = {"127.0.0.9"};
  RawSocket raw = RawSocket::connect_to(node.endpoint.address());
  raw.send(hello.encode());
  CHECK(raw.read_reply().answer == Answer::Welcome);
  raw.close();
  REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
  CHECK_FALSE(node.lost[0].has_ended);
}

TEST_CASE("who says goodbye has ended") {
  Node node(tcp_options());
  {
    Node leaving(tcp_options());
    leaving.run([&] { leaving.send(node.endpoint.address(), 0, 1); });
    REQUIRE(node.wait_for([&] { return node.received.size() == 1; }));
  }
  REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
  CHECK_FALSE(node.lost[0].error);
  CHECK(node.lost[0].has_ended);
}
