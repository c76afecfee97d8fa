// One handshake that asks whether somebody is there, and changes nothing: for pccl doctor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/clock.h"
#include "transport/handshake.h"

namespace pccl::transport {

struct ProbeOptions {
  std::string run;
  Fingerprint fingerprint{};  // of the key that must answer; zero: speak plainly
  std::optional<Token> token;
  TimePoint deadline;
};

struct ProbeResult {
  int version = -1;   // of the protocol; -1: what answered is no pccl
  int answer = -1;    // as Answer; -1: of another version
  std::string words;  // of a refusal, or what came instead of an answer
};

// Blocks. Throws ConnectError: there is no connection, another key, no answer by the deadline.
ProbeResult probe(const SocketAddress& place, const ProbeOptions& options);

}  // namespace pccl::transport
