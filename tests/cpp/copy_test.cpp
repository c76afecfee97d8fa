#include "kernels/copy.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

using pccl::kernels::copy_past_cache;

TEST_CASE("a copy past the cache writes what memcpy would, and nothing beside it") {
  constexpr std::byte kUntouched{0xEE};
  for (const size_t bytes : {0, 1, 63, 64, 65, 127, 128, 1000, 4099, 65536}) {
    for (const size_t source_shift : {0, 1, 8}) {
      for (const size_t target_shift : {0, 1, 16, 63}) {
        CAPTURE(bytes);
        CAPTURE(source_shift);
        CAPTURE(target_shift);
        std::vector<std::byte> source(source_shift + bytes + 1);
        for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::byte>(i * 31 % 251);
        std::vector<std::byte> target(target_shift + bytes + 64, kUntouched);
        std::byte* begin = target.data() + target_shift;
        CHECK(copy_past_cache(begin, source.data() + source_shift, bytes) == begin);
        CHECK(std::equal(begin, begin + bytes, source.begin() + static_cast<long>(source_shift)));
        CHECK(std::all_of(target.begin(), target.begin() + static_cast<long>(target_shift),
                          [](std::byte value) { return value == kUntouched; }));
        CHECK(std::all_of(begin + bytes, target.data() + target.size(),
                          [](std::byte value) { return value == kUntouched; }));
      }
    }
  }
}
