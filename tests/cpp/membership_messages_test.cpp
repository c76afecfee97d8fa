// Membership messages: what was said comes out, and no bytes from the network do any harm.
#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <utility>

#include "membership/messages.h"
#include "transport/frame.h"

using namespace pccl::membership;

namespace {

using Bytes = std::vector<std::byte>;

MemberId id_of(uint8_t number) {
  MemberId id{};
  id.fill(number);
  return id;
}

Seat seat_of(uint8_t number, size_t address_bytes = 40) {
  return {id_of(number), number * 3ull, Bytes(address_bytes, std::byte{number})};
}

Quorum quorum_of(uint64_t quorum_id, std::initializer_list<uint8_t> members) {
  Quorum quorum{quorum_id, {}};
  for (const uint8_t number : members) quorum.seats.push_back(seat_of(number));
  return quorum;
}

Report full_report() {
  Report report;
  report.term = 7ull << 32;
  report.seat = seat_of(1);
  report.quorum_id = 4;
  report.quorum_term = 6;
  report.quorum_ballot = 2;
  report.first_operation = 100;
  report.recover_from = 98;
  report.quorum = quorum_of(4, {1, 2, 3});
  report.quorum->table = {{{0, 1, 500, 20'000}, {2, 0, 7, 0}}, {{1, 2}, {3, 4}, {}}};
  report.accepted = Proposal{7ull << 32, 3, true, quorum_of(5, {1, 3}), {id_of(2)}};
  report.accepted_before = {Proposal{6ull << 32, 2, false, quorum_of(5, {1, 2}), {}}};
  report.needs_recovery = true;
  report.progress = {120, 118};
  report.suspects = {{id_of(2), true, "closed its socket"}, {id_of(3), false, ""}};
  report.revision = 12;
  report.digest.fill(9);
  report.clock = 123456789;
  report.heard_clock = 987654321;
  report.round_trip_us = 1500;
  report.is_leaving = true;
  report.figures = {
      7'000'000,
      1,
      2,
      3000,
      4,
      5'000'000,
      {900, 800},
      {{id_of(2), 1u << 20, 800'000, 20'000, 2, 700, 600, 5}, {id_of(3), 1u << 30, 0, 0, 0}}};
  return report;
}

std::vector<Message> every_message() {
  Status status{7,     4,  1,  2,    {500, 2000, 3000, 10000, 3},
                false, 12, {}, true, "2 of 4 members are here"};
  status.digest.fill(3);
  return {full_report(),
          Report{},
          status,
          Status{},
          Propose{{7, 3, true, quorum_of(5, {1, 3}), {id_of(2)}}},
          Propose{},
          Accept{7, 3, 5, {120, 118}},
          Commit{7, 3, 5, 120, 118},
          Refuse{7, RefuseKind::Evicted, "silent for 10.2 s"},
          Refuse{7, RefuseKind::Stopped, ""},
          TakenOver{7, std::vector<std::byte>(3, std::byte{1})},
          TakenOver{}};
}

// What can be decoded can be said again, in the same bytes.
void check_harmless(const Bytes& bytes) {
  const auto message = decode(bytes);
  if (!message) return;
  CHECK(encode(*message) == bytes);
  CHECK_FALSE(describe(*message).empty());
}

}  // namespace

TEST_CASE("every message comes out as it went in") {
  for (const Message& message : every_message()) {
    INFO(describe(message));
    const auto got = decode(encode(message));
    REQUIRE(got);
    CHECK(*got == message);
  }
}

TEST_CASE("a message that is cut anywhere, or goes on behind its end, is none") {
  for (const Message& message : every_message()) {
    const Bytes bytes = encode(message);
    for (size_t length = 0; length < bytes.size(); ++length) {
      CHECK_FALSE(decode(std::span(bytes).first(length)));
    }
    Bytes longer = bytes;
    longer.push_back(std::byte{0});
    CHECK_FALSE(decode(longer));
  }
}

TEST_CASE("no flipped bit and no wrong byte does any harm") {
  for (const Message& message : every_message()) {
    Bytes bytes = encode(message);
    for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
      bytes[bit / 8] ^= std::byte{1} << bit % 8;
      check_harmless(bytes);
      bytes[bit / 8] ^= std::byte{1} << bit % 8;
    }
    for (std::byte& byte : bytes) {
      const std::byte before = std::exchange(byte, std::byte{0xFF});
      check_harmless(bytes);
      byte = before;
    }
  }
}

TEST_CASE("random bytes do no harm") {
  std::mt19937_64 random(1);
  for (int round = 0; round < 20000; ++round) {
    Bytes bytes(random() % 300);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    if (bytes.size() > 1) {
      bytes[0] = std::byte{4};
      bytes[1] = static_cast<std::byte>(random() % 8);
    }
    check_harmless(bytes);
  }
}

TEST_CASE("counts above the bounds are refused before anything is read") {
  Propose propose;
  propose.proposal.quorum = quorum_of(5, {1});
  Bytes bytes = encode(propose);
  // Version, kind, term, ballot, freezes, quorum_id.
  const size_t count_at = 1 + 1 + 8 + 8 + 1 + 8;
  for (const uint16_t count : {uint16_t{2}, uint16_t{1025}, uint16_t{0xFFFF}}) {
    std::memcpy(bytes.data() + count_at, &count, sizeof(count));
    CHECK_FALSE(decode(bytes));
  }
}

TEST_CASE("the largest quorum fits twice into a Report that fits into a frame") {
  Report report = full_report();
  Quorum quorum{4, {}};
  for (size_t i = 0; i < kSeatsMax; ++i) {
    Seat seat{{}, i, Bytes(200, std::byte{7})};
    std::memcpy(seat.member_id.data(), &i, sizeof(i));
    quorum.seats.push_back(seat);
  }
  CHECK(encoded_bytes(quorum) <= kQuorumBytesMax);
  report.quorum = quorum;
  report.accepted->quorum = quorum;
  report.accepted->quorum.quorum_id = 5;
  report.accepted->gone.assign(kSeatsMax / 2, MemberId{});
  for (Seat& seat : quorum.seats) seat.address.clear();
  CHECK(encoded_bytes(quorum) <= kAcceptedBytesMax);
  report.accepted_before = {Proposal{1, 1, true, quorum, {}}};
  report.suspects.assign(kSuspectsMax, {id_of(1), false, std::string(kReasonBytesMax, 'x')});
  report.figures.links.assign(kLinksMax, {id_of(2), 1, 2, 3, 4});
  const Bytes bytes = encode(report);
  CHECK(bytes.size() <= pccl::transport::kPayloadBytesMax);
  const auto got = decode(bytes);
  REQUIRE(got);
  CHECK(*got == Message(report));

  report.quorum->seats.push_back(seat_of(250));
  CHECK_FALSE(decode(encode(report)));
}

TEST_CASE("a quorum that is too long in bytes, or holds a member twice, is refused") {
  Propose propose;
  propose.proposal.quorum = quorum_of(5, {1, 2, 1});
  CHECK_FALSE(decode(encode(propose)));
  propose.proposal.quorum = {5, {}};
  for (uint8_t i = 0; i < 60; ++i) propose.proposal.quorum.seats.push_back(seat_of(i, 4096));
  CHECK_FALSE(decode(encode(propose)));
  propose.proposal.quorum.seats.resize(50);
  CHECK(decode(encode(propose)));
}

TEST_CASE("long reasons are cut, many suspects are left out") {
  Report report;
  report.suspects.assign(kSuspectsMax + 5, {id_of(1), true, std::string(1000, 'x')});
  const auto got = decode(encode(report));
  REQUIRE(got);
  CHECK(std::get<Report>(*got).suspects.size() == kSuspectsMax);
  CHECK(std::get<Report>(*got).suspects[0].reason == std::string(kReasonBytesMax, 'x'));
}

TEST_CASE("many links are left out, and more of them are refused") {
  Report report = full_report();
  report.figures.links.assign(kLinksMax + 5, {id_of(2), 1, 2, 3, 4});
  const Bytes bytes = encode(report);
  const auto got = decode(bytes);
  REQUIRE(got);
  CHECK(std::get<Report>(*got).figures.links.size() == kLinksMax);
  // The count stands before the links, which come last.
  constexpr size_t kLinkBytes = 16 + 8 + 8 + 4 + 4;
  Bytes more = bytes;
  const auto count = static_cast<uint16_t>(kLinksMax + 1);
  std::memcpy(more.data() + bytes.size() - kLinksMax * kLinkBytes - 2, &count, sizeof(count));
  more.resize(bytes.size() + kLinkBytes);
  CHECK_FALSE(decode(more));
}

TEST_CASE("a heartbeat in a run of four is well below one KiB") {
  Report report = full_report();
  report.quorum.reset();
  report.accepted.reset();
  report.accepted_before.clear();
  report.suspects.clear();
  report.figures.links.assign(3, {id_of(2), 1, 2, 3, 4});
  CHECK(encode(report).size() < 512);
}

TEST_CASE("a message is described in one line") {
  CHECK(describe(full_report()) ==
        "Report of 01010101: term 7, quorum 4, started 120, completed 118, accepted quorum 5 "
        "[01010101 03030303] (term 7, ballot 3, freezes), before that quorum 5 [01010101 02020202] "
        "(term 6, ballot 2), needs recovery, suspects 02020202 "
        "(closed its socket), "
        "suspects 03030303 (), revision 12, leaving");
  CHECK(describe(Commit{next_term(6ull << 32, id_of(1)), 3, 5, 120, 118}) ==
        "Commit quorum 5 (term 7/01010101, ballot 3): first operation 120, recover from 118");
  CHECK(describe(Refuse{7, RefuseKind::Full, "64 of 64 seats are taken"}) ==
        "Refuse (full): 64 of 64 seats are taken");
}
