// The coordinator's server: real sockets, real processes that are killed, a real database.
#include "membership/coordinator_server.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator_members.h"
#include "raw_socket.h"

namespace pccl::membership {
namespace {

using transport::RawSocket;

// A database of its own, and how a server on it is made.
class Place {
 public:
  Place() {
    std::string name = (std::filesystem::temp_directory_path() / "pccl-server-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder_ = name;
    options.bind_host = "127.0.0.1";
    options.database = (folder_ / "coordinator.db").string();
    options.heartbeat_seconds = 0.1;
  }
  ~Place() { std::filesystem::remove_all(folder_); }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  CoordinatorServerOptions options;

 private:
  std::filesystem::path folder_;
};

std::optional<RunStatus> find_run(const ServerStatus& status, const std::string& name) {
  for (const RunStatus& run : status.runs) {
    if (run.name == name) return run;
  }
  return std::nullopt;
}

// The first status that `is_wanted`; looks again whenever something happened.
ServerStatus await_status(CoordinatorServer& server,
                          const std::function<bool(const ServerStatus&)>& is_wanted) {
  const TimePoint deadline = transport::soon();
  while (true) {
    ServerStatus status = server.status();
    if (is_wanted(status)) return status;
    if (Clock::now() >= deadline) {
      for (const RunStatus& run : status.runs) {
        for (const Event& event : run.events) MESSAGE(run.name, ": ", event.text);
      }
      FAIL("the status that was waited for did not come");
    }
    server.next_events(after(Clock::now(), 0.02));
  }
}

int32_t count_in(const RunStatus& run) {
  return static_cast<int32_t>(std::count_if(
      run.members.begin(), run.members.end(),
      [](const MemberStatus& member) { return member.rank >= 0 && member.is_connected; }));
}

// The run's status once exactly `members` are in, all of them connected.
RunStatus await_members(CoordinatorServer& server, const std::string& run, int32_t members) {
  const ServerStatus status = await_status(server, [&](const ServerStatus& now) {
    const auto found = find_run(now, run);
    return found && count_in(*found) == members &&
           static_cast<int32_t>(found->members.size()) == members;
  });
  return *find_run(status, run);
}

void await_refusal(CoordinatorServer& server, FakeMember& member, const std::string& part) {
  await_status(server, [&](const ServerStatus&) {
    return member.refusal().find(part) != std::string::npos;
  });
}

transport::Bytes frame_bytes(transport::FrameType type, const std::vector<std::byte>& payload) {
  transport::FrameHeader header;
  header.type = type;
  header.length = static_cast<uint32_t>(payload.size());
  const auto head = transport::bytes_of(header);
  transport::Bytes bytes(head.begin(), head.end());
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

}  // namespace

TEST_CASE("members join, and one that is killed is out at once") {
  const Place place;
  std::vector<std::unique_ptr<MemberProcess>> processes;
  for (int i = 0; i < 3; ++i) processes.push_back(std::make_unique<MemberProcess>("demo"));
  // Silence alone would need longer than the test waits.
  CoordinatorServerOptions options = place.options;
  options.silence_seconds = 60;
  CoordinatorServer server(options);
  for (auto& process : processes) process->join(server.address().port);
  const RunStatus before = await_members(server, "demo", 3);
  CHECK(before.term >= 1);
  for (int32_t rank = 0; rank < 3; ++rank) {
    const MemberStatus& member = before.members[static_cast<size_t>(rank)];
    CHECK(member.rank == rank);
    CHECK(member.address.substr(0, 10) == "127.0.0.1:");
    CHECK(member.seconds_since_heard >= 0);
  }
  processes[1]->kill();
  const RunStatus now = await_members(server, "demo", 2);
  CHECK(now.quorum_id > before.quorum_id);
  CHECK(now.term == before.term);
  const bool has_event = std::any_of(now.events.begin(), now.events.end(), [](const Event& event) {
    return event.text.find("out") != std::string::npos && event.unix_seconds > 1e9;
  });
  CHECK(has_event);
}

TEST_CASE("a member that stops is out when it was silent for long enough") {
  const Place place;
  MemberProcess one("demo");
  MemberProcess two("demo");
  CoordinatorServerOptions options = place.options;
  options.silence_seconds = 1;
  CoordinatorServer server(options);
  one.join(server.address().port);
  two.join(server.address().port);
  await_members(server, "demo", 2);
  two.signal(SIGSTOP);
  await_status(server, [](const ServerStatus& status) {
    const auto run = find_run(status, "demo");
    return run && count_in(*run) == 1;
  });
}

TEST_CASE("a server that starts again on its database goes on with the run") {
  const Place place;
  CoordinatorServerOptions options = place.options;
  auto server = std::make_unique<CoordinatorServer>(options);
  options.port = server->address().port;
  FakeMember one("demo", options.port);
  FakeMember two("demo", options.port);
  const RunStatus before = await_members(*server, "demo", 2);
  for (int restarts = 1; restarts <= 3; ++restarts) {
    server.reset();
    server = std::make_unique<CoordinatorServer>(options);
    const RunStatus now = await_members(*server, "demo", 2);
    CHECK(now.quorum_id == before.quorum_id);
    CHECK(now.term > before.term);
    CHECK(now.members[0].member_id == before.members[0].member_id);
  }
  FakeMember three("demo", options.port);
  CHECK(await_members(*server, "demo", 3).quorum_id > before.quorum_id);
}

TEST_CASE("runs do not touch each other") {
  const Place place;
  CoordinatorServer server(place.options);
  FakeMember one("a", server.address().port);
  FakeMember two("a", server.address().port);
  FakeMember other("b", server.address().port);
  await_members(server, "a", 2);
  const RunStatus before = await_members(server, "b", 1);
  two.leave();
  two.close();
  await_members(server, "a", 1);
  CHECK(await_members(server, "b", 1).quorum_id == before.quorum_id);
}

TEST_CASE("a run that was not named is refused, and one that was waits for its members") {
  const Place place;
  CoordinatorServerOptions options = place.options;
  options.runs = {{"named", 2}};
  CoordinatorServer server(options);
  FakeMember stranger("other", server.address().port);
  await_refusal(server, stranger, "looks after 'named', not after 'other'");
  CHECK(server.status().refused_members > 0);
  FakeMember one("named", server.address().port);
  await_status(server, [](const ServerStatus& status) {
    const auto run = find_run(status, "named");
    return run && !run->members.empty() && run->members[0].is_connected;
  });
  CHECK(find_run(server.status(), "named")->quorum_id == 0);
  FakeMember two("named", server.address().port);
  CHECK(await_members(server, "named", 2).quorum_id > 0);
}

TEST_CASE("what is no message ends its connection in words and touches nobody else") {
  const Place place;
  CoordinatorServer server(place.options);
  FakeMember member("demo", server.address().port);
  const RunStatus before = await_members(server, "demo", 1);
  const auto own_address = [&] {
    transport::MemberAddress address = server.address();
    address.run = "demo";
    return address;
  }();
  Report wrong_seat;
  wrong_seat.seat.member_id.fill(9);
  wrong_seat.seat.address = own_address.encode();
  Commit commit;
  commit.quorum_id = 7;
  const std::vector<std::byte> zeros(1000);
  const std::vector<std::vector<std::byte>> payloads = {
      {}, zeros, encode(wrong_seat), encode(Message(commit))};
  uint64_t count = 0;
  for (const auto& payload : payloads) {
    RawSocket raw = RawSocket::connect_to(server.address());
    auto hello = transport::hello_to(own_address, static_cast<uint8_t>(10 + count));
    raw.send(hello.encode());
    REQUIRE(raw.read_reply().answer == transport::Answer::Welcome);
    raw.send(frame_bytes(transport::FrameType::Membership, payload));
    count += 1;
    const ServerStatus status = await_status(
        server, [&](const ServerStatus& now) { return now.malformed_messages == count; });
    while (!raw.is_closed_by_peer()) {
    }
  }
  const RunStatus now = await_members(server, "demo", 1);
  CHECK(now.quorum_id == before.quorum_id);
}

TEST_CASE("a disk that takes no more stops the server before it says what is not on it") {
  const Place place;
  CoordinatorServer server(place.options);
  FakeMember one("demo", server.address().port);
  const RunStatus before = await_members(server, "demo", 1);
  // Files of this process may not grow any more.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit usual{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &usual) == 0);
  const rlimit none{0, usual.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &none) == 0);
  FakeMember two("demo", server.address().port);
  const ServerStatus status =
      await_status(server, [](const ServerStatus& now) { return !now.failure.empty(); });
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &usual) == 0);
  CHECK(status.failure.find(place.options.database) != std::string::npos);
  server.close();
  // What could not be written is in force nowhere, and the file holds what it held.
  Database database(place.options.database);
  const auto durable = database.load("demo");
  REQUIRE(durable);
  CHECK(durable->quorum.quorum_id == before.quorum_id);
  CHECK(durable->quorum.seats.size() == 1);
}

