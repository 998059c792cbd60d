// Reading arguments: keywords, keys, values, durations and conditions.

#include <cmath>
#include <initializer_list>

#include "python/fast.hpp"

namespace kvstore::python {

bool Bytes::take_view(PyObject* object, int flags) {
  if (PyObject_GetBuffer(object, &view_, flags) != 0) return false;
  exported_ = true;
  data_ = view_.buf;
  size_ = static_cast<uint64_t>(view_.len);
  return true;
}

bool Bytes::read_key(PyObject* self, PyObject* key) {
  bool readable = true;
  Py_ssize_t bytes = 0;
  if (PyBytes_Check(key)) {
    char* data = nullptr;
    readable = PyBytes_AsStringAndSize(key, &data, &bytes) == 0;
    data_ = data;
    size_ = static_cast<uint64_t>(bytes);
  } else if (PyUnicode_Check(key)) {
    data_ = PyUnicode_AsUTF8AndSize(key, &bytes);
    readable = data_ != nullptr;
    size_ = static_cast<uint64_t>(bytes);
  } else {
    readable = PyObject_CheckBuffer(key) && take_view(key, PyBUF_SIMPLE);
  }
  if (readable && size_ >= 1 && size_ <= KV_KEY_BYTES_MAX) return true;
  PyErr_Clear();
  raise_status(self, KV_KEY_INVALID, key, nullptr);
  return false;
}

bool Bytes::read_buffer(PyObject* object, bool writable) {
  if (!writable && PyBytes_Check(object)) {
    char* data = nullptr;
    Py_ssize_t bytes = 0;
    if (PyBytes_AsStringAndSize(object, &data, &bytes) != 0) return false;
    data_ = data;
    size_ = static_cast<uint64_t>(bytes);
    return true;
  }
  const int flags = writable ? PyBUF_WRITABLE : PyBUF_SIMPLE;
  if (PyObject_CheckBuffer(object)) {
    if (take_view(object, flags)) return true;
    PyErr_Clear();
  }
  // Arrays without a plain buffer go another way, which also words the refusal of the rest.
  PyObject* exported =
      PyObject_CallFunctionObjArgs(binding.export_buffer, object, writable ? Py_True : Py_False,
                                   static_cast<PyObject*>(nullptr));
  if (exported == nullptr) return false;
  const bool viewed = take_view(exported, flags);  // The view holds the exported object.
  Py_DECREF(exported);
  return viewed;
}

bool parse_arguments(const Signature& signature, PyObject* const* arguments,
                     Py_ssize_t argument_count, PyObject* keyword_names, PyObject** values) {
  if (argument_count > signature.positional) {
    PyErr_Format(PyExc_TypeError, "%s() takes at most %d positional arguments (%zd given)",
                 signature.function, signature.positional, argument_count);
    return false;
  }
  for (int i = 0; i < signature.count; ++i) values[i] = i < argument_count ? arguments[i] : nullptr;
  const Py_ssize_t keywords = keyword_names != nullptr ? PyTuple_Size(keyword_names) : 0;
  for (Py_ssize_t k = 0; k < keywords; ++k) {
    PyObject* name = PyTuple_GetItem(keyword_names, k);
    int found = 0;
    while (found < signature.count &&
           PyUnicode_CompareWithASCIIString(name, signature.names[found]) != 0) {
      ++found;
    }
    if (found == signature.count) {
      PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'",
                   signature.function, name);
      return false;
    }
    if (values[found] != nullptr) {
      PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'",
                   signature.function, name);
      return false;
    }
    values[found] = arguments[argument_count + k];
  }
  for (int i = 0; i < signature.required; ++i) {
    if (values[i] != nullptr) continue;
    PyErr_Format(PyExc_TypeError, "%s() missing required argument: '%s'", signature.function,
                 signature.names[i]);
    return false;
  }
  return true;
}

