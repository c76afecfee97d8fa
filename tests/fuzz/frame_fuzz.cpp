// Frame headers: what passes is within bounds.
#include <cstring>

#include "fuzz.h"
#include "transport/frame.h"

using namespace pccl::transport;

std::vector<fuzz::Bytes> make_seeds() {
  std::vector<fuzz::Bytes> seeds;
  for (uint8_t type = 1; type <= kFrameTypeMax; ++type) {
    FrameHeader header;
    header.type = static_cast<FrameType>(type);
    fuzz::Bytes bytes(sizeof(header));
    std::memcpy(bytes.data(), &header, sizeof(header));
    seeds.push_back(bytes);
  }
  return seeds;
}

void try_input(std::span<const std::byte> input) {
  FrameHeader header;
  if (input.size() < sizeof(header)) return;
  std::memcpy(&header, input.data(), sizeof(header));
  if (find_fault(header)) return;
  fuzz::require(header.length <= kPayloadBytesMax, "a payload is bounded");
  fuzz::require(!header.signature().describe().empty(), "a call has a name");
}
