// The numbered frames of one connection: what was sent and is not acknowledged, what has come.
//
// Numbers count modulo 2^32. Frames of a connection that resumes are kept until they are
// acknowledged, so that what a broken socket carried can be sent again; those of others until the
// kernel has them. Driver only.
#pragma once

#include <cstdint>
#include <deque>

#include "transport/out_frame.h"

namespace pccl::transport {

class Link;

struct SentFrame {
  OutFrame frame;
  const Link* carrier = nullptr;  // null: none, it must be sent again
  bool is_written = false;        // the kernel has all of it
  bool was_begun = false;         // bytes of it left on a socket that broke
  bool is_reported = false;       // its owner was told
};

class SendWindow {
 public:
  // What may be unacknowledged; more waits in the connection's queues. 64 MiB fill 5 Gbit/s over
  // 100 ms, and 32768 frames are as many small messages.
  static constexpr uint64_t kBytesMax = 64 << 20;
  static constexpr uint32_t kFramesMax = 32768;

  explicit SendWindow(BufferPool* pool) : pool_(pool) {}

  // Frames added from now on are kept until they are acknowledged.
  void keep() { keeps_ = true; }
  bool keeps() const { return keeps_; }
  bool has_room() const { return bytes_ < kBytesMax && frames_.size() < kFramesMax; }
  // Numbers `frame`. The reference lasts until it is written and acknowledged.
  SentFrame& add(OutFrame frame, const Link& carrier);
  // The first of what broken sockets carried; null if there is none.
  SentFrame* take_lost(const Link& carrier);
  bool has_lost() const { return !lost_.empty(); }
  // The kernel has all of it. Ends the reference, unless it is kept.
  void on_written(SentFrame& sent);
  // The peer has consumed all frames below `sequence`; false: it can't have. An older number, that
  // another socket overtook, says nothing new.
  bool acknowledge(uint32_t sequence);
  bool may_acknowledge(uint32_t sequence) const {
    return static_cast<int32_t>(next_ - sequence) >= 0;
  }
  // What `carrier` had and is not acknowledged must be sent again.
  void lose(const Link& carrier);
  // Copies what is `owner`'s, so that it may die.
  void detach(const FrameOwner* owner);
  void clear();

  bool has_unacknowledged() const { return keeps_ && acknowledged_ != next_; }
  uint32_t acknowledged() const { return acknowledged_; }
  uint32_t next() const { return next_; }

 private:
  bool is_acknowledged(const SentFrame& sent) const {
    return sent.frame.header.sequence - acknowledged_ > next_ - acknowledged_;
  }
  void release();

  BufferPool* pool_;
  bool keeps_ = false;
  std::deque<SentFrame> frames_;  // of consecutive numbers up to next_
  std::deque<uint32_t> lost_;     // numbers, in order; may hold some that were acknowledged since
  uint32_t next_ = 0;
  uint32_t acknowledged_ = 0;  // all below
  uint64_t bytes_ = 0;
};

class ReceiveWindow {
 public:
  // A sender of ours has no more under way.
  static constexpr uint32_t kFramesMax = SendWindow::kFramesMax;

  enum class Sight : uint8_t { Fresh, Again, Outside };
  Sight look(uint32_t sequence) const {
    const uint32_t ahead = sequence - consumed_;
    if (ahead >= 0x80000000U) return Sight::Again;
    if (ahead >= kFramesMax) return Sight::Outside;
    return ahead < early_.size() && early_[ahead] ? Sight::Again : Sight::Fresh;
  }
  // Requires: look(sequence) is Fresh.
  void consume(uint32_t sequence);
  uint32_t consumed() const { return consumed_; }  // all below
  bool has_gaps() const { return !early_.empty(); }

 private:
  uint32_t consumed_ = 0;
  std::deque<bool> early_;  // whether consumed_ + index has come, over another socket; ends in true
};

// Which numbers of a growing sequence have been seen; those far below the largest count as seen.
class ReplayGuard {
 public:
  // False: seen before, or too old to tell.
  bool admit(uint32_t number);

 private:
  uint32_t largest_ = 0;  // 0 is never admitted
  uint64_t seen_ = 0;     // bit i: largest_ - i
};

}  // namespace pccl::transport
