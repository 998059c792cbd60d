// Loaded before libibverbs (LD_PRELOAD), it turns "a port is down" into "the device is lost", which
// Soft-RoCE never says of itself: its kernel module waits until nobody uses the device. Everything
// else is the real device, so what is built on it after its loss is real too.

#include <dlfcn.h>
#include <infiniband/verbs.h>

#include <cerrno>

extern "C" __attribute__((visibility("default"))) int ibv_get_async_event(ibv_context* context,
                                                                          ibv_async_event* event) {
  using Function = int (*)(ibv_context*, ibv_async_event*);
  void* const library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_NOLOAD);
  Function real = nullptr;
  if (library != nullptr) real = reinterpret_cast<Function>(dlsym(library, "ibv_get_async_event"));
  if (real == nullptr) {
    errno = ENOSYS;
    return -1;
  }
  const int failed = real(context, event);
  if (failed == 0 && event->event_type == IBV_EVENT_PORT_ERR) {
    event->event_type = IBV_EVENT_DEVICE_FATAL;
  }
  return failed;
}
