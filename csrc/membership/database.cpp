#include "membership/database.h"

#include <fcntl.h>
#include <sqlite3.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <set>
#include <span>
#include <stdexcept>
#include <system_error>

#include "base/file_descriptor.h"
#include "membership/statement.h"

namespace pccl::membership {
namespace {

// In the file's header, so that a database of another program is never written to.
constexpr int64_t kApplicationId = 0x5043434C;  // "PCCL"
constexpr int64_t kSchemaVersion = 1;
constexpr const char* kSchema =
    "CREATE TABLE runs (name TEXT PRIMARY KEY, term INTEGER NOT NULL, quorum_id INTEGER NOT NULL,"
    " quorum_term INTEGER NOT NULL, quorum_ballot INTEGER NOT NULL,"
    " first_operation INTEGER NOT NULL, recover_from INTEGER NOT NULL, revision INTEGER NOT NULL,"
    " digest BLOB NOT NULL)"
    " WITHOUT ROWID;"
    "CREATE TABLE seats (run TEXT NOT NULL, rank INTEGER NOT NULL, member_id BLOB NOT NULL,"
    " joined_at INTEGER NOT NULL, address BLOB NOT NULL, PRIMARY KEY (run, rank)) WITHOUT ROWID;";
// Of the quorum with that id alone: versions that do not know of it leave it behind.
constexpr const char* kLinksSchema =
    "CREATE TABLE IF NOT EXISTS links (run TEXT PRIMARY KEY, quorum_id INTEGER NOT NULL,"
    " links BLOB NOT NULL, caps BLOB NOT NULL) WITHOUT ROWID;";

template <typename Entry>
bool copy_entries(std::span<const std::byte> bytes, std::vector<Entry>& entries) {
  if (bytes.size() % sizeof(Entry) != 0) return false;
  entries.resize(bytes.size() / sizeof(Entry));
  if (!bytes.empty()) std::memcpy(entries.data(), bytes.data(), bytes.size());
  return true;
}

template <size_t N>
bool copy_exactly(std::span<const std::byte> bytes, std::array<uint8_t, N>& target) {
  if (bytes.size() != N) return false;
  std::memcpy(target.data(), bytes.data(), N);
  return true;
}

}  // namespace

void Database::Closer::operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }

// --- opening -------------------------------------------------------------------------------------

Database::Database(const std::string& path) {
  if (path.empty()) throw DatabaseError("the coordinator's database: its path is empty");
  // Absolute, since SQLite gives names like ":memory:" a meaning of their own.
  path_ = std::filesystem::absolute(path).lexically_normal().string();
  make_file();
  sqlite3* opened = nullptr;
  const int code = sqlite3_open_v2(path_.c_str(), &opened,
                                   SQLITE_OPEN_READWRITE | SQLITE_OPEN_EXRESCODE, nullptr);
  handle_.reset(opened);
  if (code != SQLITE_OK) fail(code, "can't be opened");
  if (sqlite3_db_readonly(handle_.get(), "main") == 1) fail(SQLITE_READONLY, "can't be written");
  execute("PRAGMA locking_mode=EXCLUSIVE");
  refuse_strangers();
  execute("PRAGMA journal_mode=WAL");
  execute("PRAGMA synchronous=FULL");
  // Writes at every start: a disk that is full or read-only is found now rather than by the first
  // change of a quorum. It also takes the lock.
  execute("BEGIN IMMEDIATE");
  Statement tables(handle_.get(), "SELECT count(*) FROM sqlite_master");
  const int counted = tables.step();
  if (counted != SQLITE_ROW) fail(counted, "can't be read");
  const bool is_new = tables.number(0) == 0;
  tables.again();
  if (is_new) execute(kSchema);
  execute(kLinksSchema);
  execute("PRAGMA application_id=" + std::to_string(kApplicationId));
  execute("PRAGMA user_version=" + std::to_string(kSchemaVersion));
  execute("COMMIT");
  check_content();
}

Database::~Database() = default;

void Database::make_file() {
  const std::filesystem::path file(path_);
  std::error_code error;
  std::filesystem::create_directories(file.parent_path(), error);
  if (error) {
    refuse("its folder can't be made: " + error.message() +
           ". Make it, or give another path (--database PATH)");
  }
  // SQLite would make it readable for everybody. Its companions (-wal) get the same mode.
  const FileDescriptor made(
      ::open(path_.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR));
  if (!made && errno != EEXIST) {
    refuse("it can't be made: " + std::string(std::strerror(errno)) +
           ". Give the folder's owner the right to write, free some space, or give another path "
           "(--database PATH)");
  }
}

