// ed25519 keys in files: PEM, readable for their owner only.
#pragma once

#include <memory>
#include <string>

#include "transport/identity.h"

namespace pccl::transport {

// Throws std::invalid_argument, with the way out: it is not there, is no key of ours, or others
// than its owner may read it.
std::shared_ptr<const Identity> read_key_file(const std::string& path);
// A new key in a new file. Throws std::invalid_argument: the file exists, or can't be made.
std::shared_ptr<const Identity> make_key_file(const std::string& path);

}  // namespace pccl::transport
