// The protocol as transcripts: who says what when, and what comes of it.
#include <string>
#include <vector>

#include "membership_scene.h"

using namespace scene;

namespace {

CoordinatorOptions at_least(int32_t world_size_min) {
  CoordinatorOptions options;
  options.world_size_min = world_size_min;
  return options;
}

// Started and completed of everybody named.
void progress(Scene& scene, const std::string& names, uint64_t started, uint64_t completed) {
  for (const char letter : names) {
    auto& actor = scene[std::string(1, letter)];
    actor.progress = {started, completed};
    actor.member->set_progress(actor.progress);
  }
}

void lose_link(Scene& scene, const std::string& one, const std::string& other) {
  scene[one].member->on_link_lost(id_of(other), false, "no answer", scene.now());
  scene[other].member->on_link_lost(id_of(one), false, "no answer", scene.now());
}

constexpr uint64_t kTerm1 = 1ull << 32;

}  // namespace

TEST_CASE("the first quorum waits for world_size_min, then everybody enters at operation 0") {
  Scene scene(at_least(2));
  scene.join("a");
  scene.run(30);
  CHECK_FALSE(scene["a"].entered);
  scene.take_transcript();
  scene.join("b");
  CHECK(scene.take_transcript() ==
        std::vector<std::string>{
            "C: proposes quorum 1 of 2 members: the first of the run",
            "C -> a: Propose quorum 1 [61616161 62626262] (term 1, ballot 1)",
            "C -> b: Propose quorum 1 [61616161 62626262] (term 1, ballot 1)", "a: holds",
            "a -> C: Accept quorum 1 (term 1, ballot 1): started 0, completed 0", "b: holds",
            "b -> C: Accept quorum 1 (term 1, ballot 1): started 0, completed 0",
            "C -> a: Commit quorum 1 (term 1, ballot 1): first operation 0, recover from nothing",
            "C -> b: Commit quorum 1 (term 1, ballot 1): first operation 0, recover from nothing",
            "C: rank 0 (61616161) is in", "C: rank 1 (62626262) is in",
            "C: quorum 1 of 2 members is in force from operation 0 on",
            "a: enters quorum 1 [ab] from 0", "b: enters quorum 1 [ab] from 0"});
  CHECK(scene.disk().quorum == scene["a"].member->quorum());
  CHECK(scene.coordinator().state() == CoordinatorState::Steady);
}

TEST_CASE("a newcomer enters behind the last operation that anybody has started") {
  Scene scene(at_least(2));
  scene.join("ab");
  progress(scene, "a", 7, 5);
  progress(scene, "b", 9, 6);
  scene.join("c");
  CHECK(scene.seats("c") == "abc");
  for (const std::string name : {"a", "b", "c"}) {
    CHECK(scene[name].entered->first_operation == 9);
    CHECK_FALSE(scene[name].entered->drops);
  }
  CHECK(scene["c"].member->quorum().seats[2].joined_at == 9);
  CHECK(scene["c"].member->report(false).progress == Progress{9, 9});
}

TEST_CASE("a death is seen at once, and the survivors recover what somebody has not completed") {
  Scene scene(at_least(2));
  scene.join("abc");
  progress(scene, "a", 7, 5);
  progress(scene, "c", 8, 6);
  scene.take_transcript();
  scene.kill("b");
  CHECK(scene.seats("a") == "ac");
  for (const std::string name : {"a", "c"}) {
    CHECK(scene[name].entered->first_operation == 8);
    CHECK(scene[name].entered->recover_from == 5);
    CHECK(scene[name].entered->drops);
  }
  CHECK(scene.was_said("rank 1 (62626262) is out: its kernel closed the socket"));
  CHECK(scene.was_said("a: holds, freezes"));
}

TEST_CASE("who says nothing for silence_seconds is out, and not before") {
  Scene scene(at_least(2));
  scene.join("abc");
  scene.disconnect("b");
  scene.run(9.5);
  CHECK(scene.seats("a") == "abc");
  scene.run(1);
  CHECK(scene.seats("a") == "ac");
  CHECK(scene.was_said("(62626262) is out: silent for 10."));
}

