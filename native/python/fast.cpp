// The module kvstore._fast: the type DataPath, and `bind`.

#include "python/fast.hpp"

#include <array>
#include <cstddef>

namespace kvstore::python {

Binding binding;

namespace {

// ---- the life of a DataPath ------------------------------------------------------------------

void deallocate(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  const auto release = reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free));
  release(self);
  Py_DECREF(type);
}

PyObject* open(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (binding.core == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "kvstore._fast is not bound: import kvstore first");
    return nullptr;
  }
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "_open(client_address, timeout_s) takes two arguments");
    return nullptr;
  }
  DataPath* path = data_path(self);
  void* client = PyLong_AsVoidPtr(arguments[0]);
  if (client == nullptr) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_ValueError, "the client is NULL");
    return nullptr;
  }
  if (!parse_seconds(arguments[1], "timeout_s", 1'000'000'000, &path->timeout_ns)) return nullptr;
  path->client = static_cast<kv_client*>(client);
  path->is_inline = binding.core->is_inline(path->client);
  return Py_NewRef(Py_None);
}

PyObject* refresh(PyObject* self, PyObject*) {
  DataPath* path = data_path(self);
  if (path->client != nullptr) path->is_inline = binding.core->is_inline(path->client);
  return Py_NewRef(Py_None);
}

PyObject* shut(PyObject* self, PyObject*) {
  data_path(self)->client = nullptr;
  return PyLong_FromLongLong(data_path(self)->in_flight);
}

PyObject* inside(PyObject*, PyObject*) {
  return PyBool_FromLong(Run::on_this_thread() > 0 ? 1 : 0);
}

}  // namespace

PyMethodDef life_methods[] = {
    {"_open", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(open)), METH_FASTCALL,
     "Work on the kv_client at this address from now on, with this default time-out or None."},
    {"_refresh", refresh, METH_NOARGS, "Look again whether calls complete inline."},
    {"_shut", shut, METH_NOARGS,
     "Refuse calls from now on; return how many are still under way. May be called again."},
    {"_inside", inside, METH_NOARGS,
     "Whether this thread is in a call, as a signal handler is that interrupted one."},
    {nullptr, nullptr, 0, nullptr},
};

namespace {

// ---- the module ------------------------------------------------------------------------------

PyObject* bind(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "bind(data_path_address, export_buffer, KvError)");
    return nullptr;
  }
  const auto* core = static_cast<const kv_data_path*>(PyLong_AsVoidPtr(arguments[0]));
  if (core == nullptr) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_ValueError, "the table is NULL");
    return nullptr;
  }
  if (core->abi_version != KV_ABI_VERSION) {
    PyErr_Format(PyExc_ImportError,
                 "kvstore._fast speaks version %d of the C interface, the core version %u: "
                 "rebuild both (make build)",
                 static_cast<int>(KV_ABI_VERSION), core->abi_version);
    return nullptr;
  }
  Py_XDECREF(binding.export_buffer);
  Py_XDECREF(binding.kv_error);
  binding.core = core;
  binding.export_buffer = Py_NewRef(arguments[1]);
  binding.kv_error = Py_NewRef(arguments[2]);
  core->set_interrupt_check(check_signals);
  return Py_NewRef(Py_None);
}

// kv_call::allocate of asynchronous gets. It runs on a thread of the core; `context` is the
// address of a word that is 0 and receives the bytes object, which `take_bytes` then owns.
void* allocate_for_slot(void* context, kv_call*, uint64_t bytes) {
  const PyGILState_STATE state = PyGILState_Ensure();
  PyObject* object = bytes <= static_cast<uint64_t>(PY_SSIZE_T_MAX)
                         ? PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes))
                         : nullptr;
  if (object == nullptr) PyErr_Clear();
  void* data = object != nullptr ? PyBytes_AsString(object) : nullptr;
  Py_XDECREF(*static_cast<PyObject**>(context));  // for a value that was replaced meanwhile
  *static_cast<PyObject**>(context) = object;
  PyGILState_Release(state);
  return data;
}

PyObject* allocator(PyObject*, PyObject*) {
  return PyLong_FromVoidPtr(reinterpret_cast<void*>(allocate_for_slot));
}

PyObject* take_bytes(PyObject*, PyObject* address) {
  auto** slot = static_cast<PyObject**>(PyLong_AsVoidPtr(address));
  if (slot == nullptr) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_ValueError, "the slot is NULL");
    return nullptr;
  }
  PyObject* object = *slot;
  *slot = nullptr;
  return object != nullptr ? object : Py_NewRef(Py_None);
}

PyMethodDef module_methods[] = {
    {"bind", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(bind)), METH_FASTCALL,
     "bind(data_path_address, export_buffer, KvError): connect the module to the core."},
    {"allocator", allocator, METH_NOARGS,
     "The address of a kv_call.allocate that leaves a bytes object in the word at `context`."},
    {"take_bytes", take_bytes, METH_O,
     "Take the bytes object out of the word at this address, or None if there is none."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    "kvstore._fast",
    "The hot path of kvstore.Store; see fast.hpp.",
    -1,
    module_methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

constexpr char kDataPathDoc[] =
    "The operations of a store on keys and values. Use kvstore.Store, which inherits them.";

// The table that the type keeps pointing to; Py_tp_methods takes a single one.
std::array<PyMethodDef, 32> all_methods{};

PyObject* make_type() {
  size_t methods = 0;
  for (PyMethodDef* table : {single_methods, batch_methods, life_methods, lock_makers}) {
    for (PyMethodDef* method = table; method->ml_name != nullptr; ++method) {
      if (methods + 1 >= all_methods.size()) {
        PyErr_SetString(PyExc_SystemError, "the method table is too small");
        return nullptr;
      }
      all_methods[methods++] = *method;
    }
  }
  PyType_Slot slots[] = {
      {Py_tp_doc, const_cast<char*>(kDataPathDoc)},
      {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
      {Py_tp_methods, all_methods.data()},
      {Py_mp_subscript, reinterpret_cast<void*>(get_item)},
      {Py_mp_ass_subscript, reinterpret_cast<void*>(set_item)},
      {Py_sq_contains, reinterpret_cast<void*>(contains_item)},
      {0, nullptr},
  };
  PyType_Spec spec = {"kvstore._fast.DataPath", sizeof(DataPath), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
  return PyType_FromSpec(&spec);
}

}  // namespace

}  // namespace kvstore::python

PyMODINIT_FUNC PyInit__fast() {
  PyObject* module = PyModule_Create(&kvstore::python::module_definition);
  if (module == nullptr) return nullptr;
  PyObject* type = kvstore::python::make_type();
  if (type == nullptr || PyModule_AddObjectRef(module, "DataPath", type) != 0) {
    Py_XDECREF(type);
    Py_DECREF(module);
    return nullptr;
  }
  Py_DECREF(type);
  PyObject* lock = kvstore::python::make_lock_type();
  if (lock == nullptr || PyModule_AddObjectRef(module, "Lock", lock) != 0) {
    Py_XDECREF(lock);
    Py_DECREF(module);
    return nullptr;
  }
  Py_DECREF(lock);
  return module;
}
