// Whose keys are in: tokens that are counted, expire and are revoked, on disk.
#include "membership/key_book.h"

#include <doctest/doctest.h>
#include <sqlite3.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace pccl::membership {
namespace {

using transport::ChannelBinding;
using transport::Hello;

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "pccl-keys-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string database() const { return (path_ / "coordinator.db").string(); }
  std::filesystem::path keys() const { return path_ / "coordinator.keys.db"; }

 private:
  std::filesystem::path path_;
};

ChannelBinding channel(uint8_t number) {
  ChannelBinding result{};
  result.fill(number);
  return result;
}

Hello caller(uint8_t key, const Token& token, const std::string& run = "demo") {
  Hello hello;
  hello.from.run = run;
  hello.from.fingerprint.fill(key);
  hello.token_id = transport::id_of(token.key());
  hello.proof = token.prove(channel(1));
  return hello;
}

std::string reason(KeyBook& book, const Hello& hello, uint8_t over = 1) {
  return book.judge(hello, channel(over)).reason;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a token admits as many keys as it may, and each of them for good") {
  const Folder folder;
  KeyBook book(folder.database());
  const Token token = book.invite("demo", {.uses = 2});
  CHECK(book.judge(caller(1, token), channel(1)).is_new);
  const KeyBook::Verdict again = book.judge(caller(1, token), channel(1));
  CHECK(again.reason.empty());
  CHECK_FALSE(again.is_new);
  CHECK(reason(book, caller(2, token)).empty());
  CHECK(contains(reason(book, caller(3, token)), "used-up token"));
  KeyBook other(folder.database());
  CHECK(reason(other, caller(2, token)).empty());
  CHECK(reason(other, caller(2, {})).empty());
  CHECK(contains(reason(other, caller(3, token)), "used-up token"));
  CHECK(contains(reason(other, caller(1, token, "other")), "wrong token"));
}

TEST_CASE("a proof is worth nothing in another session, nor for another token") {
  const Folder folder;
  KeyBook book(folder.database());
  const Token token = book.invite("demo", {});
  const Token other = book.invite("demo", {});
  CHECK(contains(reason(book, caller(1, token), 2), "wrong token"));
  Hello mixed = caller(1, token);
  mixed.token_id = transport::id_of(other.key());
  CHECK(contains(reason(book, mixed), "wrong token"));
  for (const size_t at : {0, 31, 32, 63}) {
    Hello bent = caller(1, token);
    bent.proof[at] ^= 1;
    CHECK(contains(reason(book, bent), "wrong token"));
  }
  CHECK(reason(book, caller(1, token)).empty());
}

TEST_CASE("who only asks is told, and nothing changes") {
  const Folder folder;
  KeyBook book(folder.database());
  const Token token = book.invite("demo", {.uses = 1});
  Hello probe = caller(1, token);
  probe.intent = transport::Intent::Probe;
  for (int times = 0; times < 3; ++times) {
    const KeyBook::Verdict verdict = book.judge(probe, channel(1));
    CHECK(verdict.reason.empty());
    CHECK_FALSE(verdict.is_new);
  }
  CHECK(reason(book, caller(2, token)).empty());
  CHECK(contains(reason(book, probe), "used-up token"));
}