TEST_CASE("a coordinator that stood still holds the silence against nobody") {
  Scene scene(at_least(2));
  scene.join("abc");
  // Its clock jumps, and then it looks for what is due before it reads its mail.
  scene.coordinator().on_time(pccl::after(scene.now(), 60));
  scene.settle();
  CHECK(scene.seats("a") == "abc");
}

TEST_CASE("of two that can't reach each other the later seat goes, after link_grace_seconds") {
  Scene scene(at_least(2));
  scene.join("abc");
  scene["a"].member->on_link_lost(id_of("b"), false, "connection refused", scene.now());
  scene.perform("a");
  scene.run(9.5);
  CHECK(scene.seats("a") == "abc");
  scene.run(1);
  CHECK(scene.seats("a") == "ac");
  CHECK(scene["b"].evicted.find("1 members and it can't reach each other, rank 0") == 0);
}

TEST_CASE("the one that most members can't reach goes, whoever complains") {
  Scene scene(at_least(2));
  scene.join("abcd");
  for (const std::string peer : {"b", "c", "d"}) {
    scene["a"].member->on_link_lost(id_of(peer), false, "timed out", scene.now());
  }
  scene.perform("a");
  scene.run(11);
  CHECK(scene.seats("b") == "bcd");
  CHECK_FALSE(scene["a"].evicted.empty());
}

TEST_CASE("a link that comes back in time costs nobody the seat") {
  Scene scene(at_least(2));
  scene.join("abc");
  scene["a"].member->on_link_lost(id_of("b"), false, "reset", scene.now());
  scene.run(8);
  scene["a"].member->on_link_back(id_of("b"), scene.now());
  scene.run(20);
  CHECK(scene.seats("a") == "abc");
}

TEST_CASE("who leaves is out at once, and knows when") {
  Scene scene(at_least(2));
  scene.join("abc");
  scene["b"].member->leave(scene.now());
  scene.perform("b");
  scene.settle();
  CHECK(scene.seats("a") == "ac");
  CHECK(scene["b"].evicted == "it left");
}

TEST_CASE("a zombie is refused with the reason for which it was dropped") {
  Scene scene(at_least(2));
  scene.join("abc");
  scene.disconnect("b");
  scene.run(11);
  REQUIRE(scene.seats("a") == "ac");
  scene.reconnect("b");
  CHECK(scene["b"].evicted.find("silent for 10.") == 0);
  CHECK(scene["b"].member->state() == MemberState::Out);
  CHECK(scene.seats("a") == "ac");
}

TEST_CASE(
    "a coordinator that dies before its Persist has said nothing; the next one proposes again") {
  Scene scene(at_least(2));
  scene.join("ab");
  scene.join("c");
  scene["c"].holds_by_itself = false;
  scene.kill("b");
  scene.crash_before_persist();
  scene.take_transcript();
  scene.held("c");
  CHECK_FALSE(scene.was_said("C -> a: Commit"));
  CHECK(scene.disk().quorum.quorum_id == 2);
  scene.start_coordinator();
  scene.reconnect("ac");
  // That b is dead is known to those that accepted the proposal: nobody waits for it.
  CHECK(scene.was_said("proposes quorum 3 of 2 members: members are lost"));
  CHECK(scene.seats("a") == "ac");
  CHECK(scene.seats("c") == "ac");
  CHECK(scene.disk().quorum.quorum_id == 3);
  CHECK(scene.disk().term == 2 * kTerm1);
}

TEST_CASE("a coordinator that dies between Persist and Commit: the next one says the Commit") {
  Scene scene(at_least(2));
  scene.join("ab");
  progress(scene, "ab", 4, 4);
  scene["c"].holds_by_itself = false;
  scene.join("c");
  REQUIRE(scene["c"].hold);
  // The Persist is performed, the Commits are lost.
  scene["c"].member->on_held({.quorum_id = 2}, {}, scene.now());
  for (const auto& action : scene["c"].member->take_actions()) {
    const auto* send = std::get_if<SendToCoordinator>(&action);
    REQUIRE(send != nullptr);
    scene.coordinator().on_message(id_of("c"), send->message, scene.now());
  }
  Durable disk;
  for (const auto& action : scene.coordinator().take_actions()) {
    if (const auto* persist = std::get_if<Persist>(&action)) disk = persist->durable;
  }
  CHECK(disk.quorum.quorum_id == 2);
  scene.crash_coordinator();
  scene.set_disk(disk);
  scene.start_coordinator();
  scene.reconnect("abc");
  for (const std::string name : {"a", "b", "c"}) {
    CHECK(scene.seats(name) == "abc");
    CHECK(scene[name].entered->first_operation == 4);
  }
  CHECK(scene.disk().quorum.quorum_id == 2);
}