bool parse_seconds(PyObject* object, const char* name, uint64_t units_per_second,
                   uint64_t* result) {
  if (object == nullptr || object == Py_None) return true;
  const double seconds = PyFloat_AsDouble(object);
  if (seconds == -1.0 && PyErr_Occurred() != nullptr) return false;
  const double units = std::ceil(seconds * static_cast<double>(units_per_second));
  // The upper limit is some 290 years of nanoseconds.
  if (!(seconds > 0) || !(units < 9.2e18)) {
    PyErr_Format(PyExc_ValueError, "%s is %R; it must be a positive number of seconds", name,
                 object);
    return false;
  }
  *result = static_cast<uint64_t>(units);
  return true;
}

bool parse_timeout(DataPath* self, PyObject* object, uint64_t bytes, uint64_t* timeout_ns) {
  *timeout_ns = 0;
  if (!parse_seconds(object, "timeout_s", 1'000'000'000, timeout_ns)) return false;
  if (*timeout_ns == 0) *timeout_ns = self->timeout_ns;
  if (*timeout_ns == 0) *timeout_ns = binding.core->default_timeout_ns(bytes);
  return true;
}

namespace {

constexpr int kTokenBits = 64;

bool parse_fence(PyObject* object, Conditions* conditions) {
  if (object == nullptr || object == Py_None) return true;
  if (PyLong_Check(object) == 0) {
    PyErr_Format(PyExc_TypeError, "fence is %R; give the token of a lock that is held", object);
    return false;
  }
  PyObject* bits = PyLong_FromLong(kTokenBits);
  PyObject* lock = bits != nullptr ? PyNumber_Rshift(object, bits) : nullptr;
  Py_XDECREF(bits);
  if (lock == nullptr) return false;
  conditions->fence.lock = PyLong_AsUnsignedLongLong(lock);
  Py_DECREF(lock);
  if (PyErr_Occurred() != nullptr) {  // negative, or too large
    PyErr_Clear();
    PyErr_Format(PyExc_ValueError, "fence is %R, which is no token of a lock", object);
    return false;
  }
  conditions->fence.token = PyLong_AsUnsignedLongLongMask(object);
  conditions->flags |= KV_WITH_FENCE;
  return PyErr_Occurred() == nullptr;
}

}  // namespace

PyObject* token_of(const kv_fence& fence) {
  PyObject* lock = PyLong_FromUnsignedLongLong(fence.lock);
  PyObject* bits = PyLong_FromLong(kTokenBits);
  PyObject* token = PyLong_FromUnsignedLongLong(fence.token);
  PyObject* shifted = nullptr;
  PyObject* whole = nullptr;
  if (lock != nullptr && bits != nullptr && token != nullptr) shifted = PyNumber_Lshift(lock, bits);
  if (shifted != nullptr) whole = PyNumber_Or(shifted, token);
  for (PyObject* part : {lock, bits, token, shifted}) Py_XDECREF(part);
  return whole;
}

bool parse_conditions(PyObject* if_version, PyObject* if_absent, PyObject* ttl_s, PyObject* fence,
                      Conditions* conditions) {
  if (if_version != nullptr && if_version != Py_None) {
    conditions->if_version = PyLong_AsUnsignedLongLong(if_version);
    if (PyErr_Occurred() != nullptr) return false;
    conditions->flags |= KV_IF_VERSION;
  }
  if (if_absent != nullptr) {
    const int truth = PyObject_IsTrue(if_absent);
    if (truth < 0) return false;
    if (truth != 0) conditions->flags |= KV_IF_ABSENT;
  }
  if (conditions->flags == (KV_IF_VERSION | KV_IF_ABSENT)) {
    PyErr_SetString(PyExc_ValueError, "if_version and if_absent exclude each other: give one");
    return false;
  }
  return parse_fence(fence, conditions) &&
         parse_seconds(ttl_s, "ttl_s", 1'000, &conditions->ttl_ms);
}

}  // namespace kvstore::python
