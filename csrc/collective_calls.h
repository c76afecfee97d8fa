// The calls that a communicator and a run have in common: arguments are checked, put into blocks,
// and started. An interface; how they are started is its subclasses' business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/types.h"
#include "collectives/collective_operation.h"
#include "collectives/message_operation.h"
#include "collectives/work.h"
#include "transport/frame.h"

namespace pccl {

// 8 of them, so 2 MiB of a message, go out before its receiver asks, on every road.
inline constexpr uint32_t kMessageSegmentBytes = 256 << 10;

// Memory of one block: `count` elements at `data`.
struct Block {
  std::byte* data = nullptr;
  uint64_t count = 0;
};

struct CallOptions {
  double timeout_seconds = 0;  // 0: the communicator's
  bool is_uniform = false;     // all_reduce of a run: one contributor set for the whole tensor
  bool checks_finite =
      false;          // all_reduce of a run: a contribution with NaN or infinity is refused
  Codec codec = {};   // all_reduce by sum or avg of floating point: what travels
  Feedback feedback;  // with a codec: as long as the tensor
  // With a codec: source and target are encoded, as CollectiveCall::is_encoded.
  bool is_encoded = false;
  bool is_urgent = true;       // false: the caller wait()s at once, so no other thread is woken
  std::shared_ptr<void> keep;  // released when the operation has ended
};

class CollectiveCalls {
 public:
  virtual ~CollectiveCalls() = default;

  using WorkPtr = std::shared_ptr<Work>;
  // Steps and bytes of each algorithm: topology/planners.h. `factor` is PremulSum's.
  WorkPtr all_reduce(const std::byte* source, std::byte* target, uint64_t count, DataType dtype,
                     ReduceOp op, double factor, CallOptions options);
  WorkPtr reduce(const std::byte* source, std::byte* target, uint64_t count, DataType dtype,
                 ReduceOp op, double factor, int32_t root, CallOptions options);
  WorkPtr broadcast(std::byte* tensor, uint64_t count, DataType dtype, int32_t root,
                    CallOptions options);
  WorkPtr all_gather(Block source, std::span<const Block> targets, DataType dtype,
                     CallOptions options);
  WorkPtr reduce_scatter(std::span<const Block> sources, Block target, DataType dtype, ReduceOp op,
                         double factor, CallOptions options);
  WorkPtr gather(Block source, std::span<const Block> targets, DataType dtype, int32_t root,
                 CallOptions options);
  WorkPtr scatter(std::span<const Block> sources, Block target, DataType dtype, int32_t root,
                  CallOptions options);
  WorkPtr all_to_all(std::span<const Block> sources, std::span<const Block> targets, DataType dtype,
                     CallOptions options);
  WorkPtr barrier(CallOptions options);
  WorkPtr send(const std::byte* tensor, uint64_t count, DataType dtype, int32_t destination,
               uint32_t tag, CallOptions options);
  WorkPtr recv(std::byte* tensor, uint64_t count, DataType dtype, int32_t source, uint32_t tag,
               CallOptions options);

  // Where the caller is, as of one moment.
  struct Place {
    int32_t rank = 0;
    int32_t world_size = 1;
    uint64_t quorum_id = 0;  // of a run
  };
  virtual Place here() const = 0;
  int32_t rank() const { return here().rank; }
  int32_t world_size() const { return here().world_size; }

 protected:
  struct MessageCall {
    bool is_send = false;
    int32_t peer = -1;  // -1: receive from anybody
    uint32_t tag = 0;
    MessageMemory memory;
  };
  // `block_counts`: where blocks differ in size, for the planner.
  virtual WorkPtr start(const Place& place, transport::Signature signature,
                        std::vector<BlockMemory> blocks, std::span<const uint64_t> block_counts,
                        double factor, CallOptions options) = 0;
  virtual WorkPtr start_message(const Place& place, const MessageCall& call,
                                CallOptions options) = 0;
};

}  // namespace pccl
