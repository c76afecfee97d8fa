#include "membership/link_book.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace pccl::membership {
namespace {

constexpr int kMembers = 4;

MemberId id_of(int number) {
  MemberId id{};
  id.fill(static_cast<uint8_t>(number + 1));
  return id;
}

std::vector<Seat> seats(int count) {
  std::vector<Seat> all;
  for (int number = 0; number < count; ++number)
    all.push_back({.member_id = id_of(number), .address = {}});
  return all;
}

// What `number` tells of its links to the others, all alike.
Figures told(int number, uint32_t sends, uint32_t receives, uint32_t seconds_ago = 0) {
  Figures figures;
  figures.cap = {3 * sends, 3 * receives};
  for (int other = 0; other < kMembers; ++other) {
    if (other == number) continue;
    figures.links.push_back({.to = id_of(other),
                             .round_trip_us = 40'000,
                             .sends = sends,
                             .receives = receives,
                             .measured_seconds_ago = seconds_ago});
  }
  return figures;
}

uint32_t rate(const topology::LinkTable& table, int from, int to) {
  const auto found = std::find_if(table.links.begin(), table.links.end(), [&](const auto& link) {
    return link.from == from && link.to == to;
  });
  return found == table.links.end() ? 0 : found->kib_per_second;
}

struct Told {
  LinkBook book;
  TimePoint now{std::chrono::hours(1)};
  void report(int number, const Figures& figures) { book.on_report(id_of(number), figures, now); }
};

TEST_CASE("a newcomer is told what the others know; its own links are not in the table") {
  Told told_by;
  for (int number = 0; number < 3; ++number) told_by.report(number, told(number, 1000, 1000));
  const topology::LinkTable table = told_by.book.table(seats(kMembers), told_by.now);
  for (int from = 0; from < 3; ++from) {
    for (int to = 0; to < 3; ++to) CHECK(rate(table, from, to) == (from == to ? 0 : 1000));
  }
  // What they tell of it is there as well: it was in before.
  CHECK(rate(table, 0, 3) == 1000);
  CHECK(rate(told_by.book.table(seats(kMembers + 1), told_by.now), 0, 4) == 0);
  CHECK(table.caps.size() == kMembers);
  CHECK(table.caps[0] == topology::CapEntry{3000, 3000});
  CHECK(table.caps[3] == topology::CapEntry{});
  CHECK(table.links.front().round_trip_us == 40'000);
  CHECK(told_by.book.table(seats(65), told_by.now) == topology::LinkTable{});
}

TEST_CASE("a member that lies gets what is measured at the other ends, up or down") {
  for (const uint32_t lie : {1'000'000U, 10U}) {
    Told told_by;
    for (int number = 0; number < kMembers; ++number) {
      const bool lies = number == 2;
      told_by.report(number, told(number, lies ? lie : 1000, lies ? lie : 1000));
    }
    const topology::LinkTable table = told_by.book.table(seats(kMembers), told_by.now);
    CHECK(table.links.size() == kMembers * (kMembers - 1));
    for (const topology::LinkEntry& link : table.links) CHECK(link.kib_per_second == 1000);
  }
}

TEST_CASE(
    "ends that hardly differ, or of which nobody knows which is wrong, count with the lower") {
  Told told_by;
  told_by.report(0, told(0, 1000, 1000));
  told_by.report(1, told(1, 900, 900));
  CHECK(rate(told_by.book.table(seats(2), told_by.now), 0, 1) == 900);
  told_by.report(1, told(1, 50, 50));
  CHECK(rate(told_by.book.table(seats(2), told_by.now), 0, 1) == 50);
}

TEST_CASE("figures of who died age out, and those that were measured long ago are none") {
  Told told_by;
  for (int number = 0; number < kMembers; ++number)
    told_by.report(number, told(number, 1000, 1000));
  told_by.now = after(told_by.now, kFigureSeconds - 10);
  for (int number = 0; number < 2; ++number) told_by.report(number, told(number, 1000, 1000, 5));
  CHECK(rate(told_by.book.table(seats(kMembers), told_by.now), 2, 3) == 1000);
  told_by.now = after(told_by.now, 20);
  const topology::LinkTable table = told_by.book.table(seats(kMembers), told_by.now);
  CHECK(rate(table, 2, 3) == 0);
  CHECK(rate(table, 0, 1) == 1000);
  CHECK(rate(table, 0, 2) == 1000);  // 0 is alive and has measured it
  CHECK(table.caps[2] == topology::CapEntry{});
  told_by.report(0, told(0, 1000, 1000, 4'000'000'000));
  CHECK(rate(told_by.book.table(seats(kMembers), told_by.now), 0, 3) == 0);
}

TEST_CASE("what members tell takes bounded memory") {
  Told told_by;
  for (size_t number = 0; number < 2 * kBookMembersMax; ++number) {
    MemberId id{};
    id[0] = static_cast<uint8_t>(number);
    id[1] = static_cast<uint8_t>(number >> 8);
    told_by.book.on_report(id, told(0, 1000, 1000), told_by.now);
  }
  std::vector<Seat> late(2);
  late[0].member_id[0] = 0xFF;
  late[0].member_id[1] = static_cast<uint8_t>((2 * kBookMembersMax - 1) >> 8);
  CHECK(told_by.book.table(late, told_by.now).links.empty());
  // Those that have said nothing for long make room.
  told_by.now = after(told_by.now, kFigureSeconds + 1);
  told_by.report(0, told(0, 1000, 1000));
  CHECK(rate(told_by.book.table(seats(2), told_by.now), 0, 1) == 1000);
}

}  // namespace
}  // namespace pccl::membership
