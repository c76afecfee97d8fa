// A stage for scenarios: one coordinator at a time and some members, by name, on a clock that the
// scenario moves. Messages arrive in the order in which they were sent; the transcript keeps who
// said what.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "membership/coordinator.h"
#include "membership/member.h"

namespace scene {

using namespace pccl::membership;
using pccl::TimePoint;

inline MemberId id_of(const std::string& name) {
  MemberId id{};
  id.fill(static_cast<uint8_t>(name[0]));
  return id;
}

class Scene {
 public:
  explicit Scene(CoordinatorOptions options = {}) : options_(std::move(options)) {
    options_.run = "run";
    start_coordinator();
  }

  struct Actor {
    std::unique_ptr<Member> member;
    bool is_alive = true;
    bool is_connected = false;
    bool holds_by_itself = true;  // answers Hold at once
    Progress progress;
    std::optional<Hold> hold;
    std::optional<Enter> entered;
    std::string evicted;
    std::optional<TakeOver> takes_over;
  };

  Actor& operator[](const std::string& name) { return actors_[name]; }
  Coordinator& coordinator() { return *coordinator_; }
  CoordinatorOptions& options() { return options_; }
  const Durable& disk() const { return disk_; }
  void set_disk(const Durable& durable) { disk_ = durable; }
  TimePoint now() const { return now_; }

  // --- what happens ------------------------------------------------------------------------------
  void join(const std::string& names) {
    for (const char letter : names) {
      const std::string name(1, letter);
      MemberOptions options;
      options.seat.member_id = id_of(name);
      options.takeover_seconds = options_.takeover_seconds;
      actors_[name].member = std::make_unique<Member>(options, now_);
      connect(name);
    }
    settle();
  }
  void connect(const std::string& name) {
    actors_[name].is_connected = true;
    actors_[name].member->on_connected(now_);
    perform(name);
  }
  // The network between it and the coordinator: nobody's process has ended.
  void disconnect(const std::string& name) {
    if (!std::exchange(actors_[name].is_connected, false)) return;
    drop_mail(name);
    actors_[name].member->on_disconnected(now_);
    if (coordinator_) coordinator_->on_disconnected(id_of(name), false, "", now_);
    settle();
  }
  // kill -9; the coordinator sees the socket closed if it is connected.
  void kill(const std::string& names) {
    for (const char letter : names) {
      const std::string name(1, letter);
      actors_[name].is_alive = false;
      const bool was_connected = std::exchange(actors_[name].is_connected, false);
      drop_mail(name);
      if (coordinator_ && was_connected) {
        coordinator_->on_disconnected(id_of(name), true, "its kernel closed the socket", now_);
      }
    }
    settle();
  }
  void crash_coordinator() {
    coordinator_.reset();
    mail_.clear();
    for (auto& [name, actor] : actors_) {
      if (!std::exchange(actor.is_connected, false)) continue;
      actor.member->on_disconnected(now_);
    }
  }
  void start_coordinator() {
    coordinator_ = std::make_unique<Coordinator>(options_, disk_, now_);
    settle();
  }
  void reconnect(const std::string& names) {
    for (const char letter : names) connect(std::string(1, letter));
    settle();
  }
  // The coordinator's process dies before it performs its next Persist; what stands behind is lost.
  void crash_before_persist() { crashes_before_persist_ = true; }
  void held(const std::string& name) {
    Actor& actor = actors_[name];
    REQUIRE(actor.hold);
    const Hold hold = *std::exchange(actor.hold, std::nullopt);
    actor.member->on_held(hold, actor.progress, now_);
    perform(name);
    settle();
  }
  void run(double seconds) {
    const TimePoint until = pccl::after(now_, seconds);
    while (now_ < until) {
      now_ = std::min(until, pccl::after(now_, 0.1));
      for (auto& [name, actor] : actors_) {
        if (!actor.is_alive || !actor.member) continue;
        actor.member->on_time(now_);
        perform(name);
      }
      if (coordinator_) coordinator_->on_time(now_);
      settle();
    }
  }
  void settle() {
    perform_coordinator();
    while (!mail_.empty()) {
      const Mail mail = mail_.front();
      mail_.pop_front();
      if (mail.to_coordinator) {
        if (coordinator_) coordinator_->on_message(id_of(mail.name), mail.message, now_);
      } else if (actors_.at(mail.name).is_connected) {
        actors_.at(mail.name).member->on_message(mail.message, now_);
        perform(mail.name);
      }
      perform_coordinator();
    }
  }
  void perform(const std::string& name) {
    Actor& actor = actors_[name];
    for (MemberAction& action : actor.member->take_actions()) perform(name, actor, action);
  }