TEST_CASE("several deaths at once are one change") {
  Scene scene(at_least(2));
  scene.join("abcdef");
  progress(scene, "abcdef", 3, 3);
  const uint64_t before = scene["a"].member->quorum().quorum_id;
  scene["a"].holds_by_itself = false;
  scene.kill("bcd");
  scene.held("a");
  CHECK(scene.seats("a") == "aef");
  CHECK(scene["a"].member->quorum().quorum_id == before + 1);
}

TEST_CASE("a member that dies before it accepts is dropped by the next ballot") {
  Scene scene(at_least(2));
  scene.join("abcd");
  const uint64_t before = scene["a"].member->quorum().quorum_id;
  scene["c"].holds_by_itself = false;
  scene.kill("b");
  CHECK(scene.seats("a") == "abcd");
  scene.kill("c");
  CHECK(scene.seats("a") == "ad");
  CHECK(scene["a"].member->quorum().quorum_id == before + 1);
}

TEST_CASE("one that can take no more says so") {
  CoordinatorOptions options = at_least(2);
  options.world_size_max = 2;
  Scene scene(options);
  scene.join("abc");
  scene.run(1);
  CHECK(scene.seats("a") == "ab");
  CHECK(scene["c"].evicted == "2 of at most 2 seats are taken");
}

TEST_CASE("a quorum below world_size_min does not go on until somebody joins") {
  Scene scene(at_least(3));
  scene.join("abc");
  scene.take_transcript();
  scene.kill("c");
  scene.run(5);
  CHECK(scene.seats("a") == "abc");
  CHECK(scene.was_said("can't go on: 2 members are here, at least 3 have to be"));
  CHECK_FALSE(scene.was_said("holds"));
  scene.join("d");
  CHECK(scene.seats("a") == "abd");
  CHECK(scene["d"].entered);
}

TEST_CASE("of too few that can't reach each other one has to join anew, and then they go on") {
  Scene scene(at_least(2));
  scene.join("ab");
  lose_link(scene, "a", "b");
  scene.take_transcript();
  scene.run(20);
  CHECK(scene.was_said("can't go on: 1 members are here, at least 2 have to be"));
  CHECK(scene["b"].evicted.find("1 members and it can't reach each other, rank 0") == 0);
  CHECK(scene["a"].evicted.empty());
  CHECK(scene.seats("a") == "ab");
  scene.join("c");
  CHECK(scene.seats("a") == "ac");
  CHECK(scene["c"].entered);
}

TEST_CASE("who has to join anew says goodbye, so that a dead member does not hold the others up") {
  Scene scene(at_least(2));
  scene.join("abc");
  scene.crash_coordinator();
  scene.kill("c");  // nobody sees it end: it may be alive, as far as the next coordinator knows
  scene.start_coordinator();
  scene.reconnect("ab");
  lose_link(scene, "a", "b");
  for (const std::string name : {"a", "b"})
    scene[name].member->on_link_lost(id_of("c"), false, "no answer", scene.now());
  scene.run(30);
  CHECK_FALSE(scene["b"].evicted.empty());
  CHECK(scene["a"].evicted.empty());
  scene.join("d");
  CHECK(scene.seats("a") == "ad");
}

TEST_CASE("who is told to join anew stays if it can't hear it, and its links come back") {
  Scene scene(at_least(2));
  scene.join("ab");
  lose_link(scene, "a", "b");
  scene.run(9.5);
  scene.disconnect("b");
  scene.run(2);
  scene["a"].member->on_link_back(id_of("b"), scene.now());
  scene["b"].member->on_link_back(id_of("a"), scene.now());
  scene.run(0.5);
  scene.reconnect("b");
  scene.run(20);
  CHECK(scene["b"].evicted.empty());
  CHECK(scene.seats("b") == "ab");
  CHECK(scene.coordinator().state() == CoordinatorState::Steady);
}

