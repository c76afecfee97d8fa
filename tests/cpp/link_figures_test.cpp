#include "topology/link_figures.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "topology/link_table.h"

namespace pccl::topology {
namespace {

constexpr uint32_t kSecond = 1'000'000;

// Three ranks whose links were all busy for a second, with so many bytes.
std::vector<RankFigures> all_busy(uint64_t bytes) {
  std::vector<RankFigures> figures(3, RankFigures(3));
  for (size_t from = 0; from < 3; ++from) {
    for (size_t to = 0; to < 3; ++to) {
      if (from != to) figures[from][to] = {bytes, kSecond, 40'000};
    }
  }
  return figures;
}

TEST_CASE("figures come back from their bytes, whatever these are") {
  const RankFigures figures{
      {}, {7 << 20, kSecond, 50'000, 3 << 20, 9}, {uint64_t{5} << 40, 3, 4, 0, 0, true, 9 << 20}};
  std::vector<std::byte> bytes(figures_bytes(3), std::byte{0x55});
  CHECK(bytes.size() % 16 == 0);
  encode(figures, bytes);
  RankFigures expected = figures;
  expected[2].bytes = uint64_t{UINT32_MAX} * 1024;  // no more fits in
  CHECK(decode_figures(bytes, 3) == expected);
  std::fill(bytes.begin(), bytes.end(), std::byte{0xFF});
  CHECK(decode_figures(bytes, 3).size() == 3);
}

TEST_CASE("a busy link's rate counts, at once if it is another, else half") {
  const Links unknown = host_links({0, 1, 2});
  const Links first = learned(unknown, unknown, all_busy(10'000 * 1024));
  CHECK(first.is_measured);
  CHECK(is_other(unknown, first));
  CHECK(1 / first.at(0, 1).seconds_per_byte == doctest::Approx(10'000 * 1024));
  CHECK(first.at(0, 1).latency_seconds == doctest::Approx(0.02));
  CHECK(1 / first.send_seconds_per_byte(0) == doctest::Approx(20'000 * 1024));

  auto figures = all_busy(11'000 * 1024);
  figures[0][1].bytes = 2'000 * 1024;
  const Links second = learned(unknown, first, figures);
  CHECK(1 / second.at(1, 0).seconds_per_byte == doctest::Approx(10'500 * 1024));
  CHECK(1 / second.at(0, 1).seconds_per_byte == doctest::Approx(2'000 * 1024));
  CHECK(is_other(first, second));
  CHECK_FALSE(is_other(first, learned(unknown, first, all_busy(11'000 * 1024))));
}

TEST_CASE("links that look alike may have shared lines, those that differ are what they show") {
  const Links unknown = host_links({0, 1, 2});
  auto figures = all_busy(10'000 * 1024);
  figures[0][1].bytes = 20'000 * 1024;
  Links alike = learned(unknown, unknown, figures);
  take_for_lines(unknown, alike);
  for (int32_t from = 0; from < 3; ++from) {
    for (int32_t to = 0; to < 3; ++to) {
      if (from == to) continue;
      CHECK(alike.at(from, to).seconds_per_byte ==
            std::max(alike.send_seconds_per_byte(from), alike.receive_seconds_per_byte(to)));
    }
  }
  figures[0][1].bytes = 23'000 * 1024;
  const Links unlike = learned(unknown, unknown, figures);
  Links taken = unlike;
  take_for_lines(unknown, taken);
  CHECK_FALSE(is_other(unlike, taken));
  CHECK(1 / taken.at(1, 2).seconds_per_byte == doctest::Approx(10'000 * 1024));
}

TEST_CASE("a link that carried little is tried again, and is never better than an unknown one") {
  const Links unknown = host_links({0, 1, 2});
  Links links = learned(unknown, unknown, all_busy(1'000 * 1024));
  auto quiet = all_busy(1'000 * 1024);
  quiet[0][1] = {100 << 10, kSecond, 40'000};    // few bytes
  quiet[0][2] = {1'000 * 1024, 60'000, 40'000};  // hardly longer than a round trip
  const double before = links.at(0, 1).seconds_per_byte;
  for (int time = 0; time < 35; ++time) links = learned(unknown, links, quiet);
  CHECK(before / links.at(0, 1).seconds_per_byte == doctest::Approx(2).epsilon(0.01));
  CHECK(before / links.at(0, 2).seconds_per_byte == doctest::Approx(2).epsilon(0.01));
  for (int time = 0; time < 1000; ++time) links = learned(unknown, links, quiet);
  CHECK(links.at(0, 1).seconds_per_byte == unknown.at(0, 1).seconds_per_byte);
  CHECK(1 / links.at(1, 0).seconds_per_byte == doctest::Approx(1'000 * 1024));
}

TEST_CASE("a link that others held up is not thought to be slower, and may be faster") {
  const Links unknown = host_links({0, 1, 2});
  const Links first = learned(unknown, unknown, all_busy(10'000 * 1024));
  auto figures = all_busy(10'000 * 1024);
  figures[0][1] = {2'000 * 1024, kSecond, 40'000, 0, 0, true};
  figures[0][2] = {20'000 * 1024, kSecond, 40'000, 0, 0, true};
  const Links second = learned(unknown, first, figures);
  CHECK(1 / second.at(0, 1).seconds_per_byte == doctest::Approx(10'000 * 1024));
  CHECK(1 / second.at(0, 2).seconds_per_byte == doctest::Approx(25'000 * 1024));
  // What it is thought to be more than it has shown does not grow.
  CHECK(learned(unknown, second, figures).at(0, 2).seconds_per_byte ==
        second.at(0, 2).seconds_per_byte);
  // Better than nothing.
  const Links alone = learned(unknown, unknown, figures);
  CHECK(1 / alone.at(0, 1).seconds_per_byte == doctest::Approx(2'000 * 1024));
}

TEST_CASE("a link that shares a full line is not thought to be slower than it was alone") {
  const Links unknown = host_links({0, 1, 2});
  const Links first = learned(unknown, unknown, all_busy(10'000 * 1024));
  auto figures = all_busy(10'000 * 1024);
  figures[0][1].bytes = 5'000 * 1024;
  figures[0][2].bytes = 15'000 * 1024;
  CHECK(1 / learned(unknown, first, figures).at(0, 1).seconds_per_byte ==
        doctest::Approx(10'000 * 1024));
  // Less in all, or the other one done long before: then it is the link.
  figures[0][2].bytes = 10'000 * 1024;
  CHECK(1 / learned(unknown, first, figures).at(0, 1).seconds_per_byte ==
        doctest::Approx(5'000 * 1024));
  figures[0][2] = {15'000 * 1024, kSecond / 2, 40'000};
  CHECK(1 / learned(unknown, first, figures).at(0, 1).seconds_per_byte ==
        doctest::Approx(5'000 * 1024));
  // Likewise at the receiver.
  figures = all_busy(10'000 * 1024);
  figures[0][2].bytes = 5'000 * 1024;
  figures[1][2].bytes = 15'000 * 1024;
  CHECK(1 / learned(unknown, first, figures).at(0, 2).seconds_per_byte ==
        doctest::Approx(10'000 * 1024));
}

TEST_CASE("a rank whose links others held up may send more") {
  const Links unknown = host_links({0, 1, 2});
  const Links first = learned(unknown, unknown, all_busy(10'000 * 1024));
  auto figures = all_busy(10'000 * 1024);
  for (auto& rank : figures) {
    for (LinkFigure& figure : rank) figure.is_starved = true;
  }
  const Links second = learned(unknown, first, figures);
  CHECK(1 / second.send_seconds_per_byte(0) == doctest::Approx(25'000 * 1024));
  CHECK(1 / second.receive_seconds_per_byte(2) == doctest::Approx(25'000 * 1024));
  CHECK(1 / learned(unknown, second, figures).send_seconds_per_byte(0) ==
        doctest::Approx(25'000 * 1024));
}

TEST_CASE("of a rank that sends to several a link that others held up counts while it was full") {
  const Links unknown = host_links({0, 1, 2});
  const Links first = learned(unknown, unknown, all_busy(10'000 * 1024));
  const auto after = [&](uint64_t bytes, uint64_t full_rate, bool is_alone = false) {
    auto figures = all_busy(10'000 * 1024);
    figures[0][1] = {bytes, kSecond, 40'000, 0, 0, true, full_rate};
    if (is_alone) figures[0][2] = {};
    return 1 / learned(unknown, first, figures).at(0, 1).seconds_per_byte;
  };
  const uint64_t mb = 1'000 * 1024;
  CHECK(after(4 * mb, 15 * mb) == doctest::Approx(15 * mb));
  CHECK(after(4 * mb, 12 * mb) == doctest::Approx(11 * mb));  // noise
  CHECK(after(4 * mb, 8 * mb) == doctest::Approx(9 * mb));
  CHECK(after(4 * mb, 2 * mb) == doctest::Approx(10 * mb));   // of a time with less to send
  CHECK(after(4 * mb, 99 * mb) == doctest::Approx(16 * mb));  // whatever it says
  CHECK(after(4 * mb, 15 * mb, true) == doctest::Approx(10 * mb));
}

TEST_CASE("a rank that others held up may send more each time, up to what its links carry") {
  const Links unknown = host_links({0, 1, 2});
  Links links = learned(unknown, unknown, all_busy(10'000 * 1024));
  auto figures = all_busy(4'000 * 1024);
  for (LinkFigure& figure : figures[0]) {
    figure.is_starved = true;
    figure.full_rate = 14'000 * 1024;
  }
  links = learned(unknown, links, figures);
  CHECK(1 / links.send_seconds_per_byte(0) == doctest::Approx(25'000 * 1024));
  for (int time = 0; time < 5; ++time) links = learned(unknown, links, figures);
  CHECK(1 / links.send_seconds_per_byte(0) == doctest::Approx(28'000 * 1024));
}

TEST_CASE("how much of its time a link must have more to send, to be full") {
  RankFigures figures = all_busy(10'000 * 1024)[0];
  CHECK(full_part(figures) > 0.8);
  figures[2] = {};
  CHECK(full_part(figures) == 0.5);
}

TEST_CASE("where a link falls the way back is doubted, unless it was measured as well") {
  const Links unknown = host_links({0, 1, 2});
  const Links first = learned(unknown, unknown, all_busy(10'000 * 1024));
  auto figures = all_busy(10'000 * 1024);
  figures[0][1].bytes = 2'000 * 1024;
  CHECK(1 / learned(unknown, first, figures).at(1, 0).seconds_per_byte ==
        doctest::Approx(10'000 * 1024));
  figures[1][0] = {};
  figures[2][0] = {};
  const Links second = learned(unknown, first, figures);
  CHECK(1 / second.at(1, 0).seconds_per_byte == doctest::Approx(4'000 * 1024));
  CHECK(1 / second.at(2, 0).seconds_per_byte == doctest::Approx(10'000 * 1024).epsilon(0.03));
  // Not by a first figure, whatever was thought before.
  const Links fresh = learned(unknown, unknown, figures);
  CHECK(fresh.at(1, 0).seconds_per_byte == unknown.at(1, 0).seconds_per_byte);
}

TEST_CASE("a sender that tells of more than arrived gets what arrived") {
  const Links unknown = host_links({0, 1, 2});
  auto figures = all_busy(1'000'000 * 1024);
  figures[1][0].received_bytes = 10'000 * 1024;
  figures[1][0].receiving_us = kSecond;
  const Links links = learned(unknown, unknown, figures);
  CHECK(1 / links.at(0, 1).seconds_per_byte == doctest::Approx(10'000 * 1024));
  CHECK(1 / links.at(0, 2).seconds_per_byte == doctest::Approx(1'000'000 * 1024));
  // An honest one is busy for longer than bytes come in.
  figures[0][1].bytes = 7'000 * 1024;
  CHECK(1 / learned(unknown, unknown, figures).at(0, 1).seconds_per_byte ==
        doctest::Approx(7'000 * 1024));
}

TEST_CASE("a table gives links and caps, and links that it lacks what their ends have shown") {
  const Links unknown = host_links({0, 1, 2, 2}, false);
  CHECK_FALSE(with_table(unknown, {}).is_measured);
  LinkTable table{{{0, 1, 1000, 40'000}, {1, 0, 500, 40'000}, {0, 2, 2000, 20'000}, {9, 0, 1, 1}},
                  {{3000, 0}, {}, {}, {}}};
  const Links links = with_table(unknown, table);
  CHECK(links.is_measured);
  CHECK(to_kib_per_second(links.at(1, 0).seconds_per_byte) == 500);
  CHECK(links.at(0, 2).latency_seconds == doctest::Approx(0.01));
  // As the fastest, unless an end was slower on two links.
  CHECK(to_kib_per_second(links.at(0, 3).seconds_per_byte) == 2000);
  CHECK(to_kib_per_second(links.at(1, 2).seconds_per_byte) == 2000);
  CHECK(to_kib_per_second(links.at(3, 0).seconds_per_byte) == 2000);
  LinkTable more = table;
  more.links.push_back({1, 3, 600, 40'000});
  more.links.push_back({3, 2, 700, 40'000});
  CHECK(to_kib_per_second(with_table(unknown, more).at(1, 2).seconds_per_byte) == 600);
  CHECK(links.at(3, 1).latency_seconds == doctest::Approx(0.02));
  CHECK(links.at(2, 3).seconds_per_byte == unknown.at(2, 3).seconds_per_byte);  // by memory
  CHECK(1 / links.send_seconds_per_byte(0) == doctest::Approx(3000 * 1024));
  CHECK(links.send_seconds_per_byte(1) == unknown.send_seconds_per_byte(1));
  const std::vector<bool> lacks = missing(unknown, table);
  CHECK_FALSE(lacks[1]);
  CHECK(lacks[3]);
  CHECK_FALSE(lacks[2 * 4 + 3]);
  CHECK(std::count(lacks.begin(), lacks.end(), true) == 7);
  table.caps.pop_back();
  CHECK(with_table(unknown, table).out_seconds_per_byte.empty());
}

TEST_CASE("within a machine or a fast local network nothing counts") {
  const Links unknown = host_links({0, 1, 2});
  auto near = all_busy(500 << 20);
  for (auto& rank : near) {
    for (LinkFigure& figure : rank) figure.round_trip_us = 100;
  }
  const Links links = learned(unknown, unknown, near);
  CHECK_FALSE(links.is_measured);
  CHECK_FALSE(is_other(unknown, links));
}

TEST_CASE("what a rank sends at once is remembered for a while") {
  const Links unknown = host_links({0, 1, 2});
  Links links = learned(unknown, unknown, all_busy(10'000 * 1024));
  auto alone = all_busy(10'000 * 1024);
  alone[0][2] = {};
  links = learned(unknown, links, alone);
  const double sent = 1 / links.send_seconds_per_byte(0);
  CHECK(sent < 20'000 * 1024);
  CHECK(sent > 17'000 * 1024);
}

}  // namespace
}  // namespace pccl::topology
