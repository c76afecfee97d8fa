// Membership messages, one after the other, to a coordinator and a member: nothing that anybody
// says makes one of them crash, or grow without bounds.
#include <chrono>
#include <variant>

#include "fuzz.h"
#include "membership/coordinator.h"
#include "membership/link_rates.h"
#include "membership/member.h"
#include "membership/messages.h"

using namespace pccl;
using namespace pccl::membership;

namespace {

transport::MemberId id_of(uint8_t number) {
  transport::MemberId id{};
  id[0] = number;
  return id;
}

Seat seat_of(uint8_t number) {
  Seat seat;
  seat.member_id = id_of(number);
  return seat;
}

}  // namespace

std::vector<fuzz::Bytes> make_seeds() {
  Report report;
  report.seat = seat_of(1);
  report.clock = 1;
  Proposal proposal{1, 1, false, {1, {seat_of(1), seat_of(2)}}, {}};
  std::vector<Message> messages{report,
                                Status{},
                                Propose{proposal},
                                Accept{1, 1, 1, {}},
                                Commit{1, 1, 1, 0, 0},
                                Refuse{1, RefuseKind::Evicted, "so"}};
  report.accepted = proposal;
  report.suspects.push_back({id_of(2), true, "gone"});
  report.figures.links.push_back({id_of(2), 1, 1, 1, 1});
  messages.emplace_back(report);
  std::vector<fuzz::Bytes> seeds;
  fuzz::Bytes all;
  for (const Message& message : messages) {
    const auto bytes = encode(message);
    // Who says it; how long it is.
    all.push_back(std::byte{1});
    all.push_back(static_cast<std::byte>(bytes.size()));
    all.push_back(static_cast<std::byte>(bytes.size() >> 8));
    all.insert(all.end(), bytes.begin(), bytes.end());
    seeds.push_back(bytes);
  }
  seeds.push_back(all);
  return seeds;
}

void try_input(std::span<const std::byte> input) {
  if (const auto message = decode(input)) {
    const auto again = decode(encode(*message));
    fuzz::require(again && encode(*again) == encode(*message), "a message stays as it is");
    fuzz::require(!describe(*message).empty(), "a message has a text");
  }
  TimePoint now{std::chrono::seconds(1)};
  Coordinator coordinator({.run = "run"}, {}, now);
  Member member({.seat = seat_of(9)}, now);
  LinkRates rates;
  while (input.size() >= 3) {
    const auto who = static_cast<uint8_t>(input[0]);
    const size_t said = static_cast<size_t>(input[1]) | static_cast<size_t>(input[2]) << 8;
    const size_t length = std::min(said, input.size() - 3);
    auto message = decode(input.subspan(3, length));
    input = input.subspan(3 + length);
    now += std::chrono::milliseconds(who);
    if (message) {
      if (auto* report = std::get_if<Report>(&*message)) {
        report->seat.member_id = id_of(who % 8);
        rates.on_report(id_of(who % 8), *report);
      }
      coordinator.on_message(id_of(who % 8), *message, now);
      member.on_message(*message, now);
    } else if (who % 2 == 0) {
      coordinator.on_disconnected(id_of(who % 8), who % 4 == 0, "fuzzed", now);
    }
    coordinator.on_time(now);
    for (const LinkRates::Change& change : rates.judge(now))
      fuzz::require(!change.is_slow || !change.reason.empty(), "who is slow is told why");
    member.on_time(now);
    for (const MemberAction& action : member.take_actions()) {
      if (const auto* hold = std::get_if<Hold>(&action)) member.on_held(*hold, {}, now);
    }
    for (const CoordinatorAction& action : coordinator.take_actions()) {
      if (const auto* send = std::get_if<SendTo>(&action))
        fuzz::require(decode(encode(send->message)).has_value(), "what is said is understood");
    }
  }
}
