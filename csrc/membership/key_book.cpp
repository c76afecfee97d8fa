#include "membership/key_book.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <span>
#include <utility>

#include "base/file_descriptor.h"
#include "base/random.h"
#include "membership/statement.h"

namespace pccl::membership {
namespace {

// A command that writes holds the lock for milliseconds.
constexpr int kBusyMilliseconds = 2000;
constexpr uint64_t kApplicationId = 0x5043434B;  // "PCCK"
constexpr uint64_t kSchemaVersion = 2;
constexpr const char* kSchema =
    "CREATE TABLE tokens (run TEXT NOT NULL, id BLOB NOT NULL, verifier BLOB NOT NULL,"
    " uses_left INTEGER, expires INTEGER, is_standing INTEGER NOT NULL,"
    " is_revoked INTEGER NOT NULL DEFAULT 0, issued INTEGER, used INTEGER NOT NULL DEFAULT 0,"
    " PRIMARY KEY (run, id)) WITHOUT ROWID;"
    "CREATE TABLE keys (number INTEGER PRIMARY KEY, run TEXT NOT NULL, fingerprint BLOB NOT NULL,"
    " token BLOB, is_revoked INTEGER NOT NULL, UNIQUE (run, fingerprint));";
// From version 1, which counted no uses.
constexpr const char* kUpgrade =
    "ALTER TABLE tokens ADD COLUMN issued INTEGER;"
    "ALTER TABLE tokens ADD COLUMN used INTEGER NOT NULL DEFAULT 0;"
    "UPDATE tokens SET used ="
    " (SELECT count(*) FROM keys WHERE keys.run = tokens.run AND keys.token = tokens.id);";

template <size_t N>
std::span<const std::byte> blob(const std::array<uint8_t, N>& bytes) {
  return std::as_bytes(std::span(bytes));
}

uint64_t unix_seconds() { return static_cast<uint64_t>(std::time(nullptr)); }

std::string revoked_text(const Fingerprint& key) {
  return "revoked key: the run's owner has put " + transport::to_text(key) + " out";
}

}  // namespace

void KeyBook::Closer::operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }

