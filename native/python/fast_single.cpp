// The methods of DataPath that take one key.

#include "python/fast.hpp"

namespace kvstore::python {

namespace {

enum { kKey };  // The first parameter of every method here.

kv_call call_of(uint32_t kind, const Bytes& key) {
  kv_call call{};
  call.kind = kind;
  call.key = key.data();
  call.key_bytes = key.size();
  return call;
}

// Runs one call and returns what it comes to.
PyObject* run_one(PyObject* self, PyObject* key, kv_call* call, uint64_t timeout_ns, bool keep_gil,
                  Shape shape) {
  Run run(data_path(self));
  int status = run.acquire(timeout_ns);
  PyObject* object = nullptr;
  if (status == KV_OK) status = run.run(call, 1, &object, timeout_ns, keep_gil);
  if (status != KV_OK) {
    Py_XDECREF(object);
    raise_status(self, status, key, nullptr);
    return nullptr;
  }
  return outcome_of(self, key, shape, *call, object);
}

// kv_call::allocate of a get from a copy. The context is where the object goes. A long copy is left
// to a run, which lets go of the GIL.
void* allocate_bytes(void* context, kv_call*, uint64_t bytes) {
  if (bytes > kInlineBytes) return nullptr;
  PyObject* object = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes));
  if (object == nullptr) PyErr_Clear();
  *static_cast<PyObject**>(context) = object;
  return object != nullptr ? PyBytes_AsString(object) : nullptr;
}

// Serves a get from a copy in this process. Returns false if that can't be.
bool get_from_copy(PyObject* self, PyObject* key, kv_call* call, Shape shape, PyObject** result) {
  DataPath* path = data_path(self);
  if (path->client == nullptr) return false;
  PyObject* object = nullptr;
  call->allocate = allocate_bytes;
  call->context = &object;
  if (binding.core->cached_get(path->client, call) != KV_OK) {
    Py_XDECREF(object);
    call->data = nullptr;
    return false;
  }
  *result = outcome_of(self, key, shape, *call, object);
  return true;
}

// `cached`: False, or what is no more than a wish.
bool parse_cached(PyObject* cached, kv_call* call) {
  const int wanted = cached == nullptr ? 1 : PyObject_IsTrue(cached);
  if (wanted == 0) call->flags |= KV_UNCACHED;
  return wanted >= 0;
}

PyObject* run_get(PyObject* self, PyObject* key_object, PyObject* timeout_s, PyObject* cached,
                  Shape shape) {
  Bytes key;
  uint64_t timeout_ns = 0;
  if (!parse_timeout(data_path(self), timeout_s, kUnknownValueBytes, &timeout_ns)) return nullptr;
  if (!key.read_key(self, key_object)) return nullptr;
  kv_call call = call_of(KV_GET, key);
  PyObject* from_copy = nullptr;
  if (!parse_cached(cached, &call)) return nullptr;
  if (get_from_copy(self, key_object, &call, shape, &from_copy)) return from_copy;
  PyObject* result = run_one(self, key_object, &call, timeout_ns, true, shape);
  if (call.status == KV_OK) data_path(self)->expected_bytes = call.data_bytes;
  return result;
}

PyObject* get_as(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords,
                 const char* function, Shape shape) {
  if (count == 1 && keywords == nullptr) {
    return run_get(self, arguments[0], nullptr, nullptr, shape);
  }
  static const char* const names[] = {"key", "timeout_s", "cached"};
  PyObject* values[3];
  if (!parse_arguments({function, names, 3, 1, 1}, arguments, count, keywords, values)) {
    return nullptr;
  }
  return run_get(self, values[kKey], values[1], values[2], shape);
}

PyObject* get(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  return get_as(self, arguments, count, keywords, "get", Shape::kValue);
}

PyObject* get_versioned(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                        PyObject* keywords) {
  return get_as(self, arguments, count, keywords, "get_versioned", Shape::kVersioned);
}

PyObject* get_coded(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                    PyObject* keywords) {
  return get_as(self, arguments, count, keywords, "_get_coded", Shape::kCoded);
}

