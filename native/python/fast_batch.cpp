// The methods of DataPath that take many keys: one native run, one outcome a key.
//
// An outcome is a value, None or a typed error; a bad key or a dead node never fails the others.
// Only what says that the caller's program or the store is at fault as a whole raises.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "python/fast.hpp"

namespace kvstore::python {

namespace {

// So many calls go down at once; a longer batch goes in parts.
constexpr uint32_t kCallsPerRun = 1024;

struct Slot {
  Slot() = default;
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;
  ~Slot() {
    Py_XDECREF(pair);
    Py_XDECREF(outcome);
  }

  PyObject* pair = nullptr;        // owned: the tuple that holds key and value of a put
  PyObject* key_object = nullptr;  // borrowed from `pair` or from the tuple of all keys
  PyObject* outcome = nullptr;     // owned; set early where the arguments were bad
  Bytes key;
  Bytes value;
};

using Clock = std::chrono::steady_clock;

class Batch {
 public:
  Batch(PyObject* self, Py_ssize_t count)
      : self_(self), count_(count), slots_(new Slot[static_cast<size_t>(count)]) {}

  Slot& slot(Py_ssize_t i) { return slots_[static_cast<size_t>(i)]; }
  Py_ssize_t count() const { return count_; }

  // Turns the exception that is set into the slot's outcome if it is a typed error of ours.
  bool keep_error(Slot& slot);
  // Reads keys and, where given, values; false with an exception set. The tuple of keys must
  // outlive the outcomes.
  bool read_keys(PyObject* keys);
  bool read_writable(PyObject* buffers);
  bool read_pairs(PyObject* pairs);
  // Reads what eviction should know of each key: None, or a buffer of 32-bit numbers; and when the
  // keys count as used.
  bool read_use(PyObject* numbers, PyObject* used_ns);

  bool run(const kv_call& pattern, Shape shape, PyObject* timeout_s);
  PyObject* outcomes();

 private:
  bool read_key(Slot& slot) {
    return slot.key.read_key(self_, slot.key_object) || keep_error(slot);
  }
  bool run_part(Run& run, Py_ssize_t begin, Py_ssize_t end, const kv_call& pattern, Shape shape,
                uint64_t timeout_ns);
  bool settle(Shape shape);
  bool may_keep_gil(uint32_t kind) const;

