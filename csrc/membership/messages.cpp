#include "membership/messages.h"

#include <algorithm>
#include <string_view>

#include "base/bytes.h"

namespace pccl::membership {
namespace {

// A kind is never used again for another layout: version and kind together name one.
constexpr uint8_t kVersion = 6;
enum class Kind : uint8_t { Report = 1, Status, Propose, Accept, Commit, Refuse, TakenOver };

// --- writing -------------------------------------------------------------------------------------

void put_reason(ByteWriter& out, std::string_view reason) {
  out.put_text(reason.substr(0, kReasonBytesMax));
}

void put_address(ByteWriter& out, const std::vector<std::byte>& address) {
  out.put_text(std::string_view(reinterpret_cast<const char*>(address.data()), address.size()));
}

void put(ByteWriter& out, const Seat& seat) {
  out.put(seat.member_id);
  out.put(seat.joined_at);
  put_address(out, seat.address);
}

void put(ByteWriter& out, const Quorum& quorum) {
  out.put(quorum.quorum_id);
  out.put(static_cast<uint16_t>(quorum.seats.size()));
  for (const Seat& seat : quorum.seats) put(out, seat);
  out.put(static_cast<uint16_t>(quorum.table.links.size()));
  for (const topology::LinkEntry& link : quorum.table.links) out.put(link);
  out.put(static_cast<uint16_t>(quorum.table.caps.size()));
  for (const topology::CapEntry& cap : quorum.table.caps) out.put(cap);
}

void put(ByteWriter& out, const Proposal& proposal) {
  out.put(proposal.term);
  out.put(proposal.ballot);
  out.put(static_cast<uint8_t>(proposal.freezes));
  put(out, proposal.quorum);
  out.put(static_cast<uint16_t>(proposal.gone.size()));
  for (const MemberId& id : proposal.gone) out.put(id);
}

void put(ByteWriter& out, const Progress& progress) {
  out.put(progress.started);
  out.put(progress.completed);
}

void put(ByteWriter& out, const Figures& figures) {
  out.put(figures.operations_us);
  out.put(figures.resumed_connections);
  out.put(figures.replaced_sockets);
  out.put(figures.resent_bytes);
  out.put(figures.recovered_operations);
  out.put(figures.recovery_us);
  out.put(figures.cap);
  const size_t links = std::min(figures.links.size(), kLinksMax);
  out.put(static_cast<uint16_t>(links));
  for (size_t i = 0; i < links; ++i) {
    const LinkFigures& link = figures.links[i];
    out.put(link.to);
    out.put(link.bytes_sent);
    out.put(link.busy_us);
    out.put(link.round_trip_us);
    out.put(link.replaced_sockets);
    out.put(link.sends);
    out.put(link.receives);
    out.put(link.measured_seconds_ago);
  }
}

void put(ByteWriter& out, const Report& report) {
  out.put(Kind::Report);
  out.put(report.term);
  put(out, report.seat);
  out.put(report.quorum_id);
  out.put(report.quorum_term);
  out.put(report.quorum_ballot);
  out.put(report.first_operation);
  out.put(report.recover_from);
  out.put(static_cast<uint8_t>(report.quorum.has_value()));
  if (report.quorum) put(out, *report.quorum);
  out.put(static_cast<uint8_t>(report.accepted.has_value()));
  if (report.accepted) put(out, *report.accepted);
  out.put(static_cast<uint16_t>(report.accepted_before.size()));
  for (const Proposal& proposal : report.accepted_before) put(out, proposal);
  out.put(static_cast<uint8_t>(report.needs_recovery));
  put(out, report.progress);
  const size_t suspects = std::min(report.suspects.size(), kSuspectsMax);
  out.put(static_cast<uint16_t>(suspects));
  for (size_t i = 0; i < suspects; ++i) {
    out.put(report.suspects[i].member_id);
    out.put(static_cast<uint8_t>(report.suspects[i].has_ended));
    put_reason(out, report.suspects[i].reason);
  }
  out.put(report.revision);
  out.put(report.digest);
  out.put(report.clock);
  out.put(report.heard_clock);
  out.put(report.round_trip_us);
  out.put(static_cast<uint8_t>(report.is_leaving));
  put(out, report.figures);
}

void put(ByteWriter& out, const Status& status) {
  out.put(Kind::Status);
  out.put(status.term);
  out.put(status.quorum_id);
  out.put(status.clock);
  out.put(status.coordinator_clock);
  out.put(status.rules);
  out.put(static_cast<uint8_t>(status.has_taken_over));
  out.put(status.revision);
  out.put(status.digest);
  out.put(static_cast<uint8_t>(status.wants_quorum));
  put_reason(out, status.waits_for);
}

void put(ByteWriter& out, const Propose& propose) {
  out.put(Kind::Propose);
  put(out, propose.proposal);
}

void put(ByteWriter& out, const Accept& accept) {
  out.put(Kind::Accept);
  out.put(accept.term);
  out.put(accept.ballot);
  out.put(accept.quorum_id);
  put(out, accept.progress);
}

void put(ByteWriter& out, const Commit& commit) {
  out.put(Kind::Commit);
  out.put(commit.term);
  out.put(commit.ballot);
  out.put(commit.quorum_id);
  out.put(commit.first_operation);
  out.put(commit.recover_from);
}

void put(ByteWriter& out, const Refuse& refuse) {
  out.put(Kind::Refuse);
  out.put(refuse.term);
  out.put(refuse.kind);
  put_reason(out, refuse.reason);
}

void put(ByteWriter& out, const TakenOver& taken_over) {
  out.put(Kind::TakenOver);
  out.put(taken_over.term);
  put_address(out, taken_over.address);
}

// --- reading -------------------------------------------------------------------------------------

// Reads, and remembers whether what it read is something that a member may say.
class Decoder {
 public:
  explicit Decoder(std::span<const std::byte> bytes) : in_(bytes) {}

