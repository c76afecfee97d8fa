#include "base/codec.h"

#include <array>
#include <string>

namespace pccl {

const char* codec_id_name(CodecId id) {
  static constexpr std::array<const char*, kCodecCount> kNames = {
      "none", "bf16", "fp16", "int8", "int6", "int4", "fp8_e4m3", "fp8_e5m2", "topk", "topk_2bit"};
  const auto index = static_cast<size_t>(id);
  return index < kNames.size() ? kNames[index] : "unknown";
}

std::string codec_name(Codec codec) {
  std::string name = codec_id_name(codec.id);
  if (codec.id == CodecId::TopK || codec.id == CodecId::TopK2Bit)
    return name + ":" + std::to_string(uint64_t{1} << (codec.options & 63U));
  for (const CodecOptionName& option : kCodecOptionNames) {
    if (codec.has(option.option)) name.append(":").append(option.name);
  }
  return name;
}

}  // namespace pccl
