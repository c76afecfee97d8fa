#include "transport/probe.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/random.h"
#include "transport/socket.h"
#include "transport/stream.h"

namespace pccl::transport {
namespace {

constexpr size_t kWordsMax = 64;

class Probe {
 public:
  Probe(const SocketAddress& place, const ProbeOptions& options)
      : place_(place), options_(options) {}

  ProbeResult ask(Intent intent, uint16_t port) {
    std::string error;
    stream_ = Stream(begin_connect(place_, error));
    if (!stream_) fail(error);
    await(POLLOUT);
    error = connect_error(stream_.get());
    if (!error.empty()) fail(error);
    set_stream_options(stream_.get());
    Hello hello;
    hello.from.run = options_.run;
    hello.from.member_id = random_value<MemberId>();
    hello.from.port = port;
    hello.intent = intent;
    if (options_.fingerprint != Fingerprint{}) {
      if (!secure(hello)) return result_of(stream_.first_bytes());
    }
    if (!stream_.send_whole(hello.encode())) fail("the handshake could not be sent");
    return result_of(read());
  }

  Examination examine(uint16_t port) {
    Examination result;
    result.reply = ask(Intent::Examine, port);
    if (result.reply.answer != static_cast<int>(Answer::Alive)) return result;
    const std::vector<std::byte> length = exactly(sizeof(uint16_t));
    const size_t size = ByteReader(length).get<uint16_t>();
    const auto sighting =
        size <= kSightingBytesMax ? Sighting::decode(exactly(size)) : std::optional<Sighting>();
    if (!sighting) fail("it says how it sees us in words that can't be understood");
    result.sighting = *sighting;
    BurstSender sender;
    run(sender, POLLOUT);
    const std::vector<std::byte> rate = exactly(sizeof(uint64_t));
    result.sent_bytes_per_second = static_cast<double>(ByteReader(rate).get<uint64_t>());
    BurstReceiver receiver;
    run(receiver, POLLIN);
    result.received_bytes_per_second = receiver.bytes_per_second();
    return result;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw ConnectError(place_.describe() + ": " + what);
  }

  void await(short events) const {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(options_.deadline - Clock::now());
    pollfd entry{stream_.get(), events, 0};
    const int count = static_cast<int>(std::max<int64_t>(left.count(), 0));
    if (::poll(&entry, 1, count) <= 0) fail("no answer in time");
  }

  // False: the other side answers, and speaks no TLS.
  bool secure(Hello& hello) {
    const auto identity = options_.identity ? options_.identity : Identity::generate();
    stream_.secure(identity, TlsSession::Role::Dials);
    std::string error;
    int progress = 0;
    while ((progress = stream_.shake_hands(error)) == 0) await(POLLIN);
    if (progress < 0) {
      if (stream_.first_bytes().size() >= kHandshakePrefixBytes) return false;
      fail(error.empty() ? "it closed the connection during TLS" : error);
    }
    if (stream_.tls().peer() != options_.fingerprint) {
      fail("wrong key: it has " + to_text(stream_.tls().peer()) + ", wanted is " +
           to_text(options_.fingerprint));
    }
    hello.from.fingerprint = identity->fingerprint();
    if (options_.token) {
      hello.token_id = id_of(options_.token->key());
      hello.proof = options_.token->prove(stream_.tls().channel());
    }
    return true;
  }

  template <typename Burst>
  void run(Burst& burst, short events) {
    while (true) {
      const BurstStep step = burst.go_on(stream_, Clock::now());
      if (step == BurstStep::Done) return;
      if (step == BurstStep::Failed) fail("it closed the connection during the burst");
      if (step == BurstStep::Waits) await(events);
    }
  }

  std::vector<std::byte> exactly(size_t size) {
    std::vector<std::byte> bytes(size);
    size_t filled = 0;
    while (filled < size) {
      std::string error;
      const long count = stream_.receive(bytes.data() + filled, size - filled, error);
      if (count < 0) fail("it closed the connection before it said what it saw");
      filled += static_cast<size_t>(count);
      if (count == 0) await(POLLIN);
    }
    return bytes;
  }

  // A Reply and nothing behind it, or what came until it was clear that it is none.
  std::vector<std::byte> read() {
    std::vector<std::byte> received;
    std::array<std::byte, 2048> bytes;
    while (received.size() < bytes.size()) {
      std::string fault;
      const auto whole = handshake_bytes(received, kReplyMagic, fault);
      if (!fault.empty() || (whole && received.size() >= *whole)) break;
      const size_t wanted = whole ? *whole : kHandshakePrefixBytes;
      std::string error;
      const long count =
          stream_.receive(bytes.data(), std::min(wanted, bytes.size()) - received.size(), error);
      if (count < 0 && !error.empty()) fail(error);
      if (count < 0) break;
      received.insert(received.end(), bytes.begin(), bytes.begin() + count);
      if (count == 0) await(POLLIN);
    }
    return received;
  }

  static ProbeResult result_of(std::span<const std::byte> received) {
    ByteReader in(received);
    if (received.size() < kHandshakePrefixBytes || in.get<uint32_t>() != kReplyMagic) {
      const auto shown = received.first(std::min(received.size(), kWordsMax));
      return {.words = {reinterpret_cast<const char*>(shown.data()), shown.size()}};
    }
    ProbeResult result{.version = in.get<uint16_t>()};
    std::string fault;
    const auto whole = handshake_bytes(received, kReplyMagic, fault);
    if (!whole || received.size() < *whole) return result;
    const auto reply = decode_reply(received.first(*whole));
    if (!reply) return result;
    result.answer = static_cast<int>(reply->answer);
    result.words = reply->reason;
    return result;
  }

  const SocketAddress place_;
  const ProbeOptions options_;
  Stream stream_;
};

}  // namespace

ProbeResult probe(const SocketAddress& place, const ProbeOptions& options) {
  return Probe(place, options).ask(Intent::Probe, 0);
}

Examination examine(const SocketAddress& place, const ProbeOptions& options, uint16_t port) {
  return Probe(place, options).examine(port);
}

}  // namespace pccl::transport