  PyObject* self_;
  Py_ssize_t count_;
  std::unique_ptr<Slot[]> slots_;
  uint64_t buffer_bytes_ = 0;
  std::vector<uint32_t> reuse_;  // one a key, or none at all
  uint64_t used_ns_ = 0;
  std::vector<kv_call> calls_;
  std::vector<PyObject*> objects_;
  std::vector<Py_ssize_t> slot_of_;
};

bool fills_buffer(Shape shape) {
  return shape == Shape::kCount || shape == Shape::kCountCoded;
}

bool Batch::keep_error(Slot& slot) {
  if (PyErr_ExceptionMatches(binding.kv_error) == 0) return false;
  PyObject* type = nullptr;
  PyObject* error = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &error, &trace);
  PyErr_NormalizeException(&type, &error, &trace);
  Py_XDECREF(type);
  Py_XDECREF(trace);
  slot.outcome = error;
  return error != nullptr;
}

bool Batch::read_keys(PyObject* keys) {
  for (Py_ssize_t i = 0; i < count_; ++i) {
    slot(i).key_object = PyTuple_GetItem(keys, i);
    if (!read_key(slot(i))) return false;
  }
  return true;
}

bool Batch::read_writable(PyObject* buffers) {
  for (Py_ssize_t i = 0; i < count_; ++i) {
    Slot& here = slot(i);
    if (here.outcome != nullptr) continue;
    // What is writable is exported, and its export holds it.
    if (!here.value.read_writable(PyTuple_GetItem(buffers, i)) && !keep_error(here)) return false;
    buffer_bytes_ += here.value.size();
  }
  return true;
}

bool Batch::read_pairs(PyObject* pairs) {
  for (Py_ssize_t i = 0; i < count_; ++i) {
    Slot& here = slot(i);
    here.pair = PySequence_Tuple(PyTuple_GetItem(pairs, i));
    if (here.pair == nullptr) return false;
    if (PyTuple_Size(here.pair) != 2) {
      PyErr_Format(PyExc_ValueError, "item %zd is not a pair of a key and a value", i);
      return false;
    }
    here.key_object = PyTuple_GetItem(here.pair, 0);
    if (!read_key(here)) return false;
    if (here.outcome != nullptr) continue;
    if (!here.value.read_value(PyTuple_GetItem(here.pair, 1)) && !keep_error(here)) return false;
    buffer_bytes_ += here.value.size();
  }
  return true;
}

bool Batch::read_use(PyObject* numbers, PyObject* used_ns) {
  if (used_ns != nullptr) {
    used_ns_ = PyLong_AsUnsignedLongLong(used_ns);
    if (PyErr_Occurred() != nullptr) return false;
  }
  if (numbers == nullptr || numbers == Py_None) return true;
  Py_buffer view;
  if (PyObject_GetBuffer(numbers, &view, PyBUF_SIMPLE) != 0) return false;
  const bool fits = view.len == count_ * Py_ssize_t{sizeof(uint32_t)};
  if (fits) {
    reuse_.resize(static_cast<size_t>(count_));
    if (count_ > 0) std::memcpy(reuse_.data(), view.buf, static_cast<size_t>(view.len));
  } else {
    PyErr_SetString(PyExc_ValueError, "reuse has one 32-bit number for each key");
  }
  PyBuffer_Release(&view);
  return fits;
}

bool Batch::may_keep_gil(uint32_t kind) const {
  if (calls_.size() > kInlineKeys) return false;
  if (kind != KV_GET || calls_.front().buffer != nullptr) return buffer_bytes_ <= kInlineBytes;
  return calls_.size() * data_path(self_)->expected_bytes <= kInlineBytes;
}

bool Batch::run(const kv_call& pattern, Shape shape, PyObject* timeout_s) {
  const bool unknown = pattern.kind == KV_GET && !fills_buffer(shape);
  uint64_t timeout_ns = 0;
  if (!parse_timeout(data_path(self_), timeout_s, unknown ? kUnknownValueBytes : buffer_bytes_,
                     &timeout_ns)) {
    return false;
  }
  const auto deadline = Clock::now() + std::chrono::nanoseconds(timeout_ns);
  Run run(data_path(self_));
  int status = run.acquire(timeout_ns);
  if (status != KV_OK && status != KV_BUSY) {
    raise_status(self_, status, nullptr, nullptr);
    return false;
  }
  for (Py_ssize_t begin = 0; begin < count_; begin += kCallsPerRun) {
    const Py_ssize_t end = std::min<Py_ssize_t>(count_, begin + kCallsPerRun);
    if (begin != 0) {
      const auto left = std::chrono::nanoseconds(deadline - Clock::now()).count();
      timeout_ns = static_cast<uint64_t>(std::max<int64_t>(left, 1));
    }
    if (status == KV_OK) {
      if (!run_part(run, begin, end, pattern, shape, timeout_ns)) return false;
      continue;
    }
    for (Py_ssize_t i = begin; i < end; ++i) {
      if (slot(i).outcome != nullptr) continue;
      raise_status(self_, status, slot(i).key_object, nullptr);
      if (!keep_error(slot(i))) return false;
    }
  }
  return true;
}

bool Batch::run_part(Run& run, Py_ssize_t begin, Py_ssize_t end, const kv_call& pattern,
                     Shape shape, uint64_t timeout_ns) {
  static char nothing = 0;  // The address of a buffer of no bytes, which may have none.
  calls_.clear();
  slot_of_.clear();
  for (Py_ssize_t i = begin; i < end; ++i) {
    Slot& here = slot(i);
    if (here.outcome != nullptr) continue;
    kv_call& call = calls_.emplace_back(pattern);
    slot_of_.push_back(i);
    call.key = here.key.data();
    call.key_bytes = here.key.size();
    if (!reuse_.empty()) call.reuse = reuse_[static_cast<size_t>(i)];
    call.used_ns = used_ns_;
    if (pattern.kind == KV_PUT) {
      call.value = here.value.data();
      call.value_bytes = here.value.size();
    } else if (fills_buffer(shape)) {
      call.buffer = here.value.size() != 0 ? here.value.writable_data() : &nothing;
      call.buffer_bytes = here.value.size();
    }
  }
  if (calls_.empty()) return true;
  objects_.assign(calls_.size(), nullptr);
  const int status = run.run(calls_.data(), static_cast<uint32_t>(calls_.size()), objects_.data(),
                             timeout_ns, may_keep_gil(pattern.kind));
  if (status == KV_OK) return settle(shape);
  for (PyObject* object : objects_) Py_XDECREF(object);
  raise_status(self_, status, nullptr, nullptr);
  return false;
}

// Turns the calls of a part into outcomes of their slots.
bool Batch::settle(Shape shape) {
  bool settled = PyErr_Occurred() == nullptr;  // A signal handler may have raised.
  uint64_t bytes = 0;
  for (size_t i = 0; i < calls_.size(); ++i) {
    if (!settled) {
      Py_XDECREF(objects_[i]);
      continue;
    }
    Slot& here = slot(slot_of_[i]);
    const bool as_before = shape == Shape::kCount && i > 0 && calls_[i].status == KV_OK &&
                           calls_[i - 1].status == KV_OK &&
                           calls_[i].data_bytes == calls_[i - 1].data_bytes;
    // Values of one length share the number that says it.
    here.outcome = as_before ? Py_NewRef(slot(slot_of_[i - 1]).outcome)
                             : outcome_of(self_, here.key_object, shape, calls_[i], objects_[i]);
    if (calls_[i].status == KV_OK) bytes += calls_[i].data_bytes;
    settled = here.outcome != nullptr || keep_error(here);
  }
  if (calls_.front().kind == KV_GET) data_path(self_)->expected_bytes = bytes / calls_.size();
  return settled;
}

PyObject* Batch::outcomes() {
  PyObject* list = PyList_New(count_);
  if (list == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < count_; ++i) {
    PyObject* outcome = slot(i).outcome;
    slot(i).outcome = nullptr;
    PyList_SetItem(list, i, outcome);  // Steals.
  }
  return list;
}

kv_call pattern_of(uint32_t kind, uint32_t flags) {
  kv_call pattern{};
  pattern.kind = kind;
  pattern.flags = flags;
  return pattern;
}

// Runs a batch that needs nothing but keys; `keys` is any iterable.
PyObject* run_keys(PyObject* self, PyObject* keys, PyObject* timeout_s, const kv_call& pattern,
                   Shape shape) {
  PyObject* held = PySequence_Tuple(keys);
  if (held == nullptr) return nullptr;
  Batch batch(self, PyTuple_Size(held));
  const bool done = batch.read_keys(held) && batch.run(pattern, shape, timeout_s);
  PyObject* outcomes = done ? batch.outcomes() : nullptr;
  Py_DECREF(held);
  return outcomes;
}

PyObject* keys_method(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                      PyObject* keywords, const char* function, const kv_call& pattern,
                      Shape shape) {
  static const char* const names[] = {"keys", "timeout_s"};
  PyObject* values[2];
  if (!parse_arguments({function, names, 2, 1, 1}, arguments, count, keywords, values)) {
    return nullptr;
  }
  if (PyBytes_Check(values[0]) || PyUnicode_Check(values[0])) {
    PyErr_Format(PyExc_TypeError, "%s() takes an iterable of keys, not one key", function);
    return nullptr;
  }
  return run_keys(self, values[0], values[1], pattern, shape);
}

PyObject* get_many(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                   PyObject* keywords) {
  return keys_method(self, arguments, count, keywords, "get_many", pattern_of(KV_GET, 0),
                     Shape::kValue);
}

PyObject* get_versioned_many(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                             PyObject* keywords) {
  return keys_method(self, arguments, count, keywords, "get_versioned_many", pattern_of(KV_GET, 0),
                     Shape::kVersioned);
}

PyObject* contains_many(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                        PyObject* keywords) {
  return keys_method(self, arguments, count, keywords, "contains_many", pattern_of(KV_CONTAINS, 0),
                     Shape::kFound);
}

PyObject* look_many(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                    PyObject* keywords) {
  static const char* const names[] = {"keys", "timeout_s", "reuse"};
  PyObject* values[3];
  if (!parse_arguments({"_look_many", names, 3, 1, 1}, arguments, count, keywords, values)) {
    return nullptr;
  }
  const bool is_use = values[2] != nullptr && values[2] != Py_None;
  PyObject* keys = PySequence_Tuple(values[0]);
  if (keys == nullptr) return nullptr;
  Batch batch(self, PyTuple_Size(keys));
  const bool done =
      batch.read_keys(keys) && batch.read_use(values[2], nullptr) &&
      batch.run(pattern_of(KV_CONTAINS, is_use ? 0 : KV_PROBE), Shape::kFound, values[1]);
  PyObject* outcomes = done ? batch.outcomes() : nullptr;
  Py_DECREF(keys);
  return outcomes;
}

PyObject* pin_many(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                   PyObject* keywords) {
  static const char* const names[] = {"keys", "pin_s", "timeout_s"};
  PyObject* values[3];
  if (!parse_arguments({"_pin_many", names, 3, 2, 2}, arguments, count, keywords, values)) {
    return nullptr;
  }
  const unsigned long pin_s = PyLong_AsUnsignedLong(values[1]);
  if (pin_s == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) return nullptr;
  if (pin_s == 0 || pin_s > KV_PIN_SECONDS_MAX) {
    PyErr_Format(PyExc_ValueError, "a pin holds for 1 to %d seconds", int{KV_PIN_SECONDS_MAX});
    return nullptr;
  }
  kv_call pattern = pattern_of(KV_CONTAINS, KV_PROBE);
  pattern.pin_s = static_cast<uint32_t>(pin_s);
  return run_keys(self, values[0], values[2], pattern, Shape::kFound);
}

PyObject* delete_many(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                      PyObject* keywords) {
  return keys_method(self, arguments, count, keywords, "delete_many", pattern_of(KV_DELETE, 0),
                     Shape::kDeleted);
}

PyObject* match_prefix(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                       PyObject* keywords) {
  PyObject* found = keys_method(self, arguments, count, keywords, "match_prefix",
                                pattern_of(KV_CONTAINS, KV_PROBE), Shape::kFound);
  if (found == nullptr) return nullptr;
  const Py_ssize_t keys = PyList_Size(found);
  Py_ssize_t matched = 0;
  while (matched < keys && PyList_GetItem(found, matched) == Py_True) ++matched;
  Py_DECREF(found);
  return PyLong_FromSsize_t(matched);
}

PyObject* get_many_into_as(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                           PyObject* keywords, const char* function, Shape shape) {
  static const char* const names[] = {"keys", "buffers", "timeout_s", "reuse", "used_ns"};
  PyObject* values[5];
  const int named = shape == Shape::kCountCoded ? 5 : 3;
  values[3] = values[4] = nullptr;
  if (!parse_arguments({function, names, named, 2, 2}, arguments, count, keywords, values)) {
    return nullptr;
  }
  PyObject* keys = PySequence_Tuple(values[0]);
  PyObject* buffers = keys != nullptr ? PySequence_Tuple(values[1]) : nullptr;
  PyObject* result = nullptr;
  if (buffers != nullptr && PyTuple_Size(keys) != PyTuple_Size(buffers)) {
    PyErr_Format(PyExc_ValueError, "%zd keys but %zd buffers: give one buffer a key",
                 PyTuple_Size(keys), PyTuple_Size(buffers));
  } else if (buffers != nullptr) {
    Batch batch(self, PyTuple_Size(keys));
    if (batch.read_keys(keys) && batch.read_writable(buffers) &&
        batch.read_use(values[3], values[4]) &&
        batch.run(pattern_of(KV_GET, 0), shape, values[2])) {
      result = batch.outcomes();
    }
  }
  Py_XDECREF(buffers);
  Py_XDECREF(keys);
  return result;
}

PyObject* get_many_into(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                        PyObject* keywords) {
  return get_many_into_as(self, arguments, count, keywords, "get_many_into", Shape::kCount);
}

PyObject* get_many_into_coded(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                              PyObject* keywords) {
  return get_many_into_as(self, arguments, count, keywords, "_get_many_into_coded",
                          Shape::kCountCoded);
}

// `values`: items, if_absent, fence, ttl_s, timeout_s, reuse, used_ns; but for the first, nullptr
// where not given.
PyObject* put_pairs(PyObject* self, PyObject* const* values, uint32_t codec) {
  Conditions conditions;
  if (!parse_conditions(nullptr, values[1], values[3], values[2], &conditions)) return nullptr;
  PyObject* items = PyObject_HasAttrString(values[0], "items") != 0 ? PyMapping_Items(values[0])
                                                                    : Py_NewRef(values[0]);
  PyObject* pairs = items != nullptr ? PySequence_Tuple(items) : nullptr;
  Py_XDECREF(items);
  if (pairs == nullptr) return nullptr;
  kv_call pattern = pattern_of(KV_PUT, 0);
  conditions.apply_to(&pattern);
  pattern.codec = codec;
  Batch batch(self, PyTuple_Size(pairs));
  const bool done = batch.read_pairs(pairs) && batch.read_use(values[5], values[6]) &&
                    batch.run(pattern, Shape::kVersion, values[4]);
  Py_DECREF(pairs);
  return done ? batch.outcomes() : nullptr;
}

PyObject* put_many_as(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                      PyObject* keywords, const char* function) {
  static const char* const names[] = {"items", "if_absent", "fence", "ttl_s", "timeout_s"};
  PyObject* values[7];
  values[5] = values[6] = nullptr;
  if (!parse_arguments({function, names, 5, 1, 1}, arguments, count, keywords, values)) {
    return nullptr;
  }
  return put_pairs(self, values, 0);
}

PyObject* put_many_coded(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                         PyObject* keywords) {
  static const char* const names[] = {"items",     "codec", "if_absent", "ttl_s",
                                      "timeout_s", "reuse", "used_ns"};
  PyObject* values[7];
  if (!parse_arguments({"_put_many_coded", names, 7, 2, 2}, arguments, count, keywords, values)) {
    return nullptr;
  }
  const unsigned long codec = PyLong_AsUnsignedLong(values[1]);
  if (codec == static_cast<unsigned long>(-1) && PyErr_Occurred() != nullptr) return nullptr;
  if (codec > 255) {
    PyErr_SetString(PyExc_ValueError, "a codec is a number from 0 to 255");
    return nullptr;
  }
  PyObject* const rest[] = {values[0], values[2], nullptr,  values[3],
                            values[4], values[5], values[6]};
  return put_pairs(self, rest, static_cast<uint32_t>(codec));
}
PyObject* put_many(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                   PyObject* keywords) {
  return put_many_as(self, arguments, count, keywords, "put_many");
}

PyObject* put_from_many(PyObject* self, PyObject* const* arguments, Py_ssize_t count,
                        PyObject* keywords) {
  return put_many_as(self, arguments, count, keywords, "put_from_many");
}

}  // namespace

