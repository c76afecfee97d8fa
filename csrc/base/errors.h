// Errors: values while they travel through the engine, exceptions where a caller meets them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pccl {

enum class ErrorKind : uint8_t {
  None = 0,
  Timeout = 1,  // not done before its deadline
  MemberLost =
      2,  // a member's connection closed without goodbye, or it could not be reached any more
  CallMismatch = 3,    // two members called different things
  RemoteProtocol = 4,  // a member sent what no member may send
  Connect = 5,         // no connection could be made
  Aborted = 6,         // somebody called abort(), or the group is closed
  NonFinite = 7,       // a member's contribution holds NaN or infinity
};

// A failed operation: what kind, and the sentence that the caller reads.
struct Error {
  ErrorKind kind = ErrorKind::None;
  std::string message;
  explicit operator bool() const { return kind != ErrorKind::None; }
};

// The caller may recover from these. Wrong arguments are std::invalid_argument instead.
class PcclError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
class CollectiveTimeout : public PcclError {
 public:
  using PcclError::PcclError;
};
class MemberLost : public PcclError {
 public:
  using PcclError::PcclError;
};
class CallMismatch : public PcclError {
 public:
  using PcclError::PcclError;
};
class RemoteProtocolError : public PcclError {
 public:
  using PcclError::PcclError;
};
class ConnectError : public PcclError {
 public:
  using PcclError::PcclError;
};
class Aborted : public PcclError {
 public:
  using PcclError::PcclError;
};
class NonFiniteContribution : public PcclError {
 public:
  using PcclError::PcclError;
};

// Throws the exception that belongs to `error`. Requires: error.kind != None.
[[noreturn]] void throw_error(const Error& error);

}  // namespace pccl
