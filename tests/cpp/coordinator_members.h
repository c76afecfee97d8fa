// Members for tests of the coordinator's server: they say what the protocol wants, over real
// sockets, and have nothing else to do.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "membership/messages.h"
#include "transport/endpoint.h"

namespace pccl::membership {

inline constexpr double kReportSeconds = 0.05;

inline transport::EndpointOptions member_options(const std::string& run) {
  transport::EndpointOptions options;
  options.run = run;
  options.bind_host = "127.0.0.1";
  options.shared_memory = false;
  return options;
}

// Reports, accepts every proposal, and takes every quorum that is committed. Calls again when its
// connection is gone.
class FakeMember final : public transport::FrameSink {
 public:
  FakeMember(const std::string& run, uint16_t port)
      : port_(port), endpoint(member_options(run), *this) {
    seat_.member_id = endpoint.address().member_id;
    seat_.address = endpoint.address().encode();
    endpoint.start();
    endpoint.engine().submit([this] { call(); }, true);
  }
  ~FakeMember() override { close(); }
  FakeMember(const FakeMember&) = delete;
  FakeMember& operator=(const FakeMember&) = delete;

  void close() {
    is_closing_ = true;
    endpoint.close(after(Clock::now(), 5));
  }
  void leave() {
    run([this] {
      is_leaving_ = true;
      report();
    });
  }
  std::string refusal() {
    std::string text;
    run([&] { text = refusal_; });
    return text;
  }

  transport::Placement place(transport::Connection& /*from*/,
                             const transport::FrameHeader& /*header*/) override {
    return {};
  }
  void on_frame(transport::Connection& from, const transport::FrameHeader& header,
                transport::Payload payload) override {
    if (header.type == transport::FrameType::Goodbye) {
      from.goodbye = true;
      return;
    }
    const auto message = decode({payload.data(), payload.size()});
    if (message) on_message(*message);
  }
  void on_lost(transport::Connection& /*connection*/, const Error& /*error*/) override {
    connection_ = nullptr;
  }
  TimePoint on_time(TimePoint now) override {
    if (now < next_report_) return next_report_;
    next_report_ = after(now, kReportSeconds);
    if (connection_ == nullptr && !is_closing_) call();
    report();
    return next_report_;
  }

 private:
  void run(const std::function<void()>& task) {
    std::atomic<bool> done{false};
    REQUIRE(endpoint.engine().submit(
        [&] {
          task();
          done = true;
          endpoint.engine().notify_waiters();
        },
        false));
    while (!done) endpoint.engine().wait(done, after(Clock::now(), 1));
  }
  void call() {
    connection_ = &endpoint.call("the coordinator", transport::resolve("127.0.0.1", port_));
    report();
  }
  void report() {
    send(Report{.term = term_,
                .seat = seat_,
                .quorum_id = quorum_.quorum_id,
                .quorum_term = commit_.term,
                .quorum_ballot = commit_.ballot,
                .first_operation = commit_.first_operation,
                .recover_from = commit_.recover_from,
                .quorum = quorum_.quorum_id == 0 ? std::nullopt : std::optional(quorum_),
                .accepted = accepted_,
                .progress = {},
                .suspects = {},
                .clock = 1,
                .heard_clock = heard_clock_,
                .is_leaving = is_leaving_});
  }
  void on_message(const Message& message) {
    if (const auto* status = std::get_if<Status>(&message)) {
      term_ = std::max(term_, status->term);
      heard_clock_ = status->coordinator_clock;
    } else if (const auto* propose = std::get_if<Propose>(&message)) {
      accepted_ = propose->proposal;
      term_ = std::max(term_, accepted_->term);
      send(Accept{.term = accepted_->term,
                  .ballot = accepted_->ballot,
                  .quorum_id = accepted_->quorum.quorum_id,
                  .progress = {}});
    } else if (const auto* commit = std::get_if<Commit>(&message)) {
      if (!accepted_ || accepted_->quorum.quorum_id != commit->quorum_id) return;
      commit_ = *commit;
      quorum_ = accepted_->quorum;
      for (Seat& seat : quorum_.seats) {
        if (seat.joined_at == kJoinsNow) seat.joined_at = commit->first_operation;
      }
      accepted_.reset();
      report();
    } else if (const auto* refuse = std::get_if<Refuse>(&message)) {
      refusal_ = refuse->reason;
    }
  }
  void send(const Message& message) {
    if (connection_ == nullptr) return;
    transport::OutFrame frame;
    frame.header.type = transport::FrameType::Membership;
    frame.owned = encode(message);
    frame.header.length = static_cast<uint32_t>(frame.owned.size());
    connection_->send_control(std::move(frame));
    endpoint.mark_unsent(*connection_);
  }

  const uint16_t port_;
  // Driver only.
  Seat seat_;
  transport::Connection* connection_ = nullptr;
  uint64_t term_ = 0;
  uint64_t heard_clock_ = 0;
  Quorum quorum_;
  Commit commit_;
  std::optional<Proposal> accepted_;
  bool is_leaving_ = false;
  std::string refusal_;
  TimePoint next_report_;
  std::atomic<bool> is_closing_{false};

 public:
  transport::Endpoint endpoint;  // last: it calls the others until it is closed
};

// A FakeMember in a process of its own. Requires, when it is made: this process has one thread.
class MemberProcess {
 public:
  explicit MemberProcess(const std::string& run) {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    process_ = ::fork();
    REQUIRE(process_ >= 0);
    if (process_ == 0) {
      ::close(ends[1]);
      uint16_t port = 0;
      if (::read(ends[0], &port, sizeof(port)) != sizeof(port)) ::_exit(0);
      const FakeMember member(run, port);
      // Ends with the parent, if not before.
      char byte = 0;
      ::_exit(static_cast<int>(::read(ends[0], &byte, 1)));
    }
    ::close(ends[0]);
    to_child_ = ends[1];
  }
  ~MemberProcess() {
    if (process_ > 0) kill();
    ::close(to_child_);
  }
  MemberProcess(const MemberProcess&) = delete;
  MemberProcess& operator=(const MemberProcess&) = delete;

  void join(uint16_t port) { REQUIRE(::write(to_child_, &port, sizeof(port)) == sizeof(port)); }
  void signal(int number) { REQUIRE(::kill(process_, number) == 0); }
  void kill() {
    signal(SIGKILL);
    REQUIRE(::waitpid(process_, nullptr, 0) == process_);
    process_ = 0;
  }

 private:
  pid_t process_ = 0;
  int to_child_ = -1;
};

}  // namespace pccl::membership
