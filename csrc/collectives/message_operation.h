// Point-to-point messages: matched by (sender, tag) in the order in which they were sent.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "collectives/operation.h"

namespace pccl {

struct MessageMemory {
  std::byte* data = nullptr;  // only read by a sender
  uint64_t count = 0;
  DataType dtype = DataType::UInt8;
  uint32_t segment_bytes = 256 << 10;
};

class SendOperation final : public Operation {
 public:
  SendOperation(Group& group, int32_t destination, uint32_t tag, MessageMemory memory,
                std::shared_ptr<Work> work);
  void start() override { pump(); }
  transport::Placement place(const transport::FrameHeader&) override { return {}; }
  void on_frame(const transport::FrameHeader& header,
                transport::Payload payload) override;  // grants
  void pump() override;
  void grant_all() override {}
  bool needs(int32_t rank) const override { return rank == stream_.rank; }
  std::string progress() const override;
  std::string buffer_state() const override { return "The tensor is unchanged."; }
  int32_t destination() const { return stream_.rank; }
  uint32_t tag() const { return tag_; }

 private:
  void on_stream_sent(uint32_t owner_index) override;
  void abandon_connections() override;

  const uint32_t tag_;
  const MessageMemory memory_;
  const uint64_t bytes_;
  const uint32_t segments_;
  OutStream stream_;
};

class ReceiveOperation final : public Operation {
 public:
  ReceiveOperation(Group& group, int32_t source, uint32_t tag, MessageMemory memory,
                   std::shared_ptr<Work> work);
  void start() override {}
  // Takes the message that begins with `header`; false (and failed) if its size or type is another.
  bool bind(const transport::FrameHeader& header);
  transport::Placement place(const transport::FrameHeader& header) override;
  void on_frame(const transport::FrameHeader& header, transport::Payload payload) override;
  void pump() override {}
  void grant_all() override;
  void grant_message(uint64_t message_number);  // before it has come
  bool needs(int32_t rank) const override {
    return rank == source_ || (source_ < 0 && rank == bound_source_);
  }
  std::string progress() const override;
  std::string buffer_state() const override;
  int32_t source() const { return source_; }  // -1: any
  uint32_t tag() const { return tag_; }

 private:
  void on_stream_sent(uint32_t) override {}
  void abandon_connections() override;

  const int32_t source_;
  const uint32_t tag_;
  const MessageMemory memory_;
  const uint64_t bytes_;
  const uint32_t segments_;
  int32_t bound_source_ = -1;
  std::vector<bool> have_;
  std::vector<bool> placed_;  // segments that arrive, or did, right where they belong
  uint32_t received_ = 0;
};

// All messages of one group, sent and received.
class Messages {
 public:
  struct Key {
    int32_t source = 0;
    uint32_t tag = 0;
    uint64_t number = 0;
    auto operator<=>(const Key&) const = default;
  };

  explicit Messages(Group& group) : group_(group) {}

  void send(std::unique_ptr<SendOperation> operation);
  void receive(std::unique_ptr<ReceiveOperation> operation);
  transport::Placement place(const transport::FrameHeader& header);
  void on_message(const transport::FrameHeader& header, transport::Payload payload);
  void on_grant(const transport::FrameHeader& header);
  // Lets the senders that the posted receives name send without credit.
  void grant_posted();
  std::vector<Operation*> running();
  // Moves `operation` out; null if it is none of ours.
  std::unique_ptr<Operation> take(Operation& operation);
  void clear();

 private:
  void replay(std::vector<std::pair<transport::FrameHeader, transport::Payload>>&& frames);
  ReceiveOperation* match(const transport::FrameHeader& header);

  Group& group_;
  std::map<std::pair<int32_t, uint32_t>, uint64_t> next_sent_;      // (destination, tag)
  std::map<std::pair<int32_t, uint32_t>, uint64_t> next_received_;  // (source, tag)
  std::map<Key, std::unique_ptr<SendOperation>> sends_;             // key.source: the destination
  std::list<std::unique_ptr<ReceiveOperation>> posted_;  // not yet bound, in order of posting
  std::map<Key, std::unique_ptr<ReceiveOperation>> bound_;
  struct EarlyMessage {
    uint64_t arrival = 0;
    std::vector<std::pair<transport::FrameHeader, transport::Payload>> frames;
  };
  std::map<Key, EarlyMessage> early_;
  uint64_t arrivals_ = 0;
};

}  // namespace pccl
