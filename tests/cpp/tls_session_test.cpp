// TLS sessions without sockets: what goes in plain comes out plain, however it is cut, and nothing
// else does.
#include "transport/tls_session.h"

#include <doctest/doctest.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <random>

using namespace pccl::transport;

namespace {

using Bytes = std::vector<std::byte>;

struct Pair {
  explicit Pair(uint64_t rekey_bytes = TlsSession::kRekeyBytes)
      : dials(a, TlsSession::Role::Dials, rekey_bytes),
        answers(b, TlsSession::Role::Answers, rekey_bytes) {}

  // Moves what `from` has to send, `piece` bytes at a time.
  static void move(TlsSession& from, TlsSession& to, size_t piece) {
    while (!from.outgoing().empty()) {
      const auto part = from.outgoing().first(std::min(piece, from.outgoing().size()));
      to.feed(part);
      to.advance();
      from.drop_outgoing(part.size());
    }
  }
  void shake_hands(size_t piece = SIZE_MAX) {
    dials.advance();
    for (int flights = 0; flights < 4; ++flights) {
      move(dials, answers, piece);
      move(answers, dials, piece);
    }
    REQUIRE(dials.is_ready());
    REQUIRE(answers.is_ready());
  }

  std::shared_ptr<const Identity> a = Identity::generate();
  std::shared_ptr<const Identity> b = Identity::generate();
  TlsSession dials;
  TlsSession answers;
};

Bytes random_bytes(size_t size) {
  std::mt19937 random(static_cast<uint32_t>(size));
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

Bytes read_all(TlsSession& session) {
  Bytes all;
  Bytes buffer(5000);
  for (long count = 0; (count = session.read(buffer.data(), buffer.size())) > 0;)
    all.insert(all.end(), buffer.begin(), buffer.begin() + count);
  return all;
}

}  // namespace

TEST_CASE("both sides learn each other's key and the same channel") {
  for (const size_t piece : {size_t{1}, size_t{7}, SIZE_MAX}) {
    Pair pair;
    pair.shake_hands(piece);
    CHECK(pair.dials.peer() == pair.b->fingerprint());
    CHECK(pair.answers.peer() == pair.a->fingerprint());
    CHECK(pair.dials.channel() == pair.answers.channel());
    Pair other;
    other.shake_hands();
    CHECK(other.dials.channel() != pair.dials.channel());
  }
}

TEST_CASE("plain bytes come out as they went in, byte by byte as well, and not readable between") {
  for (const size_t size : {size_t{1}, size_t{16381}, size_t{16385}, size_t{300007}}) {
    Pair pair;
    pair.shake_hands();
    const Bytes plain = random_bytes(size);
    for (size_t at = 0; at < size; at += 16384) {
      const size_t count = std::min<size_t>(16384, size - at);
      REQUIRE(pair.dials.write(std::span(plain).subspan(at, count)));
    }
    const Bytes sealed(pair.dials.outgoing().begin(), pair.dials.outgoing().end());
    CHECK(sealed.size() > size);
    if (size > 100) {
      CHECK(std::search(sealed.begin(), sealed.end(), plain.begin(), plain.begin() + 16) ==
            sealed.end());
    }
    Pair::move(pair.dials, pair.answers, size > 20000 ? 1000 : 1);
    CHECK(read_all(pair.answers) == plain);
    CHECK(pair.answers.fault().empty());
  }
}

TEST_CASE(
    "a flipped bit, a repeated or a missing record end the session; nothing of it comes out") {
  const Bytes plain = random_bytes(1000);
  for (int damage = 0; damage < 3; ++damage) {
    Pair pair;
    pair.shake_hands();
    REQUIRE(pair.dials.write(plain));
    Bytes first(pair.dials.outgoing().begin(), pair.dials.outgoing().end());
    pair.dials.drop_outgoing(first.size());
    REQUIRE(pair.dials.write(plain));
    const Bytes second(pair.dials.outgoing().begin(), pair.dials.outgoing().end());
    if (damage == 0) first[500] ^= std::byte{1};
    if (damage != 2) pair.answers.feed(first);
    if (damage == 1) {
      CHECK(read_all(pair.answers) == plain);
      pair.answers.feed(first);
    }
    if (damage == 2) pair.answers.feed(second);
    Bytes buffer(4000);
    CHECK(pair.answers.read(buffer.data(), buffer.size()) == -1);
    CHECK_FALSE(pair.answers.fault().empty());
    CHECK_FALSE(pair.answers.write(plain));
  }
}

TEST_CASE("a record that is not whole gives nothing and waits") {
  Pair pair;
  pair.shake_hands();
  REQUIRE(pair.dials.write(random_bytes(100)));
  pair.answers.feed(pair.dials.outgoing().first(pair.dials.outgoing().size() - 1));
  std::byte byte{};
  CHECK(pair.answers.read(&byte, 1) == 0);
  pair.answers.feed(pair.dials.outgoing().last(1));
  CHECK(read_all(pair.answers) == random_bytes(100));
}

TEST_CASE("garbage instead of a handshake is refused, and so is a plain Hello") {
  const auto identity = Identity::generate();
  for (uint32_t seed = 0; seed < 200; ++seed) {
    TlsSession session(identity, TlsSession::Role::Answers);
    Bytes garbage = random_bytes(600 + seed);
    if (seed % 2 == 0) garbage[0] = std::byte{22};
    session.feed(garbage);
    const bool goes_on = session.advance();
    CHECK_FALSE(session.is_ready());
    // What looks like the beginning of a long record may wait for its end.
    if (goes_on) CHECK(seed % 2 == 0);
  }
}

TEST_CASE("an older TLS, and a caller without a key, are refused") {
  const auto identity = Identity::generate();
  for (const bool is_old : {true, false}) {
    const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(
        SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
    if (is_old) SSL_CTX_set_max_proto_version(context.get(), TLS1_2_VERSION);
    const std::unique_ptr<SSL, decltype(&SSL_free)> caller(SSL_new(context.get()), &SSL_free);
    BIO* const in = BIO_new(BIO_s_mem());
    BIO* const out = BIO_new(BIO_s_mem());
    SSL_set_bio(caller.get(), in, out);
    SSL_set_connect_state(caller.get());
    TlsSession session(identity, TlsSession::Role::Answers);
    for (int flights = 0; flights < 4; ++flights) {
      SSL_do_handshake(caller.get());
      Bytes bytes(BIO_ctrl_pending(out));
      if (!bytes.empty()) BIO_read(out, bytes.data(), static_cast<int>(bytes.size()));
      session.feed(bytes);
      session.advance();
      BIO_write(in, session.outgoing().data(), static_cast<int>(session.outgoing().size()));
      session.drop_outgoing(session.outgoing().size());
    }
    CHECK_FALSE(session.is_ready());
    CHECK_FALSE(session.fault().empty());
  }
}

TEST_CASE("keys are taken anew while bytes flow both ways") {
  Pair pair(/*rekey_bytes=*/40000);
  pair.shake_hands();
  const Bytes plain = random_bytes(10000);
  for (int round = 0; round < 30; ++round) {
    for (const bool forth : {true, false}) {
      TlsSession& from = forth ? pair.dials : pair.answers;
      TlsSession& to = forth ? pair.answers : pair.dials;
      REQUIRE(from.write(plain));
      Pair::move(from, to, 3000);
      CHECK(read_all(to) == plain);
    }
  }
}

TEST_CASE("an identity comes back from its file; other keys are refused") {
  const auto identity = Identity::generate();
  const auto again = Identity::from_pem(identity->private_pem());
  CHECK(again->fingerprint() == identity->fingerprint());
  CHECK(Identity::generate()->fingerprint() != identity->fingerprint());
  CHECK(to_text(identity->fingerprint()).size() == 43);
  CHECK_THROWS_AS(Identity::from_pem("nonsense"), std::invalid_argument);
  CHECK_THROWS_AS(Identity::from_pem(""), std::invalid_argument);
}
