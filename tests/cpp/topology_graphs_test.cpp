// Rings, graphs, sites and gossip: what planners look for on a network, and what members may use.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "topology/bounds.h"
#include "topology/gossip.h"
#include "topology/graphs.h"
#include "topology/packing.h"
#include "topology/planners.h"
#include "topology/ring_search.h"
#include "topology/sites.h"
#include "topology/tree_search.h"

using namespace pccl::topology;

namespace {

// Links of `slow` bytes a second, and of `fast` along `order` in that direction.
Links network_with_ring(const std::vector<int32_t>& order, double slow, double fast) {
  const size_t ranks = order.size();
  Measurement measurement{.world_size = static_cast<int32_t>(ranks),
                          .bytes_per_second = std::vector<double>(ranks * ranks, slow)};
  for (size_t place = 0; place < ranks; ++place) {
    const auto from = static_cast<size_t>(order[place]);
    const auto to = static_cast<size_t>(order[(place + 1) % ranks]);
    measurement.bytes_per_second[from * ranks + to] = fast;
  }
  return measured_links(measurement);
}

// 0, 5, 10, ... modulo a prime: far from the order of numbers.
std::vector<int32_t> scattered(int32_t world_size) {
  std::vector<int32_t> order;
  for (int32_t rank = 0; rank < world_size; ++rank) order.push_back(rank * 5 % world_size);
  return order;
}

int32_t degree(const Graph& graph, int32_t rank) {
  return static_cast<int32_t>(std::count_if(graph.begin(), graph.end(), [rank](const Edge& edge) {
    return edge.from == rank || edge.to == rank;
  }));
}

}  // namespace

TEST_CASE("a ring of fast links is found among slow ones, exactly or by improvement") {
  for (const int32_t world_size : {2, 3, 7, 11, 13, 23}) {
    INFO("world_size ", world_size);
    const std::vector<int32_t> planted = scattered(world_size);
    CHECK(bottleneck_ring(network_with_ring(planted, 1e6, 1e7)) == planted);
  }
  CHECK(bottleneck_ring(uniform_links(1, {})) == std::vector<int32_t>{0});
  // Only the planted ring exists; without one of its links there is none.
  Links links = network_with_ring(scattered(7), 0, 1e7);
  CHECK(bottleneck_ring(links) == scattered(7));
  links.cost[5] = {0, kNoLink};
  CHECK(bottleneck_ring(links).empty());
}

TEST_CASE("a ring stays until another one is faster by more than a fifth") {
  const std::vector<int32_t> kept = {0, 1, 2, 3, 4, 5, 6};
  const auto ring_beside = [&](double slow) {
    const Links links = network_with_ring(scattered(7), slow, 1e7);
    Routes routes = find_routes(links);
    keep_ring(links, kept, routes);
    return routes.ring;
  };
  CHECK(ring_beside(0.85e7) == kept);
  CHECK(ring_beside(0.8e7) == scattered(7));
  CHECK(ring_beside(0) == scattered(7));  // it does not exist
}

TEST_CASE("rings in both directions and beside each other gain on links that are alike") {
  const Links links =
      measured_links({.world_size = 5, .bytes_per_second = std::vector<double>(25, 1e6)});
  // Two rings without a common link, each in both directions: all links of the mesh.
  CHECK(total_rate(pack_rings(links)) == doctest::Approx(all_reduce_bounds(links).least()));
}

TEST_CASE("the cheapest trees are found") {
  // From 0 everything is dear but 1, from 1 everything is cheap but 3, which is behind 2.
  const size_t n = 4;
  std::vector<double> prices(n * n, 10);
  prices[0 * n + 1] = 1;
  prices[1 * n + 2] = 1;
  prices[2 * n + 3] = 1;
  CHECK(cheapest_tree(prices, 0, n).parent == std::vector<int32_t>{-1, 0, 1, 2});
  CHECK(cheapest_tree(prices, 0, n).price == 3);
  CHECK(cheapest_shallow_tree(prices, 0, n).price == 12);
  // A circle that is cheaper than any way into it is opened where that costs least.
  prices.assign(n * n, kNoWay);
  prices[1 * n + 2] = prices[2 * n + 3] = prices[3 * n + 1] = 1;
  prices[0 * n + 1] = 9;
  prices[0 * n + 3] = 7;
  CHECK(cheapest_tree(prices, 0, n).parent == std::vector<int32_t>{-1, 3, 1, 0});
  CHECK(cheapest_tree(prices, 1, n).price >= kNoWay);
  CHECK(cheapest_shallow_tree(prices, 1, n).price >= kNoWay);
}