  // --- what was seen -----------------------------------------------------------------------------
  std::string seats(const std::string& name) {
    std::string text;
    for (const Seat& seat : actors_.at(name).member->quorum().seats) {
      text += static_cast<char>(seat.member_id[0]);
    }
    return text;
  }
  // Whether this was said since the last forget(): a part of a line of the transcript.
  bool was_said(const std::string& part) const {
    return std::any_of(transcript_.begin(), transcript_.end(), [&](const std::string& line) {
      return line.find(part) != std::string::npos;
    });
  }
  // The lines that are no Report and no Status.
  std::vector<std::string> take_transcript() { return std::exchange(transcript_, {}); }
  std::string print() const {
    std::string text;
    for (const std::string& line : transcript_) text += line + "\n";
    return text;
  }

 private:
  struct Mail {
    std::string name;
    bool to_coordinator = false;
    Message message;
  };

  void say(const std::string& line, const Message& message) {
    if (std::holds_alternative<Report>(message) || std::holds_alternative<Status>(message)) return;
    transcript_.push_back(line + describe(message));
  }
  void drop_mail(const std::string& name) {
    std::erase_if(mail_, [&](const Mail& mail) { return mail.name == name; });
  }
  void perform(const std::string& name, Actor& actor, MemberAction& action) {
    if (const auto* send = std::get_if<SendToCoordinator>(&action)) {
      if (!actor.is_connected) return;
      say(name + " -> C: ", send->message);
      mail_.push_back({name, true, send->message});
    } else if (const auto* hold = std::get_if<Hold>(&action)) {
      transcript_.push_back(name + ": holds" + (hold->freezes ? ", freezes" : ""));
      actor.hold = *hold;
      if (!actor.holds_by_itself) return;
      actor.hold.reset();
      actor.member->on_held(*hold, actor.progress, now_);
      perform(name);
    } else if (const auto* enter = std::get_if<Enter>(&action)) {
      actor.entered = *enter;
      actor.progress.started = std::max(actor.progress.started, own_start(name, *enter));
      actor.progress.completed = std::max(actor.progress.completed, own_start(name, *enter));
      transcript_.push_back(name + ": enters quorum " + std::to_string(enter->quorum.quorum_id) +
                            " [" + seats(name) + "] from " +
                            std::to_string(enter->first_operation) +
                            (enter->drops ? ", recovers from " + std::to_string(enter->recover_from)
                                          : std::string()));
    } else if (const auto* evicted = std::get_if<Evicted>(&action)) {
      actor.evicted = evicted->reason;
      transcript_.push_back(name + ": is out: " + evicted->reason);
    } else if (const auto* take = std::get_if<TakeOver>(&action)) {
      actor.takes_over = *take;
      transcript_.push_back(name + ": takes over with term " + term_text(take->term));
    }
  }
  static uint64_t own_start(const std::string& name, const Enter& enter) {
    return enter.quorum.seats[static_cast<size_t>(enter.quorum.rank_of(id_of(name)))].joined_at;
  }
  void perform_coordinator() {
    if (!coordinator_) return;
    for (CoordinatorAction& action : coordinator_->take_actions()) {
      if (const auto* send = std::get_if<SendTo>(&action)) {
        const std::string name(1, static_cast<char>(send->to[0]));
        say("C -> " + name + ": ", send->message);
        mail_.push_back({name, false, send->message});
      } else if (const auto* persist = std::get_if<Persist>(&action)) {
        if (std::exchange(crashes_before_persist_, false)) return crash_coordinator();
        disk_ = persist->durable;
      } else {
        transcript_.push_back("C: " + std::get<Note>(action).text);
      }
    }
  }

  CoordinatorOptions options_;
  TimePoint now_ = TimePoint(std::chrono::hours(1));
  Durable disk_;
  std::unique_ptr<Coordinator> coordinator_;
  std::map<std::string, Actor> actors_;
  std::deque<Mail> mail_;
  std::vector<std::string> transcript_;
  bool crashes_before_persist_ = false;
};

}  // namespace scene
