// Handshakes in progress: Dialer calls another member, Greeter answers a call. Driver only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/file_descriptor.h"
#include "transport/connection.h"
#include "transport/engine.h"
#include "transport/handshake.h"
#include "transport/memory_link.h"
#include "transport/stream.h"

namespace pccl::transport {

class Endpoint;

// Tries the roads to one member in turn (memory, then each address) until one answers or the
// deadline passes. After a break only those that led to it before, again and again: a refusal there
// says that its process is gone.
class Dialer final : public Pollable {
 public:
  struct Options {
    Intent intent = Intent::Open;
    uint16_t socket_index = 0;
    TimePoint deadline;
  };
  Dialer(Endpoint& endpoint, Connection& connection, const Options& options);
  ~Dialer() override;

  void begin(TimePoint now);
  void on_events(uint32_t epoll_events) override;
  // Retries and deadlines; false when it is finished and may be destroyed.
  TimePoint on_time(TimePoint now);
  bool finished() const { return finished_; }
  Connection& connection() const { return connection_; }
  uint16_t socket_index() const { return options_.socket_index; }
  bool resumes() const { return options_.intent == Intent::Resume; }
  bool is_asking() const { return stage_ == Stage::Asking; }
  bool is_resting() const { return stage_ == Stage::Resting; }
  void cancel();

 private:
  enum class Stage : uint8_t { Resting, Connecting, Securing, Asking };

  void try_next(TimePoint now);
  bool try_memory();
  bool make_memory();
  Clock::duration candidate_timeout() const;
  void rest(TimePoint now);
  bool is_peer_gone(bool is_refused);
  void secure();
  void fail_securing(const std::string& error);
  void ask(Road road);
  void read_reply();
  void take_reply(const Reply& reply);
  // `is_final`: trying again will not help.
  void fail_candidate(const std::string& reason, bool is_final = false);
  void finish();

  Endpoint& endpoint_;
  Connection& connection_;
  const Options options_;
  TimePoint candidate_deadline_;
  TimePoint retry_at_;
  Clock::duration pause_;
  std::vector<SocketAddress> candidates_;
  bool has_memory_ = false;
  bool memory_pending_ = false;
  size_t next_ = 0;
  int final_rounds_ = 0;   // in a row
  bool all_final_ = true;  // in this round
  Stage stage_ = Stage::Resting;
  Stream socket_;
  Hello hello_;
  std::vector<FileDescriptor> descriptors_;  // memory file, our eventfd, the peer's eventfd
  std::vector<std::byte> received_;
  std::string last_reason_;
  bool finished_ = false;
};

// Reads the Hello of an accepted socket and answers it. A stranger gets a sentence and a closed
// socket.
class Greeter final : public Pollable {
 public:
  Greeter(Endpoint& endpoint, Stream socket, bool is_memory, TimePoint deadline);
  ~Greeter() override;

  void on_events(uint32_t epoll_events) override;
  TimePoint on_time(TimePoint now);
  bool finished() const { return finished_; }
  // There are too many callers.
  void give_way();

 private:
  void refuse(Answer answer, const std::string& reason);
  void count_refused(const std::string& reason);
  bool read_hello();
  void examine(uint16_t port);
  bool meet();  // who must speak TLS, does
  void prove(const Hello& hello, Connection& connection);
  void finish();

  Endpoint& endpoint_;
  Stream socket_;
  const bool is_memory_;
  const TimePoint deadline_;
  std::vector<FileDescriptor> descriptors_;
  std::vector<std::byte> received_;
  bool has_begun_ = false;  // plain or TLS is decided
  bool finished_ = false;
};

}  // namespace pccl::transport
