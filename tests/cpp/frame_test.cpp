// Frame headers: what may go over the wire, and that nothing else gets past find_fault.
#include "transport/frame.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <string>

using namespace pccl;
using namespace pccl::transport;

namespace {

FrameHeader data_frame(uint64_t transfer_bytes, uint64_t segment_bytes, uint32_t segment,
                       uint32_t length) {
  FrameHeader header;
  header.type = FrameType::Data;
  header.transfer_bytes = transfer_bytes;
  header.segment_bytes = segment_bytes;
  header.segment = segment;
  header.length = length;
  return header;
}

bool has_fault(const FrameHeader& header, const std::string& words) {
  const auto fault = find_fault(header);
  INFO("fault: ", fault.value_or("none"));
  return fault && fault->find(words) != std::string::npos;
}

// A field as it comes from the network, where an enum may hold any number.
template <typename T>
void set_raw(T& field, uint8_t value) {
  static_assert(sizeof(T) == 1);
  std::memcpy(&field, &value, 1);
}

}  // namespace

TEST_CASE("a header lies on the wire as docs/wire_format.md draws it") {
  FrameHeader header;
  header.type = FrameType::Message;
  header.set_signature({Collective::SendRecv, DataType::Int16, ReduceOp::Max, 7, 0x0102030405});
  header.group = 0x1112131415161718;
  header.operation = 9;
  header.transfer_bytes = 10;
  header.chunk = 11;
  header.segment = 12;
  header.length = 13;
  header.source_rank = 14;
  header.stage = 15;
  header.flags = kFlagUngranted;
  header.segment_bytes = 16;
  unsigned char bytes[sizeof(FrameHeader)];
  std::memcpy(bytes, &header, sizeof(header));
  CHECK(std::string(reinterpret_cast<char*>(bytes), 4) == "PCCF");
  const auto byte_at = [&bytes](size_t offset) { return static_cast<int>(bytes[offset]); };
  CHECK(byte_at(4) == 2);
  CHECK(byte_at(5) == 10);
  CHECK(byte_at(6) == static_cast<int>(DataType::Int16));
  CHECK(byte_at(7) == static_cast<int>(ReduceOp::Max));
  CHECK(byte_at(8) == 0x18);
  CHECK(byte_at(16) == 9);
  CHECK(byte_at(24) == 0x05);
  CHECK(byte_at(32) == 10);
  CHECK(byte_at(40) == 11);
  CHECK(byte_at(44) == 12);
  CHECK(byte_at(48) == 13);
  CHECK(byte_at(52) == 7);
  CHECK(byte_at(56) == 14);
  CHECK(byte_at(60) == 15);
  CHECK(byte_at(62) == 1);
  CHECK(byte_at(64) == 16);
}

TEST_CASE("a signature set on a header is read back") {
  const Signature signature{Collective::Reduce, DataType::BFloat16, ReduceOp::Avg, 3, 1234567};
  FrameHeader header;
  CHECK(header.signature() != signature);
  header.set_signature(signature);
  CHECK(header.signature() == signature);
}

TEST_CASE("a signature reads like the call") {
  using enum Collective;
  CHECK(Signature{AllReduce, DataType::Float32, ReduceOp::Sum, -1, 1000}.describe() ==
        "all_reduce(float32[1000], sum)");
  CHECK(Signature{Broadcast, DataType::Int8, ReduceOp::Sum, 2, 5}.describe() ==
        "broadcast(int8[5], root 2)");
  CHECK(Signature{Barrier, DataType::UInt8, ReduceOp::Sum, -1, 1}.describe() == "barrier()");
  CHECK(Signature{AllToAll, DataType::Bool, ReduceOp::Sum, -1, 0}.describe() == "all_to_all(bool)");
}

TEST_CASE("the default header of each control frame has no fault") {
  for (const FrameType type : {FrameType::Grant, FrameType::Credit, FrameType::Matched,
                               FrameType::Abort, FrameType::Goodbye}) {
    FrameHeader header;
    header.type = type;
    CHECK_FALSE(find_fault(header));
  }
}

TEST_CASE("a header with a wrong enum or magic is refused in words") {
  FrameHeader header = data_frame(0, 1, 0, 0);
  CHECK_FALSE(find_fault(header));
  SUBCASE("magic") {
    header.magic ^= 1;
    CHECK(has_fault(header, "magic"));
  }
  SUBCASE("type 0") {
    set_raw(header.type, 0);
    CHECK(has_fault(header, "frame type 0"));
  }
  SUBCASE("a type that is none") {
    set_raw(header.type, kFrameTypeMax + 1);
    CHECK(has_fault(header, "frame type 17"));
  }
  SUBCASE("collective") {
    set_raw(header.collective, 11);
    CHECK(has_fault(header, "collective 11"));
  }
  SUBCASE("dtype") {
    set_raw(header.dtype, kDataTypeCount);
    CHECK(has_fault(header, "dtype"));
  }
  SUBCASE("op") {
    set_raw(header.op, kReduceOpCount);
    CHECK(has_fault(header, "reduce op"));
  }
}

