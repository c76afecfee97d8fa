// One run of the protocol under faults, from one seed: the real Coordinator and Member machines,
// real schedules and recovery plans, in virtual time and one thread. The same options give the same
// run, event for event.
//
// Phase one has faults; then they stop, everybody that can is let go on, and progress must come.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace simulator {

// Planted bugs, to prove that the simulator finds such. `None` is the protocol as it is.
enum class Mutation : uint8_t {
  None,
  CommitBeforePersist,  // coordinator: says what is not on its disk yet
  TermNotRaised,        // coordinator: a restarted one uses its old term
  TakeoverWithHalf,     // coordinator: one that took over acts like one with the database
  DisconnectedIsGone,   // coordinator: whose connection broke counts as dead
  BootGraceSkipped,     // coordinator: a restarted one drops whom it has not heard yet
  PauseHeldAgainst,     // coordinator: drops who was silent while it stood still itself
  RecoverFromMax,       // coordinator: the largest `completed` instead of the smallest
  FirstOperationMin,    // coordinator: the smallest `started` instead of the largest
  LowerTermAccepted,    // member: obeys a coordinator of an older term
  AcceptBeforeHeld,     // member: answers before its operations stand still
  FreezeIgnored,        // member: takes the old quorum's frames after it has accepted
  OldFramesAccepted,    // member: takes frames of an older quorum as if they were of its own
  ResultDropped,        // member: keeps no result for those that still need it
  InputOverwritten,     // member: partial sums go where the input was
  RetryCountsTwice,     // member: a chunk is reduced again on top of its partial sum
  JoinedAtIgnored,      // member: a newcomer takes part in operations before its time
  FreezeWaitsAtGate,    // member: a freezing Hold waits as one for newcomers does
  FrozenForgotten,      // member: does not say that its operations were frozen
};
inline constexpr int kMutationCount = 19;
std::string_view mutation_name(Mutation mutation);

struct Options {
  uint64_t seed = 1;
  int members = 5;
  Mutation mutation = Mutation::None;
  double fault_seconds = 30;
  double calm_seconds = 45;
  bool is_large = false;   // hundreds of members: few faults, short phases
  bool keeps_log = false;  // Result::log
};

struct Result {
  std::string violation;  // empty: none
  uint64_t hash = 0;      // of all events
  uint64_t events = 0;
  uint64_t quorums = 0;
  uint64_t operations = 0;  // completed at all that were in
  uint64_t recovered = 0;   // operations at members, through recovery
  uint64_t kills = 0;
  uint64_t crashes = 0;  // of coordinators
  uint64_t takeovers = 0;
  bool was_stuck_rightly = false;  // too few were left alive: no progress was demanded
  std::vector<std::string> log;
};

Result simulate(const Options& options);

}  // namespace simulator
