#include "transport/memory_link.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace pccl::transport {
namespace {

constexpr uint32_t kFillerMagic = 0x58434350;  // "PCCX": skip to the ring's start
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

uint64_t record_bytes(uint32_t length) {
  return kRecordHeaderBytes + ((uint64_t{length} + 63) & ~uint64_t{63});
}

}  // namespace

// --- SharedRings ---------------------------------------------------------------------------------

FileDescriptor SharedRings::create() {
  FileDescriptor file(memfd_create("pccl", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file || ftruncate(file.get(), kBytes) != 0 || fcntl(file.get(), F_ADD_SEALS, kSeals) != 0) {
    throw std::system_error(errno, std::generic_category(), "shared memory: memfd_create");
  }
  return file;
}

SharedRings::SharedRings(int file) {
  struct stat status {};
  // Sealed, so that the other process can't take the memory away under our reads (SIGBUS).
  if (fstat(file, &status) != 0 || status.st_size != static_cast<off_t>(kBytes) ||
      (fcntl(file, F_GET_SEALS) & kSeals) != kSeals) {
    throw std::runtime_error("shared memory: not a sealed file of " + std::to_string(kBytes) +
                             " bytes");
  }
  void* base = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (base == MAP_FAILED)
    throw std::system_error(errno, std::generic_category(), "shared memory: mmap");
  base_ = static_cast<std::byte*>(base);
}

SharedRings::~SharedRings() { munmap(base_, kBytes); }

// --- RingReader ----------------------------------------------------------------------------------

RingReader::RingReader(std::shared_ptr<SharedRings> rings, int direction, int peer_eventfd)
    : control(rings->control(direction)),
      data(rings->data(direction)),
      rings_(std::move(rings)),
      peer_eventfd_(peer_eventfd) {}

void RingReader::begin_record(uint64_t bytes) {
  read += bytes;
  records_.push_back({.end = read, .bytes = bytes, .is_held = true});
}

void RingReader::end_record(uint64_t record) {
  // Held and released within its callback: gone already.
  if (records_.empty() || records_.back().end != record || records_.back().payload != nullptr)
    return;
  records_.back().is_held = false;
  free_released();
}

bool RingReader::hold(uint64_t record, Payload* payload) {
  Record& newest = records_.back();
  if (newest.end != record || held_bytes_ + newest.bytes > kHeldBytesMax) return false;
  held_bytes_ += newest.bytes;
  newest.payload = payload;
  return true;
}

RingReader::Record* RingReader::find(uint64_t record) {
  const auto found = std::find_if(records_.begin(), records_.end(),
                                  [record](const Record& entry) { return entry.end == record; });
  return found == records_.end() ? nullptr : &*found;
}

void RingReader::moved(uint64_t record, Payload* payload) {
  if (Record* entry = find(record)) entry->payload = payload;
}

void RingReader::release(uint64_t record) {
  if (Record* entry = find(record)) {
    entry->is_held = false;
    held_bytes_ -= entry->bytes;
  }
  free_released();
}

void RingReader::make_room() {
  if (held_bytes_ == 0 || control.writer_waits.load(std::memory_order_seq_cst) == 0) return;
  for (Record& entry : records_) {
    if (!entry.is_held || entry.payload == nullptr) continue;
    entry.payload->move_out();
    entry.is_held = false;
    held_bytes_ -= entry.bytes;
  }
  free_released();
}

void RingReader::free_released() {
  uint64_t tail = control.tail.load(std::memory_order_relaxed);
  const uint64_t before = tail;
  while (!records_.empty() && !records_.front().is_held) {
    tail = records_.front().end;
    records_.pop_front();
  }
  if (tail == before) return;
  control.tail.store(tail, std::memory_order_seq_cst);
  // Not for every record: a writer that is woken for each would sleep and wake for each.
  const bool has_room = read - tail <= kRingBytes / 2;
  if (has_room && link_is_up && control.writer_waits.load(std::memory_order_seq_cst) != 0 &&
      control.writer_waits.exchange(0) != 0) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(peer_eventfd_, &one, sizeof(one));
  }
}

// --- MemoryLink: writing -------------------------------------------------------------------------

MemoryLink::MemoryLink(LinkHost& host, Connection& connection, FileDescriptor socket,
                       std::shared_ptr<SharedRings> rings, int side, FileDescriptor own_eventfd,
                       FileDescriptor peer_eventfd)
    : host_(host),
      connection_(connection),
      socket_(std::move(socket)),
      own_eventfd_(std::move(own_eventfd)),
      peer_eventfd_(std::move(peer_eventfd)),
      rings_(std::move(rings)),
      reader_(std::make_shared<RingReader>(rings_, 1 - side, peer_eventfd_.get())),
      out_(rings_->control(side)),
      out_data_(rings_->data(side)) {
  host_.engine().add(socket_.get(), this);
  host_.engine().add(own_eventfd_.get(), this);
}

MemoryLink::~MemoryLink() {
  reader_->link_is_up = false;
  cut();
}

void MemoryLink::wake(const FileDescriptor& eventfd) {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(eventfd.get(), &one, sizeof(one));
}

