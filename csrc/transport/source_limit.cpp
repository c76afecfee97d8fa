#include "transport/source_limit.h"

#include <netinet/in.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace pccl::transport {
namespace {

std::array<uint8_t, 8> source_of(const SocketAddress& caller) {
  std::array<uint8_t, 8> source{};
  if (caller.storage.ss_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&caller.storage);
    std::memcpy(source.data() + 4, &v4->sin_addr, 4);
    return source;
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&caller.storage);
  const bool is_v4 = IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr);
  is_v4 ? std::memcpy(source.data() + 4, v6->sin6_addr.s6_addr + 12, 4)
        : std::memcpy(source.data(), v6->sin6_addr.s6_addr, 8);
  return source;
}

}  // namespace

bool SourceLimit::admit(const SocketAddress& caller, TimePoint now) {
  if (per_second_ <= 0 || caller.is_loopback()) return true;
  const auto source = source_of(caller);
  auto at = buckets_.find(source);
  if (at == buckets_.end()) {
    make_room(now);
    at = buckets_.emplace(source, Bucket{burst_, now}).first;
  }
  Bucket& bucket = at->second;
  const double seconds = std::chrono::duration<double>(now - bucket.at).count();
  bucket.tokens = std::min(burst_, bucket.tokens + seconds * per_second_);
  bucket.at = now;
  if (bucket.tokens < 1) return false;
  bucket.tokens -= 1;
  return true;
}

// A bucket that is full again says nothing.
void SourceLimit::make_room(TimePoint now) {
  if (buckets_.size() < kSourcesMax) return;
  std::erase_if(buckets_, [&](const auto& entry) {
    const double seconds = std::chrono::duration<double>(now - entry.second.at).count();
    return entry.second.tokens + seconds * per_second_ >= burst_;
  });
  if (buckets_.size() == kSourcesMax) buckets_.erase(buckets_.begin());
}

}  // namespace pccl::transport