PyObject* get_into(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                   PyObject* keywords) {
  static const char* const names[] = {"key", "buffer", "timeout_s", "cached"};
  PyObject* values[4];
  if (!parse_arguments({"get_into", names, 4, 2, 2}, arguments, count, keywords, values)) {
    return nullptr;
  }
  Bytes key;
  Bytes buffer;
  uint64_t timeout_ns = 0;
  if (!key.read_key(self, values[kKey]) || !buffer.read_writable(values[1]) ||
      !parse_timeout(data_path(self), values[2], buffer.size(), &timeout_ns)) {
    return nullptr;
  }
  kv_call call = call_of(KV_GET, key);
  char nothing = 0;  // A buffer of no bytes may have no address, which would mean "no buffer".
  call.buffer = buffer.size() != 0 ? buffer.writable_data() : &nothing;
  call.buffer_bytes = buffer.size();
  PyObject* from_copy = nullptr;
  if (!parse_cached(values[3], &call)) return nullptr;
  if (buffer.size() <= kInlineBytes &&
      get_from_copy(self, values[kKey], &call, Shape::kCount, &from_copy)) {
    return from_copy;
  }
  return run_one(self, values[kKey], &call, timeout_ns, buffer.size() <= kInlineBytes,
                 Shape::kCount);
}

PyObject* contains(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                   PyObject* keywords) {
  static const char* const names[] = {"key", "timeout_s", "cached"};
  PyObject* values[3];
  if (!parse_arguments({"contains", names, 3, 1, 1}, arguments, count, keywords, values)) {
    return nullptr;
  }
  Bytes key;
  uint64_t timeout_ns = 0;
  if (!key.read_key(self, values[kKey]) ||
      !parse_timeout(data_path(self), values[1], 0, &timeout_ns)) {
    return nullptr;
  }
  kv_call call = call_of(KV_CONTAINS, key);
  if (!parse_cached(values[2], &call)) return nullptr;
  return run_one(self, values[kKey], &call, timeout_ns, true, Shape::kFound);
}

PyObject* run_put(PyObject* self, PyObject* key_object, PyObject* value_object,
                  const Conditions& conditions, uint32_t codec, PyObject* timeout_s) {
  Bytes key;
  Bytes value;
  uint64_t timeout_ns = 0;
  if (!key.read_key(self, key_object) || !value.read_value(value_object) ||
      !parse_timeout(data_path(self), timeout_s, value.size(), &timeout_ns)) {
    return nullptr;
  }
  kv_call call = call_of(KV_PUT, key);
  conditions.apply_to(&call);
  call.value = value.data();
  call.value_bytes = value.size();
  call.codec = codec;
  return run_one(self, key_object, &call, timeout_ns, value.size() <= kInlineBytes,
                 Shape::kVersion);
}

PyObject* put_as(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords,
                 const char* function) {
  if (count == 2 && keywords == nullptr) {
    return run_put(self, arguments[0], arguments[1], Conditions{}, 0, nullptr);
  }
  static const char* const names[] = {"key",   "value", "if_version", "if_absent",
                                      "fence", "ttl_s", "timeout_s"};
  PyObject* values[7];
  Conditions conditions;
  if (!parse_arguments({function, names, 7, 2, 2}, arguments, count, keywords, values) ||
      !parse_conditions(values[2], values[3], values[5], values[4], &conditions)) {
    return nullptr;
  }
  return run_put(self, values[kKey], values[1], conditions, 0, values[6]);
}

PyObject* put(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  return put_as(self, arguments, count, keywords, "put");
}

PyObject* put_from(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                   PyObject* keywords) {
  return put_as(self, arguments, count, keywords, "put_from");
}

PyObject* put_coded(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                    PyObject* keywords) {
  static const char* const names[] = {"key",       "value", "codec", "if_version",
                                      "if_absent", "fence", "ttl_s", "timeout_s"};
  PyObject* values[8];
  Conditions conditions;
  if (!parse_arguments({"_put_coded", names, 8, 3, 3}, arguments, count, keywords, values) ||
      !parse_conditions(values[3], values[4], values[6], values[5], &conditions)) {
    return nullptr;
  }
  const unsigned long codec = PyLong_AsUnsignedLong(values[2]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return run_put(self, values[kKey], values[1], conditions, static_cast<uint32_t>(codec),
                 values[7]);
}

PyObject* run_delete(PyObject* self, PyObject* key_object, const Conditions& conditions,
                     PyObject* timeout_s) {
  Bytes key;
  uint64_t timeout_ns = 0;
  if (!key.read_key(self, key_object) ||
      !parse_timeout(data_path(self), timeout_s, 0, &timeout_ns)) {
    return nullptr;
  }
  kv_call call = call_of(KV_DELETE, key);
  conditions.apply_to(&call);
  return run_one(self, key_object, &call, timeout_ns, true, Shape::kDeleted);
}

PyObject* delete_key(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                     PyObject* keywords) {
  static const char* const names[] = {"key", "if_version", "fence", "timeout_s"};
  PyObject* values[4];
  Conditions conditions;
  if (!parse_arguments({"delete", names, 4, 1, 1}, arguments, count, keywords, values) ||
      !parse_conditions(values[1], nullptr, nullptr, values[2], &conditions)) {
    return nullptr;
  }
  return run_delete(self, values[kKey], conditions, values[3]);
}

}  // namespace

