// TLS, as strangers and as members with bad bytes may speak it: never more than an error.
//
// The first byte says when the rest comes: instead of the handshake, or behind it, once as records
// and once as changes of records that a member sealed.
#include <algorithm>
#include <array>
#include <memory>

#include "fuzz.h"
#include "transport/tls_session.h"

using namespace pccl::transport;

namespace {

const std::shared_ptr<const Identity>& identity() {
  static const auto kept = Identity::generate();
  return kept;
}

void move(TlsSession& from, TlsSession& to) {
  const auto bytes = from.outgoing();
  to.feed(bytes);
  from.drop_outgoing(bytes.size());
}

void shake_hands(TlsSession& dials, TlsSession& answers) {
  for (int flight = 0; flight < 4; ++flight) {
    dials.advance();
    move(dials, answers);
    answers.advance();
    move(answers, dials);
  }
  fuzz::require(dials.is_ready() && answers.is_ready(), "two members come together");
}

// All that is there; how much it was.
size_t drain(TlsSession& session) {
  std::array<std::byte, 4096> bytes{};
  size_t sum = 0;
  long count = 0;
  while ((count = session.read(bytes.data(), bytes.size())) > 0) sum += static_cast<size_t>(count);
  fuzz::require(count == 0 || !session.fault().empty(), "a broken session says why");
  return sum;
}

}  // namespace

std::vector<fuzz::Bytes> make_seeds() {
  TlsSession dials(identity(), TlsSession::Role::Dials);
  dials.advance();
  fuzz::Bytes flight{std::byte{0}};
  flight.insert(flight.end(), dials.outgoing().begin(), dials.outgoing().end());
  // A record of 5 bytes, an alert, a change of one byte.
  const fuzz::Bytes record{std::byte{1}, std::byte{23}, std::byte{3}, std::byte{3},
                           std::byte{0}, std::byte{5},  std::byte{1}, std::byte{2},
                           std::byte{3}, std::byte{4},  std::byte{5}};
  const fuzz::Bytes alert{std::byte{1}, std::byte{21}, std::byte{3}, std::byte{3},
                          std::byte{0}, std::byte{2},  std::byte{2}, std::byte{40}};
  return {flight, record, alert, {std::byte{2}, std::byte{9}, std::byte{255}}};
}

void try_input(std::span<const std::byte> input) {
  if (input.empty()) return;
  const int when = static_cast<int>(input[0]) % 3;
  const auto rest = input.subspan(1);
  TlsSession answers(identity(), TlsSession::Role::Answers);
  if (when == 0) {
    answers.feed(rest);
    drain(answers);
    fuzz::require(!answers.is_ready(), "nobody is in without a key");
    return;
  }
  TlsSession dials(identity(), TlsSession::Role::Dials);
  shake_hands(dials, answers);
  if (when == 1) {
    answers.feed(rest);
    fuzz::require(drain(answers) == 0, "what no member sealed is nothing that it said");
    return;
  }
  const std::array<std::byte, 300> said{};
  fuzz::require(dials.write(said), "a member can speak");
  fuzz::Bytes sealed(dials.outgoing().begin(), dials.outgoing().end());
  for (size_t i = 0; i + 1 < rest.size(); i += 2) {
    auto& byte = sealed[static_cast<size_t>(rest[i]) % sealed.size()];
    byte ^= rest[i + 1];
  }
  const bool is_changed = !std::equal(sealed.begin(), sealed.end(), dials.outgoing().begin());
  answers.feed(sealed);
  const size_t heard = drain(answers);
  fuzz::require(heard == (is_changed ? 0 : said.size()), "a changed record is not heard");
}
