#include "transport/window.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace pccl::transport {

void OutFrame::detach(BufferPool* pool) {
  if (payload != nullptr && pool != nullptr) {
    buffer = pool->take(header.length);
    std::memcpy(buffer.bytes.get(), payload, header.length);
  } else if (payload != nullptr) {
    owned.assign(payload, payload + header.length);
  }
  payload = nullptr;
  owner = nullptr;
}

// --- SendWindow ----------------------------------------------------------------------------------

SentFrame& SendWindow::add(OutFrame frame, const Link& carrier) {
  frame.header.sequence = keeps_ ? next_ : 0;
  next_ += 1;
  bytes_ += sizeof(FrameHeader) + frame.header.length;
  SentFrame& sent = frames_.emplace_back();
  sent.frame = std::move(frame);
  sent.carrier = &carrier;
  return sent;
}

SentFrame* SendWindow::take_lost(const Link& carrier) {
  while (!lost_.empty()) {
    const uint32_t sequence = lost_.front();
    lost_.pop_front();
    const uint32_t first = next_ - static_cast<uint32_t>(frames_.size());
    const uint32_t index = sequence - first;
    if (index >= frames_.size() || is_acknowledged(frames_[index])) continue;
    frames_[index].carrier = &carrier;
    return &frames_[index];
  }
  return nullptr;
}

void SendWindow::on_written(SentFrame& sent) {
  sent.is_written = true;
  // The owner is told, and what does not stay may change then.
  if (keeps_ && sent.frame.payload != nullptr && !sent.frame.stays) sent.frame.detach(pool_);
  release();
}

bool SendWindow::acknowledge(uint32_t sequence) {
  if (!may_acknowledge(sequence)) return false;
  if (static_cast<int32_t>(sequence - acknowledged_) <= 0) return true;
  acknowledged_ = sequence;
  release();
  return true;
}

void SendWindow::lose(const Link& carrier) {
  const uint32_t first = next_ - static_cast<uint32_t>(frames_.size());
  for (uint32_t i = 0; i < frames_.size(); ++i) {
    SentFrame& sent = frames_[i];
    if (sent.carrier != &carrier) continue;
    sent.carrier = nullptr;
    sent.was_begun |= sent.is_written;
    sent.is_written = false;
    lost_.push_back(first + i);
  }
  std::sort(lost_.begin(), lost_.end(),
            [first](uint32_t a, uint32_t b) { return a - first < b - first; });
  release();
}

void SendWindow::detach(const FrameOwner* owner) {
  for (SentFrame& sent : frames_) {
    if (sent.frame.owner == owner) sent.frame.detach(pool_);
  }
}

void SendWindow::clear() {
  frames_.clear();
  lost_.clear();
  bytes_ = 0;
}

// Frames that a link is writing stay until it has: the stream would have a hole.
void SendWindow::release() {
  while (!frames_.empty()) {
    SentFrame& front = frames_.front();
    const bool is_being_written = front.carrier != nullptr && !front.is_written;
    const bool is_needed = keeps_ ? !is_acknowledged(front) : !front.is_written;
    if (is_being_written || is_needed) return;
    bytes_ -= sizeof(FrameHeader) + front.frame.header.length;
    if (pool_ != nullptr) pool_->give_back(std::move(front.frame.buffer));
    frames_.pop_front();
  }
}

// --- ReceiveWindow -------------------------------------------------------------------------------

void ReceiveWindow::consume(uint32_t sequence) {
  const uint32_t ahead = sequence - consumed_;
  if (ahead > 0) {
    if (early_.size() <= ahead) early_.resize(ahead + 1);
    early_[ahead] = true;
    return;
  }
  consumed_ += 1;
  if (!early_.empty()) early_.pop_front();
  while (!early_.empty() && early_.front()) {
    early_.pop_front();
    consumed_ += 1;
  }
}

// --- ReplayGuard ---------------------------------------------------------------------------------

bool ReplayGuard::admit(uint32_t number) {
  if (number > largest_) {
    const uint32_t shift = number - largest_;
    seen_ = shift >= 64 ? 0 : seen_ << shift;
    seen_ |= 1;
    largest_ = number;
    return true;
  }
  const uint32_t age = largest_ - number;
  if (number == 0 || age >= 64 || (seen_ >> age & 1) != 0) return false;
  seen_ |= uint64_t{1} << age;
  return true;
}

}  // namespace pccl::transport
