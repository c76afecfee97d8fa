#include "base/flight_recorder.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <system_error>

namespace pccl {
namespace {

const char* event_name(FlightEvent event) {
  switch (event) {
    case FlightEvent::Started:
      return "started";
    case FlightEvent::Ended:
      return "ended";
    case FlightEvent::Failed:
      return "failed";
    case FlightEvent::Stopped:
      return "stopped";
    case FlightEvent::Running:
      return "running";
    case FlightEvent::GroupMade:
      return "group_made";
    case FlightEvent::GroupBroken:
      return "group_broken";
    case FlightEvent::ConnectionUp:
      return "connection_up";
    case FlightEvent::ConnectionBroken:
      return "connection_broken";
    case FlightEvent::ConnectionResumed:
      return "connection_resumed";
    case FlightEvent::ConnectionLost:
      return "connection_lost";
    case FlightEvent::SocketReplaced:
      return "socket_replaced";
    case FlightEvent::StripesChanged:
      return "stripes_changed";
    case FlightEvent::CoordinatorLost:
      return "coordinator_lost";
    case FlightEvent::CoordinatorWaits:
      return "coordinator_waits";
    case FlightEvent::TakenOver:
      return "taken_over";
    case FlightEvent::QuorumProposed:
      return "quorum_proposed";
    case FlightEvent::QuorumEntered:
      return "quorum_entered";
    case FlightEvent::RecoveryBegun:
      return "recovery_begun";
    case FlightEvent::RecoveryEnded:
      return "recovery_ended";
    case FlightEvent::OperationError:
      return "operation_error";
    case FlightEvent::Evicted:
      return "evicted";
    case FlightEvent::Left:
      return "left";
  }
  return "unknown";
}

const char* error_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::None:
      return "";
    case ErrorKind::Timeout:
      return "CollectiveTimeout";
    case ErrorKind::MemberLost:
      return "MemberLost";
    case ErrorKind::CallMismatch:
      return "CallMismatch";
    case ErrorKind::RemoteProtocol:
      return "RemoteProtocolError";
    case ErrorKind::Connect:
      return "ConnectError";
    case ErrorKind::Aborted:
      return "Aborted";
    case ErrorKind::NonFinite:
      return "NonFiniteContribution";
  }
  return "";
}

// One JSON object, member by member. Bytes that are no UTF-8 pass as they are: readers replace
// them.
class JsonLine {
 public:
  JsonLine& add(const char* name, std::string_view text) {
    begin(name);
    line_ += '"';
    for (const char c : text) {
      if (c == '"' || c == '\\') {
        line_ += '\\';
        line_ += c;
      } else if (static_cast<unsigned char>(c) < 0x20) {
        char escape[8];
        std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(c));
        line_ += escape;
      } else {
        line_ += c;
      }
    }
    line_ += '"';
    return *this;
  }
  JsonLine& add(const char* name, uint64_t value) { return add_raw(name, std::to_string(value)); }
  JsonLine& add(const char* name, int32_t value) { return add_raw(name, std::to_string(value)); }
  JsonLine& add(const char* name, double seconds) {
    char text[40];
    std::snprintf(text, sizeof(text), "%.9f", seconds);
    return add_raw(name, text);
  }
  JsonLine& add_raw(const char* name, const std::string& value) {
    begin(name);
    line_ += value;
    return *this;
  }
  std::string end() { return line_ + "}\n"; }

 private:
  void begin(const char* name) {
    line_ += line_.size() == 1 ? "\"" : ", \"";
    line_.append(name).append("\": ");
  }
  std::string line_ = "{";
};

double seconds_of(TimePoint time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

// A group's id as in frames, too large for numbers in JSON.
std::string hex(uint64_t id) {
  char text[20];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(id));
  return text;
}

JsonLine begin_line(TimePoint at, FlightEvent event) {
  JsonLine line;
  const double age = std::chrono::duration<double>(Clock::now() - at).count();
  const auto unix_now = std::chrono::system_clock::now().time_since_epoch();
  line.add("monotonic_seconds", seconds_of(at))
      .add("unix_seconds", std::chrono::duration<double>(unix_now).count() - age)
      .add("event", std::string_view(event_name(event)));
  return line;
}

}  // namespace

FlightRecorder::FlightRecorder()
    : operations_(std::make_unique<OperationEntry[]>(kOperationsMax)),
      events_(std::make_unique<EventEntry[]>(kEventsMax)) {}

