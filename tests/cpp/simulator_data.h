// One member's data plane in the simulator: all_reduce operations, run segment by segment by the
// real schedules, held, frozen and recovered as docs/decisions/0005-membership.md says.
//
// An element's value is the sum of one random word for each contributor, so the right sum proves
// that each was counted exactly once.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "membership/member.h"
#include "recovery/final_map.h"
#include "recovery/plan.h"
#include "simulator.h"
#include "topology/schedule.h"

namespace simulator {

using pccl::membership::Enter;
using pccl::membership::MemberId;
using pccl::membership::Progress;
using pccl::membership::Quorum;
using pccl::recovery::FinalMap;
using pccl::topology::Schedule;

uint64_t mix(uint64_t value);  // splitmix64
// From 0 on, of the members of one world: it stands in their ids.
size_t number_of(const MemberId& member);
uint64_t contribution(const MemberId& member, uint64_t operation, uint64_t element);
uint64_t element_count(uint64_t operation);

struct Frame {
  enum class Kind : uint8_t { Data, Finals, Done };
  Kind kind = Kind::Data;
  uint64_t quorum_id = 0;
  bool is_recovery = false;
  uint64_t operation = 0;  // Done: all below are complete at the sender
  uint32_t chunk = 0;
  uint32_t segment = 0;
  uint16_t stage = 0;
  std::vector<uint64_t> payload;
  FinalMap finals;
};

class DataPlane {
 public:
  struct Host {
    std::function<void(const MemberId& to, std::shared_ptr<const Frame> frame)> send;
    // Of one operation: its bytes and what they were made of.
    std::function<void(uint64_t operation, const std::vector<uint64_t>& values,
                       const FinalMap& finals, bool was_recovered)>
        complete;
  };
  DataPlane(const MemberId& self, Mutation mutation, Host host);

  void enter(const Enter& enter);
  void hold(bool freezes);
  // The caller's next operation; false: it has to wait.
  bool start();
  void receive(const MemberId& from, const std::shared_ptr<const Frame>& frame);
  Progress progress() const { return progress_; }
  bool has_quorum() const { return quorum_.quorum_id != 0; }
  // Whether all others are known to have completed what this one has.
  bool is_done_everywhere() const;

 private:
  // A chunk's piece on its way through the schedule.
  struct Segment {
    uint64_t begin = 0;
    uint64_t end = 0;
    std::vector<uint64_t> partial;
    int32_t missing = 0;  // partial sums of children
    int32_t round = 0;    // of the exchange
    std::map<int32_t, std::vector<uint64_t>> early;
    bool is_sent = false;
    bool is_final = false;
  };
  struct Part {  // a chunk, seen by this rank
    int32_t parent = -1;
    std::vector<int32_t> children;  // they receive finals from us
    int32_t core_position = -1;
    std::vector<Segment> segments;
  };
  struct Operation {
    bool is_started = false;
    bool is_complete = false;
    bool was_recovered = false;
    uint64_t quorum_id = 0;  // it runs in
    bool is_recovery = false;
    bool is_running = false;
    std::vector<uint64_t> values;  // input, or result where final
    FinalMap finals;
    std::map<MemberId, FinalMap> others;  // recovery: what the survivors hold
    pccl::recovery::RecoveryPlan plan;
    std::shared_ptr<const Schedule> schedule;
    std::vector<Part> parts;
    std::vector<std::pair<MemberId, std::shared_ptr<const Frame>>> mailbox;

    bool takes(const Frame& frame) const {
      return quorum_id == frame.quorum_id && is_recovery == frame.is_recovery &&
             (is_running || frame.kind == Frame::Kind::Finals);
    }
  };

  uint64_t quorum_of(uint64_t number) const;
  const Quorum& quorum_at(uint64_t quorum_id) const;
  bool takes_part(const Quorum& quorum, size_t rank, uint64_t number) const;
  Operation& prepare(uint64_t number);
  void recover(uint64_t number);
  void try_recovery(uint64_t number);
  void run(uint64_t number);
  void fill_parts(Operation& operation);
  void advance(uint64_t number, uint32_t chunk_index, uint32_t index);
  void make_final(uint64_t number, uint32_t chunk_index, uint32_t index,
                  const std::vector<uint64_t>& values);
  void take(uint64_t number, const MemberId& from, const Frame& frame);
  void empty_mailbox(uint64_t number);
  void finish(uint64_t number);
  void forget();
  uint64_t& done(const MemberId& member);
  void send(const Operation& operation, uint64_t number, int32_t to, uint32_t chunk,
            uint32_t segment, uint16_t stage, const std::vector<uint64_t>& payload);

  MemberId self_;
  Mutation mutation_;
  Host host_;
  Quorum quorum_;
  // Which quorum the operations from a number on belong to, and those quorums.
  std::map<uint64_t, uint64_t> starts_;
  std::map<uint64_t, Quorum> quorums_;
  uint64_t recover_from_ = 0;
  uint64_t recover_to_ = 0;
  Progress progress_;
  bool is_held_ = false;
  bool is_frozen_ = false;
  uint64_t stands_still_below_ = 0;  // frozen, and not recovered since
  std::map<uint64_t, Operation> operations_;
  // All below are complete at it, or not its business: by the number of the member.
  std::vector<uint64_t> done_;
  // Of the others in the quorum: the least of done_, and how many have no more; 0: to be counted.
  uint64_t least_ = 0;
  size_t at_least_ = 0;
  uint64_t forgotten_ = 0;  // all below are complete at all
};

}  // namespace simulator
