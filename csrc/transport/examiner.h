// The coordinator's side of an examination (transport/examination.h). Driver only.
//
// It must not be a tool against others: it dials the address that the call came from and no other,
// says nothing there, and hangs up; one caller is examined at a time, and each source may ask so
// often only. Who asks has passed the same gate as a member.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "transport/engine.h"
#include "transport/examination.h"
#include "transport/handshake.h"
#include "transport/source_limit.h"
#include "transport/stream.h"

namespace pccl::transport {

// So often one source may ask.
inline constexpr double kExaminationsPerSecond = 0.1;
inline constexpr double kExaminationsAtOnce = 3;

class Examiner final : public Pollable {
 public:
  // `stream`: of a caller that was answered Alive; `port`: to dial, 0: none.
  Examiner(Engine& engine, Stream stream, uint16_t port, TimePoint now);
  ~Examiner() override;

  void on_events(uint32_t epoll_events) override;
  void on_turn() override { on_events(0); }
  TimePoint on_time(TimePoint now);
  bool finished() const { return stage_ == Stage::Over; }

 private:
  enum class Stage : uint8_t { Dialing, Receiving, Sending, Parting, Over };
  class Dial final : public Pollable {
   public:
    explicit Dial(Examiner& examiner) : examiner_(examiner) {}
    void on_events(uint32_t epoll_events) override;

   private:
    Examiner& examiner_;
  };

  void dial(uint16_t port, TimePoint now);
  void end_dial(const std::string& error);
  void tell(const std::vector<std::byte>& bytes, Stage next);
  void step(BurstStep done, Stage next);
  void finish();

  Engine& engine_;
  Stream stream_;
  Stage stage_ = Stage::Dialing;
  const TimePoint deadline_;
  Dial dial_events_;
  FileDescriptor dialed_;
  TimePoint dialed_at_;
  Sighting sighting_;
  BurstReceiver receiver_;
  BurstSender sender_;
};

// Those of one endpoint.
class Examinations {
 public:
  explicit Examinations(Engine& engine) : engine_(engine) {}
  // Why this caller is not examined now; "": it is.
  std::string why_not(const SocketAddress& caller, TimePoint now);
  void begin(Stream stream, uint16_t port, TimePoint now);
  TimePoint on_time(TimePoint now);

 private:
  Engine& engine_;
  SourceLimit limit_{kExaminationsPerSecond, kExaminationsAtOnce};
  std::unique_ptr<Examiner> current_;
};

}  // namespace pccl::transport