std::byte* MemoryLink::find_room(uint64_t wanted) {
  const uint64_t at = written_ % kRingBytes;
  const uint64_t to_end = kRingBytes - at;
  const uint64_t free = kRingBytes - (written_ - out_.tail.load(std::memory_order_acquire));
  if (to_end >= wanted) return free >= wanted ? out_data_ + at : nullptr;
  if (free < to_end) return nullptr;
  std::memcpy(out_data_ + at, &kFillerMagic, sizeof(kFillerMagic));
  written_ += to_end;
  if (free - to_end >= wanted) return out_data_;
  // The rest and the longest record together may be longer than the ring: the reader must be able
  // to free the rest before there is room for the record.
  publish();
  return nullptr;
}

void MemoryLink::publish() {
  out_.head.store(written_, std::memory_order_seq_cst);
  if (out_.reader_sleeps.load(std::memory_order_seq_cst) != 0 &&
      out_.reader_sleeps.exchange(0) != 0) {
    wake(peer_eventfd_);
  }
}

std::byte* MemoryLink::reserve(uint32_t length) {
  if (is_down_) return nullptr;
  std::byte* record = find_room(record_bytes(length));
  return record == nullptr ? nullptr : record + kRecordHeaderBytes;
}

void MemoryLink::commit(const FrameHeader& header) {
  std::memcpy(out_data_ + written_ % kRingBytes, &header, sizeof(header));
  written_ += record_bytes(header.length);
  connection_.traffic.bytes_sent += sizeof(header) + header.length;
  publish();
}

void MemoryLink::flush() {
  while (!is_down_) {
    OutFrame* frame = connection_.front_frame();
    if (frame == nullptr) return;
    std::byte* room = reserve(frame->header.length);
    if (room == nullptr) {
      out_.writer_waits.store(1, std::memory_order_seq_cst);
      room = reserve(frame->header.length);
      if (room == nullptr) {
        // The reader wakes us; but if it sleeps, then on records that it holds, and must move them.
        if (out_.reader_sleeps.load(std::memory_order_seq_cst) != 0 &&
            out_.reader_sleeps.exchange(0) != 0) {
          wake(peer_eventfd_);
        }
        return;
      }
      out_.writer_waits.store(0, std::memory_order_relaxed);
    }
    OutFrame sent = connection_.pop_frame();
    if (sent.header.length > 0) std::memcpy(room, sent.bytes(), sent.header.length);
    commit(sent.header);
    host_.pool().give_back(std::move(sent.buffer));
    if (sent.owner != nullptr) sent.owner->on_sent(sent.cookie);
  }
}

void MemoryLink::shutdown_writing() {
  if (!is_down_) ::shutdown(socket_.get(), SHUT_WR);
}

// --- MemoryLink: reading -------------------------------------------------------------------------

void MemoryLink::on_events(uint32_t epoll_events) {
  if ((epoll_events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) peer_closed_ = true;
  receive();
  if (!is_down_) flush();
}

void MemoryLink::on_turn() {
  receive();
  if (!is_down_) flush();  // answers that receiving has queued
}

bool MemoryLink::before_sleep() {
  if (is_down_) return false;
  reader_->control.reader_sleeps.store(1, std::memory_order_seq_cst);
  if (reader_->control.head.load(std::memory_order_seq_cst) == reader_->read) {
    reader_->make_room();
    return false;
  }
  host_.engine().again(this);
  return true;
}

void MemoryLink::after_sleep() {
  if (!is_down_) reader_->control.reader_sleeps.store(0, std::memory_order_relaxed);
}

void MemoryLink::cut() {
  if (is_down_) return;
  is_down_ = true;
  host_.engine().remove(socket_.get(), this);
  host_.engine().remove(own_eventfd_.get(), this);
}

void MemoryLink::stop(const Error& error) {
  if (is_down_) return;
  cut();
  host_.on_link_down(connection_, *this, error);
}

void MemoryLink::receive() {
  const std::shared_ptr<RingReader> reader = reader_;
  for (int frames = 0; !is_down_; ++frames) {
    const uint64_t head = reader->control.head.load(std::memory_order_acquire);
    if (head == reader->read) {
      if (peer_closed_) stop({});
      return;
    }
    if (frames == kTurnFrames) {
      host_.engine().again(this);
      return;
    }
    const uint64_t at = reader->read % kRingBytes;
    const uint64_t to_end = kRingBytes - at;
    FrameHeader header;
    std::string fault;
    if (head - reader->read > kRingBytes) {
      fault = "ring indexes out of range";
    } else {
      uint32_t magic = 0;
      std::memcpy(&magic, reader->data + at, sizeof(magic));
      if (magic == kFillerMagic) {
        reader->begin_record(to_end);
        reader->end_record(reader->read);
        continue;
      }
      if (to_end < kRecordHeaderBytes) {
        fault = "header across the ring's end";
      } else {
        std::memcpy(&header, reader->data + at, sizeof(header));
        if (auto found = find_fault(header)) fault = *found;
        if (fault.empty() && record_bytes(header.length) > std::min(to_end, head - reader->read)) {
          fault = "record beyond what was written";
        }
      }
    }
    if (!fault.empty()) {
      host_.on_bad_frame(connection_, fault);
      stop({ErrorKind::RemoteProtocol, fault});
      return;
    }
    reader->begin_record(record_bytes(header.length));
    const uint64_t record = reader->read;
    connection_.traffic.bytes_received += sizeof(header) + header.length;
    host_.sink().on_frame(connection_, header,
                          Payload(reader->data + at + kRecordHeaderBytes, header.length,
                                  &host_.pool(), reader, record));
    reader->end_record(record);
  }
}

}  // namespace pccl::transport
