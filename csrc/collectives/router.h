// Brings frames to their group, and keeps those of groups that do not exist here yet. Driver only.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "collectives/group.h"
#include "transport/connection.h"

namespace pccl {

class Router final : public transport::FrameSink {
 public:
  // False: a group of that id is there, or was.
  bool add(std::unique_ptr<Group> group);
  // Ends the group's operations with `error`; its id is not used again.
  void remove(uint64_t id, const Error& error);
  Group* find(uint64_t id);
  std::vector<Group*> groups();
  // Ends every group with `error`; no group and no frame is taken any more.
  void close(const Error& error);
  // Destroys ended operations. When none is on the stack.
  void sweep();

  transport::Placement place(transport::Connection& from,
                             const transport::FrameHeader& header) override;
  void on_frame(transport::Connection& from, const transport::FrameHeader& header,
                transport::Payload payload) override;
  void on_lost(transport::Connection& connection, const Error& error) override;
  TimePoint on_time(TimePoint now) override;
  void note_running(FlightRecorder& recorder) override;

 private:
  void deliver(transport::Connection& from, const transport::FrameHeader& header,
               transport::Payload payload);
  // Drops what waits here of a member that is lost.
  void forget(const transport::Connection& from);

  struct Waiting {
    transport::Connection* from;
    EarlyFrame frame;
  };
  // Groups whose first frames may wait for their creation here; bytes are bounded by the senders'
  // credit.
  static constexpr size_t kUnknownGroupsMax = 4096;

  std::unordered_map<uint64_t, std::unique_ptr<Group>> groups_;
  std::unordered_map<uint64_t, std::vector<Waiting>> unknown_;
  std::unordered_set<uint64_t> ended_;
  bool is_closed_ = false;
};

}  // namespace pccl
