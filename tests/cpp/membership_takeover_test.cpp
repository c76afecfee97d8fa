// What a coordinator may do that came after another one: terms, promises, majorities.
#include <string>

#include "membership_scene.h"

using namespace scene;

namespace {

CoordinatorOptions at_least(int32_t world_size_min) {
  CoordinatorOptions options;
  options.world_size_min = world_size_min;
  return options;
}

}  // namespace

TEST_CASE(
    "half of a quorum may go on with the run's own coordinator, with another one it may not") {
  for (const bool has_database : {true, false}) {
    CAPTURE(has_database);
    Scene scene(at_least(1));
    scene.join("ab");
    scene.crash_coordinator();
    scene.options().has_taken_over = !has_database;
    Durable durable = scene.disk();
    durable.term = next_term(durable.term, id_of("a"));
    scene.set_disk(durable);
    scene.start_coordinator();
    scene.reconnect("a");
    scene.run(30);
    CHECK(scene.seats("a") == (has_database ? "a" : "ab"));
  }
}

TEST_CASE("who is seen to be dead does not count; who is only silent does") {
  Scene scene(at_least(1));
  scene.join("abcd");
  scene["a"].holds_by_itself = false;
  scene.kill("bcd");
  scene.held("a");
  CHECK(scene.seats("a") == "a");
}

TEST_CASE("a death that was seen after the promise had run out proves nothing") {
  Scene scene(at_least(1));
  scene.join("abc");
  scene["b"].is_connected = false;  // its network is gone, the sockets stand
  scene["c"].is_connected = false;
  scene.run(9.9);
  scene.run(0.3);
  scene.coordinator().on_disconnected(id_of("b"), true, "reset", scene.now());
  scene.coordinator().on_disconnected(id_of("c"), true, "reset", scene.now());
  scene.settle();
  scene.run(5);
  CHECK(scene.seats("a") == "abc");
  CHECK(scene.coordinator().state() == CoordinatorState::Waiting);
}

TEST_CASE("another one takes over with more than half, and gives the run back") {
  Scene scene(at_least(1));
  scene.join("abc");
  const Durable home_disk = scene.disk();
  scene.crash_coordinator();
  scene.run(9.5);
  CHECK_FALSE(scene["a"].takes_over);
  scene.run(1);
  REQUIRE(scene["a"].takes_over);
  CHECK_FALSE(scene["b"].takes_over);

  scene.options().has_taken_over = true;
  const Durable durable =
      durable_from(scene["a"].member->report(true), scene["a"].takes_over->term);
  scene.set_disk(durable);
  scene.start_coordinator();
  scene.reconnect("ab");
  scene.run(11);
  CHECK(scene.seats("a") == "ab");
  CHECK(scene["b"].member->term() == durable.term);

  scene.crash_coordinator();
  scene.options().has_taken_over = false;
  scene.set_disk(home_disk);
  scene.start_coordinator();
  CHECK(scene.coordinator().durable().term < durable.term);
  scene.reconnect("abc");
  CHECK(scene.coordinator().durable().term > durable.term);
  CHECK(scene.coordinator().durable().quorum == scene["a"].member->quorum());
  CHECK(scene["a"].member->term() == scene.coordinator().durable().term);
  CHECK_FALSE(scene["c"].evicted.empty());
}

TEST_CASE("one that took over and hears of a higher term does nothing any more") {
  Scene scene(at_least(1));
  scene.join("abc");
  scene.crash_coordinator();
  scene.options().has_taken_over = true;
  Durable durable = scene.disk();
  durable.term = next_term(durable.term, id_of("a"));
  Coordinator other(scene.options(), durable, scene.now());
  Report report = scene["b"].member->report(true);
  report.term = next_term(durable.term);
  other.on_message(id_of("b"), report, scene.now());
  CHECK(other.has_retired());
  other.take_actions();
  other.on_message(id_of("b"), report, scene.now());
  other.on_time(pccl::after(scene.now(), 100));
  CHECK(other.take_actions().empty());
}

TEST_CASE("who obeys the run's own coordinator obeys no other one until its promise is over") {
  Scene scene(at_least(1));
  scene.join("abc");
  Member& member = *scene["b"].member;
  const uint64_t term = member.term();
  Status status;
  status.term = next_term(term, id_of("a"));
  status.has_taken_over = true;
  member.on_message(status, pccl::after(scene.now(), 9.9));
  CHECK(member.term() == term);
  member.on_message(status, pccl::after(scene.now(), 10.1));
  CHECK(member.term() == status.term);
}

TEST_CASE("a database that was lost makes its coordinator one that took over") {
  Scene scene(at_least(1));
  scene.join("ab");
  scene.crash_coordinator();
  scene.set_disk({});
  scene.start_coordinator();
  scene.reconnect("a");
  scene.run(30);
  CHECK(scene.seats("a") == "ab");
  CHECK(scene.coordinator().state() == CoordinatorState::Waiting);
  CHECK(scene.disk().quorum.quorum_id == 0);
  scene.reconnect("b");
  CHECK(scene.coordinator().state() == CoordinatorState::Steady);
}

