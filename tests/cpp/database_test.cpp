// The coordinator's database: what was saved is there again; what is not ours is refused in words.
#include "membership/database.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>

namespace pccl::membership {
namespace {

// A folder of its own, gone with the test.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "pccl-database-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string file(const std::string& name = "state/coordinator.db") const {
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

Durable some_state(uint64_t term, size_t seats) {
  Durable durable;
  durable.term = term;
  durable.quorum.quorum_id = term * 10;
  durable.quorum_term = term - 1;
  durable.quorum_ballot = term + 3;
  durable.first_operation = term * 1000;
  durable.recover_from = term * 999;
  durable.revision = term + 5;
  durable.digest.fill(static_cast<uint8_t>(term));
  for (size_t rank = 0; rank < seats; ++rank) {
    Seat seat;
    seat.member_id.fill(1);
    seat.member_id[0] = static_cast<uint8_t>(rank);
    seat.member_id[1] = static_cast<uint8_t>(rank >> 8);
    seat.joined_at = rank;
    seat.address.assign(rank % 7, std::byte(rank));
    durable.quorum.seats.push_back(seat);
  }
  if (seats > 1) durable.quorum.table = {{{0, 1, 1000, 20'000}, {1, 0, 7, 0}}, {{1, 2}, {3, 4}}};
  return durable;
}

// What refuses to open `path` says; "" if nothing does.
std::string refusal(const std::string& path) {
  try {
    const Database database(path);
  } catch (const DatabaseError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void overwrite(const std::string& path, std::streamoff at, const std::string& bytes) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(at);
  file << bytes;
  REQUIRE(file.good());
}

// Runs `task` in a process of its own that ends by kill -9 right behind it.
void in_killed_process(const std::function<void()>& task) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    task();
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  REQUIRE(WTERMSIG(status) == SIGKILL);
}

}  // namespace

TEST_CASE("what was saved is there again, for each run") {
  const Folder folder;
  for (const size_t seats : {size_t{0}, size_t{1}, size_t{13}, kSeatsMax}) {
    {
      Database database(folder.file());
      database.save("a", some_state(seats + 1, seats));
      database.save("b", some_state(seats + 2, 2));
    }
    Database database(folder.file());
    CHECK(database.load("a") == some_state(seats + 1, seats));
    CHECK(database.load("b") == some_state(seats + 2, 2));
    CHECK(database.load("c") == std::nullopt);
    CHECK(database.run_count() == 2);
  }
}

TEST_CASE("what a killed process saved is there at once") {
  const Folder folder;
  in_killed_process([&] {
    Database database(folder.file());
    database.save("a", some_state(1, 3));
  });
  Database database(folder.file());
  CHECK(database.load("a") == some_state(1, 3));
}

TEST_CASE("a term never goes back") {
  const Folder folder;
  Database database(folder.file());
  database.save("a", some_state(7, 3));
  CHECK_THROWS_AS(database.save("a", some_state(6, 1)), std::logic_error);
  CHECK(database.load("a") == some_state(7, 3));
  database.save("a", some_state(7, 4));
  CHECK(database.load("a") == some_state(7, 4));
}

TEST_CASE("only its owner can read the file") {
  const Folder folder;
  Database database(folder.file());
  database.save("a", some_state(1, 3));
  for (const char* suffix : {"", "-wal"}) {
    struct stat status {};
    REQUIRE(::stat((folder.file() + suffix).c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
  }
}

TEST_CASE("a database in use is refused") {
  const Folder folder;
  const Database database(folder.file());
  const std::string text = refusal(folder.file());
  CHECK(contains(text, folder.file()));
  CHECK(contains(text, "another process uses it"));
  CHECK(contains(text, "--database"));
}

TEST_CASE("a database in use by another process is refused until that is gone") {
  const Folder folder;
  std::array<int, 2> opened{};
  REQUIRE(::pipe(opened.data()) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const Database database(folder.file());
    if (::write(opened[1], "!", 1) != 1) ::_exit(1);
    while (true) ::pause();  // for the signal
  }
  ::close(opened[1]);
  char byte = 0;
  REQUIRE(::read(opened[0], &byte, 1) == 1);
  ::close(opened[0]);
  CHECK(contains(refusal(folder.file()), "another process uses it"));
  REQUIRE(::kill(child, SIGKILL) == 0);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  CHECK(refusal(folder.file()).empty());
}

TEST_CASE("what is no database of ours is refused and left as it is") {
  const Folder folder;
  const std::string path = folder.file("coordinator.db");
  const std::string text = "Dear diary, today I learned about databases.\n";
  std::ofstream(path) << text;
  CHECK(contains(refusal(path), "this is no database"));
  std::string left;
  std::getline(std::ifstream(path), left);
  CHECK(left + "\n" == text);
}

TEST_CASE("databases of others, of later versions, and damaged ones are refused") {
  const Folder folder;
  { Database(folder.file()).save("a", some_state(1, 200)); }
  SUBCASE("application_id") {
    overwrite(folder.file(), 68, "GRMP");
    CHECK(contains(refusal(folder.file()), "another program"));
  }
  SUBCASE("user_version") {
    overwrite(folder.file(), 60, std::string("\0\0\0\x09", 4));
    CHECK(contains(refusal(folder.file()), "a newer pccl wrote it (schema 9, this one knows 1)"));
  }
  SUBCASE("a page of garbage") {
    overwrite(folder.file(), 2 * 4096, std::string(4096, '\x5a'));
    const std::string text = refusal(folder.file());
    CHECK(contains(text, "damaged"));
    CHECK(contains(text, "move it aside"));
  }
  SUBCASE("cut off") {
    std::filesystem::resize_file(folder.file(), 3 * 4096 + 100);
    CHECK(contains(refusal(folder.file()), "damaged"));
  }
  SUBCASE("empty again") {
    // As new: nothing says otherwise.
    std::filesystem::resize_file(folder.file(), 0);
    CHECK(refusal(folder.file()).empty());
  }
}

TEST_CASE("a place that can't be written is refused with the way out") {
  CHECK(contains(refusal(""), "its path is empty"));
  CHECK(contains(refusal("/proc/pccl/coordinator.db"), "--database"));
  const Folder folder;
  std::filesystem::create_directories(folder.file());
  CHECK(contains(refusal(folder.file()), folder.file()));
}

}  // namespace pccl::membership