// Only reads, so that nothing of another program is changed.
void Database::refuse_strangers() {
  const auto read = [this](const char* sql) {
    Statement statement(handle_.get(), sql);
    const int code = statement.step();
    if (code != SQLITE_ROW) fail(code, "can't be read");
    return static_cast<int64_t>(statement.number(0));
  };
  const int64_t application_id = read("PRAGMA application_id");
  const int64_t version = read("PRAGMA user_version");
  const int64_t tables = read("SELECT count(*) FROM sqlite_master");
  if (application_id == 0 && version == 0 && tables == 0) return;
  if (application_id != kApplicationId) {
    refuse(
        "it is a database of another program, and is left as it is. Give another path "
        "(--database PATH)");
  }
  if (version > kSchemaVersion) {
    refuse("a newer pccl wrote it (schema " + std::to_string(version) + ", this one knows " +
           std::to_string(kSchemaVersion) +
           "). Install that version, or give another path (--database PATH)");
  }
  if (version != kSchemaVersion) refuse("it has no schema that pccl ever wrote");
}

void Database::check_content() {
  Statement check(handle_.get(), "PRAGMA integrity_check(1)");
  const int code = check.step();
  if (code != SQLITE_ROW) fail(code, "can't be checked");
  const std::string found = check.text(0);
  if (found != "ok") fail(SQLITE_CORRUPT, found);
  Statement runs(handle_.get(), "SELECT name FROM runs");
  int step = SQLITE_ROW;
  while ((step = runs.step()) == SQLITE_ROW) load(runs.text(0));
  if (step != SQLITE_DONE) fail(step, "can't be read");
}

// --- rows ----------------------------------------------------------------------------------------

std::optional<Durable> Database::load(const std::string& run) {
  Statement row(handle_.get(),
                "SELECT term, quorum_id, quorum_term, quorum_ballot, first_operation, recover_from,"
                " revision, digest FROM runs WHERE name=?");
  row.bind(1, run);
  const int code = row.step();
  if (code == SQLITE_DONE) return std::nullopt;
  if (code != SQLITE_ROW) fail(code, "run '" + run + "' can't be read");
  Durable durable;
  durable.term = row.number(0);
  durable.quorum.quorum_id = row.number(1);
  durable.quorum_term = row.number(2);
  durable.quorum_ballot = row.number(3);
  durable.first_operation = row.number(4);
  durable.recover_from = row.number(5);
  durable.revision = row.number(6);
  bool is_whole = copy_exactly(row.bytes(7), durable.digest);

  Statement seats(
      handle_.get(),
      "SELECT rank, member_id, joined_at, address FROM seats WHERE run=? ORDER BY rank");
  seats.bind(1, run);
  std::set<MemberId> seen;
  int step = SQLITE_ROW;
  while (is_whole && (step = seats.step()) == SQLITE_ROW) {
    Seat seat;
    seat.joined_at = seats.number(2);
    const std::span<const std::byte> address = seats.bytes(3);
    seat.address.assign(address.begin(), address.end());
    is_whole = seats.number(0) == durable.quorum.seats.size() &&
               durable.quorum.seats.size() < kSeatsMax &&
               address.size() <= transport::kAddressBytesMax &&
               copy_exactly(seats.bytes(1), seat.member_id) && seen.insert(seat.member_id).second;
    durable.quorum.seats.push_back(std::move(seat));
  }
  if (step != SQLITE_DONE && step != SQLITE_ROW) fail(step, "run '" + run + "' can't be read");
  is_whole = is_whole && load_links(run, durable.quorum) &&
             encoded_bytes(durable.quorum) <= kQuorumBytesMax;
  if (!is_whole) fail(SQLITE_CORRUPT, "the record of run '" + run + "' is not one that pccl wrote");
  return durable;
}

bool Database::load_links(const std::string& run, Quorum& quorum) {
  Statement row(handle_.get(), "SELECT links, caps FROM links WHERE run=? AND quorum_id=?");
  row.bind(1, run);
  row.bind(2, quorum.quorum_id);
  const int code = row.step();
  if (code == SQLITE_DONE) return true;
  if (code != SQLITE_ROW) fail(code, "run '" + run + "' can't be read");
  return copy_entries(row.bytes(0), quorum.table.links) &&
         copy_entries(row.bytes(1), quorum.table.caps);
}

