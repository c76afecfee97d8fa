#include "transport/connection.h"

#include <algorithm>

namespace pccl::transport {

void Connection::send(OutFrame frame) { data_.push_back(std::move(frame)); }

void Connection::abandon(const FrameOwner* owner) {
  std::erase_if(data_, [this, owner](const OutFrame& frame) {
    if (frame.owner != owner) return false;
    // The receiver can't give credit back for what it never gets.
    if ((frame.header.flags & kFlagUngranted) != 0) on_credit(frame.header.length);
    return true;
  });
  for (auto& link : links_) link->abandon(owner);
}

std::byte* Connection::reserve(uint32_t length) {
  if (state != State::Up || links_.size() != 1 || !control_.empty() || !data_.empty())
    return nullptr;
  return links_.front()->reserve(length);
}

void Connection::commit(const FrameHeader& header) { links_.front()->commit(header); }

void Connection::flush() {
  if (state != State::Up) return;
  // Links may be closed by their own flush; the endpoint then takes them away after the loop that
  // it drives.
  for (size_t i = 0;
       i < links_.size() && !(control_.empty() && data_.empty() && !links_[i]->has_unsent()); ++i) {
    links_[i]->flush();
  }
}

bool Connection::has_unsent() const {
  return !control_.empty() || !data_.empty() ||
         std::any_of(links_.begin(), links_.end(),
                     [](const auto& link) { return link->has_unsent(); });
}

OutFrame* Connection::front_frame() {
  if (!control_.empty()) return &control_.front();
  return data_.empty() ? nullptr : &data_.front();
}

OutFrame Connection::pop_frame() {
  std::deque<OutFrame>& queue = control_.empty() ? data_ : control_;
  OutFrame frame = std::move(queue.front());
  queue.pop_front();
  return frame;
}

void Connection::prove(const SocketAddress& address) {
  const bool is_known = std::find(proven.begin(), proven.end(), address) != proven.end();
  if (!is_known && proven.size() < kHostsMax) proven.push_back(address);
}

void Connection::note_ungranted_consumed(uint32_t length) {
  ungranted_consumed_ += cost(length);
  if (ungranted_consumed_ < kUngrantedBytesMax / 8) return;
  send_control(FrameHeader{.type = FrameType::Credit, .count = ungranted_consumed_});
  ungranted_consumed_ = 0;
}

}  // namespace pccl::transport
