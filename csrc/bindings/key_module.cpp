#include "bindings/key_module.h"

#include <pybind11/stl.h>

#include "membership/key_book.h"
#include "transport/key_file.h"

namespace pccl::bindings {

namespace py = pybind11;
using membership::KeyBook;

namespace {

template <size_t N>
std::array<uint8_t, N> wanted(const py::bytes& bytes) {
  const auto result = from_bytes<N>(bytes);
  if (!result) throw py::value_error("expected " + std::to_string(N) + " bytes, got none");
  return *result;
}

// Times in seconds since 1970; None: unknown, never, without a limit.
py::list tokens_of(KeyBook& book, const std::string& run) {
  py::list result;
  for (const KeyBook::TokenRow& row : book.tokens(run)) {
    py::dict token;
    token["id"] = to_bytes(row.id);
    token["is_standing"] = row.is_standing;
    token["is_revoked"] = row.is_revoked;
    token["issued"] = row.issued;
    token["expires"] = row.expires;
    token["uses_left"] = row.uses_left;
    token["used"] = row.used;
    result.append(token);
  }
  return result;
}

py::list keys_of(KeyBook& book, const std::string& run) {
  py::list result;
  for (const KeyBook::KeyRow& row : book.keys(run)) {
    py::dict key;
    key["fingerprint"] = to_bytes(row.fingerprint);
    key["token"] = row.token ? py::object(to_bytes(*row.token)) : py::none();
    key["is_revoked"] = row.is_revoked;
    result.append(key);
  }
  return result;
}

}  // namespace

void bind_keys(py::module_& module) {
  module.def(
      "make_key_file",
      [](const std::string& path) {
        return to_bytes(transport::make_key_file(path)->fingerprint());
      },
      py::arg("path"));
  module.def(
      "read_key_file",
      [](const std::string& path) {
        return to_bytes(transport::read_key_file(path)->fingerprint());
      },
      py::arg("path"));
  module.def(
      "token_id",
      [](const py::bytes& secret) {
        return to_bytes(transport::id_of(transport::Token{wanted<16>(secret)}.key()));
      },
      py::arg("secret"));
  py::class_<KeyBook>(module, "KeyBook")
      .def(py::init<const std::string&>(), py::arg("database"))
      .def_property_readonly("path", &KeyBook::path)
      .def(
          "invite",
          [](KeyBook& self, const std::string& run, uint64_t uses, double seconds) {
            return to_bytes(self.invite(run, {.uses = uses, .seconds = seconds}).secret);
          },
          py::arg("run"), py::arg("uses") = 0, py::arg("seconds") = 0.0)
      .def(
          "standing_token",
          [](KeyBook& self, const std::string& run, const std::string& key_file) {
            return to_bytes(self.standing_token(run, *transport::read_key_file(key_file)).secret);
          },
          py::arg("run"), py::arg("key_file"))
      .def(
          "revoke_key",
          [](KeyBook& self, const std::string& run, const py::bytes& fingerprint) {
            self.revoke(run, wanted<32>(fingerprint));
          },
          py::arg("run"), py::arg("fingerprint"))
      .def(
          "revoke_token",
          [](KeyBook& self, const std::string& run, const py::bytes& token_id, bool with_keys) {
            return self.revoke(run, wanted<8>(token_id), with_keys);
          },
          py::arg("run"), py::arg("token_id"), py::arg("with_keys") = false)
      .def("tokens", &tokens_of, py::arg("run"))
      .def("keys", &keys_of, py::arg("run"));
}

}  // namespace pccl::bindings
