// Random numbers from the kernel, that nobody can guess.
#pragma once

#include <sys/random.h>

#include <type_traits>

#include "base/errors.h"

namespace pccl {

// Throws ConnectError where the kernel gives none.
template <typename T>
requires std::is_trivially_copyable_v<T> T random_value() {
  T value{};
  if (getrandom(&value, sizeof(value), 0) != static_cast<ssize_t>(sizeof(value))) {
    throw ConnectError("the kernel gives no random numbers");
  }
  return value;
}

}  // namespace pccl
