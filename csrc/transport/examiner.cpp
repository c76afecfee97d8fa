#include "transport/examiner.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "transport/socket.h"

namespace pccl::transport {
namespace {

// A SYN and its first repetition, over any link.
constexpr double kDialSeconds = 3;
// For the whole examination: the dial, a burst each way, and what a slow link holds of them.
constexpr double kExaminationSeconds = 15;

}  // namespace

void Examiner::Dial::on_events(uint32_t epoll_events) {
  if ((epoll_events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0 && examiner_.dialed_)
    examiner_.end_dial(connect_error(examiner_.dialed_.get()));
}

Examiner::Examiner(Engine& engine, Stream stream, uint16_t port, TimePoint now)
    : engine_(engine),
      stream_(std::move(stream)),
      deadline_(after(now, kExaminationSeconds)),
      dial_events_(*this) {
  engine_.add(stream_.get(), this);
  sighting_.seen_as = remote_address(stream_.get()).describe();
  sighting_.was_dialed = port != 0;
  dial(port, now);
}

Examiner::~Examiner() { finish(); }

void Examiner::finish() {
  if (dialed_) engine_.remove(dialed_.get(), &dial_events_);
  dialed_.reset();
  if (stream_) engine_.remove(stream_.get(), this);
  stream_.reset();
  stage_ = Stage::Over;
}

void Examiner::dial(uint16_t port, TimePoint now) {
  dialed_at_ = now;
  if (port == 0) {
    end_dial("no port to dial");
    return;
  }
  SocketAddress place = remote_address(stream_.get());
  place.set_port(port);
  std::string error;
  dialed_ = begin_connect(place, error);
  if (dialed_) {
    engine_.add(dialed_.get(), &dial_events_);
    engine_.wake_at(after(now, kDialSeconds));
  } else {
    end_dial(error);
  }
}

void Examiner::end_dial(const std::string& error) {
  if (dialed_) engine_.remove(dialed_.get(), &dial_events_);
  dialed_.reset();
  sighting_.is_reached = error.empty();
  sighting_.error = error;
  sighting_.microseconds = static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - dialed_at_).count());
  tell(sighting_.encode(), Stage::Receiving);
}

void Examiner::tell(const std::vector<std::byte>& bytes, Stage next) {
  if (!stream_.send_whole(bytes)) {
    finish();
    return;
  }
  stage_ = next;
  engine_.again(this);
}

void Examiner::on_events(uint32_t /*epoll_events*/) {
  const TimePoint now = Clock::now();
  if (stage_ == Stage::Receiving) {
    const BurstStep done = receiver_.go_on(stream_, now);
    if (done == BurstStep::Done) {
      ByteWriter rate;
      rate.put(static_cast<uint64_t>(receiver_.bytes_per_second()));
      tell(rate.bytes(), Stage::Sending);
    } else {
      step(done, Stage::Receiving);
    }
  } else if (stage_ == Stage::Sending) {
    step(sender_.go_on(stream_, now), Stage::Parting);
  } else if (stage_ == Stage::Parting) {
    // Until the caller has read everything, and hangs up.
    std::array<std::byte, 256> rest;
    std::string error;
    if (stream_.receive(rest.data(), rest.size(), error) != 0) finish();
  }
}

void Examiner::step(BurstStep done, Stage next) {
  if (done == BurstStep::Failed) finish();
  if (done == BurstStep::Done) stage_ = next;
  if (done == BurstStep::Done || done == BurstStep::Again) engine_.again(this);
}

TimePoint Examiner::on_time(TimePoint now) {
  if (finished()) return TimePoint::max();
  if (now >= deadline_) {
    finish();
    return TimePoint::max();
  }
  if (stage_ != Stage::Dialing) return deadline_;
  const TimePoint patience = after(dialed_at_, kDialSeconds);
  if (now >= patience) end_dial("no answer within 3 s");
  return std::min(deadline_, stage_ == Stage::Dialing ? patience : deadline_);
}

std::string Examinations::why_not(const SocketAddress& caller, TimePoint now) {
  if (current_ && !current_->finished()) return "busy: another caller is being examined";
  if (!limit_.admit(caller, now))
    return "busy: this address was examined several times just now, and may ask again in 10 s";
  return "";
}

void Examinations::begin(Stream stream, uint16_t port, TimePoint now) {
  current_ = std::make_unique<Examiner>(engine_, std::move(stream), port, now);
  engine_.wake_at(now);
}

TimePoint Examinations::on_time(TimePoint now) {
  return current_ ? current_->on_time(now) : TimePoint::max();
}

}  // namespace pccl::transport