PyMethodDef batch_methods[] = {
    {"get_many", with_keywords(get_many), kWithKeywords,
     "get_many($self, keys, *, timeout_s=None)\n--\n\n"
     "Read many keys at once: a list with the value, None or a typed error of each."},
    {"get_versioned_many", with_keywords(get_versioned_many), kWithKeywords,
     "get_versioned_many($self, keys, *, timeout_s=None)\n--\n\n"
     "Read many keys at once: a list with (value, version), None or a typed error of each."},
    {"get_many_into", with_keywords(get_many_into), kWithKeywords,
     "get_many_into($self, keys, buffers, *, timeout_s=None)\n--\n\n"
     "Read the value of each key into the buffer at the same place: a list with the length, None\n"
     "or a typed error of each."},
    {"contains_many", with_keywords(contains_many), kWithKeywords,
     "contains_many($self, keys, *, timeout_s=None)\n--\n\n"
     "Return a list that says of each key whether it is there, or its typed error."},
    {"put_many", with_keywords(put_many), kWithKeywords,
     "put_many($self, items, *, if_absent=False, fence=None, ttl_s=None, timeout_s=None)\n"
     "--\n\n"
     "Store many values at once: a list with the version or a typed error of each.\n\n"
     "`items` is a mapping or an iterable of (key, value) pairs. If a key comes twice, either of\n"
     "its values may stay."},
    {"put_from_many", with_keywords(put_from_many), kWithKeywords,
     "put_from_many($self, items, *, if_absent=False, fence=None, ttl_s=None, "
     "timeout_s=None)\n--\n\n"
     "The counterpart of `get_many_into`: the same as `put_many`."},
    {"_put_many_coded", with_keywords(put_many_coded), kWithKeywords,
     "_put_many_coded($self, items, codec, *, if_absent=False, ttl_s=None, timeout_s=None,\n"
     "                reuse=None, used_ns=0)\n--\n\n"
     "As `put_many`, with the number of the values' codec, which each object's header declares.\n\n"
     "`reuse` is a buffer of 32-bit numbers, one a key: see `kv_reuse` in the C header. "
     "`used_ns`,\n"
     "of time.monotonic_ns, is when the keys count as used; 0: now."},
    {"_get_many_into_coded", with_keywords(get_many_into_coded), kWithKeywords,
     "_get_many_into_coded($self, keys, buffers, *, timeout_s=None, reuse=None, used_ns=0)\n"
     "--\n\n"
     "As `get_many_into`, with (length, codec) in place of the length; `reuse` and `used_ns` as "
     "in\n"
     "`_put_many_coded`."},
    {"_look_many", with_keywords(look_many), kWithKeywords,
     "_look_many($self, keys, *, timeout_s=None, reuse=None)\n--\n\n"
     "As `contains_many`. Without `reuse`, which is as in `_put_many_coded`, it is a probe, as\n"
     "`match_prefix` is: it keeps nothing from eviction."},
    {"_pin_many", with_keywords(pin_many), kWithKeywords,
     "_pin_many($self, keys, pin_s, *, timeout_s=None)\n--\n\n"
     "Keep keys from eviction for a while: a list that says of each whether it is there, or its\n"
     "typed error. The node learns of it with the client's next heartbeat."},
    {"delete_many", with_keywords(delete_many), kWithKeywords,
     "delete_many($self, keys, *, timeout_s=None)\n--\n\n"
     "Delete many keys at once: a list that says of each whether it was there, or its typed\n"
     "error."},
    {"match_prefix", with_keywords(match_prefix), kWithKeywords,
     "match_prefix($self, keys, *, timeout_s=None)\n--\n\n"
     "Return how many keys from the first on are there without a gap.\n\n"
     "It costs one round trip. A key that is written or moved meanwhile, or whose node is down,\n"
     "may count as absent."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace kvstore::python
