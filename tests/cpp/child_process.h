// Another process that runs one test case of this program, so that it can be killed.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "base/file_descriptor.h"

namespace pccl {

// The child's end of the pipe that start() made.
inline constexpr int kChildPipe = 3;
inline constexpr int kChildSecondsMax = 60;

class ChildProcess {
 public:
  // Starts the test case `name`, which is marked skip().
  explicit ChildProcess(const std::string& name) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    from_child_ = FileDescriptor(ends[0]);
    FileDescriptor to_parent(ends[1]);
    const std::string filter = "--test-case=" + name;
    std::vector<std::string> words = {"/proc/self/exe", filter, "--no-skip", "--minimal"};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to_parent.get(), kChildPipe);
    const int failure =
        posix_spawn(&id_, "/proc/self/exe", &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    REQUIRE(failure == 0);
  }
  ~ChildProcess() { kill(); }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // What the child says first: one message by say().
  std::vector<std::byte> hear() {
    std::vector<std::byte> bytes(4096);
    pollfd entry{from_child_.get(), POLLIN, 0};
    REQUIRE(::poll(&entry, 1, kChildSecondsMax * 1000) == 1);
    const ssize_t count = ::read(from_child_.get(), bytes.data(), bytes.size());
    REQUIRE(count > 0);
    bytes.resize(static_cast<size_t>(count));
    return bytes;
  }
  void signal(int number) { REQUIRE(::kill(id_, number) == 0); }
  void kill() {
    if (id_ <= 0) return;
    ::kill(id_, SIGKILL);
    ::waitpid(id_, nullptr, 0);
    id_ = -1;
  }

 private:
  pid_t id_ = -1;
  FileDescriptor from_child_;
};

// In the child: tells the parent, then waits to be killed; ends by itself with the parent, or late.
inline void say_and_wait(std::span<const std::byte> bytes) {
  ::alarm(kChildSecondsMax);
  REQUIRE(::write(kChildPipe, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  // The parent is the only one that reads.
  pollfd entry{kChildPipe, 0, 0};
  ::poll(&entry, 1, kChildSecondsMax * 1000);
}

}  // namespace pccl
