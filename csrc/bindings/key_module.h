// Keys and tokens as Python sees them: bytes.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace pccl::bindings {

inline pybind11::bytes to_bytes(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// nullopt: empty. Throws ValueError for any other size.
template <size_t N>
std::optional<std::array<uint8_t, N>> from_bytes(const pybind11::bytes& bytes) {
  const std::string_view view = bytes;
  if (view.empty()) return std::nullopt;
  if (view.size() != N) {
    throw pybind11::value_error("expected " + std::to_string(N) + " bytes, got " +
                                std::to_string(view.size()));
  }
  std::array<uint8_t, N> result{};
  std::copy(view.begin(), view.end(), result.begin());
  return result;
}

void bind_keys(pybind11::module_& module);

}  // namespace pccl::bindings
