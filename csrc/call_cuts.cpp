#include "call_cuts.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "quantization/codec.h"
#include "transport/frame.h"

namespace pccl {
namespace {

// How long one segment lasts on a middling link. What comes behind it in its connection waits so
// long, and so does every step of a path.
constexpr double kSegmentSeconds = 0.02;
constexpr uint32_t kSegmentBytesMin = 64 << 10;
// Where nothing is measured, and links may be slow.
constexpr uint32_t kBlindSegmentBytes = 128 << 10;
// Segments are multiples of it.
constexpr uint64_t kSegmentUnit = 4096;
// Of one transfer, where many share a line: each waits for all the others.
constexpr uint32_t kQueuedFrames = 2;
// A window, on the wire, where nothing is measured: a path of 300 Mbit/s and 100 ms.
constexpr uint32_t kWindowBytes = 4 << 20;
// And where links are: as many times what the path holds.
constexpr double kWindowPaths = 3;
constexpr double kWindowBytesMin = 256 << 10;
constexpr double kWindowBytesMax = 8 << 20;
// Of all that comes in to be reduced, beyond the smallest windows.
constexpr double kWindowsBytesMax = 64 << 20;
// A paced sender has a window under way that is shorter by what one grant is for.
constexpr uint32_t kGrantsPerWindow = 8;

double path_bytes(const topology::LinkCost& link) {
  return link.seconds_per_byte > 0 ? 2 * link.latency_seconds / link.seconds_per_byte : 0;
}

uint32_t segment_bytes_of(const topology::Links& links) {
  std::vector<double> rates;
  for (int32_t from = 0; from < links.world_size; ++from) {
    for (int32_t to = 0; to < links.world_size; ++to) {
      if (links.connects(from, to)) rates.push_back(1 / links.at(from, to).seconds_per_byte);
    }
  }
  const auto middle = rates.begin() + static_cast<ptrdiff_t>(rates.size() / 2);
  std::nth_element(rates.begin(), middle, rates.end());
  const double bytes = std::min(*middle * kSegmentSeconds, double{transport::kPayloadBytesMax});
  return std::max(std::bit_floor(static_cast<uint32_t>(bytes)), kSegmentBytesMin);
}

double window_bytes_of(const topology::Links& links) {
  double fullest = 0;
  for (int32_t from = 0; from < links.world_size; ++from) {
    for (int32_t to = 0; to < links.world_size; ++to) {
      if (links.connects(from, to)) fullest = std::max(fullest, path_bytes(links.at(from, to)));
    }
  }
  return kWindowPaths * fullest;
}

// Most codecs make a quarter of a segment, or less.
uint32_t wire_bytes(const CollectiveCall& call, uint32_t segment_bytes) {
  return call.signature.codec == Codec{} ? segment_bytes : segment_bytes / 4;
}

// All chunks in the same number of segments, where they are long enough: links send one of each by
// turns, so all chunks get on alike, as the plan's shares want it.
std::vector<uint32_t> segments_by_length(const CollectiveCall& call) {
  const uint64_t bytes = element_bytes(call.signature.dtype);
  uint64_t longest = 1;
  for (const ChunkPlan& chunk : call.plan->chunks) longest = std::max(longest, chunk.count * bytes);
  const uint64_t count = std::max<uint64_t>(1, longest / call.segment_bytes);
  const uint64_t unit =
      std::max(kSegmentUnit, quantization::block_elements(call.signature.codec) * bytes);
  std::vector<uint32_t> segments;
  for (const ChunkPlan& chunk : call.plan->chunks) {
    const uint64_t wanted = (chunk.count * bytes / count / unit + 1) * unit;
    segments.push_back(static_cast<uint32_t>(std::min<uint64_t>(wanted, call.segment_bytes)));
  }
  return segments;
}

}  // namespace

CallCuts::CallCuts(std::shared_ptr<const topology::Links> links, int32_t rank)
    : links_(std::move(links)),
      rank_(rank),
      segment_bytes_(segment_bytes_of(*links_)),
      window_bytes_(window_bytes_of(*links_)) {}

void CallCuts::cut(CollectiveCall& call, bool shares_lines) const {
  call.segment_bytes = std::min(call.segment_bytes, segment_bytes_);
  const bool is_blind = links_ == nullptr && call.plan->pool.count > 0;
  if (is_blind) call.segment_bytes = std::min(call.segment_bytes, kBlindSegmentBytes);
  uint32_t window_bytes = kWindowBytes;
  if (shares_lines && window_bytes_ > 0) {
    const auto chunks = static_cast<double>(std::max<size_t>(1, call.plan->index_of_chunk.size()));
    window_bytes =
        static_cast<uint32_t>(std::clamp(window_bytes_ / chunks, kWindowBytesMin, kWindowBytesMax));
  }
  const uint32_t segment_bytes = wire_bytes(call, call.segment_bytes);
  call.window_segments = std::max(kWindowSegments, window_bytes / segment_bytes);
  if (shares_lines) {
    call.grant_segments = call.window_segments / 2;
    if (window_bytes_ == 0) return;
    if (call.signature.collective == transport::Collective::AllReduce) {
      call.segment_bytes_of = segments_by_length(call);
      call.queued_frames_max = kQueuedFrames;
    }
    call.windows_from = windows_from(call);
    return;
  }
  // One flow a line: it needs the slack, and nothing runs ahead of it.
  call.window_segments_max = static_cast<uint32_t>(kWindowBytesMax) / segment_bytes;
  call.grant_segments = std::max(1U, call.window_segments / kGrantsPerWindow);
}

// What the path from a rank holds, so many times, is shared among the chunks that come that way to
// be reduced here.
std::vector<uint32_t> CallCuts::windows_from(const CollectiveCall& call) const {
  const auto ranks = static_cast<size_t>(links_->world_size);
  std::vector<double> segments(ranks);  // bytes of one of each chunk
  for (size_t i = 0; i < call.plan->chunks.size(); ++i) {
    const uint32_t bytes =
        call.segment_bytes_of.empty() ? call.segment_bytes : call.segment_bytes_of[i];
    for (const int32_t child : call.plan->chunks[i].up_children)
      segments[static_cast<size_t>(child)] += wire_bytes(call, bytes);
  }
  std::vector<double> bytes(ranks);
  double all = 0;
  for (size_t from = 0; from < ranks; ++from) {
    if (segments[from] == 0) continue;
    bytes[from] = kWindowPaths * path_bytes(links_->at(static_cast<int32_t>(from), rank_));
    all += bytes[from];
  }
  const double part = std::min(1.0, kWindowsBytesMax / std::max(all, 1.0));
  std::vector<uint32_t> windows(ranks);
  for (size_t from = 0; from < ranks; ++from) {
    if (segments[from] == 0) continue;
    const double window = part * bytes[from] / segments[from];
    const double window_max = kWindowBytesMax / wire_bytes(call, call.segment_bytes);
    windows[from] = static_cast<uint32_t>(std::min(window, window_max));
  }
  return windows;
}

}  // namespace pccl
