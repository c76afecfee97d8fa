// One member's place on the network: its listening sockets, its handshakes, its connections, its
// engine.
//
// A connection is made when it is first needed, by whichever side needs it. If both dial at once,
// the dial of the smaller member id stands. Members that share a kernel and a user are dialed
// through a UNIX socket and then talk by memory; everybody else over TCP, `sockets` of them
// striped.
//
// Thread safety: constructor, start(), close(), address(), statistics() from the owner's thread;
// the rest driver only.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/file_descriptor.h"
#include "base/flight_recorder.h"
#include "transport/connection.h"
#include "transport/endpoint_options.h"
#include "transport/engine.h"
#include "transport/handshake.h"
#include "transport/identity.h"
#include "transport/memory_link.h"
#include "transport/source_limit.h"
#include "transport/stream.h"

namespace pccl::transport {

class Dialer;
class Examinations;
class Greeter;

class Endpoint final : public LinkHost, public Periodic {
 public:
  // Binds and listens. Throws ConnectError (port in use, no such interface), std::invalid_argument.
  Endpoint(EndpointOptions options, FrameSink& sink);
  ~Endpoint() override;

  void start() { engine_.start(); }
  // Says goodbye, waits for what is queued until `deadline`, closes everything. Idempotent.
  void close(TimePoint deadline);
  const MemberAddress& address() const { return address_; }
  Statistics statistics();
  // The same, and what went to each member that it is connected with. Driver only.
  Statistics count() const;
  std::vector<LinkTraffic> link_traffic() const;
  std::string flight_record();  // as JSON lines; see base/flight_recorder.h
  // Of its events those after the first `seen` ones; and how many there are now.
  std::pair<std::string, uint64_t> flight_events(uint64_t seen);

  Engine& engine() override { return engine_; }
  BufferPool& pool() override { return pool_; }
  FrameSink& sink() override { return sink_; }
  FlightRecorder& recorder() { return recorder_; }
  // The connection to that member, made if unknown (Idle). `resolved`: where to dial.
  Connection& connection(const MemberAddress& peer, const std::vector<SocketAddress>& resolved);
  // A new connection, dialed at once, to whoever answers there as a coordinator: one TCP socket.
  // `label` is for errors. With a fingerprint that side must have that key, and sees the token.
  Connection& call(const std::string& label, std::vector<SocketAddress> resolved,
                   const Fingerprint& fingerprint = {}, const std::optional<Token>& token = {});
  // Gives a Closed (or Idle) connection back; nobody may use it any more, and its member may call.
  void forget(Connection& connection);
  // Says goodbye to this member alone, behind what is queued for it; ends one being dialed at once.
  void hang_up(Connection& connection);
  // Ends it at once, whatever is queued.
  void give_up(Connection& connection, const std::string& reason) {
    end_connection(connection, {ErrorKind::Aborted, reason});
  }
  // Starts dialing an Idle connection.
  void dial(Connection& connection);
  // connection.flush() before the driver sleeps.
  void mark_unsent(Connection& connection) override;
  void note_probe(uint64_t bytes) { ended_.probe_bytes += bytes; }

  // LinkHost, Periodic.
  void on_link_down(Connection& connection, Link& link, const Error& error) override;
  void on_bad_frame(Connection& connection, const std::string& fault) override;
  TimePoint on_time(TimePoint now) override;
  void flush() override;
  bool before_sleep() override;
  void after_sleep() override;

  // --- for Dialer and Greeter ---
  const EndpointOptions& options() const { return options_; }
  // What both sides have said in a handshake that was welcome.
  struct Agreement {
    Hello hello;
    int side = 0;  // 0: this one dialed
    bool resumes = false;
    uint32_t consumed = 0;  // by the other side
  };
  void adopt(Connection& connection, Stream stream, std::vector<FileDescriptor> descriptors,
             const Agreement& agreement);
  bool wants_to_resume(const Connection& connection) const {
    return options_.grace_seconds > 0 && !connection.is_called;
  }
  void on_dial_failed(Connection& connection, const std::string& reason);
  // Nobody listens where its process did; false: it has other sockets.
  bool on_peer_ended(Connection& connection);
  void on_peer_alive(Connection& connection);  // but the connection is not to be had again
  void dial_more(Connection& connection);      // the other stripes
  // `tls`: through which the caller came; null: plain, or memory.
  Reply judge(const Hello& hello, const TlsSession* tls, Connection*& connection);
  void count_refused(const std::string& caller, const std::string& reason) {
    refused_ += 1;
    if (options_.on_refused) options_.on_refused(caller, reason);
  }
  void count_late() { refused_late_ += 1; }
  void count_plain() { refused_plain_ += 1; }
  // Whether bytes from and to there go through TLS.
  bool secures(const SocketAddress& remote) const {
    return options_.tls == TlsUse::Always ||
           (options_.tls == TlsUse::Remote && !remote.is_loopback());
  }
  bool has_key() const { return options_.tls != TlsUse::Never; }
  const std::shared_ptr<const Identity>& identity() const { return identity_; }
  Examinations& examinations() { return *examinations_; }

