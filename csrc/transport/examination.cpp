#include "transport/examination.h"

#include <sys/uio.h>

#include <algorithm>
#include <chrono>

#include "base/bytes.h"

namespace pccl::transport {
namespace {

// Of one burst, before others get their turn.
constexpr int kBlocksPerTurn = 64;
// Between two samples.
constexpr auto kSamplePause = std::chrono::milliseconds(2);
constexpr size_t kWordsMax = 200;

}  // namespace

std::vector<std::byte> Sighting::encode() const {
  ByteWriter body;
  body.put_text(seen_as.substr(0, kWordsMax));
  body.put(static_cast<uint8_t>(was_dialed));
  body.put(static_cast<uint8_t>(is_reached));
  body.put(microseconds);
  body.put_text(error.substr(0, kWordsMax));
  ByteWriter out;
  out.put(static_cast<uint16_t>(body.bytes().size()));
  out.put_bytes(body.bytes());
  return out.bytes();
}

std::optional<Sighting> Sighting::decode(std::span<const std::byte> body) {
  ByteReader in(body);
  Sighting result;
  result.seen_as = in.get_text(kWordsMax);
  result.was_dialed = in.get<uint8_t>() != 0;
  result.is_reached = in.get<uint8_t>() != 0;
  result.microseconds = in.get<uint32_t>();
  result.error = in.get_text(kWordsMax);
  if (!in.ok() || !in.at_end()) return std::nullopt;
  return result;
}

BurstStep BurstSender::go_on(Stream& stream, TimePoint now) {
  if (end_ == TimePoint{}) end_ = after(now, kBurstSeconds);
  std::array<std::byte, kBurstBlockBytes> block{};
  std::string error;
  for (int blocks = 0; blocks < kBlocksPerTurn; ++blocks) {
    if (in_block_ == block.size() && is_last_) {
      if (stream.send({}, error) < 0) return BurstStep::Failed;
      return stream.has_unsent() ? BurstStep::Waits : BurstStep::Done;
    }
    in_block_ %= block.size();
    if (in_block_ == 0) is_last_ = now >= end_ || bytes_ + block.size() >= kBurstBytesMax;
    block[0] = std::byte{static_cast<uint8_t>(is_last_ ? 0 : 1)};
    const iovec part{block.data() + in_block_, block.size() - in_block_};
    const long count = stream.send({&part, 1}, error);
    if (count < 0) return BurstStep::Failed;
    if (count == 0) return BurstStep::Waits;
    in_block_ += static_cast<size_t>(count);
    bytes_ += static_cast<uint64_t>(count);
  }
  return BurstStep::Again;
}

BurstStep BurstReceiver::go_on(Stream& stream, TimePoint now) {
  std::array<std::byte, kBurstBlockBytes> block;
  std::string error;
  for (int reads = 0; reads < kBlocksPerTurn; ++reads) {
    const long count = stream.receive(block.data(), block.size() - in_block_, error);
    if (count < 0) return BurstStep::Failed;
    if (count == 0) return BurstStep::Waits;
    if (in_block_ == 0) is_last_ = block[0] == std::byte{0};
    in_block_ += static_cast<size_t>(count);
    note(static_cast<size_t>(count), now);
    if (in_block_ == block.size() && is_last_) return BurstStep::Done;
    if (bytes_ >= kBurstBytesMax) return BurstStep::Failed;
    in_block_ %= block.size();
  }
  return BurstStep::Again;
}

void BurstReceiver::note(size_t bytes, TimePoint now) {
  bytes_ += bytes;
  last_ = now;
  if (samples_.empty() || now - samples_.back().first >= kSamplePause)
    samples_.emplace_back(now, bytes_);
}

double BurstReceiver::bytes_per_second() const {
  if (samples_.empty()) return 0;
  const TimePoint middle = samples_.front().first + (last_ - samples_.front().first) / 2;
  const auto from = std::find_if(samples_.rbegin(), samples_.rend(),
                                 [middle](const auto& sample) { return sample.first <= middle; });
  const double seconds = std::chrono::duration<double>(last_ - from->first).count();
  return seconds > 0 ? static_cast<double>(bytes_ - from->second) / seconds : 0;
}

}  // namespace pccl::transport
