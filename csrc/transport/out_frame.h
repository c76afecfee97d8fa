// A frame on its way out, and whose memory it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "transport/frame.h"
#include "transport/payload.h"

namespace pccl::transport {

// Whoever owns memory that is being sent or received into.
class FrameOwner {
 public:
  virtual ~FrameOwner() = default;
  // The payload behind `cookie` has left; its memory may change, unless the frame `stays`.
  virtual void on_sent(uint64_t cookie) = 0;
};

struct OutFrame {
  FrameHeader header;
  const std::byte* payload = nullptr;  // lives until owner->on_sent(cookie), or abandon(owner)
  std::vector<std::byte> owned;        // or the payload itself,
  BufferPool::Buffer buffer;           // or this
  FrameOwner* owner = nullptr;         // null: nobody is told
  uint64_t cookie = 0;
  // The owner keeps `payload` as it is until the receiver has it or Connection::abandon(owner),
  // also after on_sent(): it may have to be sent again. Otherwise it is copied for that.
  bool stays = false;

  const std::byte* bytes() const {
    if (payload != nullptr) return payload;
    return buffer.bytes ? buffer.bytes.get() : owned.data();
  }
  // Makes the payload this frame's own; `pool` may be null.
  void detach(BufferPool* pool);
};

// Where a segment's payload shall be put while it arrives.
struct Placement {
  std::byte* target = nullptr;  // null: wherever the transport likes
  const FrameOwner* owner = nullptr;
};

}  // namespace pccl::transport
