#include "transport/payload.h"

#include <bit>
#include <cstring>
#include <utility>

namespace pccl::transport {

BufferPool::Buffer BufferPool::take(size_t bytes) {
  for (size_t i = free_.size(); i-- > 0;) {
    if (free_[i].capacity < bytes || free_[i].capacity > 4 * bytes + 4096) continue;
    Buffer buffer = std::move(free_[i]);
    free_[i] = std::move(free_.back());
    free_.pop_back();
    kept_bytes_ -= buffer.capacity;
    return buffer;
  }
  const size_t capacity = std::bit_ceil(bytes < 256 ? size_t{256} : bytes);
  return {std::make_unique_for_overwrite<std::byte[]>(capacity), capacity};
}

void BufferPool::give_back(Buffer buffer) {
  if (buffer.capacity == 0 || kept_bytes_ + buffer.capacity > kKeptBytesMax) return;
  kept_bytes_ += buffer.capacity;
  free_.push_back(std::move(buffer));
}

Payload& Payload::operator=(Payload&& other) noexcept {
  if (this == &other) return *this;
  reset();
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  pool_ = other.pool_;
  buffer_ = std::move(other.buffer_);
  other.buffer_.capacity = 0;
  holder_ = std::move(other.holder_);
  record_ = other.record_;
  holds_record_ = std::exchange(other.holds_record_, false);
  if (holds_record_) holder_->moved(record_, this);
  return *this;
}

void Payload::keep() {
  if (buffer_.bytes || holds_record_ || size_ == 0) return;
  if (holder_ && holder_->hold(record_, this)) {
    holds_record_ = true;
    return;
  }
  move_out();
}

void Payload::move_out() {
  holds_record_ = false;
  BufferPool::Buffer buffer = pool_->take(size_);
  std::memcpy(buffer.bytes.get(), data_, size_);
  buffer_ = std::move(buffer);
  data_ = buffer_.bytes.get();
}

void Payload::reset() {
  if (buffer_.bytes && pool_ != nullptr) pool_->give_back(std::move(buffer_));
  buffer_ = {};
  if (holds_record_) holder_->release(record_);
  holder_.reset();
  holds_record_ = false;
  data_ = nullptr;
  size_ = 0;
}

}  // namespace pccl::transport
