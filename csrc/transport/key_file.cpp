#include "transport/key_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "base/file_descriptor.h"

namespace pccl::transport {
namespace {

// A key has 119 bytes; people may have written something around it.
constexpr size_t kKeyFileBytesMax = 4096;

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw std::invalid_argument("key file " + path + ": " + what);
}

}  // namespace

std::shared_ptr<const Identity> read_key_file(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat facts {};
  if (!file || ::fstat(file.get(), &facts) != 0)
    refuse(path, std::string(std::strerror(errno)) + ". `pccl keygen --out FILE` makes one");
  if ((facts.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    refuse(path, "others than its owner may use it. chmod 600, or make a new one");
  std::array<char, kKeyFileBytesMax> text{};
  const ssize_t size = ::read(file.get(), text.data(), text.size());
  if (size < 0) refuse(path, std::strerror(errno));
  try {
    return Identity::from_pem(std::string(text.data(), static_cast<size_t>(size)));
  } catch (const std::invalid_argument& error) {
    refuse(path, error.what());
  }
}

std::shared_ptr<const Identity> make_key_file(const std::string& path) {
  auto identity = Identity::generate();
  const std::string pem = identity->private_pem();
  // Under another name until it is whole: a key that was half written would be one for ever.
  const std::string half = path + ".new";
  FileDescriptor file(::open(half.c_str(), O_CREAT | O_TRUNC | O_NOFOLLOW | O_WRONLY | O_CLOEXEC,
                             S_IRUSR | S_IWUSR));
  if (!file) refuse(path, "it can't be made: " + std::string(std::strerror(errno)));
  const bool is_written =
      ::fchmod(file.get(), S_IRUSR | S_IWUSR) == 0 &&
      ::write(file.get(), pem.data(), pem.size()) == static_cast<ssize_t>(pem.size()) &&
      ::fsync(file.get()) == 0;
  // A link, since rename() would replace a key that is there.
  const bool is_made = is_written && ::link(half.c_str(), path.c_str()) == 0;
  const int error = errno;
  ::unlink(half.c_str());
  if (is_made) return identity;
  if (is_written && error == EEXIST) refuse(path, "it is there already, and is left as it is");
  refuse(path, "it can't be written: " + std::string(std::strerror(error)) +
                   ". Free some space, or give another path");
}

}  // namespace pccl::transport
