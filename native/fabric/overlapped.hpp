// Steps of one operation whose round trips overlap.

#pragma once

#include <cstddef>
#include <vector>

#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"

namespace kvstore {

// Runs `step(0)` to `step(count - 1)`, each a Task<Status>, up to `wanted` of them at once, as far
// as the connection has room. Stops after those under way when one fails, and returns what that one
// returned. What `step` refers to must outlive the task.
template <class Step>
Task<Status> overlapped(Remote& remote, size_t count, unsigned wanted, const Step& step) {
  const Remote::FanOut fan_out(remote, wanted);
  std::vector<Task<Status>> under_way;
  Status worst = Status::kOk;
  for (size_t next = 0; next < count && worst == Status::kOk;) {
    under_way.clear();
    while (next < count && under_way.size() < fan_out.width()) under_way.push_back(step(next++));
    for (Task<Status>& one : under_way) {
      if (const Status s = co_await one; s != Status::kOk) worst = s;
    }
  }
  co_return worst;
}

}  // namespace kvstore
