// The flight recorder keeps the latest of each kind, in order, as lines that JSON readers take.
#include "base/flight_recorder.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

using namespace pccl;

namespace {

FlightOperation operation(uint64_t number) {
  return {.name = "all_reduce", .dtype = DataType::Float32, .group = 7, .number = number};
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace

TEST_CASE("flight recorder: many operations push out operations and no other event") {
  FlightRecorder recorder;
  recorder.note(FlightEvent::ConnectionBroken, {.member = "0011aabb"}, "reset by peer");
  constexpr uint64_t kCalls = FlightRecorder::kOperationsMax + 3;
  for (uint64_t number = 0; number < kCalls; ++number)
    recorder.record(FlightEvent::Started, operation(number), Clock::now());
  const std::string text = recorder.to_json_lines();
  CHECK(count(text, "\n") == 1 + 1 + FlightRecorder::kOperationsMax);
  CHECK(count(text, "\"lost_operations\": 3") == 1);
  CHECK(count(text, "reset by peer") == 1);
  CHECK(count(text, "\"number\": 2,") == 0);
  CHECK(text.find("\"number\": 3,") < text.find("\"number\": 4098,"));
}

TEST_CASE("flight recorder: a text is escaped, and cut where it is too long") {
  FlightRecorder recorder;
  recorder.note(FlightEvent::OperationError, {}, "a \"quoted\"\n\\ line");
  recorder.note(FlightEvent::OperationError, {}, std::string(10'000, 'x'));
  const std::string text = recorder.to_json_lines();
  CHECK(count(text, "a \\\"quoted\\\"\\u000a\\\\ line") == 1);
  CHECK(count(text, std::string(FlightRecorder::kTextBytesMax, 'x')) == 1);
  CHECK(count(text, std::string(FlightRecorder::kTextBytesMax + 1, 'x')) == 0);
}

TEST_CASE("flight recorder: a reader gets each event once, as far as it was kept") {
  FlightRecorder recorder;
  CHECK(recorder.events_since(0).empty());
  recorder.note(FlightEvent::Left, {.number = 5}, "first");
  recorder.record(FlightEvent::Started, operation(1), Clock::now());
  CHECK(count(recorder.events_since(0), "\n") == 1);
  CHECK(count(recorder.events_since(0), "first") == 1);
  const uint64_t seen = recorder.event_count();
  CHECK(recorder.events_since(seen).empty());
  for (size_t i = 0; i < FlightRecorder::kEventsMax + 9; ++i)
    recorder.note(FlightEvent::Left, {}, "later");
  CHECK(count(recorder.events_since(seen), "later") == FlightRecorder::kEventsMax);
  CHECK(recorder.events_since(recorder.event_count() + 9).empty());
}

TEST_CASE("flight recorder: of several exchanges with the coordinator the shortest counts") {
  FlightRecorder recorder;
  CHECK(count(recorder.to_json_lines(), "coordinator_clock") == 0);
  recorder.note_clock(5.0, 0.010);
  recorder.note_clock(9.0, 0.200);
  CHECK(count(recorder.to_json_lines(), "\"coordinator_clock_offset_seconds\": 5.000000000") == 1);
}

TEST_CASE("flight recorder: a file is written where a folder is named, at most every few seconds") {
  FlightRecorder recorder;
  recorder.want_file();
  CHECK(recorder.file_due() == TimePoint::max());
  char folder[] = "/tmp/pccl-flight-XXXXXX";
  REQUIRE(mkdtemp(folder) != nullptr);
  recorder.identify({.member_id = "0011aabb", .run = "a/run", .folder = folder});
  recorder.want_file();
  const TimePoint now = Clock::now();
  CHECK(recorder.file_due() <= now);
  recorder.write_file(now);
  CHECK(recorder.file_due() == TimePoint::max());
  recorder.want_file();
  CHECK(recorder.file_due() > now + std::chrono::seconds(1));
  const std::string path = std::string(folder) + "/a_run-0011aabb.jsonl";
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  CHECK(count(text.str(), "\"flight_record\": 1, \"member\": \"0011aabb\"") == 1);
  CHECK(std::remove(path.c_str()) == 0);
  CHECK(rmdir(folder) == 0);
  recorder.write_file(now);  // the folder is gone: no error but an event
  CHECK(count(recorder.to_json_lines(), "can't be written") == 1);
}
