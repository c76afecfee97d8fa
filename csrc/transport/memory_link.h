// Frames between two members of one host, through a ring of shared memory in each direction.
//
// The memory is an unnamed file (memfd) that the dialing side makes and hands over on a UNIX
// socket; it is gone with the last process that has it, kill -9 included. A peer that sleeps is
// woken through its eventfd, a peer that is awake costs no system call. The UNIX socket tells when
// the peer's process is gone.
//
// A record in a ring: kRecordHeaderBytes (frame header, padding), then the payload, padded to 64
// bytes. Records do not wrap; a filler ends the ring's last stretch. Everything read from the ring
// is checked: the peer is another program.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "base/file_descriptor.h"
#include "transport/connection.h"
#include "transport/engine.h"
#include "transport/frame.h"

namespace pccl::transport {

// Shared between two processes: lock-free atomics only.
struct RingControl {
  alignas(64) std::atomic<uint64_t> head;           // bytes written, ever
  alignas(64) std::atomic<uint64_t> tail;           // bytes freed, ever
  alignas(64) std::atomic<uint32_t> reader_sleeps;  // wake it after writing
  alignas(64) std::atomic<uint32_t> writer_waits;   // wake it after freeing
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// Small enough that the rings of a host's members stay in a shared cache: 2 MiB are a fifth slower
// with four members. Twice this is mapped for each pair of members on a host that talk.
inline constexpr size_t kRingBytes = 640 << 10;
inline constexpr size_t kRecordHeaderBytes = 128;
static_assert(kRingBytes >= kRecordHeaderBytes + kPayloadBytesMax);

// The mapping, with both rings. Outlives its link while a payload is held in it.
class SharedRings {
 public:
  static constexpr size_t kControlBytes = 4096;
  static constexpr size_t kBytes = kControlBytes + 2 * kRingBytes;

  // A new memory file, sealed against shrinking. Throws std::system_error.
  static FileDescriptor create();
  // Maps `file`. Throws std::runtime_error where it isn't such a file.
  explicit SharedRings(int file);
  ~SharedRings();
  SharedRings(const SharedRings&) = delete;
  SharedRings& operator=(const SharedRings&) = delete;

  RingControl& control(int direction) { return reinterpret_cast<RingControl*>(base_)[direction]; }
  std::byte* data(int direction) { return base_ + kControlBytes + size_t(direction) * kRingBytes; }

 private:
  std::byte* base_ = nullptr;
};

class MemoryLink;

// The reading side of one ring: which records are still needed.
class RingReader final : public RecordHolder {
 public:
  explicit RingReader(std::shared_ptr<SharedRings> rings, int direction, int peer_eventfd);
  bool hold(uint64_t record, Payload* payload) override;
  void moved(uint64_t record, Payload* payload) override;
  void release(uint64_t record) override;
  // If the writer waits for room that held records take: has them copied. Otherwise a circle of
  // members, each waiting for the next with its own ring full, would wait for ever.
  void make_room();
  // Room is lent to held records only while half of the ring stays free for the others.
  static constexpr size_t kHeldBytesMax = kRingBytes / 2;

  RingControl& control;
  std::byte* const data;
  uint64_t read = 0;  // bytes handed out, ever

  void begin_record(uint64_t bytes);  // advances `read`
  void end_record(uint64_t record);   // its callback returned: frees it unless it is held
  bool link_is_up = true;

 private:
  struct Record {
    uint64_t end = 0;
    uint64_t bytes = 0;
    bool is_held = true;
    Payload* payload = nullptr;  // the holder
  };
  void free_released();
  Record* find(uint64_t record);

  std::shared_ptr<SharedRings> rings_;  // owned with the link and every held payload
  int peer_eventfd_;
  std::deque<Record> records_;  // in ring order; front is the oldest that is not freed
  uint64_t held_bytes_ = 0;
};

class MemoryLink final : public Link, public Pollable {
 public:
  // `side` 0 writes ring 0 and reads ring 1 (the dialing side), `side` 1 the other way round.
  MemoryLink(LinkHost& host, Connection& connection, FileDescriptor socket,
             std::shared_ptr<SharedRings> rings, int side, FileDescriptor own_eventfd,
             FileDescriptor peer_eventfd);
  ~MemoryLink() override;

  void flush() override;
  std::byte* reserve(uint32_t length) override;
  void commit(const FrameHeader& header) override;
  void abandon(const FrameOwner*) override {}
  bool has_unsent() const override { return false; }
  bool shares_memory() const override { return true; }
  void shutdown_writing() override;
  void cut() override;

  void on_events(uint32_t epoll_events) override;
  void on_turn() override;

  // The driver goes to sleep: true if there is something to read or to write after all.
  bool before_sleep();
  void after_sleep();

 private:
  // Frames read before others get their turn.
  static constexpr int kTurnFrames = 16;

  void receive();
  void stop(const Error& error);
  static void wake(const FileDescriptor& eventfd);
  std::byte* find_room(uint64_t wanted);
  void publish();  // what has been written

  LinkHost& host_;
  Connection& connection_;
  FileDescriptor socket_;
  FileDescriptor own_eventfd_;
  FileDescriptor peer_eventfd_;
  std::shared_ptr<SharedRings> rings_;
  std::shared_ptr<RingReader> reader_;
  RingControl& out_;
  std::byte* const out_data_;
  uint64_t written_ = 0;
  bool is_down_ = false;
  bool peer_closed_ = false;
};

}  // namespace pccl::transport
