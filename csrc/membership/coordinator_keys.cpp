// Whom a coordinator lets in, and whom it puts out: keys and tokens.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "membership/coordinator_server.h"
#include "transport/key_file.h"

namespace pccl::membership {
namespace {

// A member calls once; a thousand of them behind one address are in after 12 s.
constexpr double kCallsPerSecond = 64;
constexpr double kCallsAtOnce = 256;
// A key that was revoked is out within this time.
constexpr auto kLookAtKeys = std::chrono::milliseconds(500);
// Between two events about callers that were refused: strangers must not fill the log.
constexpr auto kNoteRefused = std::chrono::seconds(1);

std::shared_ptr<const transport::Identity> load_identity(const CoordinatorServerOptions& options) {
  if (options.key_file.empty()) return transport::Identity::generate();
  return std::filesystem::exists(options.key_file) ? transport::read_key_file(options.key_file)
                                                   : transport::make_key_file(options.key_file);
}

}  // namespace

transport::EndpointOptions CoordinatorServer::endpoint_options() {
  transport::EndpointOptions result;
  result.run = "coordinator";
  result.bind_host = options_.bind_host;
  result.port = options_.port;
  result.advertise_hosts = options_.advertise_hosts;
  result.shared_memory = false;
  result.accepts_any_run = true;
  result.tls = options_.tls;
  result.calls_per_second = kCallsPerSecond;
  result.calls_at_once = kCallsAtOnce;
  result.on_refused = [this](const std::string& caller, const std::string& reason) {
    note_refused(caller, reason);
  };
  if (options_.tls == transport::TlsUse::Never) return result;
  if (options_.taken_over) {
    result.identity = transport::Identity::generate();
    result.gate = [this](const transport::Hello& hello, const transport::ChannelBinding&) {
      return judge_seat(hello);
    };
    return result;
  }
  keys_.emplace(options_.database);
  keys_version_ = keys_->version();
  result.identity = load_identity(options_);
  result.gate = [this](const transport::Hello& hello, const transport::ChannelBinding& channel) {
    return judge_caller(hello, channel);
  };
  return result;
}

// In place of the run's own coordinator: who had a seat when that went away, and nobody else.
std::string CoordinatorServer::judge_seat(const transport::Hello& hello) const {
  const auto& seats = options_.taken_over->durable.quorum.seats;
  const bool has_seat = std::any_of(seats.begin(), seats.end(), [&](const Seat& seat) {
    const auto address = transport::MemberAddress::decode(seat.address);
    return address && address->member_id == hello.from.member_id &&
           address->fingerprint == hello.from.fingerprint;
  });
  return has_seat ? ""
                  : "no seat: only members of the last quorum may come while the run's own "
                    "coordinator is away";
}

std::string CoordinatorServer::judge_caller(const transport::Hello& hello,
                                            const transport::ChannelBinding& channel) {
  if (!keys_ || is_stopping_.load()) return "this coordinator is leaving";
  try {
    const KeyBook::Verdict verdict = keys_->judge(hello, channel);
    if (verdict.is_new) {
      add_event(nullptr, "run '" + hello.from.run + "': key " +
                             transport::to_text(hello.from.fingerprint) + " of " +
                             hello.from.describe() + " is admitted by token " +
                             transport::base64url(hello.token_id));
    }
    return verdict.reason;
  } catch (const DatabaseError& error) {
    add_event(nullptr, error.what());
    return "this coordinator can't read or write its keys; its log says why";
  }
}

void CoordinatorServer::note_refused(const std::string& caller, const std::string& reason) {
  const TimePoint now = Clock::now();
  refused_unsaid_ += 1;
  if (now < note_refused_at_) return;
  note_refused_at_ = now + kNoteRefused;
  const uint64_t others = std::exchange(refused_unsaid_, 0) - 1;
  add_event(nullptr, "refused " + caller + ": " + reason +
                         (others == 0 ? "" : " (and " + std::to_string(others) + " more before)"));
}

TimePoint CoordinatorServer::put_out_barred(TimePoint now) {
  if (!keys_ || !is_at_work()) return TimePoint::max();
  if (now < look_at_keys_at_) return look_at_keys_at_;
  look_at_keys_at_ = now + kLookAtKeys;
  try {
    if (std::exchange(keys_version_, keys_->version()) == keys_version_) return look_at_keys_at_;
    for (auto& [name, run] : runs_) {
      for (auto& [member_id, heard] : run->members) {
        if (heard.connection == nullptr) continue;
        const std::string reason = keys_->why_barred(name, heard.connection->peer.fingerprint);
        if (reason.empty()) continue;
        transport::Connection& connection = *std::exchange(heard.connection, nullptr);
        send(connection, Refuse{.term = run->machine.durable().term,
                                .kind = RefuseKind::Evicted,
                                .reason = reason});
        endpoint_.hang_up(connection);
        run->machine.on_disconnected(member_id, true, reason, now);
      }
      perform_actions(*run);
    }
  } catch (const DatabaseError& error) {
    keys_version_ = 0;  // look again
    add_event(nullptr, error.what());
  }
  return look_at_keys_at_;
}

}  // namespace pccl::membership