TEST_CASE("graphs are what their names say") {
  CHECK(ring_graph(4) == Graph{{0, 1}, {0, 3}, {1, 2}, {2, 3}});
  CHECK(ring_graph(1).empty());
  CHECK(star_graph(3, 1) == Graph{{0, 1}, {1, 2}});
  CHECK(hypercube_graph(4) == Graph{{0, 1}, {0, 2}, {1, 3}, {2, 3}});
  CHECK(grid_graph(6, false).size() == 7);
  CHECK(grid_graph(9, true).size() == 18);
  CHECK(degree(exponential_graph(8), 3) == 5);
  for (const int32_t neighbours : {2, 3, 4}) {
    const Graph graph = random_regular_graph(12, neighbours, 7);
    for (int32_t rank = 0; rank < 12; ++rank) CHECK(degree(graph, rank) == neighbours);
    CHECK(graph == random_regular_graph(12, neighbours, 7));
    CHECK(graph != random_regular_graph(12, neighbours, 8));
  }
  CHECK(watts_strogatz_graph(16, 4, 0, 1).size() == 32);
  CHECK(watts_strogatz_graph(16, 4, 0.3, 1) != watts_strogatz_graph(16, 4, 0, 1));
  CHECK_THROWS_AS(hypercube_graph(6), std::invalid_argument);
  CHECK_THROWS_AS(random_regular_graph(5, 3, 0), std::invalid_argument);
  CHECK_THROWS_AS(graph_by_name("rnig", 5, 3, 0), std::invalid_argument);
}

TEST_CASE("a pair can talk if one of them accepts connections") {
  const Links links = links_of_accepting(uniform_links(3, {1e-3, 1e-8}), {true, false, false});
  CHECK(links.connects(0, 1));
  CHECK(links.connects(1, 0));
  CHECK_FALSE(links.connects(1, 2));
  CHECK_THROWS_AS(links_of_accepting(links, {true}), std::invalid_argument);
  CHECK_THROWS_AS(links_of_graph(links, {{0, 3}}), std::invalid_argument);
}

TEST_CASE("sites are ranks with fast links, and there are none where links are alike") {
  CHECK(find_sites(host_links({4, 9, 4, 9, 9})) == std::vector<int32_t>{0, 1, 0, 1, 1});
  CHECK(find_sites(uniform_links(4, {1e-3, 1e-8})) == std::vector<int32_t>{0, 0, 0, 0});
  CHECK(pack_sites(uniform_links(4, {1e-3, 1e-8})).empty());
  CHECK(pack_sites(host_links({4, 9, 4, 9, 9})).size() > 1);
}

TEST_CASE("the quickest tree takes relays where they are quicker") {
  Links links = uniform_links(4, {10e-3, 1e-8});
  links.cost[0 * 4 + 3].latency_seconds = links.cost[3 * 4 + 0].latency_seconds = 1;
  links.cost[1 * 4 + 2].latency_seconds = links.cost[2 * 4 + 1].latency_seconds = 1;
  const Schedule schedule = choose_all_reduce(links, 1, 4, "quickest_tree");
  CHECK(estimate(schedule, links, 4, kSegmentBytesAssumed).seconds < 0.05);
}

TEST_CASE("gossip keeps the mean, and base graphs reach it") {
  for (const std::string name : {"ring", "exponential", "one_peer_exponential", "base_2", "base_4",
                                 "random_pairs", "equi_static", "equi_dynamic"}) {
    for (const int32_t world_size : {1, 2, 3, 6, 7, 16}) {
      INFO(name, ", world_size ", world_size);
      const auto ranks = static_cast<size_t>(world_size);
      std::vector<double> values(ranks);
      values[0] = 1;
      const uint64_t period = gossip_period(name, world_size);
      for (uint64_t round = 0; round < std::max<uint64_t>(period, 1); ++round) {
        const Mixing weights = gossip_round(name, world_size, round, 5);
        std::vector<double> mixed(ranks);
        for (size_t to = 0; to < ranks; ++to) {
          for (size_t from = 0; from < ranks; ++from) {
            mixed[to] += weights[to * ranks + from] * values[from];
          }
        }
        values = mixed;
      }
      double sum = 0;
      double furthest = 0;
      for (const double value : values) {
        sum += value;
        furthest = std::max(furthest, std::abs(value - 1.0 / world_size));
      }
      CHECK(sum == doctest::Approx(1));
      if (name.starts_with("base")) CHECK(furthest < 1e-12);
    }
  }
  CHECK_THROWS_AS(gossip_round("rnig", 4, 0, 0), std::invalid_argument);
  CHECK_THROWS_AS(base_rounds(4, 0), std::invalid_argument);
}