TEST_CASE("where the database was lost a newcomer that calls first begins no run of its own") {
  Scene scene(at_least(1));
  scene.join("ab");
  scene.crash_coordinator();
  scene.set_disk({});
  scene.options().first_quorum_at = pccl::after(scene.now(), 4);
  scene.start_coordinator();
  scene.join("n");
  scene.run(2);
  CHECK(scene["n"].member->quorum().quorum_id == 0);
  CHECK(scene["n"].member->waits_for() ==
        "its database does not know this run: listens whether members of it live");
  scene.reconnect("ab");
  CHECK(scene.seats("n") == "abn");
  CHECK(scene["n"].member->waits_for().empty());
}

TEST_CASE("a run that no living member knows begins when its coordinator has listened") {
  CoordinatorOptions options = at_least(1);
  options.first_quorum_at = TimePoint(std::chrono::hours(2));
  Scene scene(options);
  scene.join("n");
  scene.run(1);
  CHECK(scene["n"].member->quorum().quorum_id == 0);
  scene.run(std::chrono::duration<double>(options.first_quorum_at - scene.now()).count() + 1);
  CHECK(scene.seats("n") == "n");
}

TEST_CASE("members know what a coordinator that takes over must keep to") {
  CoordinatorOptions options = at_least(2);
  options.takeover_seconds = 3;
  Scene scene(options);
  scene.join("ab");
  CHECK(scene["a"].member->rules() == Rules{500, 10000, 10000, 3000, 2});
}

TEST_CASE("who has accepted what may have been agreed is brought into no older quorum") {
  Scene scene(at_least(1));
  scene.join("abc");
  Durable home = scene.disk();
  scene.crash_coordinator();
  // It had agreed on a quorum with d, and died before it told anybody.
  home.quorum.quorum_id += 1;
  home.quorum.seats.push_back({id_of("d"), 0, {}});
  home.quorum_ballot += 1;
  home.recover_from = kNothingToRecover;
  // Another one that took over has proposed the next; d may be with it and accept, too.
  Proposal doubtful{next_term(home.term, id_of("a")), 1, true, home.quorum, {}};
  doubtful.quorum.quorum_id += 1;
  scene.run(11);
  Status status;
  status.term = doubtful.term;
  status.has_taken_over = true;
  for (const std::string name : {"a", "b", "c"}) {
    scene[name].member->on_message(status, scene.now());
    scene[name].member->on_message(Propose{doubtful}, scene.now());
    scene.perform(name);
    REQUIRE(scene[name].member->report(false).accepted == doubtful);
  }
  scene.set_disk(home);
  scene.start_coordinator();
  scene.reconnect("abc");
  CHECK(scene.seats("a") == "abc");
  scene.run(15);
  for (const std::string name : {"a", "b", "c"}) {
    CHECK(scene.seats(name) == "abc");
    CHECK(scene[name].member->quorum().quorum_id == doubtful.quorum.quorum_id + 1);
  }
}

TEST_CASE("what stood still for a proposal that came to nothing is recovered, whoever asks later") {
  Scene scene(at_least(3));
  scene.join("abc");
  for (const std::string name : {"a", "b", "c"}) {
    scene[name].progress = {1, 0};
    scene[name].holds_by_itself = false;
  }
  // A quorum with d is agreed, and neither a nor b hears of it.
  scene.join("d");
  scene.held("a");
  scene.held("b");
  scene["a"].is_connected = scene["b"].is_connected = false;
  scene.held("c");
  REQUIRE(scene.seats("c") == "abcd");
  const Quorum agreed = scene["c"].member->quorum();
  scene.crash_coordinator();
  // They freeze for one that took over, which finds nobody else.
  Proposal lost{next_term(scene.disk().term, id_of("a")), 1, true, agreed, {}};
  lost.quorum.quorum_id += 1;
  scene.run(11);
  Status status;
  status.term = lost.term;
  status.has_taken_over = true;
  for (const std::string name : {"a", "b"}) {
    scene[name].holds_by_itself = true;
    scene[name].member->on_message(status, scene.now());
    scene[name].member->on_message(Propose{lost}, scene.now());
    scene.perform(name);
    REQUIRE(scene[name].member->report(false).accepted == lost);
  }
  // The run's own coordinator brings them into the quorum that was agreed, and dies again.
  scene.start_coordinator();
  scene.reconnect("cab");
  scene.run(1);
  for (const std::string name : {"a", "b"}) {
    REQUIRE(scene[name].member->quorum() == agreed);
    CHECK_FALSE(scene[name].entered->drops);
  }
  scene.crash_coordinator();
  scene.start_coordinator();
  scene["c"].holds_by_itself = true;
  scene.reconnect("abcd");
  for (const std::string name : {"a", "b", "c", "d"}) {
    CHECK(scene.seats(name) == "abcd");
    CHECK(scene[name].entered->drops);
    CHECK(scene[name].entered->recover_from == 0);
    CHECK_FALSE(scene[name].member->report(false).needs_recovery);
  }
  const uint64_t recovered_in = scene["a"].member->quorum().quorum_id;
  scene.run(3);
  CHECK(scene["a"].member->quorum().quorum_id == recovered_in);
}

