// Every collective, over real sockets and shared memory, against a reference that is computed
// element by element.
#include "communicator.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "cluster.h"
#include "share.h"

using namespace pccl;
using enum DataType;
using enum ReduceOp;

namespace {

const CallOptions kWait{.is_urgent = false};
const std::vector<int32_t> kWorldSizes = {1, 2, 3, 4, 5, 7};

// Elements of float32: none, one, a prime, one more than a segment.
std::vector<uint64_t> counts_for(const Way& way) {
  if (test_divisor() > 1) return {0, 1, 9973};
  return {0, 1, 997, way.shared_memory ? 65537ULL : 131073ULL};
}

// Small whole numbers, so that the order of additions does not matter.
double value_of(int32_t rank, uint64_t index) {
  return static_cast<double>((index * 7 + static_cast<uint64_t>(rank) * 13) % 31);
}
double sum_of(int32_t world_size, uint64_t index) {
  double sum = 0;
  for (int32_t r = 0; r < world_size; ++r) sum += value_of(r, index);
  return sum;
}
Bytes input_of(int32_t rank, uint64_t count, uint64_t offset = 0) {
  return make(Float32, count, [=](uint64_t i) { return value_of(rank, offset + i); });
}
Bytes sum_for(int32_t world_size, uint64_t count, uint64_t offset = 0) {
  return make(Float32, count, [=](uint64_t i) { return sum_of(world_size, offset + i); });
}

// Blocks of one buffer each.
struct Blocks {
  std::vector<Bytes> memory;
  std::vector<Block> list;
  void add(Bytes bytes) {
    memory.push_back(std::move(bytes));
    list.push_back({nullptr, memory.back().size() / sizeof(float)});
  }
  std::span<const Block> blocks() {
    for (size_t i = 0; i < list.size(); ++i) list[i].data = memory[i].data();
    return list;
  }
};

// How many elements the block of `rank` has: all the same, or different ones with some empty.
uint64_t block_count(int32_t rank, uint64_t count, bool is_even) {
  return is_even ? count : (rank % 3 == 2 ? 0 : count + static_cast<uint64_t>(rank));
}

void check_all_reduce(Rank& rank, uint64_t count) {
  const Bytes input = input_of(rank.rank, count);
  const Bytes expected = sum_for(rank.world.size, count);
  Bytes tensor = input;
  finish(rank.comm->all_reduce(tensor.data(), tensor.data(), count, Float32, Sum, 1, kWait));
  expect(tensor == expected, "all_reduce in place");
  rank.same_everywhere(tensor);
  Bytes source = input;
  Bytes target = blank(Float32, count);
  finish(rank.comm->all_reduce(source.data(), target.data(), count, Float32, Sum, 1, {}));
  expect(target == expected && source == input, "all_reduce from one tensor to another");
}

void check_rooted(Rank& rank, uint64_t count, int32_t root) {
  const int32_t n = rank.world.size;
  const bool is_root = rank.rank == root;
  Bytes tensor = is_root ? input_of(root, count) : blank(Float32, count);
  finish(rank.comm->broadcast(tensor.data(), count, Float32, root, kWait));
  expect(tensor == input_of(root, count), "broadcast");
  rank.same_everywhere(tensor);

  const Bytes input = input_of(rank.rank, count);
  Bytes source = input;
  Bytes target = blank(Float32, is_root ? count : 0);
  finish(rank.comm->reduce(source.data(), is_root ? target.data() : nullptr, count, Float32, Sum, 1,
                           root, kWait));
  expect(source == input, "reduce leaves its input");
  if (is_root) expect(target == sum_for(n, count), "reduce");

  for (const bool is_even : {true, false}) {
    Blocks blocks;
    for (int32_t r = 0; r < n && is_root; ++r) {
      blocks.add(blank(Float32, block_count(r, count, is_even)));
    }
    Bytes own = input_of(rank.rank, block_count(rank.rank, count, is_even));
    const Block own_block{own.data(), own.size() / sizeof(float)};
    finish(rank.comm->gather(own_block, blocks.blocks(), Float32, root, kWait));
    for (int32_t r = 0; r < n && is_root; ++r) {
      const Bytes expected = input_of(r, block_count(r, count, is_even));
      expect(blocks.memory[static_cast<size_t>(r)] == expected, "gather");
    }
    Bytes got = blank(Float32, own_block.count);
    finish(
        rank.comm->scatter(blocks.blocks(), {got.data(), own_block.count}, Float32, root, kWait));
    expect(got == own, "scatter gives back what gather took");
  }
}

void check_blocks(Rank& rank, uint64_t count, bool is_even) {
  const int32_t n = rank.world.size;
  const auto own_index = static_cast<size_t>(rank.rank);
  std::vector<uint64_t> offsets;
  uint64_t total = 0;
  for (int32_t r = 0; r < n; ++r) {
    offsets.push_back(total);
    total += block_count(r, count, is_even);
  }
  const uint64_t own_count = block_count(rank.rank, count, is_even);

  Blocks gathered;
  for (int32_t r = 0; r < n; ++r) gathered.add(blank(Float32, block_count(r, count, is_even)));
  Bytes own = input_of(rank.rank, own_count);
  finish(rank.comm->all_gather({own.data(), own_count}, gathered.blocks(), Float32, kWait));
  for (int32_t r = 0; r < n; ++r) {
    const Bytes& got = gathered.memory[static_cast<size_t>(r)];
    expect(got == input_of(r, block_count(r, count, is_even)), "all_gather");
    rank.same_everywhere(got);
  }

  Blocks sources;
  for (int32_t r = 0; r < n; ++r) {
    const uint64_t offset = offsets[static_cast<size_t>(r)];
    sources.add(input_of(rank.rank, block_count(r, count, is_even), offset));
  }
  const std::vector<Bytes> before = sources.memory;
  Bytes target = blank(Float32, own_count);
  finish(rank.comm->reduce_scatter(sources.blocks(), {target.data(), own_count}, Float32, Sum, 1,
                                   kWait));
  expect(target == sum_for(n, own_count, offsets[own_index]), "reduce_scatter");
  expect(sources.memory == before, "reduce_scatter leaves its inputs");

  // From i to j go count + i elements, nothing where i + 2 j is divisible by 3.
  const auto moved = [&](int32_t from, int32_t to) {
    if (is_even) return count;
    return (from + 2 * to) % 3 == 0 ? 0 : count + static_cast<uint64_t>(from);
  };
  Blocks sent;
  Blocks received;
  for (int32_t r = 0; r < n; ++r) {
    sent.add(input_of(rank.rank * 10 + r, moved(rank.rank, r)));
    received.add(blank(Float32, moved(r, rank.rank)));
  }
  finish(rank.comm->all_to_all(sent.blocks(), received.blocks(), Float32, kWait));
  for (int32_t r = 0; r < n; ++r) {
    const Bytes expected = input_of(r * 10 + rank.rank, moved(r, rank.rank));
    expect(received.memory[static_cast<size_t>(r)] == expected, "all_to_all");
  }
}

double reference(ReduceOp op, double a, double b) {
  switch (op) {
    case Min:
      return std::min(a, b);
    case Max:
      return std::max(a, b);
    case Product:
      return a * b;
    case Band:
      return static_cast<double>(static_cast<int>(a) & static_cast<int>(b));
    case Bor:
      return static_cast<double>(static_cast<int>(a) | static_cast<int>(b));
    case Bxor:
      return static_cast<double>(static_cast<int>(a) ^ static_cast<int>(b));
    default:
      return a + b;
  }
}

// Values whose results every dtype can hold exactly: 0, 1 and 2; averages come out whole.
double small_value(ReduceOp op, DataType dtype, int32_t rank, uint64_t index, int32_t n) {
  if (op == Avg || op == ReduceOp::WeightedAvg)
    return static_cast<double>(index % 5) + (rank == 0 ? n : 0);
  return static_cast<double>((index + static_cast<uint64_t>(rank)) % (dtype == Bool ? 2 : 3));
}

double reduced_value(ReduceOp op, DataType dtype, uint64_t index, int32_t n) {
  if (op == Avg || op == ReduceOp::WeightedAvg) return static_cast<double>(index % 5) + 1;
  double result = small_value(op, dtype, 0, index, n);
  for (int32_t r = 1; r < n; ++r) {
    result = reference(op, result, small_value(op, dtype, r, index, n));
  }
  return op == PremulSum ? 2 * result : result;
}

}  // namespace