// Undone unless commit() is reached.
class KeyBook::Transaction {
 public:
  explicit Transaction(KeyBook& book) : book_(book) { book_.execute("BEGIN IMMEDIATE"); }
  ~Transaction() {
    if (!is_over_) sqlite3_exec(book_.handle_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  void commit() {
    book_.execute("COMMIT");
    is_over_ = true;
  }

 private:
  KeyBook& book_;
  bool is_over_ = false;
};

// --- opening -------------------------------------------------------------------------------------

KeyBook::KeyBook(const std::string& database) {
  path_ = std::filesystem::absolute(database).lexically_normal().replace_extension(".keys.db");
  // Only a file that is new, and closed before SQLite opens it: closing it later would free the
  // locks that SQLite holds on it in this process.
  FileDescriptor made(
      ::open(path_.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR));
  const bool is_there = made || errno == EEXIST;
  made.reset();
  if (!is_there) {
    throw DatabaseError("the coordinator's keys " + path_ + ": " + std::strerror(errno) +
                        ". Grant the right to write there, or give another path (--database PATH)");
  }
  open();
}

KeyBook::~KeyBook() = default;

void KeyBook::open() {
  sqlite3* opened = nullptr;
  const int code = sqlite3_open_v2(path_.c_str(), &opened, SQLITE_OPEN_READWRITE, nullptr);
  handle_.reset(opened);
  check(code);
  sqlite3_busy_timeout(handle_.get(), kBusyMilliseconds);
  const auto is_ours = [this] {
    const uint64_t found = number("PRAGMA user_version");
    return number("PRAGMA application_id") == kApplicationId && found >= 1 &&
           found <= kSchemaVersion;
  };
  const bool is_empty = number("SELECT count(*) FROM sqlite_master") == 0;
  if (!is_empty && !is_ours()) {
    throw DatabaseError("the coordinator's keys " + path_ +
                        ": a newer pccl or another program wrote it, and it is left as it is. Give "
                        "another path (--database PATH)");
  }
  execute("PRAGMA journal_mode=WAL");
  execute("PRAGMA synchronous=FULL");
  Transaction transaction(*this);
  if (number("SELECT count(*) FROM sqlite_master") == 0) {
    execute(kSchema);
    execute("PRAGMA application_id=" + std::to_string(kApplicationId));
  } else if (number("PRAGMA user_version") == 1) {
    execute(kUpgrade);
  }
  // Writing it costs a sync of the disk, which every start would wait for.
  if (number("PRAGMA user_version") != kSchemaVersion)
    execute("PRAGMA user_version=" + std::to_string(kSchemaVersion));
  transaction.commit();
  Statement whole(handle_.get(), "PRAGMA quick_check(1)");
  check(whole.step());
  if (whole.text(0) != "ok") check(SQLITE_CORRUPT);
}

void KeyBook::check(int code) {
  if (code == SQLITE_OK || code == SQLITE_DONE || code == SQLITE_ROW) return;
  const bool is_damaged = (code & 0xFF) == SQLITE_CORRUPT || (code & 0xFF) == SQLITE_NOTADB;
  throw DatabaseError(
      "the coordinator's keys " + path_ + ": " + sqlite3_errstr(code) +
      (is_damaged ? ". Put back a copy, or move it aside: then revoked keys are forgotten, and "
                    "members need a token again"
                  : ". Free some space or mend the file's rights, then start the command again"));
}

void KeyBook::execute(const std::string& sql) {
  check(sqlite3_exec(handle_.get(), sql.c_str(), nullptr, nullptr, nullptr));
}

uint64_t KeyBook::number(const char* sql) {
  Statement statement(handle_.get(), sql);
  check(statement.step());
  return statement.number(0);
}

uint64_t KeyBook::version() { return number("PRAGMA data_version"); }

// --- who is welcome ------------------------------------------------------------------------------

std::string KeyBook::why_barred(const std::string& run, const Fingerprint& key) {
  Statement known(handle_.get(), "SELECT is_revoked FROM keys WHERE run=? AND fingerprint=?");
  known.bind(1, run);
  known.bind(2, blob(key));
  const int code = known.step();
  check(code);
  return code == SQLITE_ROW && known.number(0) != 0 ? revoked_text(key) : "";
}

KeyBook::Verdict KeyBook::judge(const transport::Hello& hello,
                                const transport::ChannelBinding& channel) {
  const Fingerprint& key = hello.from.fingerprint;
  // A use must not be counted twice.
  Transaction transaction(*this);
  Statement known(handle_.get(), "SELECT is_revoked FROM keys WHERE run=? AND fingerprint=?");
  known.bind(1, hello.from.run);
  known.bind(2, blob(key));
  const int code = known.step();
  check(code);
  if (code == SQLITE_ROW) return {known.number(0) == 0 ? "" : revoked_text(key)};
  Verdict verdict = judge_token(hello, channel);
  if (!verdict.is_new) return verdict;
  add_key(hello, hello.token_id);
  transaction.commit();
  return verdict;
}

KeyBook::Verdict KeyBook::judge_token(const transport::Hello& hello,
                                      const transport::ChannelBinding& channel) {
  if (hello.token_id == TokenId{}) {
    return {"unknown key: " + transport::to_text(hello.from.fingerprint) +
            " was never admitted to this run, and the address has no token (what follows '.')"};
  }
  Statement token(
      handle_.get(),
      "SELECT verifier, uses_left, expires, is_revoked FROM tokens WHERE run=? AND id=?");
  token.bind(1, hello.from.run);
  token.bind(2, blob(hello.token_id));
  const int code = token.step();
  check(code);
  transport::TokenKey verifier{};
  const std::span<const std::byte> stored = token.bytes(0);
  const bool is_known = code == SQLITE_ROW && stored.size() == verifier.size();
  if (is_known) std::memcpy(verifier.data(), stored.data(), stored.size());
  if (!is_known || !transport::is_proof(hello.proof, verifier, channel))
    return {"wrong token: this coordinator gave none like it for run '" + hello.from.run + "'"};
  if (token.number(3) != 0)
    return {"revoked token: it admits nobody any more (the run's owner can `pccl invite`)"};
  if (!token.is_nothing(2) && token.number(2) <= unix_seconds())
    return {"expired token: it admits nobody any more (the run's owner can `pccl invite`)"};
  if (!token.is_nothing(1) && token.number(1) == 0) {
    return {
        "used-up token: it has admitted as many keys as it may, and this is another (the run's "
        "owner can `pccl invite`; a member keeps its key with PCCL_KEY=FILE)"};
  }
  return {"", !transport::asks_only(hello.intent)};
}

void KeyBook::add_key(const transport::Hello& hello, const TokenId& token) {
  Statement use(handle_.get(),
                "UPDATE tokens SET used=used+1, uses_left=uses_left-1 WHERE run=? AND id=?");
  use.bind(1, hello.from.run);
  use.bind(2, blob(token));
  check(use.step());
  Statement key(handle_.get(),
                "INSERT INTO keys (run, fingerprint, token, is_revoked) VALUES (?, ?, ?, 0)");
  key.bind(1, hello.from.run);
  key.bind(2, blob(hello.from.fingerprint));
  key.bind(3, blob(token));
  check(key.step());
  // What a counted token admitted stays: it could not come in again.
  Statement forget(
      handle_.get(),
      "DELETE FROM keys WHERE number = (SELECT min(number) FROM keys WHERE run=?1 AND NOT"
      " is_revoked AND token IN (SELECT id FROM tokens WHERE run=?1 AND uses_left IS NULL)) AND"
      " (SELECT count(*) FROM keys WHERE run=?1) > ?2");
  forget.bind(1, hello.from.run);
  forget.bind(2, kKeysMax);
  check(forget.step());
}

// --- what the owner decides ----------------------------------------------------------------------

void KeyBook::add_token(const std::string& run, const Token& token, const Terms& terms,
                        bool is_standing) {
  const transport::TokenKey verifier = token.key();
  Statement add(handle_.get(),
                "INSERT OR IGNORE INTO tokens (run, id, verifier, uses_left, expires, is_standing,"
                " issued) VALUES (?, ?, ?, ?, ?, ?, ?)");
  add.bind(1, run);
  add.bind(2, blob(transport::id_of(verifier)));
  add.bind(3, blob(verifier));
  terms.uses == 0 ? add.bind_nothing(4) : add.bind(4, terms.uses);
  if (terms.seconds > 0) {
    add.bind(5, unix_seconds() + static_cast<uint64_t>(terms.seconds));
  } else {
    add.bind_nothing(5);
  }
  add.bind(6, static_cast<uint64_t>(is_standing));
  add.bind(7, unix_seconds());
  check(add.step());
}

Token KeyBook::invite(const std::string& run, const Terms& terms) {
  const Token token{random_value<std::array<uint8_t, 16>>()};
  add_token(run, token, terms, false);
  return token;
}

Token KeyBook::standing_token(const std::string& run, const transport::Identity& coordinator) {
  Transaction transaction(*this);
  Statement revoked(handle_.get(),
                    "SELECT count(*) FROM tokens WHERE run=? AND is_standing AND is_revoked");
  revoked.bind(1, run);
  check(revoked.step());
  const Token token{coordinator.derive_secret("pccl standing token " +
                                              std::to_string(revoked.number(0)) + " " + run)};
  add_token(run, token, {}, true);
  transaction.commit();
  return token;
}

void KeyBook::revoke(const std::string& run, const Fingerprint& key) {
  Statement bar(handle_.get(),
                "INSERT INTO keys (run, fingerprint, is_revoked) VALUES (?, ?, 1)"
                " ON CONFLICT (run, fingerprint) DO UPDATE SET is_revoked=1");
  bar.bind(1, run);
  bar.bind(2, blob(key));
  check(bar.step());
}

bool KeyBook::revoke(const std::string& run, const TokenId& token, bool with_keys) {
  Transaction transaction(*this);
  const auto change = [&](const char* sql) {
    Statement statement(handle_.get(), sql);
    statement.bind(1, run);
    statement.bind(2, blob(token));
    check(statement.step());
    return sqlite3_changes(handle_.get());
  };
  const bool is_known = change("UPDATE tokens SET is_revoked=1 WHERE run=? AND id=?") > 0;
  if (with_keys) change("UPDATE keys SET is_revoked=1 WHERE run=? AND token=?");
  transaction.commit();
  return is_known;
}

// --- what the owner sees -------------------------------------------------------------------------

namespace {

std::optional<uint64_t> optional_number(Statement& row, int column) {
  return row.is_nothing(column) ? std::nullopt : std::optional(row.number(column));
}

template <typename Bytes>
Bytes bytes_of(Statement& row, int column) {
  Bytes result{};
  const std::span<const std::byte> stored = row.bytes(column);
  if (stored.size() == result.size()) std::memcpy(result.data(), stored.data(), stored.size());
  return result;
}

}  // namespace

std::vector<KeyBook::TokenRow> KeyBook::tokens(const std::string& run) {
  Statement row(handle_.get(),
                "SELECT id, is_standing, is_revoked, issued, expires, uses_left, used FROM tokens"
                " WHERE run=? ORDER BY issued, id");
  row.bind(1, run);
  std::vector<TokenRow> result;
  int code = row.step();
  for (; code == SQLITE_ROW; code = row.step()) {
    result.push_back({.id = bytes_of<TokenId>(row, 0),
                      .is_standing = row.number(1) != 0,
                      .is_revoked = row.number(2) != 0,
                      .issued = optional_number(row, 3),
                      .expires = optional_number(row, 4),
                      .uses_left = optional_number(row, 5),
                      .used = row.number(6)});
  }
  check(code);
  return result;
}

std::vector<KeyBook::KeyRow> KeyBook::keys(const std::string& run) {
  Statement row(handle_.get(),
                "SELECT fingerprint, token, is_revoked FROM keys WHERE run=? ORDER BY number");
  row.bind(1, run);
  std::vector<KeyRow> result;
  int code = row.step();
  for (; code == SQLITE_ROW; code = row.step()) {
    KeyRow key{.fingerprint = bytes_of<Fingerprint>(row, 0), .is_revoked = row.number(2) != 0};
    if (!row.is_nothing(1)) key.token = bytes_of<TokenId>(row, 1);
    result.push_back(key);
  }
  check(code);
  return result;
}

}  // namespace pccl::membership
