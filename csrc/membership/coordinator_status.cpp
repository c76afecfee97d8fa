// What people see of a coordinator.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

#include "membership/coordinator_server.h"

namespace pccl::membership {

using transport::MemberAddress;
using transport::to_text;

void CoordinatorServer::run_on_driver(const std::function<void()>& task) {
  std::atomic<bool> done{false};
  const auto run = [this, &task, &done] {
    task();
    done.store(true);
    endpoint_.engine().notify_waiters();
  };
  // A closed server has no driver, and nothing changes any more.
  if (!endpoint_.engine().submit(run, false)) run();
  // The task refers to this frame, so wait for it however long a driver is busy.
  while (!done.load()) endpoint_.engine().wait(done, after(Clock::now(), 60));
}

ServerStatus CoordinatorServer::status() {
  ServerStatus result;
  run_on_driver([this, &result] { result = collect_status(); });
  const transport::Statistics counted = endpoint_.statistics();
  result.refused_connections = counted.refused_connections;
  result.refused_keys = counted.refused_keys;
  result.refused_plain = counted.refused_plain;
  result.refused_rate = counted.refused_rate;
  result.refused_late = counted.refused_late;
  return result;
}

ServerStatus CoordinatorServer::collect_status() {
  ServerStatus result = counters_;
  const TimePoint now = Clock::now();
  for (const auto& [name, run] : runs_) result.runs.push_back(describe(name, *run, now));
  return result;
}

// A member that is slow stays in; people may want to know which one it is.
void CoordinatorServer::watch_pace(Run& run, const Report& report, TimePoint now) {
  const Quorum& quorum = run.machine.durable().quorum;
  if (std::exchange(run.rates_quorum_id, quorum.quorum_id) != quorum.quorum_id)
    run.rates.keep_only(quorum);
  if (quorum.contains(report.seat.member_id)) run.rates.on_report(report.seat.member_id, report);
  for (const LinkRates::Change& change : run.rates.judge(now)) {
    const std::string who = "rank " + std::to_string(quorum.rank_of(change.member)) + " (" +
                            to_text(change.member) + ")";
    add_event(&run, change.is_slow ? who + " is slow: " + change.reason + "; it stays in"
                                   : who + " is not slow any more");
  }
}

MemberStatus CoordinatorServer::describe_member(const Run& run, const MemberId& member_id,
                                                const Seat* seat, TimePoint now) {
  MemberStatus member{.member_id = to_text(member_id)};
  if (seat != nullptr) {
    member.joined_at = seat->joined_at;
    const auto address = MemberAddress::decode(seat->address);
    if (address) member.address = address->describe();
  }
  member.pace = run.rates.pace(member_id);
  const auto found = run.members.find(member_id);
  if (found == run.members.end()) return member;
  const Heard& heard = found->second;
  member.address = heard.address;
  member.progress = heard.progress;
  member.revision = heard.revision;
  member.operations_per_second = heard.operations_per_second;
  member.seconds_since_heard = std::chrono::duration<double>(now - heard.at).count();
  member.round_trip_seconds = heard.round_trip_seconds;
  member.is_connected = heard.connection != nullptr;
  member.key = heard.key;
  member.figures = heard.figures;
  return member;
}

std::vector<LinkStatus> CoordinatorServer::describe_links(const Run& run) {
  std::vector<LinkRate> rates = run.rates.links();
  if (rates.size() > kLinksShownMax) {
    std::sort(rates.begin(), rates.end(), [](const LinkRate& a, const LinkRate& b) {
      return a.bytes_per_second > b.bytes_per_second;
    });
    rates.resize(kLinksShownMax);
  }
  std::vector<LinkStatus> links;
  links.reserve(rates.size());
  for (const LinkRate& rate : rates) links.push_back({to_text(rate.from), to_text(rate.to), rate});
  return links;
}

RunStatus CoordinatorServer::describe(const std::string& name, const Run& run, TimePoint now) {
  const Durable& durable = run.machine.durable();
  RunStatus result{.name = name,
                   .term = durable.term,
                   .quorum_id = durable.quorum.quorum_id,
                   .first_operation = durable.first_operation,
                   .revision = durable.revision,
                   .world_size_min = run.options.world_size_min,
                   .members = {},
                   .links = describe_links(run),
                   .known = run.machine.known_links(now),
                   .events = {run.events.begin(), run.events.end()}};
  for (const Seat& seat : durable.quorum.seats) {
    const auto rank = static_cast<int32_t>(result.members.size());
    result.members.push_back(describe_member(run, seat.member_id, &seat, now));
    result.members.back().rank = rank;
  }
  for (const auto& [member_id, heard] : run.members) {
    if (heard.connection != nullptr && !durable.quorum.contains(member_id))
      result.members.push_back(describe_member(run, member_id, nullptr, now));
  }
  return result;
}

}  // namespace pccl::membership
