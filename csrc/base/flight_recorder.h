// What one member did and saw last, always on: two rings of fixed size, written out as JSON lines.
//
// Operations have a ring of their own, so that a million of them do not push out why a connection
// broke. Recording allocates nothing and takes no lock. Driver only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/errors.h"
#include "base/types.h"

namespace pccl {

enum class FlightEvent : uint8_t {
  // Of operations.
  Started,
  Ended,
  Failed,
  Stopped,  // its quorum is not in force any more; it goes on in the next one
  // Of everything else; these have a text.
  Running,  // what an operation waits for when the record is written
  GroupMade,
  GroupBroken,
  ConnectionUp,
  ConnectionBroken,
  ConnectionResumed,
  ConnectionLost,
  SocketReplaced,
  StripesChanged,  // a connection sends over more or fewer sockets, or by another control
  CoordinatorLost,
  CoordinatorWaits,  // why the quorum can't change, or that it can again
  TakenOver,
  QuorumProposed,
  QuorumEntered,
  RecoveryBegun,
  RecoveryEnded,
  OperationError,
  Evicted,
  Left,
};

// One call, as every member of its group numbers it.
struct FlightOperation {
  const char* name = "";  // lives forever
  DataType dtype = DataType::UInt8;
  ReduceOp op = ReduceOp::Sum;
  int32_t root = -1;
  uint64_t group = 0;
  uint64_t number = 0;
  uint64_t bytes = 0;
};

// What an event is about, as far as that means something.
struct FlightSubject {
  uint64_t group = 0;
  uint64_t number = 0;  // of an operation or a quorum
  std::string_view member;
  ErrorKind error = ErrorKind::None;
};

class FlightRecorder {
 public:
  static constexpr size_t kOperationsMax = 4096;
  static constexpr size_t kEventsMax = 512;
  // Longer texts are cut.
  static constexpr size_t kTextBytesMax = 440;

  struct Identity {
    std::string member_id;
    std::string address;
    std::string run;
    std::string host_key;  // equal: the same monotonic clock
    uint16_t protocol = 0;
    // Where a record is written when an operation ends in an error; "": nowhere.
    std::string folder;
  };

  FlightRecorder();
  void identify(Identity identity) { identity_ = std::move(identity); }

  void record(FlightEvent event, const FlightOperation& operation, TimePoint now) {
    OperationEntry& entry = operations_[operation_count_++ % kOperationsMax];
    entry = {now, operation, event};
  }
  void note(FlightEvent event, const FlightSubject& subject, std::string_view text);
  // The coordinator's monotonic clock minus this one, as one exchange shows it; of several, that
  // with the shortest round trip is kept.
  void note_clock(double offset_seconds, double round_trip_seconds);

  // A file is wanted, because an operation has failed.
  void want_file() { wants_file_ = !identity_.folder.empty(); }
  // When write_file() shall be called; max(): no file is wanted.
  TimePoint file_due() const { return wants_file_ ? written_at_ + kFilePause : TimePoint::max(); }
  // Replaces this member's file in the folder. A failure becomes an event.
  void write_file(TimePoint now);
  // One JSON object a line: a header, then what is in the rings, oldest first.
  std::string to_json_lines() const;
  // The same of the events that came after the first `seen` ones, as far as they are kept.
  std::string events_since(uint64_t seen) const;
  uint64_t event_count() const { return event_count_; }

 private:
  static constexpr auto kFilePause = std::chrono::seconds(5);
  struct OperationEntry {
    TimePoint at;
    FlightOperation operation;
    FlightEvent event{};
  };
  struct EventEntry {
    TimePoint at;
    uint64_t group = 0;
    uint64_t number = 0;
    FlightEvent event{};
    ErrorKind error{};
    uint16_t length = 0;
    char member[9] = {};
    char text[kTextBytesMax] = {};
  };

  std::string header(TimePoint now) const;
  static std::string line_of(const OperationEntry& entry);
  static std::string line_of(const EventEntry& entry);

  Identity identity_;
  std::unique_ptr<OperationEntry[]> operations_;
  std::unique_ptr<EventEntry[]> events_;
  uint64_t operation_count_ = 0;
  uint64_t event_count_ = 0;
  bool wants_file_ = false;
  TimePoint written_at_;
  double clock_offset_seconds_ = 0;
  double clock_round_trip_seconds_ = -1;  // -1: no exchange yet
};

}  // namespace pccl
