// Who is slow, from figures as members report them.
#include "membership/link_rates.h"

#include <doctest/doctest.h>

#include <functional>
#include <map>
#include <utility>

using namespace pccl;
using namespace pccl::membership;

namespace {

MemberId id_of(int number) {
  MemberId id{};
  id.fill(static_cast<uint8_t>(number));
  return id;
}

// Members 0..count-1 that report once a second.
class World {
 public:
  explicit World(int count) : count_(count) {
    for (int member = 0; member < count; ++member) quorum.seats.push_back({id_of(member), 0, {}});
  }

  // `seconds` with these bytes a second while busy, for busy_share of the time.
  void carry(int from, int to, double rate, double busy_share = 0.6) {
    carried_[{from, to}] = {rate, busy_share};
  }
  void call(int member, double share) { shares_[member] = share; }

  std::vector<LinkRates::Change> pass(int seconds) {
    std::vector<LinkRates::Change> changes;
    for (int second = 0; second < seconds; ++second) {
      now_ += std::chrono::seconds(1);
      for (int member = 0; member < count_; ++member) {
        Figures& figures = figures_[member];
        const double share = shares_.contains(member) ? shares_.at(member) : 0.8;
        figures.operations_us += static_cast<uint64_t>(1e6 * share);
        figures.links.clear();
        for (const auto& [ends, load] : carried_) {
          if (ends.first != member) continue;
          LinkFigures& link = links_[ends];
          link.to = id_of(ends.second);
          link.bytes_sent += static_cast<uint64_t>(load.first * load.second);
          link.busy_us += static_cast<uint64_t>(1e6 * load.second);
          link.round_trip_us = 20'000;
          figures.links.push_back(link);
        }
        Report report;
        report.clock = microseconds(now_.time_since_epoch());
        report.figures = figures;
        rates.on_report(id_of(member), report);
      }
      for (LinkRates::Change& change : rates.judge(now_)) changes.push_back(std::move(change));
    }
    return changes;
  }

  void ring(double rate) {
    for (int member = 0; member < count_; ++member) carry(member, (member + 1) % count_, rate);
  }

  LinkRates rates;
  Quorum quorum{1, {}};

 private:
  int count_;
  TimePoint now_{std::chrono::seconds(100)};
  std::map<std::pair<int, int>, std::pair<double, double>> carried_;
  std::map<int, double> shares_;
  std::map<int, Figures> figures_;
  std::map<std::pair<int, int>, LinkFigures> links_;
};

}  // namespace

TEST_CASE("rates are bytes by the member's own clock, over the window and while busy") {
  World world(3);
  world.ring(10e6);
  world.pass(6);
  const auto links = world.rates.links();
  REQUIRE(links.size() == 3);
  for (const LinkRate& link : links) {
    CHECK(link.bytes_per_second == doctest::Approx(6e6));
    CHECK(link.busy_bytes_per_second == doctest::Approx(10e6));
    CHECK(link.round_trip_seconds == doctest::Approx(0.02));
  }
}

TEST_CASE("nobody is slow in an even run, whatever the algorithm") {
  for (int count = 2; count <= 20; ++count) {
    World ring(count);
    ring.ring(10e6);
    CHECK(ring.pass(40).empty());
    World direct(count);
    for (int from = 0; from < count; ++from) {
      for (int to = 0; to < count; ++to) {
        if (from != to) direct.carry(from, to, 10e6 + 1e5 * from);
      }
    }
    CHECK(direct.pass(40).empty());
  }
}

TEST_CASE("a member with a narrow link is slow once, and once fine again") {
  for (int count = 3; count <= 20; ++count) {
    INFO(count);
    World world(count);
    world.ring(10e6);
    world.carry(1, 2, 1e6, 0.9);
    world.carry(0, 1, 1.2e6, 0.9);
    const auto changes = world.pass(40);
    REQUIRE(changes.size() == 1);
    CHECK(changes[0].member == id_of(1));
    CHECK(changes[0].is_slow);
    CHECK(changes[0].reason ==
          "its links carry 1.2 MB/s at most while they are busy, those of the others 10 MB/s");
    CHECK(world.rates.pace(id_of(1)).is_slow);
    world.ring(10e6);
    const auto after = world.pass(40);
    REQUIRE(after.size() == 1);
    CHECK(after[0].member == id_of(1));
    CHECK_FALSE(after[0].is_slow);
  }
}

TEST_CASE("a narrow uplink is told from the downlinks of those that it sends to") {
  World world(5);
  for (int from = 0; from < 5; ++from) {
    for (int to = 0; to < 5; ++to) {
      if (from != to) world.carry(from, to, from == 3 ? 1e6 : 10e6);
    }
  }
  const auto changes = world.pass(40);
  REQUIRE(changes.size() == 1);
  CHECK(changes[0].member == id_of(3));
}

TEST_CASE("of one slow link nobody knows which end it is") {
  World world(6);
  world.ring(10e6);
  world.carry(2, 3, 1e6);
  CHECK(world.pass(40).empty());
}

TEST_CASE("a member that the others wait for is slow") {
  for (int count = 2; count <= 5; ++count) {
    World world(count);
    world.call(1, 0.1);
    const auto changes = world.pass(40);
    REQUIRE(changes.size() == 1);
    CHECK(changes[0].member == id_of(1));
    CHECK(changes[0].reason == "the others wait for its calls, 0.70 s of each second");
    CHECK(world.rates.pace(id_of(1)).waited_for == doctest::Approx(0.7));
    CHECK(world.rates.pace(id_of(0)).waited_for == 0);
  }
}

TEST_CASE("one bad moment makes nobody slow, and one good one nobody fine") {
  World world(3);
  for (int round = 0; round < 10; ++round) {
    world.call(1, 0.1);
    CHECK(world.pass(4).empty());
    world.call(1, 0.8);
    CHECK(world.pass(2).empty());
  }
  world.call(1, 0.1);
  CHECK(world.pass(10).size() == 1);
  for (int round = 0; round < 10; ++round) {
    world.call(1, 0.8);
    CHECK(world.pass(4).empty());
    world.call(1, 0.1);
    CHECK(world.pass(2).empty());
  }
}

TEST_CASE("nothing is known of who is out, or of links to strangers") {
  World world(4);
  world.ring(10e6);
  world.carry(0, 9, 10e6);
  world.pass(6);
  CHECK(world.rates.links().size() == 4);
  world.quorum.seats.erase(world.quorum.seats.begin() + 1);
  world.rates.keep_only(world.quorum);
  CHECK(world.rates.links().size() == 2);
}

TEST_CASE("figures that begin anew, run backwards or lie about the time do no harm") {
  World world(3);
  world.ring(10e6);
  world.pass(6);
  Report report;
  for (const uint64_t clock : {uint64_t{0}, uint64_t{1}, UINT64_MAX, uint64_t{5}}) {
    for (const uint64_t number : {UINT64_MAX, uint64_t{0}, uint64_t{7}}) {
      report.clock = clock;
      report.figures.operations_us = number;
      report.figures.links = {{id_of(1), number, UINT64_MAX - number, UINT32_MAX, 1}};
      world.rates.on_report(id_of(0), report);
      for (const LinkRate& link : world.rates.links()) {
        CHECK(link.bytes_per_second >= 0);
        CHECK(link.busy_bytes_per_second >= 0);
      }
    }
  }
  CHECK(world.rates.pace(id_of(2)).reason.empty());
}
