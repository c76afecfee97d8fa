#include "membership/link_book.h"

#include <algorithm>
#include <chrono>

namespace pccl::membership {
namespace {

bool differ(uint32_t a, uint32_t b) { return a > b * kDispute || b > a * kDispute; }

// What the two ends of one link say; 0: nothing.
struct Ends {
  uint16_t from = 0;
  uint16_t to = 0;
  uint32_t sends = 0;
  uint32_t receives = 0;
  uint32_t round_trip_us = 0;
  bool is_disputed() const { return sends != 0 && receives != 0 && differ(sends, receives); }
};

uint32_t settle(const Ends& ends, const std::vector<int>& disputes) {
  if (ends.sends == 0 || ends.receives == 0) return std::max(ends.sends, ends.receives);
  if (ends.is_disputed() && disputes[ends.from] != disputes[ends.to])
    return disputes[ends.from] > disputes[ends.to] ? ends.receives : ends.sends;
  return std::min(ends.sends, ends.receives);
}

}  // namespace

void LinkBook::on_report(const MemberId& member, const Figures& figures, TimePoint now) {
  const auto is_told = [](const LinkFigures& link) {
    return link.sends != 0 || link.receives != 0;
  };
  if (std::none_of(figures.links.begin(), figures.links.end(), is_told)) return;
  if (!told_.contains(member) && told_.size() >= kBookMembersMax) forget_old(now);
  if (!told_.contains(member) && told_.size() >= kBookMembersMax) return;
  Told& told = told_[member];
  told.at = now;
  told.cap = figures.cap;
  for (const LinkFigures& link : figures.links) {
    const TimePoint at = now - std::chrono::seconds(link.measured_seconds_ago);
    const auto take = [&](std::map<MemberId, Figure>& known, uint32_t kib_per_second) {
      if (kib_per_second == 0) return;
      if (known.size() >= topology::kTableRanksMax && !known.contains(link.to)) {
        std::erase_if(known, [&](const auto& entry) {
          return now > after(entry.second.measured_at, kFigureSeconds);
        });
        if (known.size() >= topology::kTableRanksMax) return;
      }
      known[link.to] = {kib_per_second, link.round_trip_us, at};
    };
    take(told.sends, link.sends);
    take(told.receives, link.receives);
  }
}

void LinkBook::forget_old(TimePoint now) {
  std::erase_if(told_,
                [now](const auto& entry) { return now > after(entry.second.at, kFigureSeconds); });
}

const LinkBook::Told* LinkBook::told_by(const MemberId& member) const {
  const auto found = told_.find(member);
  return found == told_.end() ? nullptr : &found->second;
}

topology::LinkTable LinkBook::table(const std::vector<Seat>& seats, TimePoint now) const {
  topology::LinkTable table;
  if (seats.size() > topology::kTableRanksMax) return table;
  const auto figure_of = [now](const std::map<MemberId, Figure>& known, const MemberId& other) {
    const auto found = known.find(other);
    const bool is_there =
        found != known.end() && now <= after(found->second.measured_at, kFigureSeconds);
    return is_there ? found->second : Figure{};
  };
  std::vector<Ends> all;
  std::vector<int> disputes(seats.size());
  const auto count = static_cast<uint16_t>(seats.size());
  for (uint16_t from = 0; from < count; ++from) {
    const Told* sender = told_by(seats[from].member_id);
    for (uint16_t to = 0; to < count; ++to) {
      const Told* receiver = told_by(seats[to].member_id);
      if (from == to || (sender == nullptr && receiver == nullptr)) continue;
      const Figure sent =
          sender == nullptr ? Figure{} : figure_of(sender->sends, seats[to].member_id);
      const Figure received =
          receiver == nullptr ? Figure{} : figure_of(receiver->receives, seats[from].member_id);
      const Ends ends{from, to, sent.kib_per_second, received.kib_per_second,
                      sent.round_trip_us != 0 ? sent.round_trip_us : received.round_trip_us};
      if (ends.sends == 0 && ends.receives == 0) continue;
      disputes[from] += ends.is_disputed();
      disputes[to] += ends.is_disputed();
      all.push_back(ends);
    }
  }
  if (all.empty()) return table;
  for (const Ends& ends : all)
    table.links.push_back({ends.from, ends.to, settle(ends, disputes), ends.round_trip_us});
  for (const Seat& seat : seats) {
    const Told* told = told_by(seat.member_id);
    const bool is_there = told != nullptr && now <= after(told->at, kFigureSeconds);
    table.caps.push_back(is_there ? told->cap : topology::CapEntry{});
  }
  return table;
}

}  // namespace pccl::membership