 private:
  class Listener final : public Pollable {
   public:
    Listener(Endpoint& endpoint, FileDescriptor listening, bool is_memory)
        : socket(std::move(listening)), endpoint_(endpoint), is_memory_(is_memory) {}
    void on_events(uint32_t epoll_events) override;
    void on_turn() override { on_events(0); }
    FileDescriptor socket;

   private:
    Endpoint& endpoint_;
    bool is_memory_;
  };

  std::vector<Connection*> connections() const;
  Connection& known_or_new(const MemberAddress& peer);
  void make_room_for_caller();
  Reply judge_key(const Hello& hello, const TlsSession& tls);
  Reply judge_open(const Hello& hello, Connection& connection);
  Reply judge_resume(const Hello& hello, Connection*& connection);
  bool yields_to(const Hello& hello, const Connection& connection);
  Connection& make_way(Connection& connection);
  void add_socket(Connection& connection, Stream stream, uint16_t index);
  void choose_stripes(Connection& connection, TimePoint now);
  void use_stripes(Connection& connection, bool had_bbr);
  void dial_stripe(Connection& connection);
  void replace_link(Connection& connection, Link& link, const Error& error);
  void suspend(Connection& connection, const Error& error, uint16_t index);
  bool may_share_memory(const MemberAddress& peer) const;
  void begin_dial(Connection& connection, Intent intent, uint16_t socket_index, TimePoint deadline);
  void cancel_dials(const Connection& connection, int socket_index = -1);
  bool is_over(const Connection& connection) const;
  void bury_links(Connection& connection);
  void ask_driver(const std::function<void()>& question);
  void note(FlightEvent event, const Connection& connection, const Error& error = {});
  static void add_traffic(Statistics& sum, const Connection& connection);
  void end_connection(Connection& connection, const Error& error);
  TimePoint watch(Connection& connection, TimePoint now);
  TimePoint watch_numbered(Connection& connection, TimePoint now);
  void end_streams();  // closing: of connections that have nothing left to send
  void make_room_for_greeter();
  void say_goodbye(Connection& connection);
  // Without it what was promised to a peer can't be delivered.
  static bool is_vital(const Dialer& dialer);
  bool is_finished() const;  // closing: nothing left to send, every peer has seen it

  const EndpointOptions options_;
  FrameSink& sink_;
  MemberAddress address_;
  FlightRecorder recorder_;
  std::shared_ptr<const Identity> identity_;  // null: TLS is never used
  BufferPool pool_;
  Engine engine_;
  std::unique_ptr<Listener> tcp_listener_;
  std::unique_ptr<Listener> memory_listener_;
  std::map<MemberId, std::unique_ptr<Connection>> known_;
  std::vector<std::unique_ptr<Connection>> others_;     // called, or followed by a newer one
  std::vector<std::unique_ptr<Connection>> forgotten_;  // destroyed as the graveyard is
  std::vector<std::unique_ptr<Dialer>> dialers_;
  std::vector<std::unique_ptr<Greeter>> greeters_;
  std::unique_ptr<Examinations> examinations_;
  std::vector<Connection*> unsent_;
  std::vector<MemoryLink*> memory_links_;         // alive and up
  std::vector<std::unique_ptr<Link>> graveyard_;  // destroyed when no callback is on the stack
  std::atomic<uint64_t> refused_{0};
  std::atomic<uint64_t> refused_keys_{0};
  std::atomic<uint64_t> refused_plain_{0};
  std::atomic<uint64_t> refused_rate_{0};
  std::atomic<uint64_t> refused_late_{0};
  SourceLimit source_limit_;
  uint64_t connections_made_ = 0;
  uint64_t delivered_seen_ = 0;  // of all connections, for choose_stripes()
  Statistics ended_;  // traffic of connections that are gone, and what is counted for all
  bool is_closing_ = false;
  bool has_hung_up_ = false;  // on somebody
  bool is_closed_ = false;
};

}  // namespace pccl::transport
