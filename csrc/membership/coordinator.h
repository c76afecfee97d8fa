// Decides who is in: a pure state machine for one run. No sockets, clocks, threads or disk.
//
// The driver (membership/coordinator_server.h, or the simulator) hands in what happened and when,
// then performs the actions in their order. A Persist must be on disk before the actions behind it
// are performed; the machine puts whatever depends on it behind it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "membership/messages.h"

namespace pccl::membership {

struct CoordinatorOptions {
  std::string run;
  int32_t world_size_min = 1;  // the first quorum waits for so many; a smaller one does not go on
  int32_t world_size_max = static_cast<int32_t>(kSeatsMax);
  double heartbeat_seconds = 0.5;
  double silence_seconds = 10;     // who says nothing for so long is out
  double link_grace_seconds = 10;  // two members that can't reach each other
  double takeover_seconds = 10;    // members look for another one after so long; see MemberOptions
  bool has_database = true;        // false: it took over and may know less than the run's own
};

// What a coordinator must find again after a crash.
struct Durable {
  uint64_t term = 0;
  Quorum quorum;  // the last one committed; quorum_id 0: none yet
  // How it was committed: what its Commit says.
  uint64_t quorum_term = 0;
  uint64_t quorum_ballot = 0;
  uint64_t first_operation = 0;
  uint64_t recover_from = 0;
  uint64_t revision = 0;  // of the shared state, committed
  Digest digest{};
  bool operator==(const Durable&) const = default;
};

struct SendTo {
  MemberId to{};
  Message message;
};
struct Persist {
  Durable durable;
};
// Something that people may want to read, with its reason: "rank 3 (1a2b3c4d) is out: silent for
// 10.2 s".
struct Note {
  std::string text;
};
using CoordinatorAction = std::variant<SendTo, Persist, Note>;

class Coordinator {
 public:
  // `durable`: what is on disk; a higher term is taken from it at once (a Persist action).
  Coordinator(CoordinatorOptions options, Durable durable, TimePoint now);

  void on_message(const MemberId& from, const Message& message, TimePoint now);
  // Its connection has ended; `has_ended`: and its process with it, for sure.
  void on_disconnected(const MemberId& from, bool has_ended, const std::string& reason,
                       TimePoint now);
  // Does what is due; returns when it wants to be called next.
  TimePoint on_time(TimePoint now);
  std::vector<CoordinatorAction> take_actions();

  const Durable& durable() const;
  // It had taken over, and has met a higher term: it does nothing any more. Stop it.
  bool has_retired() const;
};

}  // namespace pccl::membership
