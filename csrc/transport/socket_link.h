// Frames over one TCP socket, plain or through TLS.
//
// Sending: up to kBatchFrames frames by one sendmsg, straight from the owner's memory. Receiving:
// small frames through a staging buffer (one recv for header and payload), the rest of a large
// payload straight to where it belongs.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "transport/connection.h"
#include "transport/engine.h"
#include "transport/pacing.h"
#include "transport/socket.h"
#include "transport/stream.h"

namespace pccl::transport {

class SocketLink final : public Link, public Pollable {
 public:
  // `renews_bbr`: where its socket uses that: see Pacing.
  SocketLink(LinkHost& host, Connection& connection, Stream stream, bool renews_bbr);
  ~SocketLink() override;

  void flush() override;
  void abandon(const FrameOwner* owner) override;
  bool has_unsent() const override {
    return !sending_.empty() || ack_left_ > 0 || stream_.has_unsent();
  }
  void shutdown_writing() override;
  void cut() override;
  void divert() override;
  void watch(TimePoint now) override;
  uint64_t progress() const override { return bytes_acknowledged_; }
  LinkState state() const override;
  std::string congestion_control() const override;
  bool set_congestion_control(const std::string& name) override;

  void on_events(uint32_t epoll_events) override;
  void on_turn() override;

 private:
  static constexpr size_t kBatchFrames = 16;
  static constexpr size_t kBatchBytes = 1 << 20;
  static constexpr size_t kStagingBytes = 64 << 10;
  // Bytes received before others get their turn.
  static constexpr size_t kTurnBytes = 4 << 20;

  void receive();
  long receive_some(std::byte* target, size_t size);
  bool has_more(long count, size_t wanted) const;
  bool receive_payload();  // false: would block or down
  bool receive_staging();  // likewise
  void parse_staging();
  void begin_payload(const FrameHeader& header, size_t available);
  void finish_payload();
  void deliver(const FrameHeader& header, Payload payload);
  void fail(const std::string& fault);
  void write();
  uint64_t full_us(TimePoint now) const;
  size_t gather(std::span<iovec> parts);  // of what is to be sent
  void drop_sent(size_t bytes);
  void stop(const Error& error);
  void pace(const SocketState& state, TimePoint now);
  void bound_unsent(const SocketState& state);

  LinkHost& host_;
  Connection& connection_;
  Stream stream_;
  bool writable_ = true;
  bool is_down_ = false;
  bool peer_closed_ = false;
  bool is_shut_ = false;  // for writing
  bool renews_bbr_;

  // An acknowledgement goes before the frames, and has no number.
  FrameHeader ack_;
  size_t ack_left_ = 0;  // bytes of it
  std::deque<SentFrame*> sending_;
  size_t sent_of_front_ = 0;  // bytes of the front frame, header included
  size_t queued_bytes_ = 0;   // unsent bytes of sending_
  // There is more to send than the socket takes: since when, and for how long before.
  std::optional<TimePoint> full_since_;
  uint64_t full_us_ = 0;

  std::unique_ptr<std::byte[]> staging_;
  size_t staging_begin_ = 0;
  size_t staging_end_ = 0;
  // The payload that is arriving, when it is not whole in the staging buffer.
  bool in_payload_ = false;
  FrameHeader header_;
  Placement placement_;
  BufferPool::Buffer buffer_;
  std::byte* payload_ = nullptr;
  size_t payload_received_ = 0;

  // Since when something is under way and the other kernel is silent.
  bool is_quiet_ = false;
  TimePoint quiet_since_;
  TimePoint watched_at_;
  uint64_t bytes_acknowledged_ = 0;
  Pacing pacing_;
  uint32_t unsent_max_ = kUnsentBytesMax;
  uint64_t pace_ = Pacing::kNone;  // what the kernel was told
};

}  // namespace pccl::transport
