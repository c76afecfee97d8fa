// What the fuzz targets share: well-formed inputs to start from, and a check that ends the program.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace fuzz {

using Bytes = std::vector<std::byte>;

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "violated: %s\n", what);
  std::abort();
}

// Writes them into the corpus folder, the last argument, for libFuzzer to begin with.
inline void write_seeds(int count, char** arguments, const std::vector<Bytes>& seeds) {
  const std::filesystem::path folder = arguments[count - 1];
  if (!std::filesystem::is_directory(folder)) return;
  for (size_t i = 0; i < seeds.size(); ++i) {
    std::ofstream file(folder / ("seed" + std::to_string(i)), std::ios::binary);
    file.write(reinterpret_cast<const char*>(seeds[i].data()),
               static_cast<std::streamsize>(seeds[i].size()));
  }
}

}  // namespace fuzz

// A target defines these two.
std::vector<fuzz::Bytes> make_seeds();
void try_input(std::span<const std::byte> input);

extern "C" int LLVMFuzzerInitialize(int* count, char*** arguments) {
  fuzz::write_seeds(*count, *arguments, make_seeds());
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  try_input({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
