// The lock objects of a store: `with store.lock(name) as held`.

#include <atomic>
#include <cstddef>
#include <cstring>

#include "python/fast.hpp"

namespace kvstore::python {

namespace {

// Seconds that a lock is waited for unless the call or the store say otherwise.
constexpr uint64_t kWaitNs = uint64_t{30} * 1'000'000'000;

// One lock of one name; it may be acquired and released again and again, by one thread at a time.
struct Lock {
  PyObject_HEAD PyObject* store;  // a DataPath
  PyObject* name;
  uint64_t timeout_ns;
  uint64_t lease_ns;  // 0: none
  uint64_t owner;     // 0: the thread
  uint32_t flags;
  bool busy;  // some thread is acquiring or releasing it
  bool held;
  kv_lock native;
};

PyTypeObject* lock_type = nullptr;

Lock* lock_of(PyObject* object) {
  return reinterpret_cast<Lock*>(object);
}

// Never given twice, as identities of threads are.
uint64_t this_thread() {
  static std::atomic<uint64_t> threads{0};
  static thread_local const uint64_t own = ++threads;
  return own;
}

PyObject* raise_lock(Lock* self, int status) {
  if (PyErr_Occurred() != nullptr) return nullptr;  // of a signal handler
  PyObject* error = PyObject_CallMethod(self->store, "_lock_error", "iO", status, self->name);
  if (error == nullptr) return nullptr;
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error)), error);
  Py_DECREF(error);
  return nullptr;
}

