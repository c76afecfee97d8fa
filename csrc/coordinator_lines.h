// Which coordinator a member talks to: the run's own one at the run's address, or, while that stays
// away, the one that a member of the quorum has started in its process. Driver only.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "membership/coordinator_server.h"
#include "membership/member.h"
#include "transport/endpoint.h"

namespace pccl {

class CoordinatorLines {
 public:
  // `home`: of the run's own one, with the key that answers there and the token that admits.
  // `member` hears on which connection it is.
  CoordinatorLines(transport::Endpoint& endpoint, membership::Member& member,
                   const transport::EndpointOptions& options, std::string home_label,
                   std::vector<transport::SocketAddress> home, const transport::Fingerprint& key,
                   std::optional<transport::Token> token);
  ~CoordinatorLines();

  void begin(TimePoint now) { call_home(now); }
  // Whether it leads to a coordinator, be it the one in use or not.
  bool owns(const transport::Connection& connection) const {
    return &connection == home_ || &connection == rival_;
  }
  bool is_in_use(const transport::Connection& connection) const { return &connection == current_; }
  void on_heard(TimePoint now);
  void on_lost(transport::Connection& connection, TimePoint now);
  // What a member of the quorum says about a coordinator that it has started.
  void on_told(const membership::TakenOver& told);
  TimePoint on_time(TimePoint now);
  void send(const membership::Message& message);
  // Starts a coordinator in this process and tells the others. Returns what went wrong, or "".
  std::string take_over(uint64_t term, TimePoint now);
  // No more calls; a coordinator of this process ends in the background.
  void stop();

 private:
  void call_home(TimePoint now);
  void use(transport::Connection* connection, TimePoint now);
  void drop_rival(TimePoint now);
  void hang_up(transport::Connection& connection, TimePoint now);
  void give_up_late(TimePoint now);
  void choose(TimePoint now);
  void end_server();
  void tell(TimePoint now);
  void send_to(transport::Connection& to, const membership::Message& message);

  transport::Endpoint& endpoint_;
  membership::Member& member_;
  const transport::EndpointOptions options_;
  const std::string home_label_;
  const std::vector<transport::SocketAddress> home_addresses_;
  const transport::Fingerprint home_key_;
  const std::optional<transport::Token> home_token_;
  transport::Connection* home_ = nullptr;
  transport::Connection* rival_ = nullptr;
  transport::Connection* current_ = nullptr;  // one of both
  TimePoint call_at_ = TimePoint::max();
  double call_pause_seconds_ = 0;
  TimePoint give_up_at_ = TimePoint::max();    // whom it has said goodbye to
  TimePoint heard_at_;                         // of the current one, or used since
  TimePoint heard_home_at_;                    // of the run's own one
  std::optional<membership::TakenOver> told_;  // the one of the highest term
  uint64_t rival_term_ = 0;                    // of rival_

  std::unique_ptr<membership::CoordinatorServer> server_;  // in this process
  uint64_t server_term_ = 0;
  TimePoint tell_at_ = TimePoint::max();
  std::vector<std::future<void>> ending_;
  bool is_stopped_ = false;
};

}  // namespace pccl
