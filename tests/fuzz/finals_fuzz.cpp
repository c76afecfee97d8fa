// Maps of final elements, and the recovery that is planned from what two survivors say.
#include "fuzz.h"
#include "recovery/final_map.h"
#include "recovery/plan.h"

using namespace pccl;
using namespace pccl::recovery;

namespace {

constexpr uint64_t kElements = 1000;

}  // namespace

std::vector<fuzz::Bytes> make_seeds() {
  FinalMap map;
  map.add({0, 10, 1, 2});
  map.add({20, 1000, 2, 1});
  fuzz::Bytes two = map.encode();
  const fuzz::Bytes one = two;
  two.insert(two.end(), one.begin(), one.end());
  return {one, FinalMap().encode(), two};
}

void try_input(std::span<const std::byte> input) {
  for (size_t cut : {input.size(), input.size() / 2}) {
    const auto map = FinalMap::decode(input.first(cut), kElements);
    if (!map) continue;
    const auto again = FinalMap::decode(map->encode(), kElements);
    fuzz::require(again && again->encode() == map->encode(), "a map stays as it is");
    fuzz::require(map->element_count() <= kElements, "a map is no larger than its tensor");
    const auto other = FinalMap::decode(input.subspan(cut), kElements);
    RecoveryRequest request;
    request.world_size = 2;
    request.element_count = kElements;
    request.element_bytes = 4;
    request.links = topology::uniform_links(2, {1e-4, 1e-9});
    request.survivors = {{0, *map}, {1, other.value_or(FinalMap())}};
    const RecoveryPlan plan = plan_recovery(request);
    fuzz::require(plan.elements_lost == 0, "what is final nowhere is reduced again");
  }
}