TEST_CASE("every collective gives what the reference gives, for every size, world and road") {
  for (const Way& way : kWays) {
    for (const int32_t world_size : kWorldSizes) {
      run_well({.size = world_size, .way = way}, [](Rank& rank) {
        for (const uint64_t count : counts_for(rank.world.way)) {
          check_all_reduce(rank, count);
          check_rooted(rank, count, 0);
          check_rooted(rank, count, rank.world.size - 1);
          check_blocks(rank, count, true);
          check_blocks(rank, count, false);
          finish(rank.comm->barrier(kWait));
        }
      });
    }
  }
}

TEST_CASE("every algorithm of all_reduce gives the same bytes, twice") {
  for (const char* algorithm :
       {"ring", "direct", "doubling", "exchange", "halving_doubling", "double_binary_tree"}) {
    for (const int32_t world_size : {2, 3, 4, 7}) {
      run_well({.size = world_size, .way = kWays[2], .algorithm = algorithm}, [](Rank& rank) {
        for (const uint64_t count : counts_for(rank.world.way)) {
          check_all_reduce(rank, count);
          // Values whose sum depends on the order of additions: all ranks agree all the same.
          const Bytes input = make(Float32, count, [&rank](uint64_t i) {
            return 1.0 / (1 + static_cast<double>(i) + rank.rank);
          });
          Bytes first = input;
          Bytes second = input;
          finish(rank.comm->all_reduce(first.data(), first.data(), count, Float32, Sum, 1, kWait));
          finish(
              rank.comm->all_reduce(second.data(), second.data(), count, Float32, Sum, 1, kWait));
          expect(first == second, "the same bytes twice");
          rank.same_everywhere(first);
        }
      });
    }
  }
}

