// Runs one rank's part of a schedule, pipelined in segments: receive, combine, pass on.
//
// Every chunk is a small machine. Segment by segment: take it from each child, combine it with the
// own input, pass it up; at the core it is final (after exchange rounds, if the core has several
// ranks); finals go down the tree. The own input of a chunk is overwritten by that chunk's final
// values only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "collectives/element_ranges.h"
#include "collectives/operation.h"
#include "collectives/rank_plan.h"

namespace pccl {

// Weights are at most this, so that no sum of them overflows.
inline constexpr double kWeightMax = 1e30;

// Error feedback, a float for each element, in the units of the sum. Both are the caller's, and
// two, so that what is reduced again after a loss begins from the same `residual`.
struct Feedback {
  const float* residual = nullptr;  // lost before: added to the contribution; null: nothing
  float* lost = nullptr;            // what is lost now, where this rank encodes; null: not wanted
};

// Where a block lies on this rank; null where this rank has none.
struct BlockMemory {
  const std::byte* input = nullptr;
  std::byte* output = nullptr;
  uint64_t count = 0;
  Feedback feedback;  // of a reduction in a codec
};

class CollectiveOperation;

// What the ranks tell each other along with an all_reduce, in the blocks behind its first one. It
// is destroyed with the operation.
class Attachment {
 public:
  virtual ~Attachment() = default;
  virtual void on_complete() = 0;
};

struct CollectiveCall {
  transport::Signature signature;
  std::shared_ptr<const RankPlan> plan;
  std::vector<BlockMemory> blocks;
  std::shared_ptr<Attachment> attachment;
  double factor = 1;    // PremulSum; WeightedAvg: the weight of this rank's contribution
  int64_t divisor = 1;  // Avg: world size
  uint32_t segment_bytes = 256 << 10;
  // By chunk of the plan, alike on all ranks; empty: `segment_bytes` each.
  std::vector<uint32_t> segment_bytes_of;
  uint32_t queued_frames_max = kQueuedFramesMax;  // of one transfer
  // A chunk's window; it grows up to the most as other chunks are done. A grant for each so many.
  uint32_t window_segments = kWindowSegments;
  uint32_t window_segments_max = kWindowSegments;
  uint32_t grant_segments = kWindowSegments / 2;
  // By rank: the window of what comes from it to be reduced, if that is more. A receiver's own
  // choice; empty: none.
  std::vector<uint32_t> windows_from;
  std::vector<std::byte> scratch;  // memory that the blocks may refer to (barrier)
  // An element of an output that is an input, too, changes only from its input to its final value:
  // nothing is received right into it.
  bool keeps_inputs = false;
  // An all_reduce in a codec whose input and output are its tiles, as they lie behind the header of
  // one segment of the whole; what other ranks have does not matter.
  bool is_encoded = false;
  // Told of the end instead of the work; it also knows what an all_reduce's memory then holds.
  std::function<void(CollectiveOperation&, const Error&)> on_end;
};

// Elements of a block that are final here.
struct FinalRange {
  uint64_t begin = 0;
  uint64_t end = 0;
  double weight = 0;  // WeightedAvg: of all contributions together
};

class CollectiveOperation final : public Operation {
 public:
  CollectiveOperation(Group& group, CollectiveCall call, std::shared_ptr<Work> work);

  void start() override;
  transport::Placement place(const transport::FrameHeader& header) override;
  void on_frame(const transport::FrameHeader& header, transport::Payload payload) override;
  void pump() override;
  void grant_all() override;
  bool needs(int32_t rank) const override;
  std::string progress() const override;
  std::string buffer_state() const override;
  std::vector<FinalRange> finals() const;

 private:
  struct Child {
    int32_t rank = -1;
    std::map<uint32_t, transport::Payload> waiting;  // by segment; bounded by the window
    uint32_t granted = kWindowSegments;
    double weight = 0;
  };
  // A chunk in progress.
  struct Part {
    const ChunkPlan* plan = nullptr;
    const std::byte* input = nullptr;
    std::byte* output = nullptr;
    uint64_t bytes = 0;
    uint32_t segment_bytes = 0;
    uint32_t segments = 0;
    // What it got while the call ran, in the order of its segments.
    struct Claimed {
      uint32_t first = 0;   // segment
      uint64_t offset = 0;  // bytes from the first of the part's own ones
      uint64_t bytes = 0;
    };
    std::vector<Claimed> claimed;
    uint64_t claimed_bytes = 0;
    std::map<uint32_t, Claimed> assigned;  // what came out of order, by its first segment
    bool is_open = false;                  // it may get more
    bool is_claiming = false;              // has asked for it
    std::vector<Child> children;
    uint32_t combined = 0;  // segments passed up or made final here
    std::optional<OutStream> up;
    bool is_coded = false;  // a reduction whose values travel in the call's codec
    // Coded finals that are sent on from here; they stay until the operation ends.
    std::map<uint32_t, transport::Payload> coded_finals;
    std::vector<std::byte> value;  // exchange: the partial result
    uint32_t round = 0;
    uint32_t rounds_sent = 0;
    std::map<uint16_t, transport::Payload> partner_values;  // by `arrives_as`
    std::map<uint16_t, double> partner_weights;
    double weight = 0;                // of the partial result that was combined last
    double final_weight = 0;          // of the final value
    std::set<size_t> granted_rounds;  // whose value may be sent without credit
    uint32_t finals = 0;              // final segments, without gaps from the start
    std::vector<bool> have;
    std::vector<bool> placed;  // segments that arrive, or did, right where they belong
    std::vector<OutStream> down;
    bool is_done = false;
  };

