// The hot path of the Python package: an extension module for the stable ABI that marshals Python
// objects into kv_call and back. It does not link the core; `bind` hands it the core's
// kv_data_path table.
//
// Everything here runs with the GIL held, except the body of Run::run. Python objects that a call
// points into are kept alive and, where they have the buffer protocol, exported for its duration.

#pragma once

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>

#include "api/kvstore.h"

namespace kvstore::python {

// Work of at most this many bytes may keep the GIL while it runs.
inline constexpr uint64_t kInlineBytes = 64 * 1024;
// And so may a batch of at most this many keys.
inline constexpr uint64_t kInlineKeys = 256;
// A get whose value's size is not known is given the time that this much data takes.
inline constexpr uint64_t kUnknownValueBytes = uint64_t{256} << 20;

// What `bind` received; the module belongs to one interpreter.
struct Binding {
  const kv_data_path* core = nullptr;
  PyObject* export_buffer = nullptr;  // (object, writable) -> object with the buffer protocol
  PyObject* kv_error = nullptr;       // the base class of the typed errors
};
extern Binding binding;

// The instance layout of kvstore._fast.DataPath, the base class of kvstore.Store.
struct DataPath {
  PyObject_HEAD kv_client* client;  // nullptr: not opened yet, or closed
  uint64_t timeout_ns;              // 0: kv_default_timeout_ns
  uint64_t expected_bytes;          // size of the values that the last gets returned
  int64_t in_flight;                // runs that hold a session
  int is_inline;                    // every member completes inline
};

inline DataPath* data_path(PyObject* object) {
  return reinterpret_cast<DataPath*>(object);
}

// Bytes lent by a Python object. Whoever fills one keeps the object alive.
class Bytes {
 public:
  Bytes() = default;
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() {
    if (exported_) PyBuffer_Release(&view_);
  }

  const void* data() const { return data_; }
  void* writable_data() const { return const_cast<void*>(data_); }
  uint64_t size() const { return size_; }

  // Each returns false with an exception set. A failed one may be tried again.
  bool read_key(PyObject* self, PyObject* key);
  bool read_value(PyObject* value) { return read_buffer(value, false); }
  bool read_writable(PyObject* buffer) { return read_buffer(buffer, true); }

 private:
  bool read_buffer(PyObject* object, bool writable);
  bool take_view(PyObject* object, int flags);

  const void* data_ = nullptr;
  uint64_t size_ = 0;
  bool exported_ = false;
  Py_buffer view_;
};

// Names of the parameters of a method: the first `positional` may be given by position, the first
// `required` must be given.
struct Signature {
  const char* function;
  const char* const* names;
  int count;
  int positional;
  int required;
};

// Fills `values[count]` with borrowed references, nullptr for what was not given.
bool parse_arguments(const Signature& signature, PyObject* const* arguments,
                     Py_ssize_t argument_count, PyObject* keyword_names, PyObject** values);

// Seconds as a positive duration. None or nullptr leave `result` as it is.
bool parse_seconds(PyObject* object, const char* name, uint64_t units_per_second, uint64_t* result);
bool parse_timeout(DataPath* self, PyObject* object, uint64_t bytes, uint64_t* timeout_ns);

// The keywords of put and delete that say under which condition they apply.
struct Conditions {
  uint32_t flags = 0;
  uint64_t if_version = 0;
  uint64_t ttl_ms = 0;
  kv_fence fence = {0, 0};

  void apply_to(kv_call* call) const {
    call->flags = flags;
    call->if_version = if_version;
    call->ttl_ms = ttl_ms;
    call->fence = fence;
  }
};
bool parse_conditions(PyObject* if_version, PyObject* if_absent, PyObject* ttl_s, PyObject* fence,
                      Conditions* conditions);

// A lock's token in Python is one number: the fence's lock above its token.
PyObject* token_of(const kv_fence& fence);

// One or more calls on one session. The destructor releases the session.
class Run {
 public:
  // Runs that hold a session on this thread.
  static unsigned on_this_thread() { return on_this_thread_; }
  explicit Run(DataPath* self) : self_(self) {}
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run();

  // Returns a kv_status. Waits for a session with the GIL released.
  int acquire(uint64_t timeout_ns);

  // Runs the calls to their outcomes and returns a kv_status. `objects`, one a call and all
  // nullptr, receives the bytes object of each get whose value is too large for the session's
  // memory; the caller owns it. With `keep_gil` the calls are tried with the GIL held first.
  int run(kv_call* calls, uint32_t count, PyObject** objects, uint64_t timeout_ns, bool keep_gil);

 private:
  static void* allocate(void* context, kv_call* call, uint64_t bytes);
  void take_gil();
  void drop_gil();

  DataPath* self_;
  kv_session* session_ = nullptr;
  kv_call* calls_ = nullptr;
  PyObject** objects_ = nullptr;
  static thread_local unsigned on_this_thread_;
  PyThreadState* released_ = nullptr;  // set while this thread runs without the GIL
};

// What a call's outcome becomes in Python.
enum class Shape { kValue, kVersioned, kCoded, kCount, kCountCoded, kFound, kVersion, kDeleted };

// Returns a new reference, or nullptr with an exception set. Steals `object` (see Run::run).
PyObject* outcome_of(PyObject* self, PyObject* key, Shape shape, const kv_call& call,
                     PyObject* object);
// Sets the typed error of a status. Keeps an exception that is already set by a signal handler.
void raise_status(PyObject* self, int status, PyObject* key, const kv_call* call);

// The interrupt check of the core: runs Python's signal handlers on the main thread.
int check_signals();

extern PyMethodDef single_methods[];
extern PyMethodDef batch_methods[];
extern PyMethodDef life_methods[];
extern PyMethodDef lock_makers[];  // of DataPath

// The type kvstore._fast.Lock: a new reference, or nullptr with an exception set.
PyObject* make_lock_type();

PyObject* get_item(PyObject* self, PyObject* key);
int set_item(PyObject* self, PyObject* key, PyObject* value);
int contains_item(PyObject* self, PyObject* key);

inline PyCFunction with_keywords(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t,
                                                       PyObject*)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}
inline constexpr int kWithKeywords = METH_FASTCALL | METH_KEYWORDS;

}  // namespace kvstore::python