TEST_CASE("every operator gives what the reference gives on every dtype it is defined for") {
  for (const int32_t world_size : {1, 2, 3, 5}) {
    run_well({.size = world_size, .way = kWays[2]}, [](Rank& rank) {
      const int32_t n = rank.world.size;
      for (int d = 0; d < kDataTypeCount; ++d) {
        for (int o = 0; o < kReduceOpCount; ++o) {
          const auto dtype = static_cast<DataType>(d);
          const auto op = static_cast<ReduceOp>(o);
          if (!is_reducible(dtype, op)) continue;
          constexpr uint64_t kCount = 131;
          const std::string name =
              std::string(reduce_op_name(op)) + " of " + std::string(data_type_name(dtype));
          Bytes tensor = make(dtype, kCount,
                              [&](uint64_t i) { return small_value(op, dtype, rank.rank, i, n); });
          const Bytes expected =
              make(dtype, kCount, [&](uint64_t i) { return reduced_value(op, dtype, i, n); });
          finish(rank.comm->all_reduce(tensor.data(), tensor.data(), kCount, dtype, op, 2, kWait));
          expect(tensor == expected, name);
          rank.same_everywhere(tensor);
        }
      }
    });
  }
}

TEST_CASE("every dtype is moved") {
  run_well({.size = 3}, [](Rank& rank) {
    for (int d = 0; d < kDataTypeCount; ++d) {
      const auto dtype = static_cast<DataType>(d);
      const auto value = [](uint64_t i) { return static_cast<double>(i % 100); };
      Bytes tensor = rank.rank == 1 ? make(dtype, 997, value) : blank(dtype, 997);
      finish(rank.comm->broadcast(tensor.data(), 997, dtype, 1, kWait));
      expect(tensor == make(dtype, 997, value), std::string(data_type_name(dtype)));
    }
  });
}

TEST_CASE("what is far larger than window and ring goes through") {
  constexpr uint64_t kElements = 2'000'003;
  const Bytes expected = sum_for(3, kElements);
  for (const Way& way : kWays) {
    for (const char* algorithm : {"auto", "ring", "direct", "double_binary_tree"}) {
      run_well({.size = 3, .way = way, .algorithm = algorithm}, [&expected](Rank& rank) {
        Bytes tensor = input_of(rank.rank, kElements);
        finish(
            rank.comm->all_reduce(tensor.data(), tensor.data(), kElements, Float32, Sum, 1, kWait));
        expect(tensor == expected, "a large all_reduce");
      });
    }
  }
}