TEST_CASE("a member that says goodbye without leaving is alive, and calls another coordinator") {
  const Place place;
  CoordinatorServerOptions options = place.options;
  options.silence_seconds = 60;
  CoordinatorServer server(options);
  FakeMember stays("demo", server.address().port);
  FakeMember changes_over("demo", server.address().port);
  const RunStatus before = await_members(server, "demo", 2);
  changes_over.close();
  const ServerStatus status = await_status(server, [](const ServerStatus& now) {
    const auto run = find_run(now, "demo");
    return run && count_in(*run) == 1;
  });
  // Whoever stays has time to agree to another quorum.
  const ServerStatus later = await_status(
      server, [&](const ServerStatus& now) { return now.messages >= status.messages + 10; });
  CHECK(find_run(later, "demo")->quorum_id == before.quorum_id);
}

TEST_CASE("a run begins late where the database may be in place of one that was lost") {
  const Place place;
  CoordinatorServerOptions listening = place.options;
  listening.listen_seconds = 60;
  std::optional<CoordinatorServer> server(std::in_place, listening);
  {
    const FakeMember first("demo", server->address().port);
    await_status(*server, [](const ServerStatus& status) {
      const auto run = find_run(status, "demo");
      return run && std::any_of(run->events.begin(), run->events.end(), [](const Event& event) {
               return event.text.find("listens whether members of it live") != std::string::npos;
             });
    });
    CHECK(find_run(server->status(), "demo")->quorum_id == 0);
  }
  server.reset();
  server.emplace(place.options);
  {
    const FakeMember member("demo", server->address().port);
    await_members(*server, "demo", 1);
  }
  // It has seen a quorum, so it is not new: another run is.
  server.reset();
  server.emplace(listening);
  const FakeMember member("other", server->address().port);
  await_members(*server, "other", 1);
}

TEST_CASE("who has taken over looks after its run alone, and keeps to its smallest size") {
  CoordinatorServerOptions options;
  options.bind_host = "127.0.0.1";
  options.heartbeat_seconds = 0.1;
  options.taken_over = {"demo", Durable{}, 3};
  CoordinatorServer server(options);
  FakeMember stranger("other", server.address().port);
  await_refusal(server, stranger, "looks after that one alone, in place of its coordinator");
  const FakeMember member("demo", server.address().port);
  await_status(server, [](const ServerStatus& status) {
    const auto run = find_run(status, "demo");
    return run && run->world_size_min == 3;
  });
  CHECK(server.abandon("other") == "its database knows no such run");
}

}  // namespace pccl::membership
