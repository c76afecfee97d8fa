// What pccl doctor asks: whether somebody is there, and how a coordinator sees us. It changes
// nothing there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "transport/examination.h"
#include "transport/handshake.h"
#include "transport/identity.h"

namespace pccl::transport {

struct ProbeOptions {
  std::string run;
  Fingerprint fingerprint{};  // of the key that must answer; zero: speak plainly
  std::optional<Token> token;
  std::shared_ptr<const Identity> identity;  // null: a new one
  TimePoint deadline;
};

struct ProbeResult {
  int version = -1;   // of the protocol; -1: what answered is no pccl
  int answer = -1;    // as Answer; -1: of another version
  std::string words;  // of a refusal, or what came instead of an answer
};

// Blocks. Throws ConnectError: there is no connection, another key, no answer by the deadline.
ProbeResult probe(const SocketAddress& place, const ProbeOptions& options);

struct Examination {
  // Anything but Alive: it examines nobody, or not us, says `words`; then the rest is empty.
  ProbeResult reply;
  Sighting sighting;
  double sent_bytes_per_second = 0;  // from here to there; 0: unknown
  double received_bytes_per_second = 0;
};

// Blocks, for a few seconds. `port`: of this machine, to be dialed from there; 0: none. Throws
// ConnectError as probe(), and where it ends before all is said.
Examination examine(const SocketAddress& place, const ProbeOptions& options, uint16_t port);

}  // namespace pccl::transport