void Database::save(const std::string& run, const Durable& durable) {
  execute("BEGIN IMMEDIATE");
  try {
    replace_rows(run, durable);
    execute("COMMIT");
  } catch (...) {
    // Without a check: some errors have ended the transaction already.
    sqlite3_exec(handle_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    throw;
  }
}

void Database::replace_rows(const std::string& run, const Durable& durable) {
  const auto finish = [&](Statement& statement) {
    const int code = statement.step();
    if (code != SQLITE_DONE) fail(code, "run '" + run + "' can't be recorded");
  };
  Statement row(
      handle_.get(),
      "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
      " term=excluded.term, quorum_id=excluded.quorum_id,"
      " quorum_term=excluded.quorum_term, quorum_ballot=excluded.quorum_ballot,"
      " first_operation=excluded.first_operation, recover_from=excluded.recover_from,"
      " revision=excluded.revision, digest=excluded.digest WHERE term <= excluded.term");
  row.bind(1, run);
  row.bind(2, durable.term);
  row.bind(3, durable.quorum.quorum_id);
  row.bind(4, durable.quorum_term);
  row.bind(5, durable.quorum_ballot);
  row.bind(6, durable.first_operation);
  row.bind(7, durable.recover_from);
  row.bind(8, durable.revision);
  row.bind(9, std::as_bytes(std::span(durable.digest)));
  finish(row);
  if (sqlite3_changes(handle_.get()) != 1) {
    throw std::logic_error("database: term " + std::to_string(durable.term) + " of run '" + run +
                           "' is lower than the one on disk");
  }
  Statement clear(handle_.get(), "DELETE FROM seats WHERE run=?");
  clear.bind(1, run);
  finish(clear);
  Statement seat_row(handle_.get(), "INSERT INTO seats VALUES (?, ?, ?, ?, ?)");
  for (size_t rank = 0; rank < durable.quorum.seats.size(); ++rank) {
    const Seat& seat = durable.quorum.seats[rank];
    seat_row.bind(1, run);
    seat_row.bind(2, static_cast<uint64_t>(rank));
    seat_row.bind(3, std::as_bytes(std::span(seat.member_id)));
    seat_row.bind(4, seat.joined_at);
    seat_row.bind(5, std::span(seat.address));
    finish(seat_row);
    seat_row.again();
  }
  const topology::LinkTable& table = durable.quorum.table;
  Statement links(handle_.get(), "INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?)");
  links.bind(1, run);
  links.bind(2, durable.quorum.quorum_id);
  links.bind(3, std::as_bytes(std::span(table.links)));
  links.bind(4, std::as_bytes(std::span(table.caps)));
  finish(links);
}

size_t Database::run_count() { return count("runs"); }

bool Database::has_quorum() { return count("runs WHERE quorum_id > 0") != 0; }

size_t Database::count(const std::string& rows) {
  Statement count(handle_.get(), "SELECT count(*) FROM " + rows);
  const int code = count.step();
  if (code != SQLITE_ROW) fail(code, "can't be read");
  return count.number(0);
}

// --- errors --------------------------------------------------------------------------------------

void Database::execute(const std::string& sql) {
  const int code = sqlite3_exec(handle_.get(), sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) fail(code, "can't be written");
}

void Database::refuse(const std::string& what) const {
  throw DatabaseError("the coordinator's database " + path_ + ": " + what + ".");
}

void Database::fail(int code, const std::string& doing) const {
  switch (code & 0xFF) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      refuse(
          "another process uses it, probably a coordinator that still runs. Stop that one, or give "
          "this one a database of its own (--database PATH)");
    case SQLITE_FULL:
      refuse("the disk is full. Free some space, then start the same command again");
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
      refuse("it " + doing + ", for lack of the right to write the file and its folder, or on a " +
             "read-only disk. Grant it, or give another path (--database PATH)");
    case SQLITE_NOTADB:
      refuse("this is no database, and is left as it is. Give another path (--database PATH)");
    case SQLITE_CORRUPT:
      refuse("it is damaged (" + doing +
             "). Put back a copy, or move it aside: then members that are alive bring their run "
             "back once more than half of its last quorum has reported");
    case SQLITE_IOERR: {
      const int error = handle_ ? sqlite3_system_errno(handle_.get()) : 0;
      refuse("it " + doing + ": the disk reports '" +
             std::string(error == 0 ? sqlite3_errstr(code) : std::strerror(error)) +
             "'. Mend that, then start the same command again");
    }
    default:
      refuse("it " + doing + ": " +
             (handle_ ? sqlite3_errmsg(handle_.get()) : sqlite3_errstr(code)));
  }
}

}  // namespace pccl::membership