TEST_CASE("what is revoked in one process is so in the other, which sees that something changed") {
  const Folder folder;
  KeyBook book(folder.database());
  const auto identity = transport::Identity::generate();
  const Token token = book.standing_token("demo", *identity);
  CHECK(reason(book, caller(1, token)).empty());
  CHECK(reason(book, caller(2, token)).empty());
  const uint64_t version = book.version();
  CHECK(book.version() == version);
  KeyBook owner(folder.database());
  Fingerprint second{};
  second.fill(2);
  owner.revoke("demo", second);
  CHECK(book.version() != version);
  CHECK(contains(book.why_barred("demo", second), "revoked key"));
  CHECK(book.why_barred("other", second).empty());
  CHECK(contains(reason(book, caller(2, token)), "revoked key"));
  CHECK(owner.revoke("demo", transport::id_of(token.key()), false));
  CHECK_FALSE(owner.revoke("other", transport::id_of(token.key()), false));
  CHECK(contains(reason(book, caller(3, token)), "revoked token"));
  CHECK(reason(book, caller(1, token)).empty());
  // Its successor is another, and the same each time.
  const Token next = book.standing_token("demo", *identity);
  CHECK(next.secret != token.secret);
  CHECK(owner.standing_token("demo", *identity).secret == next.secret);
  CHECK(reason(book, caller(3, next)).empty());
  CHECK(owner.revoke("demo", transport::id_of(token.key()), true));
  CHECK(contains(reason(book, caller(1, next)), "revoked key"));
  CHECK(reason(book, caller(3, next)).empty());
}

TEST_CASE("a key that was never admitted hears so, and a revoked one needs not to have been") {
  const Folder folder;
  KeyBook book(folder.database());
  Hello hello;
  hello.from.run = "demo";
  hello.from.fingerprint.fill(7);
  CHECK(contains(reason(book, hello), "was never admitted"));
  book.revoke("demo", hello.from.fingerprint);
  CHECK(contains(reason(book, caller(7, book.invite("demo", {}))), "revoked key"));
}

TEST_CASE("the owner sees tokens and keys, also of a book that an earlier version began") {
  const Folder folder;
  Token old;
  {
    KeyBook book(folder.database());
    old = book.invite("demo", {.uses = 3});
    CHECK(reason(book, caller(1, old)).empty());
  }
  sqlite3* handle = nullptr;
  REQUIRE(sqlite3_open(folder.keys().c_str(), &handle) == SQLITE_OK);
  REQUIRE(sqlite3_exec(handle,
                       "ALTER TABLE tokens DROP COLUMN issued; ALTER TABLE tokens DROP COLUMN used;"
                       "PRAGMA user_version=1",
                       nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(handle);
  KeyBook book(folder.database());
  book.invite("other", {});
  Fingerprint barred{};
  barred.fill(9);
  book.revoke("demo", barred);
  const Token next = book.invite("demo", {.seconds = 60});
  CHECK(reason(book, caller(2, old)).empty());
  const auto tokens = book.tokens("demo");
  REQUIRE(tokens.size() == 2);
  CHECK(tokens[0].id == transport::id_of(old.key()));
  CHECK_FALSE(tokens[0].issued);
  CHECK(tokens[0].used == 2);
  CHECK(tokens[0].uses_left == 1);
  CHECK(tokens[1].id == transport::id_of(next.key()));
  CHECK(*tokens[1].expires - *tokens[1].issued == 60);
  CHECK_FALSE(tokens[1].uses_left);
  const auto keys = book.keys("demo");
  REQUIRE(keys.size() == 3);
  CHECK(keys[0].token == transport::id_of(old.key()));
  CHECK(keys[1].fingerprint == barred);
  CHECK(keys[1].is_revoked);
  CHECK_FALSE(keys[1].token);
}

TEST_CASE("a file that is damaged or another program's is refused with the way out") {
  const Folder folder;
  std::ofstream(folder.keys()) << std::string(5000, 'x');
  CHECK_THROWS_WITH_AS(KeyBook(folder.database()), doctest::Contains("move it aside"),
                       DatabaseError);
  std::filesystem::remove(folder.keys());
  sqlite3* other = nullptr;
  REQUIRE(sqlite3_open(folder.keys().c_str(), &other) == SQLITE_OK);
  REQUIRE(sqlite3_exec(other, "CREATE TABLE mine (x)", nullptr, nullptr, nullptr) == SQLITE_OK);
  sqlite3_close(other);
  CHECK_THROWS_WITH_AS(KeyBook(folder.database()), doctest::Contains("left as it is"),
                       DatabaseError);
}

}  // namespace pccl::membership
