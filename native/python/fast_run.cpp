// Running calls on a session, and what becomes of their outcomes.

#include <sys/syscall.h>
#include <unistd.h>

#include "python/fast.hpp"

namespace kvstore::python {

namespace {

PyObject* value_of(const kv_call& call, PyObject* object) {
  const auto bytes = static_cast<Py_ssize_t>(call.data_bytes);
  if (object == nullptr) {
    return PyBytes_FromStringAndSize(static_cast<const char*>(call.data), bytes);
  }
  if (PyBytes_Size(object) == bytes) return object;
  // The value was replaced by one of another size between its size and its bytes being read.
  PyObject* exact = bytes < PyBytes_Size(object)
                        ? PyBytes_FromStringAndSize(PyBytes_AsString(object), bytes)
                        : nullptr;
  if (exact == nullptr && PyErr_Occurred() == nullptr) {
    PyErr_SetString(PyExc_SystemError, "a value is larger than the memory it was read into");
  }
  Py_DECREF(object);
  return exact;
}

PyObject* pair_of(PyObject* first, uint64_t second) {
  if (first == nullptr) return nullptr;
  PyObject* number = PyLong_FromUnsignedLongLong(second);
  PyObject* pair = number != nullptr ? PyTuple_Pack(2, first, number) : nullptr;
  Py_XDECREF(number);
  Py_DECREF(first);
  return pair;
}

}  // namespace

thread_local unsigned Run::on_this_thread_ = 0;

Run::~Run() {
  if (session_ == nullptr) return;
  binding.core->session_release(session_);
  --self_->in_flight;
  --on_this_thread_;
}

int Run::acquire(uint64_t timeout_ns) {
  if (self_->client == nullptr) return KV_CLOSED;
  kv_client* client = self_->client;
  ++self_->in_flight;
  ++on_this_thread_;
  int status = binding.core->session_acquire(client, 0, &session_);
  if (status == KV_BUSY) {
    PyThreadState* released = PyEval_SaveThread();
    status = binding.core->session_acquire(client, timeout_ns, &session_);
    PyEval_RestoreThread(released);
  }
  if (status != KV_OK) {
    session_ = nullptr;
    --self_->in_flight;
    --on_this_thread_;
  }
  return status;
}

int Run::run(kv_call* calls, uint32_t count, PyObject** objects, uint64_t timeout_ns,
             bool keep_gil) {
  calls_ = calls;
  objects_ = objects;
  for (uint32_t i = 0; i < count; ++i) {
    if (calls[i].kind != KV_GET || calls[i].buffer != nullptr) continue;
    calls[i].allocate = allocate;
    calls[i].context = this;
  }
  int status = KV_PENDING;
  if (keep_gil && self_->is_inline != 0) {
    status = binding.core->run(session_, calls, count, timeout_ns, KV_RUN_INLINE);
    calls = nullptr;
    count = 0;
  }
  if (status == KV_PENDING) {
    if (released_ == nullptr) drop_gil();
    status = binding.core->run(session_, calls, count, timeout_ns, 0);
  }
  take_gil();
  return status;
}

void Run::take_gil() {
  if (released_ == nullptr) return;
  PyEval_RestoreThread(released_);
  released_ = nullptr;
}

void Run::drop_gil() {
  released_ = PyEval_SaveThread();
}

// Also where a run that kept the GIL learns that a value is large, and lets go of it.
void* Run::allocate(void* context, kv_call* call, uint64_t bytes) {
  Run* run = static_cast<Run*>(context);
  run->take_gil();
  PyObject* object = bytes <= static_cast<uint64_t>(PY_SSIZE_T_MAX)
                         ? PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes))
                         : nullptr;
  if (object == nullptr) PyErr_Clear();
  // An earlier object was for a value of another length, which was replaced meanwhile.
  Py_XDECREF(run->objects_[call - run->calls_]);
  run->objects_[call - run->calls_] = object;
  void* data = object != nullptr ? PyBytes_AsString(object) : nullptr;
  run->drop_gil();
  return data;
}

PyObject* outcome_of(PyObject* self, PyObject* key, Shape shape, const kv_call& call,
                     PyObject* object) {
  // What a signal handler raised meanwhile goes before any outcome, as it does between two calls.
  if (PyErr_Occurred() != nullptr) {
    Py_XDECREF(object);
    return nullptr;
  }
  if (call.status != KV_OK && call.status != KV_ABSENT) {
    Py_XDECREF(object);
    raise_status(self, call.status, key, &call);
    return nullptr;
  }
  const bool present = call.status == KV_OK;
  if (!present) Py_CLEAR(object);
  switch (shape) {
    case Shape::kValue:
      return present ? value_of(call, object) : Py_NewRef(Py_None);
    case Shape::kVersioned:
      return present ? pair_of(value_of(call, object), call.version) : Py_NewRef(Py_None);
    case Shape::kCoded:
      return present ? pair_of(value_of(call, object), call.codec) : Py_NewRef(Py_None);
    case Shape::kCount:
      return present ? PyLong_FromUnsignedLongLong(call.data_bytes) : Py_NewRef(Py_None);
    case Shape::kCountCoded:
      return present ? pair_of(PyLong_FromUnsignedLongLong(call.data_bytes), call.codec)
                     : Py_NewRef(Py_None);
    case Shape::kVersion:
      return PyLong_FromUnsignedLongLong(call.version);
    case Shape::kFound:
    case Shape::kDeleted:
      return PyBool_FromLong(present ? 1 : 0);
  }
  PyErr_SetString(PyExc_SystemError, "an outcome has no shape");
  return nullptr;
}

void raise_status(PyObject* self, int status, PyObject* key, const kv_call* call) {
  if (PyErr_Occurred() != nullptr) return;  // of a signal handler
  const unsigned long long needed = call != nullptr ? call->data_bytes : 0;
  const unsigned long long version = call != nullptr ? call->version : 0;
  PyObject* error = PyObject_CallMethod(self, "_error", "iOKK", status,
                                        key != nullptr ? key : Py_None, needed, version);
  if (error == nullptr) return;
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error)), error);
  Py_DECREF(error);
}

int check_signals() {
  if (syscall(SYS_gettid) != getpid()) return 0;
  const PyGILState_STATE state = PyGILState_Ensure();
  const int interrupted = PyErr_Occurred() != nullptr || PyErr_CheckSignals() != 0 ? 1 : 0;
  PyGILState_Release(state);
  return interrupted;
}

}  // namespace kvstore::python