PyObject* get_item(PyObject* self, PyObject* key) {
  PyObject* value = run_get(self, key, nullptr, nullptr, Shape::kValue);
  if (value != Py_None) return value;
  Py_DECREF(value);
  PyErr_SetObject(PyExc_KeyError, key);
  return nullptr;
}

int set_item(PyObject* self, PyObject* key, PyObject* value) {
  PyObject* outcome = value != nullptr ? run_put(self, key, value, Conditions{}, 0, nullptr)
                                       : run_delete(self, key, Conditions{}, nullptr);
  if (outcome == nullptr) return -1;
  const bool absent = outcome == Py_False;
  Py_DECREF(outcome);
  if (!absent) return 0;
  PyErr_SetObject(PyExc_KeyError, key);
  return -1;
}

int contains_item(PyObject* self, PyObject* key) {
  PyObject* found = contains(self, &key, 1, nullptr);
  if (found == nullptr) return -1;
  const int result = found == Py_True ? 1 : 0;
  Py_DECREF(found);
  return result;
}

PyMethodDef single_methods[] = {
    {"get", with_keywords(get), kWithKeywords,
     "get($self, key, *, timeout_s=None, cached=True)\n--\n\n"
     "Return the value of `key` as bytes, or None if there is no such key.\n\n"
     "A store with `cache_bytes` serves it from this process's memory where it can, and is as\n"
     "linearizable as without; `cached=False` asks the node in any case."},
    {"get_versioned", with_keywords(get_versioned), kWithKeywords,
     "get_versioned($self, key, *, timeout_s=None, cached=True)\n--\n\n"
     "Return (value, version) of `key`, or None if there is no such key.\n\n"
     "The version is what `put` returned; give it to `if_version` to change the value only if\n"
     "nobody else did."},
    {"get_into", with_keywords(get_into), kWithKeywords,
     "get_into($self, key, buffer, *, timeout_s=None, cached=True)\n--\n\n"
     "Read the value of `key` into `buffer` and return its length, or None if there is no such\n"
     "key.\n\n"
     "The buffer is any writable contiguous one: bytearray, memoryview, numpy array, torch tensor\n"
     "on the CPU. Bytes of it past the value's end are left unspecified, and all of them where\n"
     "there is no such key or an error is raised. BufferTooSmall says how many bytes the value\n"
     "needs."},
    {"contains", with_keywords(contains), kWithKeywords,
     "contains($self, key, *, timeout_s=None, cached=True)\n--\n\n"
     "Return whether `key` is there. Same as `key in store`."},
    {"put", with_keywords(put), kWithKeywords,
     "put($self, key, value, *, if_version=None, if_absent=False, fence=None, ttl_s=None, "
     "timeout_s=None)\n"
     "--\n\n"
     "Store `value` under `key` and return its version.\n\n"
     "The value is any contiguous buffer and is not copied on its way. With `if_absent` it is\n"
     "stored only if there is no such key, with `if_version` only if the key's value has that\n"
     "version; otherwise ConditionFailed is raised. After `ttl_s` seconds the key is gone.\n"
     "With `fence`, the token of a lock that is held, FencedWrite is raised if somebody who had\n"
     "the lock later has written the key, FenceMismatch if it was written under another lock.\n"
     "When put returns, every get that starts afterwards sees the new value."},
    {"put_from", with_keywords(put_from), kWithKeywords,
     "put_from($self, key, value, *, if_version=None, if_absent=False, fence=None, ttl_s=None, "
     "timeout_s=None)\n--\n\n"
     "The counterpart of `get_into`: the same as `put`."},
    {"delete", with_keywords(delete_key), kWithKeywords,
     "delete($self, key, *, if_version=None, fence=None, timeout_s=None)\n--\n\n"
     "Delete `key` and return whether it was there.\n\n"
     "With `if_version` it is deleted only if its value has that version; otherwise, also where "
     "it\n"
     "is absent, ConditionFailed is raised. `fence` is that of `put`; a delete with it keeps who\n"
     "had the lock earlier from writing the key, also if it was not there."},
    {"_get_coded", with_keywords(get_coded), kWithKeywords,
     "Return (value, codec) of `key`, or None."},
    {"_put_coded", with_keywords(put_coded), kWithKeywords,
     "As `put`, with the number of the value's codec after the value."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace kvstore::python