void FlightRecorder::note(FlightEvent event, const FlightSubject& subject, std::string_view text) {
  EventEntry& entry = events_[event_count_++ % kEventsMax];
  entry.at = Clock::now();
  entry.group = subject.group;
  entry.number = subject.number;
  entry.event = event;
  entry.error = subject.error;
  entry.length = static_cast<uint16_t>(std::min(text.size(), kTextBytesMax));
  text.copy(entry.text, entry.length);  // unlike memcpy(3) also of nothing at null
  const size_t member_length = std::min(subject.member.size(), sizeof(entry.member) - 1);
  subject.member.copy(entry.member, member_length);
  entry.member[member_length] = 0;
}

void FlightRecorder::note_clock(double offset_seconds, double round_trip_seconds) {
  const bool is_better =
      clock_round_trip_seconds_ < 0 || round_trip_seconds <= clock_round_trip_seconds_;
  if (!is_better) return;
  clock_offset_seconds_ = offset_seconds;
  clock_round_trip_seconds_ = round_trip_seconds;
}

std::string FlightRecorder::header(TimePoint now) const {
  const double unix_seconds =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  char host[256] = {};
  if (::gethostname(host, sizeof(host) - 1) != 0) host[0] = 0;
  const auto lost = [](uint64_t count, size_t most) { return count > most ? count - most : 0; };
  JsonLine line;
  line.add("flight_record", uint64_t{1})
      .add("member", identity_.member_id)
      .add("address", identity_.address)
      .add("run", identity_.run)
      .add("protocol", uint64_t{identity_.protocol})
      .add("process", uint64_t{static_cast<uint64_t>(::getpid())})
      .add("host", std::string_view(host))
      .add("clock", identity_.host_key)
      .add("monotonic_seconds", seconds_of(now))
      .add("unix_seconds", unix_seconds)
      .add("lost_operations", lost(operation_count_, kOperationsMax))
      .add("lost_events", lost(event_count_, kEventsMax));
  if (clock_round_trip_seconds_ >= 0) {
    line.add("coordinator_clock_offset_seconds", clock_offset_seconds_)
        .add("coordinator_round_trip_seconds", clock_round_trip_seconds_);
  }
  return line.end();
}

std::string FlightRecorder::line_of(const OperationEntry& entry) {
  const FlightOperation& what = entry.operation;
  return begin_line(entry.at, entry.event)
      .add("group", hex(what.group))
      .add("number", what.number)
      .add("operation", std::string_view(what.name))
      .add("dtype", data_type_name(what.dtype))
      .add("op", reduce_op_name(what.op))
      .add("root", what.root)
      .add("bytes", what.bytes)
      .end();
}

std::string FlightRecorder::line_of(const EventEntry& entry) {
  JsonLine line = begin_line(entry.at, entry.event);
  if (entry.group != 0) line.add("group", hex(entry.group));
  line.add("number", entry.number);
  if (entry.member[0] != 0) line.add("member", std::string_view(entry.member));
  if (entry.error != ErrorKind::None) line.add("error", std::string_view(error_name(entry.error)));
  return line.add("text", std::string_view(entry.text, entry.length)).end();
}

std::string FlightRecorder::to_json_lines() const {
  std::string text = header(Clock::now());
  uint64_t operation = operation_count_ > kOperationsMax ? operation_count_ - kOperationsMax : 0;
  uint64_t event = event_count_ > kEventsMax ? event_count_ - kEventsMax : 0;
  while (operation < operation_count_ || event < event_count_) {
    const OperationEntry& next = operations_[operation % kOperationsMax];
    const EventEntry& other = events_[event % kEventsMax];
    const bool is_operation =
        event == event_count_ || (operation < operation_count_ && next.at <= other.at);
    if (is_operation) {
      text += line_of(next);
      operation += 1;
    } else {
      text += line_of(other);
      event += 1;
    }
  }
  return text;
}

std::string FlightRecorder::events_since(uint64_t seen) const {
  std::string text;
  const uint64_t oldest = event_count_ > kEventsMax ? event_count_ - kEventsMax : 0;
  for (uint64_t event = std::max(seen, oldest); event < event_count_; ++event)
    text += line_of(events_[event % kEventsMax]);
  return text;
}

void FlightRecorder::write_file(TimePoint now) {
  wants_file_ = false;
  written_at_ = now;
  std::string name = identity_.run.substr(0, 64) + "-" + identity_.member_id + ".jsonl";
  for (char& c : name) {
    const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                          (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_';
    if (!is_plain) c = '_';
  }
  const std::string path = identity_.folder + "/" + name;
  const std::string unfinished = path + ".part";
  std::ofstream file(unfinished, std::ios::binary | std::ios::trunc);
  file << to_json_lines();
  file.close();
  if (!file || std::rename(unfinished.c_str(), path.c_str()) != 0) {
    const std::string reason = std::error_code(errno, std::generic_category()).message();
    note(FlightEvent::OperationError, {},
         "this record can't be written to " + path + ": " + reason);
  }
}

}  // namespace pccl
