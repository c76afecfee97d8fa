// What members and coordinators say, in words.
#include <algorithm>
#include <sstream>
#include <string_view>

#include "membership/messages.h"

namespace pccl::membership {
namespace {

void describe(std::ostream& out, const Quorum& quorum) {
  constexpr size_t kSeatsShown = 8;
  out << "quorum " << quorum.quorum_id << " [";
  for (size_t i = 0; i < std::min(quorum.seats.size(), kSeatsShown); ++i) {
    out << (i == 0 ? "" : " ") << transport::to_text(quorum.seats[i].member_id);
  }
  if (quorum.seats.size() > kSeatsShown)
    out << " and " << quorum.seats.size() - kSeatsShown << " more";
  out << "]";
}

void describe(std::ostream& out, const Proposal& proposal) {
  describe(out, proposal.quorum);
  out << " (term " << term_text(proposal.term) << ", ballot " << proposal.ballot
      << (proposal.freezes ? ", freezes)" : ")");
}

void describe(std::ostream& out, const Progress& progress) {
  out << "started " << progress.started << ", completed " << progress.completed;
}

void describe(std::ostream& out, const Report& report) {
  out << "Report of " << transport::to_text(report.seat.member_id) << ": term "
      << term_text(report.term) << ", quorum " << report.quorum_id << ", ";
  describe(out, report.progress);
  if (report.accepted) {
    out << ", accepted ";
    describe(out, *report.accepted);
  }
  for (const Proposal& before : report.accepted_before) {
    out << ", before that ";
    describe(out, before);
  }
  if (report.needs_recovery) out << ", needs recovery";
  for (const Suspect& suspect : report.suspects) {
    out << ", suspects " << transport::to_text(suspect.member_id) << " (" << suspect.reason << ")";
  }
  if (report.revision != 0) out << ", revision " << report.revision;
  if (report.is_leaving) out << ", leaving";
}

void describe(std::ostream& out, const Status& status) {
  out << "Status: term " << term_text(status.term) << ", quorum " << status.quorum_id
      << ", revision " << status.revision << (status.wants_quorum ? ", wants the quorum" : "");
}

void describe(std::ostream& out, const Propose& propose) {
  out << "Propose ";
  describe(out, propose.proposal);
}

void describe(std::ostream& out, const Accept& accept) {
  out << "Accept quorum " << accept.quorum_id << " (term " << term_text(accept.term) << ", ballot "
      << accept.ballot << "): ";
  describe(out, accept.progress);
}

void describe(std::ostream& out, const Commit& commit) {
  out << "Commit quorum " << commit.quorum_id << " (term " << term_text(commit.term) << ", ballot "
      << commit.ballot << "): first operation " << commit.first_operation << ", recover from "
      << (commit.recover_from == kNothingToRecover ? "nothing"
                                                   : std::to_string(commit.recover_from));
}

void describe(std::ostream& out, const Refuse& refuse) {
  static constexpr std::string_view kKinds[] = {"", "evicted", "wrong run", "full", "stopped"};
  out << "Refuse (" << kKinds[static_cast<size_t>(refuse.kind)] << "): " << refuse.reason;
}

void describe(std::ostream& out, const TakenOver& told) {
  out << "TakenOver: term " << term_text(told.term);
}

}  // namespace

std::string describe(const Message& message) {
  std::ostringstream out;
  std::visit([&](const auto& value) { describe(out, value); }, message);
  return out.str();
}

}  // namespace pccl::membership