  std::optional<Message> message() {
    if (get<uint8_t>() != kVersion) return std::nullopt;
    const auto kind = static_cast<Kind>(get<uint8_t>());
    Message message;
    switch (kind) {
      case Kind::Report:
        message = report();
        break;
      case Kind::Status:
        message = status();
        break;
      case Kind::Propose:
        message = Propose{proposal()};
        break;
      case Kind::Accept:
        message = accept();
        break;
      case Kind::Commit:
        message = commit();
        break;
      case Kind::Refuse:
        message = refuse();
        break;
      case Kind::TakenOver:
        message = taken_over();
        break;
      default:
        return std::nullopt;
    }
    if (!is_right() || !in_.at_end()) return std::nullopt;
    return message;
  }

 private:
  template <typename T>
  T get() {
    return in_.get<T>();
  }
  bool is_right() const { return in_.ok() && is_right_; }

  bool flag() {
    const auto value = get<uint8_t>();
    is_right_ = is_right_ && value <= 1;
    return value == 1;
  }

  // A count of things that follow; 0 where it is above the bound, so that nothing is read.
  size_t count(size_t count_max) {
    const size_t count = get<uint16_t>();
    is_right_ = is_right_ && count <= count_max;
    return is_right() ? count : 0;
  }

  Seat seat() {
    Seat seat;
    seat.member_id = get<MemberId>();
    seat.joined_at = get<uint64_t>();
    seat.address = address();
    return seat;
  }

  std::vector<std::byte> address() {
    const std::string text = in_.get_text(transport::kAddressBytesMax);
    const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
    return {bytes.begin(), bytes.end()};
  }

  Quorum quorum() {
    Quorum quorum;
    quorum.quorum_id = get<uint64_t>();
    const size_t seats = count(kSeatsMax);
    std::vector<MemberId> ids;
    for (size_t i = 0; i < seats && is_right(); ++i) {
      quorum.seats.push_back(seat());
      ids.push_back(quorum.seats.back().member_id);
    }
    quorum.table = table(seats);
    std::sort(ids.begin(), ids.end());
    const bool is_distinct = std::adjacent_find(ids.begin(), ids.end()) == ids.end();
    is_right_ = is_right_ && is_distinct && encoded_bytes(quorum) <= kQuorumBytesMax;
    return quorum;
  }

  topology::LinkTable table(size_t seats) {
    constexpr size_t kRanksMax = topology::kTableRanksMax;
    topology::LinkTable table;
    const size_t links = count(kRanksMax * kRanksMax);
    for (size_t i = 0; i < links && is_right(); ++i)
      table.links.push_back(get<topology::LinkEntry>());
    const size_t caps = count(kRanksMax);
    for (size_t i = 0; i < caps && is_right(); ++i) table.caps.push_back(get<topology::CapEntry>());
    is_right_ = is_right_ && (caps == 0 || caps == seats);
    return table;
  }

  Proposal proposal() {
    Proposal proposal;
    proposal.term = get<uint64_t>();
    proposal.ballot = get<uint64_t>();
    proposal.freezes = flag();
    proposal.quorum = quorum();
    const size_t gone = count(kSeatsMax);
    for (size_t i = 0; i < gone && is_right(); ++i) proposal.gone.push_back(get<MemberId>());
    return proposal;
  }