TEST_CASE("a newcomer to what may have been agreed has a say in what follows that without it") {
  Scene scene(at_least(3));
  scene.join("abcde");
  Durable durable = scene.disk();
  scene.crash_coordinator();
  scene.kill("de");
  scene.join("n");
  scene.disconnect("n");
  // One that took over proposed to let n in, then to go on without d, and both died.
  Proposal first{next_term(durable.term, id_of("a")), 1, false, durable.quorum, {}};
  first.quorum.quorum_id += 1;
  first.quorum.seats.push_back({id_of("n"), kJoinsNow, {}});
  Proposal second{first.term, 2, true, durable.quorum, {}};
  second.quorum.quorum_id += 1;
  std::erase_if(second.quorum.seats, [](const Seat& seat) { return seat.member_id == id_of("d"); });
  scene.run(11);
  Status status;
  status.term = first.term;
  status.has_taken_over = true;
  for (const std::string name : {"a", "b", "c", "n"}) {
    scene[name].member->on_message(status, scene.now());
    scene[name].member->on_message(Propose{first}, scene.now());
    scene.perform(name);
    if (name != "n") scene[name].member->on_message(Propose{second}, scene.now());
    scene.perform(name);
    REQUIRE(scene[name].member->report(false).accepted == (name == "n" ? first : second));
  }
  // The next one needs more than half of each, so of the first it needs n.
  durable.term = next_term(first.term, id_of("b"));
  scene.options().has_taken_over = true;
  scene.set_disk(durable);
  scene.start_coordinator();
  scene.reconnect("abcn");
  CHECK(scene.seats("a") == "abcde");
  scene.run(15);
  for (const std::string name : {"a", "b", "c", "n"}) CHECK(scene.seats(name) == "abcn");
}

TEST_CASE("what was accepted in an earlier term is told until a quorum is in force") {
  Scene scene(at_least(2));
  scene.join("abc");
  Durable durable = scene.disk();
  scene.crash_coordinator();
  scene.run(11);
  // One that took over lets n in, and nobody but c hears that this is agreed.
  Proposal lets_in{next_term(durable.term, id_of("a")), 1, false, durable.quorum, {}};
  lets_in.quorum.quorum_id += 1;
  lets_in.quorum.seats.push_back({id_of("n"), kJoinsNow, {}});
  Status status;
  status.rules.heartbeat_ms = 500;
  status.term = lets_in.term;
  status.has_taken_over = true;
  for (const std::string name : {"a", "b", "c"}) {
    scene[name].member->on_message(status, scene.now());
    scene[name].member->on_message(Propose{lets_in}, scene.now());
    scene.perform(name);
  }
  const Commit commit{lets_in.term, 1, lets_in.quorum.quorum_id, 0, kNothingToRecover};
  scene["c"].member->on_message(commit, scene.now());
  scene.perform("c");
  // The run's own coordinator asks a and b for one that follows that, and dies.
  status.term = next_term(lets_in.term);
  status.has_taken_over = false;
  Proposal follows{status.term, 1, true, durable.quorum, {}};
  follows.quorum.quorum_id += 2;
  for (const std::string name : {"a", "b"}) {
    scene[name].member->on_message(status, scene.now());
    scene[name].member->on_message(Propose{follows}, scene.now());
    scene.perform(name);
    const Report report = scene[name].member->report(false);
    CHECK(report.accepted == follows);
    REQUIRE(report.accepted_before.size() == 1);
    CHECK(report.accepted_before[0].quorum == lets_in.quorum);
  }
  // Restarted, it knows from them what c is in.
  durable.term = status.term;
  scene.set_disk(durable);
  scene.start_coordinator();
  scene.reconnect("ab");
  scene.run(15);
  CHECK(scene.was_said("quorum 3 was proposed in term"));
  CHECK(scene["a"].member->quorum().quorum_id != lets_in.quorum.quorum_id);
  CHECK(scene["a"].member->quorum() == scene["b"].member->quorum());
}

TEST_CASE("no two reigns of one member have the same term") {
  Scene scene;
  scene.join("a");
  scene.crash_coordinator();
  scene.run(11);
  const uint64_t first = scene["a"].takes_over.value().term;
  // The run's own coordinator is heard once more, and is silent again.
  Status status;
  status.rules.heartbeat_ms = 500;
  status.term = scene["a"].member->term();
  scene["a"].member->on_message(status, scene.now());
  scene.run(11);
  CHECK(scene["a"].takes_over.value().term > first);
}