TEST_CASE("every segment of a transfer has one right length, and no other is accepted") {
  constexpr uint64_t kSegment = 1000;
  for (const uint64_t transfer : {0, 1, 997, 999, 1000, 1001, 2000, 3500}) {
    const auto segments = static_cast<uint32_t>((transfer + kSegment - 1) / kSegment);
    for (uint32_t segment = 0; segment < segments; ++segment) {
      const auto length = static_cast<uint32_t>(std::min(kSegment, transfer - segment * kSegment));
      CHECK_FALSE(find_fault(data_frame(transfer, kSegment, segment, length)));
      CHECK(has_fault(data_frame(transfer, kSegment, segment, length - 1), ""));
      CHECK(has_fault(data_frame(transfer, kSegment, segment, length + 1), "segment length"));
    }
    CHECK(has_fault(data_frame(transfer, kSegment, segments + 1, 0), "beyond the end"));
    CHECK(has_fault(data_frame(transfer, kSegment, UINT32_MAX, 0), "beyond the end"));
  }
}

TEST_CASE("an empty transfer travels as one empty segment") {
  CHECK_FALSE(find_fault(data_frame(0, 1, 0, 0)));
  CHECK(has_fault(data_frame(0, 1, 0, 1), "segment length"));
}

TEST_CASE("sizes beyond the limits are refused, those at the limits are not") {
  CHECK_FALSE(find_fault(data_frame(kPayloadBytesMax, kPayloadBytesMax, 0, kPayloadBytesMax)));
  CHECK(has_fault(data_frame(UINT64_MAX, kPayloadBytesMax, 0, kPayloadBytesMax + 1), "payload of"));
  CHECK(has_fault(data_frame(UINT64_MAX, kPayloadBytesMax + 1, 0, 1), "bad segment size"));
  CHECK(has_fault(data_frame(1, 0, 0, 0), "bad segment size"));
  // The largest offset that a header can name does not overflow.
  CHECK_FALSE(find_fault(data_frame(UINT64_MAX, kPayloadBytesMax, UINT32_MAX, kPayloadBytesMax)));
}

TEST_CASE("an abort carries at most 4 KiB of reason") {
  FrameHeader header;
  header.type = FrameType::Abort;
  header.length = kAbortBytesMax;
  CHECK_FALSE(find_fault(header));
  header.length = kAbortBytesMax + 1;
  CHECK(has_fault(header, "reason"));
}

TEST_CASE("probes and figures are bounded") {
  for (const auto& [type, bytes_max] : {std::pair(FrameType::Probe, kProbeBytes),
                                        std::pair(FrameType::Figures, kFiguresBytesMax)}) {
    FrameHeader header;
    header.type = type;
    header.length = bytes_max;
    CHECK_FALSE(find_fault(header));
    header.length = bytes_max + 1;
    CHECK(has_fault(header, "bytes"));
  }
}

TEST_CASE("a control frame without payload may not have one") {
  for (const FrameType type :
       {FrameType::Grant, FrameType::Credit, FrameType::Matched, FrameType::Goodbye}) {
    FrameHeader header;
    header.type = type;
    header.length = 1;
    CHECK(has_fault(header, "payload on a control frame"));
  }
}

TEST_CASE("of random bytes nothing passes, and of random fields only what keeps the rules") {
  constexpr uint32_t kSeed = 20240607;
  CAPTURE(kSeed);
  std::mt19937_64 random(kSeed);
  int passed = 0;
  for (int i = 0; i < 200000; ++i) {
    uint64_t words[sizeof(FrameHeader) / 8];
    for (uint64_t& word : words) word = random();
    FrameHeader header;
    std::memcpy(&header, words, sizeof(header));
    const bool is_garbage_refused = find_fault(header).has_value();
    REQUIRE(is_garbage_refused);
    // The same with small fields, so that every rule is reached.
    header.magic = kFrameMagic;
    set_raw(header.type, static_cast<uint8_t>(random() % 9));
    set_raw(header.collective, static_cast<uint8_t>(random() % 12));
    set_raw(header.dtype, static_cast<uint8_t>(random() % 17));
    set_raw(header.op, static_cast<uint8_t>(random() % 10));
    header.length = static_cast<uint32_t>(random() % 4);
    header.transfer_bytes = random() % 8;
    header.segment_bytes = random() % 4;
    header.segment = static_cast<uint32_t>(random() % 4);
    if (find_fault(header)) continue;
    passed += 1;
    REQUIRE(header.length <= kPayloadBytesMax);
    if (header.type != FrameType::Data && header.type != FrameType::Message) continue;
    const uint64_t begin = uint64_t{header.segment} * header.segment_bytes;
    // What a chunk got while the call ran lies beyond its own part.
    if (header.type == FrameType::Data && (header.flags & kFlagClaimed) != 0) {
      REQUIRE(header.length <= header.segment_bytes);
      continue;
    }
    // The length of a coded segment is its receiver's to check.
    REQUIRE(begin + (header.codec() == Codec{} ? header.length : 0) <= header.transfer_bytes);
  }
  CHECK(passed > 1000);
}
