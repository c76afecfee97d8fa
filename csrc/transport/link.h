// What carries a connection's frames, and what the floors beside it promise to each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/clock.h"
#include "base/errors.h"
#include "base/flight_recorder.h"
#include "transport/frame.h"
#include "transport/out_frame.h"
#include "transport/payload.h"
#include "transport/traffic.h"

namespace pccl::transport {

class Connection;
class Engine;
class Link;

// The floor above.
class FrameSink {
 public:
  virtual ~FrameSink() = default;
  virtual Placement place(Connection& from, const FrameHeader& header) = 0;
  virtual void on_frame(Connection& from, const FrameHeader& header, Payload payload) = 0;
  virtual void on_lost(Connection& connection, const Error& error) = 0;
  virtual TimePoint on_time(TimePoint now) = 0;
  virtual void note_running(FlightRecorder&) {}  // what operations wait for
};

// What links need from the endpoint that made them.
class LinkHost {
 public:
  virtual ~LinkHost() = default;
  virtual Engine& engine() = 0;
  virtual BufferPool& pool() = 0;
  virtual FrameSink& sink() = 0;
  // End of stream (no error) or failure; the link has stopped. It is destroyed later, by the host.
  virtual void on_link_down(Connection& connection, Link& link, const Error& error) = 0;
  // connection.flush() before the driver sleeps.
  virtual void mark_unsent(Connection& connection) = 0;
  // A frame with something wrong in it.
  virtual void on_bad_frame(Connection& connection, const std::string& fault) = 0;
};

// One socket, or one pair of shared-memory rings.
class Link {
 public:
  virtual ~Link() = default;
  // Sends from the connection's queues until they are empty or the link is full.
  virtual void flush() = 0;
  // Memory of the next frame's payload, to be filled before commit(); null: it has none to lend.
  virtual std::byte* reserve(uint32_t /*length*/) { return nullptr; }
  virtual void commit(const FrameHeader& /*header*/) {}
  virtual void abandon(const FrameOwner* owner) = 0;
  virtual bool has_unsent() const = 0;
  virtual bool shares_memory() const { return false; }
  virtual void shutdown_writing() = 0;
  // Takes part in nothing any more; destroyed later.
  virtual void cut() = 0;
  // The payload that is arriving may not be written where it was placed any more.
  virtual void divert() {}
  // Looks at its socket while something is unacknowledged; stops if that is silent.
  virtual void watch(TimePoint /*now*/) {}
  // Grows whenever the peer's kernel takes bytes.
  virtual uint64_t progress() const { return 0; }
  virtual LinkState state() const { return {}; }
  virtual std::string congestion_control() const { return ""; }
  virtual bool set_congestion_control(const std::string& /*name*/) { return false; }

  uint16_t index = 0;  // of its socket in the connection
};

}  // namespace pccl::transport
