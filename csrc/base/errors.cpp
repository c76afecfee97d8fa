#include "base/errors.h"

namespace pccl {

void throw_error(const Error& error) {
  switch (error.kind) {
    case ErrorKind::Timeout:
      throw CollectiveTimeout(error.message);
    case ErrorKind::MemberLost:
      throw MemberLost(error.message);
    case ErrorKind::CallMismatch:
      throw CallMismatch(error.message);
    case ErrorKind::RemoteProtocol:
      throw RemoteProtocolError(error.message);
    case ErrorKind::Connect:
      throw ConnectError(error.message);
    case ErrorKind::Aborted:
      throw Aborted(error.message);
    case ErrorKind::NonFinite:
      throw NonFiniteContribution(error.message);
    case ErrorKind::None:
      break;
  }
  throw PcclError(error.message);
}

}  // namespace pccl
