// The unit on a connection: a fixed header, then `length` bytes of payload. docs/wire_format.md
// draws it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "base/codec.h"
#include "base/types.h"

namespace pccl::transport {

inline constexpr uint16_t kProtocolVersion = 15;
inline constexpr uint32_t kFrameMagic = 0x46434350;  // "PCCF"

// Largest payload of one frame. A segment is at most this long; anything longer is a broken or
// hostile sender.
inline constexpr uint32_t kPayloadBytesMax = 512 << 10;

// Longest reason of an abort.
inline constexpr uint32_t kAbortBytesMax = 4096;

// Payload of a probe, and the longest figures: two blocks of 64 ranks.
inline constexpr uint32_t kProbeBytes = 32 << 10;
inline constexpr uint32_t kFiguresBytesMax = 4096;

enum class FrameType : uint8_t {
  Data = 1,     // a segment of a collective's chunk
  Message = 2,  // a segment of a point-to-point message
  Grant = 3,    // `segment`: how many segments of the named transfer may be sent
  Credit = 4,   // `count`: bytes sent without a grant that the receiver has consumed
  Matched = 5,  // the receiver has started the named operation, and its arguments agree
  Abort = 6,    // the group is broken; payload: the reason; `stage`: ErrorKind
  Goodbye = 7,  // the member leaves politely; nothing follows
  // --- elastic runs ---
  Membership = 8,  // a message of csrc/membership/messages.h; payload: its bytes
  Finals = 9,      // which elements of `operation` are final at the sender; payload: a FinalMap
  Done = 10,       // the sender holds all finals of every operation below `count`
  // --- the connection itself ---
  Ack = 11,  // every frame below `sequence` has been consumed
  // --- links that are not known ---
  Probe = 12,    // bytes that mean nothing: the sender looks how fast they go
  Figures = 13,  // what the sender's probes saw; payload: link_probes.cpp
  Turn = 14,     // the sender is there for round `operation` of the probes, or done with it
  // --- what chunks get while a call runs (collectives/claims.cpp) ---
  Claim = 15,   // the chunk's core asks for `transfer_bytes` more; `segment`: as many as it has
  Assign = 16,  // it has them from segment `segment` on, from 4096 times `segment_bytes` of the
                // pool on; 0 bytes: no more
};
inline constexpr uint8_t kFrameTypeMax = 16;

enum class Collective : uint8_t {
  None = 0,
  AllReduce = 1,
  Broadcast = 2,
  Reduce = 3,
  AllGather = 4,
  ReduceScatter = 5,
  Gather = 6,
  Scatter = 7,
  AllToAll = 8,
  Barrier = 9,
  SendRecv = 10,
};
const char* collective_name(Collective collective);

// Stages of a chunk (topology/schedule.h). Exchange round k is kStageExchange + k;
// at once, k is the sender's place in the core.
inline constexpr uint16_t kStageUp = 0;
inline constexpr uint16_t kStageDown = 1;
inline constexpr uint16_t kStageExchange = 2;

// What a call must have in common on all ranks. `count` is 0 where ranks may differ (uneven
// collectives).
struct Signature {
  Collective collective = Collective::None;
  DataType dtype = DataType::UInt8;
  ReduceOp op = ReduceOp::Sum;
  int32_t root = -1;
  uint64_t count = 0;
  Codec codec = {};  // of all_reduce
  bool operator==(const Signature&) const = default;
  std::string describe() const;  // "all_reduce(float32[1000], sum)"
};

struct FrameHeader {
  uint32_t magic = kFrameMagic;
  FrameType type = FrameType::Data;
  Collective collective = Collective::None;
  DataType dtype = DataType::UInt8;
  ReduceOp op = ReduceOp::Sum;
  uint64_t group = 0;  // hash of the group's name
  uint64_t operation =
      0;               // number of the call in its group, or of the message in its (sender, tag)
  uint64_t count = 0;  // signature's count; Credit: bytes
  uint64_t transfer_bytes = 0;  // whole transfer: all segments of this chunk or message
  // Index in the schedule; messages: the tag; Finals and Done: 1 + the rank that says it, where
  // others pass it on.
  uint32_t chunk = 0;
  uint32_t segment = 0;
  uint32_t length = 0;  // payload bytes that follow
  int32_t root = -1;
  int32_t source_rank = 0;  // of the sender, in the group
  uint16_t stage = 0;
  uint16_t flags = 0;
  uint32_t segment_bytes = 0;  // of every segment but the last
  uint32_t sequence = 0;       // of the frame on its connection, modulo 2^32
  double weight = 0;           // of what the payload sums up, where contributions are weighted

  Codec codec() const {
    return {static_cast<CodecId>(flags >> 8 & 15), static_cast<uint8_t>(flags >> 12)};
  }
  Signature signature() const { return {collective, dtype, op, root, count, codec()}; }
  void set_signature(const Signature& signature);
};
static_assert(sizeof(FrameHeader) == 80, "the header is sent as it lies in memory");
static_assert(std::is_trivially_copyable_v<FrameHeader>);

// The lower eight bits of `flags`; above them four bits each hold the codec's id and its options.
// Set on Data and Message frames that were sent before the receiver granted them.
inline constexpr uint16_t kFlagUngranted = 1;
// Set on Data of a segment that its chunk got while the call ran: its receiver knows the length.
inline constexpr uint16_t kFlagClaimed = 4;
// Set on Finals: the sender ends the operation on every member, for the reason in the payload.
inline constexpr uint16_t kFlagRefused = 2;

// What is wrong with a header that came from the network; nullopt if nothing is.
std::optional<std::string> find_fault(const FrameHeader& header);

}  // namespace pccl::transport
