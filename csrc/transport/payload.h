// Received bytes: lent for the duration of a callback, or held for longer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace pccl::transport {

// Recycles the buffers of segments, so that large ones are not mapped and unmapped by every
// message. Driver only. Keeps at most kKeptBytesMax; more is given back to the system.
class BufferPool {
 public:
  static constexpr size_t kKeptBytesMax = 16 << 20;

  struct Buffer {
    std::unique_ptr<std::byte[]> bytes;
    size_t capacity = 0;
  };
  Buffer take(size_t bytes);
  void give_back(Buffer buffer);
  size_t kept_bytes() const { return kept_bytes_; }

 private:
  std::vector<Buffer> free_;
  size_t kept_bytes_ = 0;
};

class Payload;

// Something that can keep a record of received bytes alive in place (a shared-memory ring). It may
// end that at any time by Payload::move_out().
class RecordHolder {
 public:
  virtual ~RecordHolder() = default;
  virtual bool hold(uint64_t record,
                    Payload* payload) = 0;  // false: no room to keep it here, copy it
  virtual void moved(uint64_t record, Payload* payload) = 0;
  virtual void release(uint64_t record) = 0;
};

// Move-only. data() is valid until the callback that received it returns; after keep(), until
// destruction.
class Payload {
 public:
  Payload() = default;
  // Lent memory; `holder` may be null.
  Payload(const std::byte* data, size_t size, BufferPool* pool,
          std::shared_ptr<RecordHolder> holder = nullptr, uint64_t record = 0)
      : data_(data), size_(size), pool_(pool), holder_(std::move(holder)), record_(record) {}
  // A buffer of its own.
  Payload(BufferPool::Buffer buffer, size_t size, BufferPool* pool)
      : data_(buffer.bytes.get()), size_(size), pool_(pool), buffer_(std::move(buffer)) {}
  Payload(Payload&& other) noexcept { *this = std::move(other); }
  Payload& operator=(Payload&& other) noexcept;
  Payload(const Payload&) = delete;
  Payload& operator=(const Payload&) = delete;
  ~Payload() { reset(); }

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  // The buffer to write into, if these bytes have one of their own; else null.
  std::byte* own_buffer() { return buffer_.bytes.get(); }
  // Makes data() last as long as this object.
  void keep();
  // By the record holder: copies the bytes into a buffer; the record is no longer needed.
  void move_out();
  void reset();

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  BufferPool* pool_ = nullptr;
  BufferPool::Buffer buffer_;
  std::shared_ptr<RecordHolder> holder_;
  uint64_t record_ = 0;
  bool holds_record_ = false;
};

}  // namespace pccl::transport
