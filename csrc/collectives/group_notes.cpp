// What a flight record says of a group's operations.
#include "collectives/group.h"

namespace pccl {
namespace {

// Operations of which it says what they wait for.
constexpr size_t kNotedMax = 8;

}  // namespace

void Group::note_running() {
  size_t noted = 0;
  for (const Operation* operation : running()) {
    if (operation->is_finished()) continue;
    if (noted++ == kNotedMax) break;
    recorder().note(FlightEvent::Running, {.group = id, .number = operation->number},
                    operation->describe() + " " + operation->progress());
  }
}

void Group::note_failure(const Operation& operation, const Error& error) {
  recorder().want_file();
  endpoint_.engine().wake_at(Clock::now());
  // Of a broken group one text says why.
  if (broken_) return;
  recorder().note(FlightEvent::OperationError,
                  {.group = id, .number = operation.number, .error = error.kind}, error.message);
}

void Group::note_broken(const Error& error) {
  // Closed as programs do when they end.
  if (running().empty() && error.kind == ErrorKind::Aborted) return;
  note_running();
  recorder().note(FlightEvent::GroupBroken, {.group = id, .error = error.kind}, error.message);
}

}  // namespace pccl
