// Members of a run as processes that are killed, around a coordinator with a real database.
#include "run.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "membership/coordinator_server.h"
#include "share.h"

namespace pccl {
namespace {

constexpr double kSoonSeconds = 60;

// A process of its own, forked before this one has threads; it gets the coordinator's port.
class Child {
 public:
  explicit Child(const std::function<bool(uint16_t port)>& program) {
    std::array<int, 2> pipe_ends;
    REQUIRE(::pipe(pipe_ends.data()) == 0);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      ::close(pipe_ends[1]);
      uint16_t port = 0;
      bool is_well = ::read(pipe_ends[0], &port, sizeof(port)) == sizeof(port);
      try {
        is_well = is_well && program(port);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "child: %s\n", error.what());
        is_well = false;
      }
      ::_exit(is_well ? 0 : 1);
    }
    ::close(pipe_ends[0]);
    to_child_ = pipe_ends[1];
  }
  ~Child() {
    if (pid_ > 0) {
      kill();
      wait();
    }
    ::close(to_child_);
  }
  void begin(uint16_t port) { REQUIRE(::write(to_child_, &port, sizeof(port)) == sizeof(port)); }
  void kill() { ::kill(pid_, SIGKILL); }
  // Its exit status, -1 if a signal ended it.
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  int to_child_ = -1;
};

RunOptions options_for(uint16_t port, bool shared_memory) {
  RunOptions options;
  options.endpoint = {.run = "test", .bind_host = "127.0.0.1", .shared_memory = shared_memory};
  options.coordinator_host = "127.0.0.1";
  options.coordinator_port = port;
  options.timeout_seconds = kSoonSeconds;
  return options;
}

void wait_well(const std::shared_ptr<Work>& work) {
  if (!work->wait(after(Clock::now(), 2 * kSoonSeconds))) throw std::runtime_error("a call hangs");
  if (work->error()) throw_error(work->error());
}

// Every member contributes 1, so an element is the number of its contributors.
bool is_right(const Work& work, const std::vector<float>& tensor) {
  uint64_t covered = 0;
  for (const Contribution& range : work.contributions()) {
    if (range.begin != covered) return false;
    covered = range.end;
    for (uint64_t i = range.begin; i < range.end; ++i) {
      if (tensor[i] != static_cast<float>(range.members.size())) return false;
    }
  }
  return covered == tensor.size();
}

// Until somebody is lost, and then some more.
bool reduce_until_a_loss(uint16_t port, bool shared_memory, int32_t world_size, size_t count) {
  Run run(options_for(port, shared_memory));
  if (!run.wait_for_members(world_size, after(Clock::now(), kSoonSeconds))) return false;
  std::vector<float> tensor(count);
  int after_loss = 0;
  while (after_loss < 20) {
    tensor.assign(count, 1);
    auto* data = reinterpret_cast<std::byte*>(tensor.data());
    const auto work =
        run.all_reduce(data, data, count, DataType::Float32, ReduceOp::Sum, 1, CallOptions{});
    wait_well(work);
    if (!is_right(*work, tensor)) return false;
    const auto contributors = static_cast<int32_t>(work->contributions().back().members.size());
    if (contributors < world_size || after_loss > 0) after_loss += 1;
  }
  run.leave();
  return true;
}

struct Server {
  explicit Server(int32_t world_size_min, uint16_t port = 0) {
    options.bind_host = "127.0.0.1";
    options.port = port;
    options.database = path.string();
    options.runs = {{"test", world_size_min}};
    server.emplace(options);
  }
  ~Server() {
    server.reset();
    std::error_code error;
    for (const char* end : {"", "-wal", "-shm"}) {
      std::filesystem::path file = path;
      std::filesystem::remove(file += end, error);
    }
  }
  uint16_t port() const { return server->address().port; }
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("pccl_run_test." + std::to_string(::getpid()));
  membership::CoordinatorServerOptions options;
  std::optional<membership::CoordinatorServer> server;
};

TEST_CASE("kill -9 of a member in the middle of an all_reduce fails no call of the others") {
  std::mt19937_64 random(1);
  for (const bool shared_memory : {false, true}) {
    for (uint64_t round = 0; round < share(4); ++round) {
      CAPTURE(shared_memory);
      CAPTURE(round);
      constexpr int kMembers = 4;
      std::vector<std::unique_ptr<Child>> children;
      for (int i = 0; i < kMembers; ++i) {
        children.push_back(std::make_unique<Child>([shared_memory](uint16_t port) {
          return reduce_until_a_loss(port, shared_memory, kMembers, 2 << 20);
        }));
      }
      Server server(2);
      for (const auto& child : children) child->begin(server.port());
      const TimePoint until = after(Clock::now(), kSoonSeconds);
      const auto operations = [&server] {
        uint64_t most = 0;
        for (const auto& run : server.server->status().runs) {
          for (const auto& member : run.members) most = std::max(most, member.progress.completed);
        }
        return most;
      };
      while (operations() < 1 && Clock::now() < until)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
      children[0]->kill();
      CHECK(children[0]->wait() == -1);
      children.erase(children.begin());
      for (const auto& child : children) CHECK(child->wait() == 0);
    }
  }
}

}  // namespace
}  // namespace pccl
