// One call of one group while it runs: the base of collectives and messages. Driver only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/errors.h"
#include "base/flight_recorder.h"
#include "collectives/work.h"
#include "transport/connection.h"
#include "transport/frame.h"

namespace pccl {

class Group;

// A transfer may be sent before its receiver has said anything: this many segments, unless its call
// says another number, then one grant at a time. 8 segments of 512 KiB fill a path of 300 Mbit/s
// and 100 ms.
inline constexpr uint32_t kWindowSegments = 8;
// Frames of one transfer that wait in a connection's queue; more would only make memory wait for
// sockets.
inline constexpr uint32_t kQueuedFramesMax = 4;

// The sending end of one transfer.
struct OutStream {
  int32_t rank = -1;
  uint16_t stage = 0;
  uint32_t next = 0;                  // segment
  uint32_t credit = kWindowSegments;  // segments that may be sent
  uint32_t in_flight = 0;             // queued, not yet sent
  bool is_granted = false;            // the receiver has granted: it has started the operation
};

class Operation : public transport::FrameOwner {
 public:
  Operation(Group& group, transport::Signature signature, std::shared_ptr<Work> work);
  ~Operation() override = default;

  virtual void start() = 0;
  virtual transport::Placement place(const transport::FrameHeader& header) = 0;
  virtual void on_frame(const transport::FrameHeader& header, transport::Payload payload) = 0;
  // Something may go on: credit came, a connection came up.
  virtual void pump() = 0;
  // Tells the senders explicitly that this operation has started (see Group::on_mailbox_filling).
  virtual void grant_all() = 0;
  // Whether it can't end without that rank.
  virtual bool needs(int32_t rank) const = 0;
  // "waiting for rank 2 (10.0.0.7:4123): chunk 1, 3 of 8 segments came"
  virtual std::string progress() const = 0;
  // What the caller's memory holds if it fails now.
  virtual std::string buffer_state() const = 0;

  // Ends it; the group destroys it later.
  void finish(int32_t source_rank = -1);
  void fail(const Error& error);
  // Ends it without telling anybody: its group is no longer in force.
  void discard();
  bool is_finished() const { return is_finished_; }
  std::string describe() const;
  void record(FlightEvent event, TimePoint now) const;
  TimePoint deadline() const { return work_->deadline; }
  const transport::Signature& signature() const { return signature_; }
  void on_sent(uint64_t cookie) override;

  uint64_t number = 0;  // in its group
  // When it asks those that it waits for what they call; max() once it has.
  TimePoint ask_at = TimePoint::max();

 protected:
  bool can_send(const OutStream& stream, uint32_t length) const;
  // Sends one segment of `stream` from `data`, which lives until the operation ends, or from
  // `buffer`. Requires can_send(). `owner_index` comes back through on_stream_sent().
  void send_segment(OutStream& stream, transport::FrameHeader header, const std::byte* data,
                    uint32_t owner_index, transport::BufferPool::Buffer buffer = {});
  // The same, when the payload has been written into memory lent by Connection::reserve().
  void commit_segment(OutStream& stream, transport::FrameHeader header);
  std::byte* reserve_segment(const OutStream& stream, uint32_t length);
  void send_grant(int32_t rank, uint16_t stage, uint32_t chunk, uint32_t segments);
  transport::FrameHeader header_for(transport::FrameType type) const;
  virtual void on_stream_sent(uint32_t owner_index) = 0;
  virtual void abandon_connections() = 0;
  // Tells whoever wanted the result.
  virtual void settle(const Error& error, int32_t source_rank) {
    work_->complete(error, source_rank);
  }

  uint32_t queued_frames_max_ = kQueuedFramesMax;
  Group& group_;
  const transport::Signature signature_;
  std::shared_ptr<Work> work_;

 private:
  struct Sending {
    OutStream* stream = nullptr;
    uint32_t owner_index = 0;
  };
  void stamp(OutStream& stream, transport::FrameHeader& header);
  void release();

  std::vector<Sending> sending_;  // index: cookie
  std::vector<uint32_t> free_cookies_;
  bool is_finished_ = false;
};

}  // namespace pccl
