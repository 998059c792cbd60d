// Telling clients that map the region that the node has died, in the moment when it does.
//
// A thread of the node holds a robust mutex in the region for as long as the node lives. When the
// process ends, however it ends, the kernel marks the mutex's word before anything else of the
// process goes, so a client that looks at the word after its operations knows whether they came
// too late.

#pragma once

#include <pthread.h>

#include <cstdint>

namespace kvstore {

class Liveness {
 public:
  // On the thread that lives as long as the node. `region` is the region's start.
  explicit Liveness(uint8_t* region);
  ~Liveness();
  Liveness(const Liveness&) = delete;
  Liveness& operator=(const Liveness&) = delete;

 private:
  pthread_mutex_t* const mutex_;
};

}  // namespace kvstore
