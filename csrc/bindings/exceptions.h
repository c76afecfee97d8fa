// The exceptions of base/errors.h in Python, with texts that may come from the network.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <exception>

#include "base/errors.h"

namespace pccl::bindings {

namespace py = pybind11;

// Errors quote what other processes say, which need not be UTF-8.
inline py::object to_text(const char* bytes) {
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(bytes, static_cast<Py_ssize_t>(std::strlen(bytes)), "replace"));
}

// py::register_exception would raise UnicodeDecodeError in place of such an error.
template <typename Thrown>
py::object bind_error(py::module_& module, const char* name, const py::handle& base) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> type;
  type.call_once_and_store_result(
      [&] { return py::object(py::exception<Thrown>(module, name, base)); });
  // pybind11 wants this very signature.
  // NOLINTNEXTLINE(performance-unnecessary-value-param)
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const Thrown& error) {
      PyErr_SetObject(type.get_stored().ptr(), to_text(error.what()).ptr());
    }
  });
  return type.get_stored();
}

inline void bind_errors(py::module_& module) {
  const py::object base = bind_error<pccl::PcclError>(module, "PcclError", PyExc_RuntimeError);
  bind_error<pccl::CollectiveTimeout>(module, "CollectiveTimeout", base);
  bind_error<pccl::MemberLost>(module, "MemberLost", base);
  bind_error<pccl::CallMismatch>(module, "CallMismatch", base);
  bind_error<pccl::RemoteProtocolError>(module, "RemoteProtocolError", base);
  bind_error<pccl::ConnectError>(module, "ConnectError", base);
  bind_error<pccl::Aborted>(module, "Aborted", base);
  bind_error<pccl::NonFiniteContribution>(module, "NonFiniteContribution", base);
}

}  // namespace pccl::bindings
