// What coordinators must find again after a crash: one SQLite file for all runs of a server.
//
// save() returns when the bytes are on disk (WAL, synchronous=FULL). The file is locked while this
// object lives; the kernel frees the lock with the process, however that ends. Nothing here
// guesses: a file that is not whole, or not ours, is refused with the way out.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "base/errors.h"
#include "membership/coordinator.h"

struct sqlite3;

namespace pccl::membership {

// The database can't be used; the message says what, where, and what helps.
class DatabaseError : public PcclError {
 public:
  using PcclError::PcclError;
};

class Database {
 public:
  // Opens the file, or makes it and its folder, readable for its owner only. Throws DatabaseError.
  explicit Database(const std::string& path);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // nullopt: this database does not know the run. Throws DatabaseError.
  std::optional<Durable> load(const std::string& run);
  // Throws DatabaseError; then the file holds what it held before. Requires: the term is not lower
  // than the one on disk.
  void save(const std::string& run, const Durable& durable);
  size_t run_count();
  // Whether any run in it has ever had a quorum: then it is not one that has just been made.
  bool has_quorum();
  const std::string& path() const { return path_; }

 private:
  struct Closer {
    void operator()(sqlite3* handle) const;
  };

  void make_file();
  void refuse_strangers();
  void check_content();
  void execute(const std::string& sql);
  size_t count(const std::string& rows);
  bool load_links(const std::string& run, Quorum& quorum);
  void replace_rows(const std::string& run, const Durable& durable);
  [[noreturn]] void fail(int code, const std::string& doing) const;
  [[noreturn]] void refuse(const std::string& what) const;

  std::string path_;
  std::unique_ptr<sqlite3, Closer> handle_;
};

}  // namespace pccl::membership