TEST_CASE("many operations may be in flight, waited for in any order") {
  for (const Way& way : kWays) {
    run_well({.size = 3, .way = way}, [](Rank& rank) {
      constexpr size_t kOperations = 60;
      std::vector<Bytes> tensors;
      std::vector<std::shared_ptr<Work>> works;
      for (size_t i = 0; i < kOperations; ++i) {
        tensors.push_back(input_of(rank.rank, 1 + i * 1999, i));
      }
      for (size_t i = 0; i < kOperations; ++i) {
        works.push_back(rank.comm->all_reduce(tensors[i].data(), tensors[i].data(), 1 + i * 1999,
                                              Float32, Sum, 1, {}));
      }
      // Each rank begins with another one.
      for (size_t i = 0; i < kOperations; ++i) {
        const size_t at = (i * 7 + static_cast<size_t>(rank.rank)) % kOperations;
        finish(works[at]);
        expect(tensors[at] == sum_for(3, 1 + at * 1999, at), "an all_reduce among many");
      }
    });
  }
}

TEST_CASE("groups of some of the ranks work beside each other and beside the world") {
  for (const Way& way : kWays) {
    run_well({.size = 5, .way = way}, [](Rank& rank) {
      const std::vector<int32_t> even = {4, 0, 2};
      const std::vector<int32_t> odd = {1, 3};
      const bool is_even = rank.rank % 2 == 0;
      const auto half = rank.group(is_even ? "even" : "odd", is_even ? even : odd);
      expect(half->world_size() == (is_even ? 3 : 2), "size of the half");
      for (uint64_t round = 0; round < 20; ++round) {
        Bytes in_half = make(Float32, 997, [&](uint64_t) { return rank.rank; });
        Bytes in_world = in_half;
        const auto first =
            half->all_reduce(in_half.data(), in_half.data(), 997, Float32, Sum, 1, {});
        const auto second =
            rank.comm->all_reduce(in_world.data(), in_world.data(), 997, Float32, Sum, 1, {});
        finish(second);
        finish(first);
        expect(in_half == make(Float32, 997, [&](uint64_t) { return is_even ? 6 : 4; }), "half");
        expect(in_world == make(Float32, 997, [](uint64_t) { return 10; }), "world");
      }
    });
  }
}

TEST_CASE("a call that makes no sense is refused at once, and the group goes on") {
  run_well({.size = 2}, [](Rank& rank) {
    Bytes tensor = blank(Float32, 10);
    const auto refuses = [](const std::function<void()>& call) {
      try {
        call();
      } catch (const std::invalid_argument&) {
        return true;
      }
      return false;
    };
    Communicator& comm = *rank.comm;
    std::byte* data = tensor.data();
    const std::vector<Block> one = {{data, 1}};
    const std::vector<Block> two = {{data, 1}, {data, 1}};
    expect(refuses([&] { comm.all_reduce(data, data, 1, Float32, Band, 1, {}); }), "band of float");
    expect(refuses([&] { comm.broadcast(data, 1, Float32, 2, {}); }), "root 2 of 2");
    expect(refuses([&] { comm.broadcast(data, 1, Float32, -1, {}); }), "root -1");
    expect(refuses([&] { comm.all_gather({data, 1}, one, Float32, {}); }), "too few outputs");
    expect(refuses([&] { comm.all_gather({data, 2}, two, Float32, {}); }), "another size");
    expect(refuses([&] { comm.reduce_scatter(one, {data, 1}, Float32, Sum, 1, {}); }), "inputs");
    expect(refuses([&] { comm.all_to_all(two, one, Float32, {}); }), "outputs");
    expect(refuses([&] { comm.send(data, 1, Float32, rank.rank, 0, {}); }), "send to itself");
    expect(refuses([&] { comm.recv(data, 1, Float32, 2, 0, {}); }), "recv from rank 2 of 2");
    expect(refuses([&] { rank.group("world", {}); }), "a name twice");
    expect(refuses([&] { rank.group("bad", {0, 0}); }), "a member twice");
    check_all_reduce(rank, 10);
  });
}
