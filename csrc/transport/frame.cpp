#include "transport/frame.h"

namespace pccl::transport {

const char* collective_name(Collective collective) {
  switch (collective) {
    case Collective::None:
      return "nothing";
    case Collective::AllReduce:
      return "all_reduce";
    case Collective::Broadcast:
      return "broadcast";
    case Collective::Reduce:
      return "reduce";
    case Collective::AllGather:
      return "all_gather";
    case Collective::ReduceScatter:
      return "reduce_scatter";
    case Collective::Gather:
      return "gather";
    case Collective::Scatter:
      return "scatter";
    case Collective::AllToAll:
      return "all_to_all";
    case Collective::Barrier:
      return "barrier";
    case Collective::SendRecv:
      return "send/recv";
  }
  return "unknown collective";
}

std::string Signature::describe() const {
  std::string text = collective_name(collective);
  if (collective == Collective::Barrier) return text + "()";
  text += '(';
  text += data_type_name(dtype);
  if (count != 0) text.append("[").append(std::to_string(count)).append("]");
  const bool reduces = collective == Collective::AllReduce || collective == Collective::Reduce ||
                       collective == Collective::ReduceScatter;
  if (reduces) text.append(", ").append(reduce_op_name(op));
  if (codec != Codec{}) text.append(", ").append(codec_name(codec));
  if (root >= 0) text.append(", root ").append(std::to_string(root));
  return text + ")";
}

void FrameHeader::set_signature(const Signature& signature) {
  collective = signature.collective;
  dtype = signature.dtype;
  op = signature.op;
  root = signature.root;
  count = signature.count;
  const auto id = static_cast<unsigned>(signature.codec.id);
  flags =
      static_cast<uint16_t>((flags & 0xFFU) | id << 8U | unsigned{signature.codec.options} << 12U);
}

std::optional<std::string> find_fault(const FrameHeader& header) {
  if (header.magic != kFrameMagic) return "no frame magic";
  const auto type = static_cast<uint8_t>(header.type);
  if (type < 1 || type > kFrameTypeMax) {
    return "unknown frame type " + std::to_string(type);
  }
  if (static_cast<uint8_t>(header.collective) > static_cast<uint8_t>(Collective::SendRecv)) {
    return "unknown collective " + std::to_string(static_cast<uint8_t>(header.collective));
  }
  if (static_cast<uint8_t>(header.dtype) >= kDataTypeCount) return "unknown dtype";
  if (static_cast<uint8_t>(header.op) >= kReduceOpCount) return "unknown reduce op";
  const Codec codec = header.codec();
  const bool is_coded = codec != Codec{};
  if (is_coded &&
      (static_cast<uint8_t>(codec.id) >= kCodecCount || header.collective != Collective::AllReduce))
    return "unknown codec";
  if (header.length > kPayloadBytesMax) {
    return "payload of " + std::to_string(header.length) + " bytes, the limit is " +
           std::to_string(kPayloadBytesMax);
  }
  const bool carries_payload =
      header.type == FrameType::Data || header.type == FrameType::Message ||
      header.type == FrameType::Abort || header.type == FrameType::Membership ||
      header.type == FrameType::Finals || header.type == FrameType::Probe ||
      header.type == FrameType::Figures;
  if (header.type == FrameType::Abort && header.length > kAbortBytesMax)
    return "reason of " + std::to_string(header.length) + " bytes";
  if (header.type == FrameType::Probe && header.length > kProbeBytes)
    return "probe of " + std::to_string(header.length) + " bytes";
  if (header.type == FrameType::Figures && header.length > kFiguresBytesMax)
    return "figures of " + std::to_string(header.length) + " bytes";
  if (!carries_payload && header.length != 0) return "payload on a control frame";
  if (header.type == FrameType::Data || header.type == FrameType::Message) {
    if (header.segment_bytes == 0 || header.segment_bytes > kPayloadBytesMax)
      return "bad segment size";
    if (header.type == FrameType::Data && (header.flags & kFlagClaimed) != 0) {
      if (header.length > header.segment_bytes) return "wrong segment length";
      return std::nullopt;
    }
    const uint64_t offset = uint64_t{header.segment} * header.segment_bytes;
    if (offset > header.transfer_bytes) return "segment beyond the end of its transfer";
    const uint64_t rest = header.transfer_bytes - offset;
    // What a codec makes of a segment its receiver knows.
    if (!is_coded && header.length != (rest < header.segment_bytes ? rest : header.segment_bytes))
      return "wrong segment length";
  }
  return std::nullopt;
}

}  // namespace pccl::transport
