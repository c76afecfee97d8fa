// The logical connection between two members: frames go in, frames come out, whatever carries them.
//
// Frames may be striped over several sockets and overtake each other; every one says by itself
// where it belongs. Control frames go first. Driver only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/errors.h"
#include "base/flight_recorder.h"
#include "transport/address.h"
#include "transport/frame.h"
#include "transport/handshake.h"
#include "transport/link.h"
#include "transport/out_frame.h"
#include "transport/payload.h"
#include "transport/stripes.h"
#include "transport/traffic.h"
#include "transport/window.h"

namespace pccl::transport {

class Connection {
 public:
  // What may be under way without a grant from the receiver, and so may lie in its mailbox.
  static constexpr uint64_t kUngrantedBytesMax = 8 << 20;
  // With so much in the mailbox the sender may be about to stop for lack of credit, with frames
  // behind it that a running operation waits for; so those are granted.
  static constexpr uint64_t kCrowdedBytes = kUngrantedBytesMax / 4;
  // The mailbox takes no more: the credit, and as much for control frames, which need none. No
  // member of ours sends so much ahead.
  static constexpr uint64_t kEarlyBytesMax = 2 * kUngrantedBytesMax;
  // What a frame costs beside its payload while it waits in a mailbox: header, bookkeeping, the
  // smallest buffer. Counted, so that empty messages are bounded as well.
  static constexpr uint64_t kWaitingFrameBytes = 512;

  // Suspended: its last link broke; what is sent waits until it is known whether the peer is there.
  enum class State : uint8_t { Idle, Dialing, Up, Suspended, Closed };

  // `pool` gets the buffers of frames back.
  explicit Connection(MemberAddress address, BufferPool* pool)
      : peer(std::move(address)), outgoing(pool) {}

  void send(OutFrame frame);
  void send_control(const FrameHeader& header) {
    control_.emplace_back();
    control_.back().header = header;
  }
  void send_control(OutFrame frame) { control_.push_back(std::move(frame)); }
  // Forgets every frame and placement of `owner`; what is half sent, or may have to be sent again,
  // is copied, so that `owner` may die.
  void abandon(const FrameOwner* owner);

  // A frame whose payload can be written where the peer reads it: see Link.
  std::byte* reserve(uint32_t length);
  void commit(const FrameHeader& header);

  void flush();
  bool has_unsent() const;
  bool shares_memory() const { return !links_.empty() && links_.front()->shares_memory(); }

  // --- for links ---
  // The next frame to go out, null if there is none; pop_frame() removes it.
  OutFrame* front_frame();
  OutFrame pop_frame();
  // The same for sockets: the next frame is numbered, and `link` carries it until on_written().
  SentFrame* take_frame(const Link& link);
  void on_written(SentFrame& sent);
  // The acknowledgement that is due now, if one is; with company, because frames go anyway, sooner.
  std::optional<FrameHeader> take_ack(bool has_company);
  size_t link_count() const { return links_.size(); }
  void shutdown_writing() {
    for (auto& link : links_) link->shutdown_writing();
  }
  void add_link(std::unique_ptr<Link> link) { links_.push_back(std::move(link)); }
  std::vector<std::unique_ptr<Link>> take_links() { return std::move(links_); }
  // Takes one of them out; what it carried must be sent again. Null if there is none of that index.
  std::unique_ptr<Link> take_link(uint16_t index);
  std::vector<Link*> links() const;
  LinkTraffic counted() const;

  // --- numbered frames that come ---
  // What is wrong with the number of a frame, or with an acknowledgement.
  std::optional<std::string> find_numbering_fault(const FrameHeader& header) const;
  // Where to put a payload that arrives in pieces over `link`: where it was put when it was broken
  // off before, else where `sink` says.
  Placement begin_arrival(const FrameHeader& header, Link& link, FrameSink& sink);
  // The frame is whole: counts it, and moves its payload to where it belongs. False: it has come
  // by another socket meanwhile.
  bool consume(const FrameHeader& header, const Link& link, Payload& payload, BufferPool& pool);
  bool has_all() const { return !incoming.has_gaps() && arrivals_.empty(); }
  // Consumed frames are acknowledged no later than this; max(): none is owed.
  TimePoint ack_at() const { return ack_at_; }
  bool is_ack_due() const { return ack_is_due_; }
  void make_ack_due() { ack_is_due_ = true; }
  void clear();  // it is over
  // --- the mailbox: frames for calls that have not been made here ---
  void note_early(const FrameHeader& header) { early_bytes_ += cost(header.length); }
  void note_early_taken(const FrameHeader& header) { early_bytes_ -= cost(header.length); }
  bool is_crowded() const { return early_bytes_ >= kCrowdedBytes; }
  bool has_room_for(const FrameHeader& header) const {
    return early_bytes_ + cost(header.length) <= kEarlyBytesMax;
  }

