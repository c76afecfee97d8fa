// SQLite's prepared statements, for the two files that use them.
#pragma once

#include <sqlite3.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace pccl::membership {

// One prepared statement. Every call returns SQLite's code where it can fail.
class Statement {
 public:
  Statement(sqlite3* handle, const std::string& sql) {
    code_ = sqlite3_prepare_v2(handle, sql.c_str(), -1, &statement_, nullptr);
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  // SQLITE_ROW, SQLITE_DONE or an error; also that of preparing it.
  int step() { return code_ == SQLITE_OK ? sqlite3_step(statement_) : code_; }
  void again() { sqlite3_reset(statement_); }

  void bind(int index, uint64_t value) {
    note(sqlite3_bind_int64(statement_, index, static_cast<int64_t>(value)));
  }
  void bind_nothing(int index) { note(sqlite3_bind_null(statement_, index)); }
  void bind(int index, const std::string& text) {
    note(sqlite3_bind_text(statement_, index, text.data(), static_cast<int>(text.size()),
                           SQLITE_TRANSIENT));
  }
  void bind(int index, std::span<const std::byte> bytes) {
    // A null pointer would be NULL instead of an empty blob.
    const void* data = bytes.empty() ? "" : static_cast<const void*>(bytes.data());
    note(sqlite3_bind_blob(statement_, index, data, static_cast<int>(bytes.size()),
                           SQLITE_TRANSIENT));
  }

  bool is_nothing(int column) { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
  uint64_t number(int column) {
    return static_cast<uint64_t>(sqlite3_column_int64(statement_, column));
  }
  std::span<const std::byte> bytes(int column) {
    const void* data = sqlite3_column_blob(statement_, column);
    const auto size = static_cast<size_t>(sqlite3_column_bytes(statement_, column));
    return {static_cast<const std::byte*>(data), size};
  }
  std::string text(int column) {
    const std::span<const std::byte> found = bytes(column);
    return {reinterpret_cast<const char*>(found.data()), found.size()};
  }

 private:
  void note(int code) {
    if (code_ == SQLITE_OK) code_ = code;
  }
  sqlite3_stmt* statement_ = nullptr;
  int code_ = SQLITE_OK;
};

}  // namespace pccl::membership