  void advance(Part& part);
  void advance_up(Part& part);
  void combine(Part& part, uint32_t length);
  void pump_down(Part& part);
  void check_done(Part& part);
  void maybe_finish();
  void copy_own(Part& part);
  uint32_t window_of(const Child& child) const;
  void grant_more(const Part& part, Child& child);
  // --- coded_segments.cpp ---
  uint32_t wire_length_of(const Part& part, uint32_t segment) const;
  void combine_coded(Part& part, uint32_t length);
  std::optional<size_t> encode_combined(const Part& part, uint32_t length, std::byte* wire);
  // Where an element lies in the memory of a block: of a tile's first one, where that is encoded.
  uint64_t memory_offset(const Part& part, uint64_t element) const;
  std::optional<size_t> copy_encoded(const Part& part, size_t count, std::byte* wire) const;
  void prepare_own(const std::byte* own, size_t count, const float* residual);
  Feedback feedback_of(const Part& part, uint64_t first) const;
  // False: these bytes are no such segment; the group is broken.
  bool take_coded_final(Part& part, uint32_t segment, transport::Payload payload);
  // --- exchange.cpp ---
  void advance_exchange(Part& part);
  void exchange_at_once(Part& part);
  bool send_value(Part& part);
  // --- claims.cpp ---
  // Whether it got something at once.
  bool claim_more(Part& part);
  double ahead_seconds();
  void on_claim(const Part& part, const transport::FrameHeader& header);
  void on_assign(Part& part, const transport::FrameHeader& header);
  Part::Claimed take_from_pool(uint32_t first, uint64_t wanted, uint32_t segment_bytes);
  void extend(Part& part, const Part::Claimed& more);
  void send_assigned(const Part& part, int32_t rank, const Part::Claimed& more) const;
  // Who says what the part gets: the keeper of the pool to its core, a parent to its children.
  int32_t assigner_of(const Part& part) const;
  static uint32_t granted_down(const Part& part);  // finals are received where they belong
  // --- collective_frames.cpp ---
  bool on_data(Part& part, const transport::FrameHeader& header, transport::Payload payload);
  void on_grant(Part& part, const transport::FrameHeader& header);
  std::optional<std::string> find_mismatch(const transport::FrameHeader& header,
                                           const Part*& found) const;
  std::string other_call(const transport::FrameHeader& header) const;
  Part* part_of(const transport::FrameHeader& header);

  // Of a segment, in bytes from the first of the part's own ones.
  static uint64_t offset_of(const Part& part, uint32_t segment);
  static uint32_t length_of(const Part& part, uint32_t segment);
  static const Part::Claimed* claimed_with(const Part& part, uint32_t segment);
  ElementRange elements_of(const Part& part, uint32_t segment) const;
  std::string reduced_state() const;
  // Whether it belongs to the attachment, and not to the tensor.
  bool is_attached(const Part& part) const { return call_.attachment && part.plan->block > 0; }
  uint32_t index_of(const Part& part) const { return static_cast<uint32_t>(&part - parts_.data()); }
  transport::FrameHeader data_header(const Part& part, uint32_t segment, uint32_t length) const;
  // `weight`: of all sources together.
  void reduce_into(std::byte* target, std::vector<const void*>& sources, uint32_t length,
                   bool is_final, double weight) const;
  void on_stream_sent(uint32_t owner_index) override;
  void abandon_connections() override;
  void settle(const Error& error, int32_t source_rank) override;

  CollectiveCall call_;
  // Of one coded segment: the own contribution, or the sum; and what the children have sent.
  std::vector<float> sums_;
  std::vector<std::span<const std::byte>> wires_;
  size_t element_bytes_;
  std::vector<Part> parts_;
  size_t parts_left_ = 0;
  TimePoint started_at_;
  uint64_t given_out_ = 0;       // bytes of the pool, where this rank keeps it
  std::set<int32_t> unmatched_;  // peers that must say that they made the same call
  std::set<int32_t> unthanked_;  // peers that we must tell so
};

}  // namespace pccl
