// Python objects whose memory an operation uses: kept while it runs, dropped under the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

namespace pccl::bindings {

namespace py = pybind11;

// Python objects that the driver let go of without holding the GIL; dropped by the next call that
// holds it.
class Graveyard {
 public:
  void bury(PyObject* object) {
    std::lock_guard lock(mutex_);
    objects_.push_back(object);
    is_empty_.store(false, std::memory_order_release);
  }
  void clear() {
    if (is_empty_.load(std::memory_order_acquire)) return;
    std::vector<PyObject*> objects;
    {
      std::lock_guard lock(mutex_);
      objects.swap(objects_);
      is_empty_.store(true, std::memory_order_release);
    }
    for (PyObject* object : objects) Py_DECREF(object);
  }

 private:
  std::mutex mutex_;
  std::vector<PyObject*> objects_;  // guarded by mutex_
  std::atomic<bool> is_empty_{true};
};

// Never destroyed: works may end while the interpreter does.
inline Graveyard& graveyard() {
  static auto* instance = new Graveyard;
  return *instance;
}

inline std::shared_ptr<void> keep_alive(const py::object& object) {
  graveyard().clear();
  if (object.is_none()) return nullptr;
  return {object.inc_ref().ptr(),
          [](void* kept) { graveyard().bury(static_cast<PyObject*>(kept)); }};
}

}  // namespace pccl::bindings