  Progress progress() {
    Progress progress;
    progress.started = get<uint64_t>();
    progress.completed = get<uint64_t>();
    return progress;
  }

  Figures figures() {
    Figures figures;
    figures.operations_us = get<uint64_t>();
    figures.resumed_connections = get<uint64_t>();
    figures.replaced_sockets = get<uint64_t>();
    figures.resent_bytes = get<uint64_t>();
    figures.recovered_operations = get<uint64_t>();
    figures.recovery_us = get<uint64_t>();
    figures.cap = get<topology::CapEntry>();
    const size_t links = count(kLinksMax);
    for (size_t i = 0; i < links && is_right(); ++i) {
      LinkFigures link;
      link.to = get<MemberId>();
      link.bytes_sent = get<uint64_t>();
      link.busy_us = get<uint64_t>();
      link.round_trip_us = get<uint32_t>();
      link.replaced_sockets = get<uint32_t>();
      link.sends = get<uint32_t>();
      link.receives = get<uint32_t>();
      link.measured_seconds_ago = get<uint32_t>();
      figures.links.push_back(link);
    }
    return figures;
  }

  Report report() {
    Report report;
    report.term = get<uint64_t>();
    report.seat = seat();
    report.quorum_id = get<uint64_t>();
    report.quorum_term = get<uint64_t>();
    report.quorum_ballot = get<uint64_t>();
    report.first_operation = get<uint64_t>();
    report.recover_from = get<uint64_t>();
    if (flag()) report.quorum = quorum();
    if (flag()) report.accepted = proposal();
    const size_t before = count(kAcceptedMax);
    for (size_t i = 0; i < before && is_right(); ++i) report.accepted_before.push_back(proposal());
    report.needs_recovery = flag();
    report.progress = progress();
    const size_t suspects = count(kSuspectsMax);
    for (size_t i = 0; i < suspects && is_right(); ++i) {
      Suspect suspect;
      suspect.member_id = get<MemberId>();
      suspect.has_ended = flag();
      suspect.reason = in_.get_text(kReasonBytesMax);
      report.suspects.push_back(std::move(suspect));
    }
    report.revision = get<uint64_t>();
    report.digest = get<Digest>();
    report.clock = get<uint64_t>();
    report.heard_clock = get<uint64_t>();
    report.round_trip_us = get<uint32_t>();
    report.is_leaving = flag();
    report.figures = figures();
    is_right_ = is_right_ && (!report.quorum || report.quorum->quorum_id == report.quorum_id);
    return report;
  }

  Status status() {
    Status status;
    status.term = get<uint64_t>();
    status.quorum_id = get<uint64_t>();
    status.clock = get<uint64_t>();
    status.coordinator_clock = get<uint64_t>();
    status.rules = get<Rules>();
    status.has_taken_over = flag();
    status.revision = get<uint64_t>();
    status.digest = get<Digest>();
    status.wants_quorum = flag();
    status.waits_for = in_.get_text(kReasonBytesMax);
    return status;
  }

  Accept accept() {
    Accept accept;
    accept.term = get<uint64_t>();
    accept.ballot = get<uint64_t>();
    accept.quorum_id = get<uint64_t>();
    accept.progress = progress();
    return accept;
  }

  Commit commit() {
    Commit commit;
    commit.term = get<uint64_t>();
    commit.ballot = get<uint64_t>();
    commit.quorum_id = get<uint64_t>();
    commit.first_operation = get<uint64_t>();
    commit.recover_from = get<uint64_t>();
    return commit;
  }

  Refuse refuse() {
    Refuse refuse;
    refuse.term = get<uint64_t>();
    refuse.kind = get<RefuseKind>();
    refuse.reason = in_.get_text(kReasonBytesMax);
    is_right_ =
        is_right_ && refuse.kind >= RefuseKind::Evicted && refuse.kind <= RefuseKind::Stopped;
    return refuse;
  }

  TakenOver taken_over() { return {get<uint64_t>(), address()}; }

  ByteReader in_;
  bool is_right_ = true;
};

}  // namespace

std::vector<std::byte> encode(const Message& message) {
  ByteWriter out;
  out.put(kVersion);
  std::visit([&](const auto& value) { put(out, value); }, message);
  return out.bytes();
}

std::optional<Message> decode(std::span<const std::byte> bytes) { return Decoder(bytes).message(); }

}  // namespace pccl::membership