// A use of the client by a lock: the store's close waits for it.
class Use {
 public:
  explicit Use(Lock* lock) : path_(data_path(lock->store)), lock_(lock) {
    ++path_->in_flight;
    lock->busy = true;
  }
  ~Use() {
    --path_->in_flight;
    lock_->busy = false;
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  DataPath* path_;
  Lock* lock_;
};

int release_native(Lock* self) {
  self->held = false;
  if (data_path(self->store)->is_inline != 0) {
    return binding.core->lock_release(&self->native, KV_LOCK_INLINE);
  }
  PyThreadState* released = PyEval_SaveThread();
  const int status = binding.core->lock_release(&self->native, 0);
  PyEval_RestoreThread(released);
  return status;
}

// Negative: an exception is set, and the lock is not held.
int acquire(Lock* self, uint64_t timeout_ns, uint32_t flags) {
  DataPath* path = data_path(self->store);
  if (path->client == nullptr) return KV_CLOSED;
  if (self->held || self->busy) return KV_WOULD_DEADLOCK;
  Bytes name;
  if (!name.read_key(self->store, self->name)) return -1;
  const Use use(self);
  kv_client* const client = path->client;
  const uint64_t owner = self->owner != 0 ? self->owner : this_thread();
  int status = KV_PENDING;
  if (path->is_inline != 0) {
    status = binding.core->lock_acquire(client, &self->native, name.data(), name.size(), owner,
                                        timeout_ns, self->lease_ns, flags | KV_LOCK_INLINE);
  }
  if (status == KV_PENDING) {
    PyThreadState* released = PyEval_SaveThread();
    status = binding.core->lock_acquire(client, &self->native, name.data(), name.size(), owner,
                                        timeout_ns, self->lease_ns, flags);
    PyEval_RestoreThread(released);
  }
  self->held = status == KV_OK;
  if (PyErr_Occurred() == nullptr) return status;
  // A signal handler raised while a step went on that is never left half done: nobody would know
  // that the lock is held.
  if (self->held) release_native(self);
  return -1;
}

int release(Lock* self) {
  DataPath* path = data_path(self->store);
  if (!self->held || self->busy) return KV_INVALID;
  if (path->client == nullptr) {
    self->held = false;
    binding.core->lock_forget(&self->native);
    return KV_CLOSED;
  }
  const Use use(self);
  return release_native(self);
}

// A result, unless something went wrong or a signal handler raised.
PyObject* result_of(Lock* self, int status, PyObject* result) {
  if (status == KV_OK && PyErr_Occurred() == nullptr) return Py_NewRef(result);
  return raise_lock(self, status);
}

// ---- methods --------------------------------------------------------------------------------

PyObject* enter(PyObject* self, PyObject*) {
  const int status = acquire(lock_of(self), lock_of(self)->timeout_ns, lock_of(self)->flags);
  if (status == KV_OK) return Py_NewRef(self);
  return status < 0 ? nullptr : raise_lock(lock_of(self), status);
}

PyObject* leave(PyObject* self, PyObject* const*, Py_ssize_t) {
  // What went wrong inside matters more; the error of the release becomes its context otherwise.
  return result_of(lock_of(self), release(lock_of(self)), Py_False);
}

PyObject* acquire_method(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                         PyObject* keywords) {
  static const char* const names[] = {"timeout_s"};
  static const Signature signature = {"acquire", names, 1, 0, 0};
  PyObject* values[1];
  if (!parse_arguments(signature, arguments, count, keywords, values)) return nullptr;
  uint64_t timeout_ns = lock_of(self)->timeout_ns;
  if (!parse_seconds(values[0], "timeout_s", 1'000'000'000, &timeout_ns)) return nullptr;
  const int status = acquire(lock_of(self), timeout_ns, lock_of(self)->flags);
  if (status == KV_OK) return Py_NewRef(Py_None);
  return status < 0 ? nullptr : raise_lock(lock_of(self), status);
}

PyObject* try_acquire(PyObject* self, PyObject*) {
  const int status =
      acquire(lock_of(self), lock_of(self)->timeout_ns, lock_of(self)->flags | KV_LOCK_IF_FREE);
  if (status == KV_OK || status == KV_BUSY) return PyBool_FromLong(status == KV_OK ? 1 : 0);
  return status < 0 ? nullptr : raise_lock(lock_of(self), status);
}

PyObject* release_method(PyObject* self, PyObject*) {
  return result_of(lock_of(self), release(lock_of(self)), Py_None);
}

PyObject* cancel(PyObject* self, PyObject*) {
  binding.core->lock_cancel(&lock_of(self)->native);
  return Py_NewRef(Py_None);
}

PyObject* token(PyObject* self, void*) {
  if (!lock_of(self)->held) return raise_lock(lock_of(self), KV_INVALID);
  return token_of(binding.core->lock_fence(&lock_of(self)->native));
}
PyObject* held(PyObject* self, void*) {
  return PyBool_FromLong(lock_of(self)->held ? 1 : 0);
}
PyObject* lost(PyObject* self, void*) {
  Lock* lock = lock_of(self);
  const bool gone = lock->held && (data_path(lock->store)->client == nullptr ||
                                   binding.core->lock_is_lost(&lock->native) != 0);
  return PyBool_FromLong(gone ? 1 : 0);
}
PyObject* name(PyObject* self, void*) {
  return Py_NewRef(lock_of(self)->name);
}
PyObject* shared(PyObject* self, void*) {
  return PyBool_FromLong((lock_of(self)->flags & KV_LOCK_SHARED) != 0 ? 1 : 0);
}

PyObject* represent(PyObject* self) {
  const Lock* lock = lock_of(self);
  const char* mode = (lock->flags & KV_LOCK_SHARED) != 0 ? "shared" : "exclusive";
  return PyUnicode_FromFormat("<Lock %R, %s, %s>", lock->name, mode,
                              lock->held ? "held" : "not held");
}

// A lock that nobody can release any more is released.
void deallocate(PyObject* self) {
  Lock* lock = lock_of(self);
  if (lock->held) release(lock);
  Py_XDECREF(lock->store);
  Py_XDECREF(lock->name);
  PyTypeObject* type = Py_TYPE(self);
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

PyMethodDef lock_methods[] = {
    {"__enter__", enter, METH_NOARGS, "Acquire the lock and return it."},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(leave)), METH_FASTCALL,
     "Release the lock."},
    {"acquire", with_keywords(acquire_method), kWithKeywords,
     "acquire(*, timeout_s=None): wait for the lock. DeadlineExceeded if the time-out passes."},
    {"try_acquire", try_acquire, METH_NOARGS, "Acquire the lock if it is free; return whether."},
    {"release", release_method, METH_NOARGS,
     "Release the lock. LockLost if it had been lost before: others may have held it meanwhile."},
    {"cancel", cancel, METH_NOARGS,
     "From any thread: whoever waits for the lock by this object, now or later, leaves the queue "
     "and is told Interrupted. Nothing changes if it is held already."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef lock_attributes[] = {
    {"token", token, nullptr,
     "The token of this possession, for `fence`: larger than those of all earlier writers.",
     nullptr},
    {"held", held, nullptr, "Whether it is held through this object.", nullptr},
    {"lost", lost, nullptr,
     "Whether it is held, but its lease has ended, or its node is known to be gone or to have cut "
     "this client off.",
     nullptr},
    {"name", name, nullptr, "The name of the lock.", nullptr},
    {"shared", shared, nullptr, "Whether other readers may hold it too.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyObject* make_lock(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                    PyObject* keywords) {
  static const char* const names[] = {"name", "shared", "timeout_s", "lease_s", "owner"};
  static const Signature signature = {"lock", names, 5, 1, 1};
  PyObject* values[5];
  if (!parse_arguments(signature, arguments, count, keywords, values)) return nullptr;
  const int wants_shared = values[1] != nullptr ? PyObject_IsTrue(values[1]) : 0;
  if (wants_shared < 0) return nullptr;
  uint64_t timeout_ns = data_path(self)->timeout_ns;
  if (timeout_ns == 0) timeout_ns = kWaitNs;
  if (!parse_seconds(values[2], "timeout_s", 1'000'000'000, &timeout_ns)) return nullptr;
  uint64_t lease_ns = 0;
  if (!parse_seconds(values[3], "lease_s", 1'000'000'000, &lease_ns)) return nullptr;
  const uint64_t owner = values[4] != nullptr ? PyLong_AsUnsignedLongLong(values[4]) : 0;
  if (owner == UINT64_MAX && PyErr_Occurred() != nullptr) return nullptr;
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(lock_type, Py_tp_alloc));
  PyObject* object = allocate(lock_type, 0);  // zeroed
  if (object == nullptr) return nullptr;
  Lock* lock = lock_of(object);
  lock->store = Py_NewRef(self);
  lock->name = Py_NewRef(values[0]);
  lock->timeout_ns = timeout_ns;
  lock->lease_ns = lease_ns;
  lock->owner = owner;
  lock->flags = wants_shared != 0 ? KV_LOCK_SHARED : 0;
  return object;
}

}  // namespace

PyMethodDef lock_makers[] = {
    {"lock", with_keywords(make_lock), kWithKeywords,
     "lock(name, *, shared=False, timeout_s=None, lease_s=None): the lock of a name, to be used in "
     "a `with` statement or acquired and released by its methods. timeout_s bounds the wait; "
     "without it the store's time-out does, or 30 seconds. After lease_s the lock goes on to "
     "others although it has not been released, which then raises LockLost."},
    {nullptr, nullptr, 0, nullptr},
};

PyObject* make_lock_type() {
  static PyType_Slot slots[] = {
      {Py_tp_doc, const_cast<char*>("A lock of a store. Made by `Store.lock`.")},
      {Py_tp_repr, reinterpret_cast<void*>(represent)},
      {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
      {Py_tp_methods, lock_methods},
      {Py_tp_getset, lock_attributes},
      {0, nullptr},
  };
  static PyType_Spec spec = {"kvstore._fast.Lock", sizeof(Lock), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  PyObject* type = PyType_FromSpec(&spec);
  lock_type = reinterpret_cast<PyTypeObject*>(type);
  return type;
}

}  // namespace kvstore::python
