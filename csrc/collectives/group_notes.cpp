// How a group speaks of its ranks and operations, in errors and in the flight record.
#include "collectives/group.h"

namespace pccl {
namespace {

// Operations of which it says what they wait for.
constexpr size_t kNotedMax = 8;

}  // namespace

std::string Group::describe(int32_t peer) const {
  const transport::Connection* connection = connections_[static_cast<size_t>(peer)];
  const std::string number = "rank " + std::to_string(peer);
  return connection == nullptr ? number : number + " (" + connection->peer.describe() + ")";
}

std::string Group::describe(const std::set<int32_t>& peers) const {
  constexpr size_t kNamedMax = 4;
  std::string text;
  size_t named = 0;
  for (const int32_t peer : peers) {
    if (named == kNamedMax) return text + " and " + std::to_string(peers.size() - named) + " more";
    text += (named == 0 ? "" : ", ") + describe(peer);
    named += 1;
  }
  return text.empty() ? "its own sends" : text;
}

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
