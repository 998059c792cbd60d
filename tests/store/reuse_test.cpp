// Readers verify every byte while writers replace and delete in a node so small that blocks are
// used again all the time: no reader may ever see memory that serves another object by now.

#include <random>
#include <thread>

#include "tests/index/index_user.hpp"
#include "tests/store/fixture.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kKeys = 600;
constexpr size_t kSizes[] = {30, 100, 1000, 4000, 5000};

struct Traffic {
  StoreNode node{uint64_t{8} << 20};
  KeyStates states{kKeys};
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> reads{0}, writes{0}, wrong{0}, failed{0};
  std::atomic<int> failure{0};  // the status of the last one that failed

  static std::string name(uint64_t key) { return std::string("key-").append(std::to_string(key)); }

  void read(StoreClient& client, uint32_t seed) {
    std::mt19937_64 random(seed);
    std::string buffer(8192, '\0');
    while (!stop.load()) {
      const uint64_t key = random() % kKeys;
      const uint64_t before = states.done(key);
      kv_call call = StoreClient::call_for(KV_GET, name(key));
      const std::string text = name(key);
      call.key = text.data();
      Outcome got;
      if (random() % 2 == 0) {
        call.buffer = buffer.data();
        call.buffer_bytes = buffer.size();
      }
      got = client.run_one(call);
      const uint64_t after = states.begun(key);
      ++reads;
      uint64_t number = 0;
      if (got.status == Status::kOk) {
        if (!value_matches(got.value, text, number)) number = UINT64_MAX;
      } else if (got.status != Status::kAbsent) {
        note(got.status);
        continue;
      }
      wrong += !KeyStates::allowed(number, before, after);
    }
  }

  // How long memory is waited for before it is refused is a matter of time, and a machine may be
  // busy with something else meanwhile.
  static Outcome put(StoreClient& client, const std::string& text, const std::string& value) {
    constexpr unsigned kTries = 100;
    Outcome done;
    for (unsigned i = 0; i < kTries; ++i) {
      done = client.put(text, value);
      if (done.status != Status::kOutOfMemory) break;
    }
    return done;
  }
  void note(Status status) {
    if (status == Status::kOk) return;
    ++failed;
    failure = int(status);
  }

  // Each writer has keys of its own, so that the order of their changes is known.
  void write(StoreClient& client, uint64_t part, uint64_t parts, uint64_t rounds) {
    std::mt19937_64 random(part);
    for (uint64_t round = 0; round < rounds; ++round) {
      const uint64_t key = random() % (kKeys / parts) * parts + part;
      const uint64_t number = states.begin(key);
      const std::string text = name(key);
      const Outcome done =
          number % 2 == 1
              ? put(client, text, value_of(text, number, kSizes[random() % std::size(kSizes)]))
              : client.remove(text);
      note(done.status);
      states.end(key);
      ++writes;
    }
  }
};

}  // namespace

TEST_CASE("store: no reader ever accepts memory that has been used again") {
  Traffic traffic;
  const uint64_t rounds = sanitized() ? 2000 : 60'000;
  {
    StoreClient first(traffic.node, 4), second(traffic.node, 4, 1), slow(traffic.node, 1, 1);
    // Stands still between finding an object and reading it, longer than a heartbeat.
    slow.fault.before = [batches = 0u](const kv_batch&) mutable {
      if (++batches % 4 == 0) usleep(25'000);
    };
    std::vector<std::thread> readers, writers;
    readers.emplace_back([&] { traffic.read(slow, 99); });
    for (uint32_t r = 0; r < 4; ++r) {
      readers.emplace_back([&, r] { traffic.read(r % 2 == 0 ? first : second, r); });
    }
    for (uint32_t w = 0; w < 2; ++w) {
      writers.emplace_back([&, w] { traffic.write(w == 0 ? first : second, w, 2, rounds); });
    }
    for (std::thread& writer : writers) writer.join();
    traffic.stop.store(true);
    for (std::thread& reader : readers) reader.join();
    CHECK(traffic.wrong == 0);
    INFO("last failure: ", kv_status_name(traffic.failure.load()));
    CHECK(traffic.failed == 0);
    CHECK(traffic.reads > 1000);
    // More was written than fits: blocks were used again.
    if (!sanitized()) CHECK(traffic.writes * 1000 > 4 * traffic.node.stats().capacity_bytes);
    // Under the protection of epochs an object that a slot leads to always verifies.
    CHECK(first.stats().verify_retries == 0);
    CHECK(second.stats().verify_retries == 0);
    CHECK(slow.stats().verify_retries == 0);
  }
}

}  // namespace kvstore::test
