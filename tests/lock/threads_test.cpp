// Locks between clients that share a mapped node, on real threads.

#include <doctest/doctest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "api/kvstore.h"
#include "store/hold.hpp"
#include "store/transports.hpp"
#include "tests/lock/fixture.hpp"

namespace kvstore::test {
namespace {

// Increments a plain counter under a lock, and looks for others within.
struct Section {
  std::atomic<int> writers{0};
  std::atomic<int> readers{0};
  uint64_t counter = 0;
  std::atomic<uint64_t> last_token{0};
  std::atomic<unsigned> violations{0};

  void write(uint64_t token) {
    if (writers.fetch_add(1) != 0 || readers.load() != 0) ++violations;
    if (last_token.exchange(token) >= token) ++violations;
    ++counter;
    writers.fetch_sub(1);
  }
  void read() {
    readers.fetch_add(1);
    if (writers.load() != 0) ++violations;
    readers.fetch_sub(1);
  }
};

void contend(LockNode& node, unsigned clients, unsigned threads, unsigned rounds,
             unsigned readers_of_ten) {
  std::vector<std::unique_ptr<LockClient>> all;
  for (unsigned i = 0; i < clients; ++i) all.push_back(std::make_unique<LockClient>(node));
  Section section;
  std::atomic<uint64_t> written{0};
  std::atomic<unsigned> failures{0};
  std::vector<std::thread> running;
  for (unsigned i = 0; i < clients * threads; ++i) {
    running.emplace_back([&, i] {
      LockHold hold(all[i % clients]->client());
      for (unsigned round = 0; round < rounds; ++round) {
        const bool reads = (round * 7 + i) % 10 < readers_of_ten;
        if (all[0]->acquire(hold, "hot", !reads, i + 1) != Status::kOk) {
          ++failures;
          return;
        }
        if (reads) {
          section.read();
        } else {
          section.write(hold.token());
          ++written;
        }
        if (hold.release() != Status::kOk) ++failures;
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  CHECK(failures == 0);
  CHECK(section.violations == 0);
  CHECK(section.counter == written);
}

}  // namespace

TEST_CASE("lock: an uncontended pair costs two verbs, whatever the mode") {
  LockNode node;
  LockClient client(node);
  LockHold hold(client.client());
  REQUIRE(client.acquire(hold, "a") == Status::kOk);
  REQUIRE(hold.release() == Status::kOk);
  for (const bool exclusive : {true, false}) {
    const kv_client_stats before = client.stats();
    for (int i = 0; i < 100; ++i) {
      REQUIRE(client.acquire(hold, "a", exclusive) == Status::kOk);
      REQUIRE(hold.release() == Status::kOk);
    }
    const kv_client_stats after = client.stats();
    CHECK(after.faa - before.faa == 200);
    CHECK(after.reads == before.reads);
    CHECK(after.writes == before.writes);
    CHECK(after.cas == before.cas);
  }
}

TEST_CASE("lock: tokens grow, between clients too") {
  LockNode node;
  LockClient a(node), b(node);
  LockHold of_a(a.client()), of_b(b.client());
  uint64_t last = 0;
  for (int i = 0; i < 20; ++i) {
    LockHold& hold = i % 3 == 0 ? of_a : of_b;
    REQUIRE(a.acquire(hold, "a") == Status::kOk);
    CHECK(hold.token() > last);
    last = hold.token();
    REQUIRE(hold.release() == Status::kOk);
  }
}

TEST_CASE("lock: writers exclude all others; every increment counts") {
  LockNode node;
  SUBCASE("threads of one client") {
    contend(node, 1, 4, 3000, 0);
  }
  SUBCASE("one thread a client") {
    contend(node, 4, 1, 1500, 0);
  }
  SUBCASE("writers, several threads a client") {
    contend(node, 3, 3, 800, 0);
  }
  SUBCASE("readers and writers") {
    contend(node, 3, 3, 800, 7);
  }
}

TEST_CASE("lock: more clients wait than the ring has room for") {
  LockNode node;
  node.make_table({64, 4});
  contend(node, 9, 1, 200, 0);
  contend(node, 9, 1, 200, 5);
}

TEST_CASE("lock: a wait ends at its deadline, and the place is let go when its turn comes") {
  LockNode node;
  LockClient a(node), b(node), c(node);
  LockHold of_a(a.client()), of_b(b.client()), of_c(c.client());
  REQUIRE(a.acquire(of_a, "a") == Status::kOk);
  CHECK(b.acquire(of_b, "a", true, 1, 20 * kMillisecond) == Status::kDeadlineExceeded);
  CHECK(b.acquire(of_b, "a", false, 1, 20 * kMillisecond) == Status::kDeadlineExceeded);
  std::thread waits([&] { REQUIRE(c.acquire(of_c, "a") == Status::kOk); });
  REQUIRE(of_a.release() == Status::kOk);
  waits.join();
  REQUIRE(of_c.release() == Status::kOk);
}

TEST_CASE("lock: a wish that another thread cancels leaves the queue at once") {
  LockNode node;
  LockClient a(node), b(node), c(node);
  Sleeper sleeper;
  LockHold of_a(a.client()), of_b(b.client(), &sleeper), of_c(c.client());
  REQUIRE(a.acquire(of_a, "a") == Status::kOk);
  for (const bool exclusive : {true, false}) {
    std::atomic<Status> ended{Status::kPending};
    std::thread waits([&] { ended = b.acquire(of_b, "a", exclusive, 1, 60 * kSecond); });
    if (exclusive) REQUIRE(eventually_true([&] { return b.waiting("a") == 1; }));
    // The second wish is cancelled before it begins: that is for good.
    sleeper.cancel();
    waits.join();
    CHECK(ended == Status::kInterrupted);
    CHECK(b.waiting("a") == 0);
  }
  std::thread goes_on([&] { REQUIRE(c.acquire(of_c, "a") == Status::kOk); });
  REQUIRE(eventually_true([&] { return c.queued("a"); }));
  REQUIRE(of_a.release() == Status::kOk);
  goes_on.join();
  REQUIRE(of_c.release() == Status::kOk);
  REQUIRE(eventually_true([&] { return !b.queued("a"); }));
  CHECK(a.resets() + b.resets() + c.resets() == 0);
}

TEST_CASE("lock: wishes are cancelled while the lock changes hands") {
  LockNode node;
  LockClient a(node), b(node);
  std::atomic<bool> stop{false};
  std::thread holds([&] {
    LockHold hold(a.client());
    while (!stop) {
      REQUIRE(a.acquire(hold, "a", true, 1) == Status::kOk);
      REQUIRE(hold.release() == Status::kOk);
    }
  });
  unsigned granted = 0;
  for (unsigned round = 0; round < 2000; ++round) {
    Sleeper sleeper;
    LockHold hold(b.client(), &sleeper);
    std::thread cancels([&] { sleeper.cancel(); });
    const Status status = b.acquire(hold, "a", true, 2);
    cancels.join();
    if (status == Status::kOk) {
      ++granted;
      REQUIRE(hold.release() == Status::kOk);
    } else {
      REQUIRE(status == Status::kInterrupted);
    }
    REQUIRE(b.waiting("a") + b.holding("a") == 0);
  }
  stop = true;
  holds.join();
  CAPTURE(granted);
  CHECK(a.resets() + b.resets() == 0);
  LockHold last(a.client());
  REQUIRE(a.acquire(last, "a") == Status::kOk);
  REQUIRE(last.release() == Status::kOk);
}

TEST_CASE("lock: a later wish takes over the place that an earlier one gave up") {
  LockNode node;
  LockClient a(node), b(node);
  LockHold of_a(a.client()), of_b(b.client());
  REQUIRE(a.acquire(of_a, "a") == Status::kOk);
  CHECK(b.acquire(of_b, "a", true, 1, 20 * kMillisecond) == Status::kDeadlineExceeded);
  const uint64_t faa = b.stats().faa;
  std::thread waits([&] { REQUIRE(b.acquire(of_b, "a") == Status::kOk); });
  REQUIRE(eventually_true([&] { return b.waiting("a") == 1; }));
  REQUIRE(of_a.release() == Status::kOk);
  waits.join();
  CHECK(b.stats().faa == faa);
  REQUIRE(of_b.release() == Status::kOk);
}

TEST_CASE("lock: a writer's place is as old as its wish, whatever its client's readers do") {
  LockNode node;
  LockClient a(node), b(node);
  LockHold reader(a.client()), writer(a.client()), other(b.client());
  REQUIRE(a.acquire(reader, "a", false) == Status::kOk);
  std::thread waits([&] { REQUIRE(a.acquire(writer, "a") == Status::kOk); });
  REQUIRE(eventually_true([&] { return a.queued("a"); }));
  std::thread comes_later([&] { REQUIRE(b.acquire(other, "a") == Status::kOk); });
  REQUIRE(eventually_true([&] { return b.queued("a"); }));
  REQUIRE(reader.release() == Status::kOk);
  waits.join();
  CHECK(b.waiting("a") == 1);
  const uint64_t token = writer.token();
  REQUIRE(writer.release() == Status::kOk);
  comes_later.join();
  CHECK(other.token() > token);
  REQUIRE(other.release() == Status::kOk);
}

TEST_CASE("lock: where nobody else waits, readers have their turn within their client") {
  LockNode node;
  LockClient a(node);
  LockHold writer(a.client()), reader(a.client()), second(a.client());
  REQUIRE(a.acquire(writer, "a") == Status::kOk);
  const uint64_t faa = a.stats().faa;
  std::thread reads([&] { REQUIRE(a.acquire(reader, "a", false) == Status::kOk); });
  REQUIRE(eventually_true([&] { return a.waiting("a") == 1; }));
  REQUIRE(writer.release() == Status::kOk);
  reads.join();
  REQUIRE(a.acquire(second, "a", false) == Status::kOk);
  CHECK(a.stats().faa == faa);
  REQUIRE(second.release() == Status::kOk);
  REQUIRE(reader.release() == Status::kOk);
  CHECK(a.stats().faa == faa + 1);
}

TEST_CASE("lock: only if it is free") {
  LockNode node;
  LockClient a(node), b(node);
  LockHold of_a(a.client()), of_b(b.client());
  REQUIRE(a.try_acquire(of_a, "a") == Status::kOk);
  CHECK(b.try_acquire(of_b, "a") == Status::kBusy);
  CHECK(b.try_acquire(of_b, "a", false) == Status::kBusy);
  REQUIRE(of_a.release() == Status::kOk);
  REQUIRE(b.try_acquire(of_b, "a", false) == Status::kOk);
  REQUIRE(a.try_acquire(of_a, "a", false) == Status::kOk);
  REQUIRE(of_a.release() == Status::kOk);
  CHECK(a.try_acquire(of_a, "a") == Status::kBusy);
  REQUIRE(of_b.release() == Status::kOk);
  REQUIRE(a.try_acquire(of_a, "a") == Status::kOk);
  REQUIRE(of_a.release() == Status::kOk);
}

TEST_CASE("lock: who holds it may not wait for it") {
  LockNode node;
  node.make_table({64, 4});
  LockClient a(node);
  LockHold first(a.client()), second(a.client());
  REQUIRE(a.acquire(first, "a", true, 7) == Status::kOk);
  CHECK(a.acquire(second, "a", true, 7) == Status::kWouldDeadlock);
  CHECK(a.acquire(second, "a", false, 7) == Status::kWouldDeadlock);
  // Another name of the same lock is held within.
  const std::string other = a.other_name_of("a");
  REQUIRE(a.acquire(second, other, true, 7) == Status::kOk);
  CHECK(second.token() == first.token());
  REQUIRE(second.release() == Status::kOk);
  REQUIRE(first.release() == Status::kOk);
  REQUIRE(a.acquire(first, "a", false, 7) == Status::kOk);
  CHECK(a.acquire(second, other, true, 7) == Status::kWouldDeadlock);
  REQUIRE(first.release() == Status::kOk);
}

TEST_CASE("lock: a client that is gone while it holds or waits is no obstacle for long") {
  LockNode node;
  LockClient a(node), b(node), c(node);
  LockHold of_a(a.client()), of_b(b.client()), of_c(c.client());
  uint64_t token = 0;
  SUBCASE("a holder") {
    REQUIRE(a.acquire(of_a, "a") == Status::kOk);
    token = of_a.token();
  }
  SUBCASE("a waiter") {
    REQUIRE(b.acquire(of_b, "a") == Status::kOk);
    token = of_b.token();
    CHECK(a.acquire(of_a, "a", true, 1, 20 * kMillisecond) == Status::kDeadlineExceeded);
    a.vanish();
    REQUIRE(of_b.release() == Status::kOk);
  }
  std::thread waits([&] {
    REQUIRE(b.acquire(of_b, "a") == Status::kOk);
    CHECK(of_b.token() > token);
    REQUIRE(of_b.release() == Status::kOk);
  });
  REQUIRE(eventually_true([&] { return b.waiting("a") == 1 || b.holding("a") == 1; }));
  a.vanish();
  REQUIRE(c.acquire(of_c, "a") == Status::kOk);
  CHECK(of_c.token() > token);
  REQUIRE(of_c.release() == Status::kOk);
  waits.join();
  CHECK(b.resets() + c.resets() >= 1);
  if (of_a.stage() == LockHold::Stage::kHeld) CHECK(of_a.release() == Status::kLockLost);
}

TEST_CASE("lock: who holds it long is waited for, not reset") {
  LockNode node;
  LockClient a(node), b(node);
  LockHold of_a(a.client()), of_b(b.client());
  REQUIRE(a.acquire(of_a, "a") == Status::kOk);
  CHECK(b.acquire(of_b, "a", true, 1, 600 * kMillisecond) == Status::kDeadlineExceeded);
  CHECK(b.questions() >= 1);
  CHECK(b.resets() == 0);
  REQUIRE(of_a.release() == Status::kOk);
}

TEST_CASE("lock: a client that waits for its own readers does not reset the lock") {
  LockNode node;
  LockClient a(node);
  LockHold reader(a.client()), writer(a.client());
  REQUIRE(a.acquire(reader, "a", false) == Status::kOk);
  CHECK(a.acquire(writer, "a", true, 1, 600 * kMillisecond) == Status::kDeadlineExceeded);
  CHECK(a.resets() == 0);
  REQUIRE(reader.release() == Status::kOk);
}

}  // namespace kvstore::test