  // --- flow control of ungranted frames, by the length of their payload ---
  bool may_send_ungranted(uint32_t length) const {
    return ungranted_sent_ + cost(length) <= kUngrantedBytesMax;
  }
  void note_ungranted_sent(uint32_t length) { ungranted_sent_ += cost(length); }
  void on_credit(uint64_t bytes) {
    ungranted_sent_ -= bytes < ungranted_sent_ ? bytes : ungranted_sent_;
  }
  // Gives the sender credit back, in portions.
  void note_ungranted_consumed(uint32_t length);

  void note_received(size_t bytes);  // over any of its sockets, now

  void prove(const SocketAddress& address);

  const MemberAddress peer;
  State state = State::Idle;
  Error error;                // why Closed, if not politely; why Suspended
  bool has_ended = false;     // the peer's process is gone, for certain: set before on_lost()
  bool said_goodbye = false;  // by us
  bool goodbye = false;       // by the peer
  uint64_t nonce = 0;         // of the dial that made it
  TimePoint dial_deadline;    // while Dialing
  bool is_expected = false;   // while Dialing: the peer has answered that it dials as well
  bool is_marked = false;     // for Endpoint::mark_unsent()
  // --- for the endpoint ---
  uint64_t number = 0;                  // they are counted as they are made
  bool is_wanted = false;               // by somebody here, not by its caller alone
  std::vector<SocketAddress> resolved;  // where to dial
  // Where its listener is, for certain: a dial was welcome there, or it called from there.
  std::vector<SocketAddress> proven;
  bool shared_memory = false;  // its link is, or was
  bool is_called = false;      // by Endpoint::call(), with this
  std::optional<Token> token;
  size_t links_ended = 0;     // end of stream, without an error
  TimePoint suspended_since;  // while Suspended, as is
  TimePoint suspended_until;
  std::string last_dial;          // why it failed
  double round_trip_seconds = 0;  // 0: not measured

  // --- for the endpoint and sockets: what a resumption needs ---
  bool is_numbered = false;  // both sides number their frames and would resume
  SendWindow outgoing;
  ReceiveWindow incoming;
  ReplayGuard attempts_seen;
  uint32_t attempts = 0;  // our dials
  // While something is unacknowledged: how far its bytes have got, and since when.
  uint64_t progress = 0;
  TimePoint progress_at;
  TimePoint watch_at;  // next
  Traffic traffic;
  // Sockets that this side sends over: the first ones of links(); the rest only receive. Null: all.
  std::unique_ptr<Stripes> stripes;
  uint64_t delivered_seen = 0;  // by its sockets, when that was last chosen
  std::string usual_control;    // the congestion control of its sockets before it was changed

 private:
  // Owed acknowledgements are sent after so many frames or bytes, or when this time is over.
  static constexpr uint32_t kAckFrames = 32;
  static constexpr uint64_t kAckBytes = 256 << 10;
  static constexpr auto kAckDelay = std::chrono::milliseconds(20);
  // The same in the company of other frames, where it costs nothing but its bytes.
  static constexpr uint64_t kAckBytesInCompany = 16 << 10;

  static uint64_t cost(uint32_t length) { return kWaitingFrameBytes + length; }
  bool has_to_send() const;
  bool is_resting(const Link& link) const;  // it receives only

  // A payload that arrives in pieces, or did until its socket broke.
  struct Arrival {
    FrameHeader header;
    Placement placement;
    Link* link = nullptr;
  };
  Arrival* find_arrival(uint32_t sequence);
  void forget_broken_arrivals();

  std::deque<OutFrame> control_;
  std::deque<OutFrame> data_;
  std::vector<std::unique_ptr<Link>> links_;
  std::vector<Arrival> arrivals_;  // at most one for each link, and what broken ones left
  uint32_t owed_frames_ = 0;
  uint64_t owed_bytes_ = 0;
  bool ack_is_due_ = false;
  TimePoint ack_at_ = TimePoint::max();
  uint64_t early_bytes_ = 0;
  uint64_t ungranted_sent_ = 0;
  uint64_t ungranted_consumed_ = 0;
  TimePoint received_at_;
};

}  // namespace pccl::transport