TEST_CASE("the smaller side of a partition waits, says so, and goes on as it was when it heals") {
  Scene scene(at_least(1));
  scene.join("abc");
  const uint64_t before = scene["a"].member->quorum().quorum_id;
  scene.disconnect("b");
  scene.disconnect("c");
  scene.take_transcript();
  scene.run(30);
  CHECK(scene.seats("a") == "abc");
  CHECK(
      scene.was_said("can't go on: of 3 members that may be alive, 1 are here, and it takes half"));
  CHECK_FALSE(scene.was_said("holds"));
  scene.reconnect("bc");
  scene.run(5);
  CHECK(scene["a"].member->quorum().quorum_id == before);
  CHECK(scene.coordinator().state() == CoordinatorState::Steady);
}

TEST_CASE("when all are gone others go on, and hear which revision was committed") {
  for (const bool has_revision : {false, true}) {
    CAPTURE(has_revision);
    Scene scene(at_least(2));
    scene.join("ab");
    progress(scene, "ab", 5, 5);
    if (has_revision) {
      Digest digest{};
      digest.fill(7);
      scene["a"].member->set_revision(3, digest);
      scene.run(1);
      CHECK(scene.disk().revision == 0);
      scene["b"].member->set_revision(3, digest);
    }
    scene.run(2);
    CHECK(scene.disk().revision == (has_revision ? 3 : 0));
    CHECK(scene["a"].member->committed_revision() == scene.disk().revision);
    scene.kill("ab");
    scene.join("cd");
    REQUIRE(scene["c"].entered);
    CHECK(scene.seats("c") == "cd");
    // 2 was empty: on the disk, so that a restarted coordinator waits for nobody.
    CHECK(scene["c"].entered->quorum.quorum_id == 3);
    CHECK(scene["c"].entered->first_operation == 5);
    // Whether they may go on from what they bring is decided when they compare their states.
    CHECK(scene.was_said("no living member holds revision 3") == has_revision);
    CHECK(scene["c"].member->committed_revision() == (has_revision ? 3 : 0));
  }
}

TEST_CASE("a run that waits for the dead goes on when it is abandoned, and not while one is here") {
  Scene scene(at_least(1));
  scene.join("ab");
  CHECK(scene.coordinator().abandon(scene.now()).find("is here") != std::string::npos);
  scene.crash_coordinator();
  scene.kill("a");
  scene.kill("b");
  scene.start_coordinator();
  scene.join("c");
  scene.run(60);
  CHECK_FALSE(scene["c"].entered);
  CHECK(scene.coordinator().abandon(scene.now()).empty());
  scene.settle();
  REQUIRE(scene["c"].entered);
  CHECK(scene.seats("c") == "c");
  CHECK(scene.disk().quorum.quorum_id == scene["c"].entered->quorum.quorum_id);
}

TEST_CASE("a freezing Hold does not wait for the answer to the one before, which it is not") {
  Scene scene(at_least(1));
  scene.join("abc");
  scene["a"].holds_by_itself = false;
  scene.join("d");
  REQUIRE(scene["a"].hold);
  const Hold for_newcomers = *scene["a"].hold;
  CHECK_FALSE(for_newcomers.freezes);
  scene.kill("b");
  scene.take_transcript();
  REQUIRE(scene["a"].hold);
  CHECK(scene["a"].hold->freezes);
  scene["a"].member->on_held(for_newcomers, {}, scene.now());
  CHECK(scene["a"].member->take_actions().empty());
  scene.held("a");
  CHECK(scene.seats("a") == "ac");
  CHECK(scene["a"].entered->drops);
  scene["a"].holds_by_itself = true;
}

TEST_CASE("messages that come twice change nothing") {
  Scene scene(at_least(2));
  scene.join("ab");
  const Commit commit{kTerm1, 1, 1, 0, kNothingToRecover};
  scene.take_transcript();
  scene["a"].member->on_message(commit, scene.now());
  Proposal proposal{kTerm1, 1, false, scene["a"].member->quorum(), {}};
  scene["a"].member->on_message(Propose{proposal}, scene.now());
  scene.coordinator().on_message(id_of("a"), Accept{kTerm1, 1, 1, {}}, scene.now());
  scene.perform("a");
  scene.settle();
  CHECK(scene.take_transcript().empty());
}
