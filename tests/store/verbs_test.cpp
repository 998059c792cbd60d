// The store over an RDMA device, where the environment names one. The control plane's part is a
// function call here.

#include <doctest/doctest.h>

#include <map>
#include <random>
#include <thread>

#include "node/node.hpp"
#include "node/verbs_door.hpp"
#include "tests/fabric/verbs_node.hpp"

using namespace kvstore;
using test::verbs_device;

namespace {

const auto needs_device = doctest::skip(verbs_device() == nullptr);
constexpr uint64_t kTimeoutNs = 30 * kSecond;

struct VerbsStore {
  explicit VerbsStore(uint64_t capacity_bytes = 32 << 20) {
    kv_node_config config{};
    config.capacity_bytes = capacity_bytes;
    config.verbs_device = verbs_device();
    std::string error;
    node = Node::open(config, error);
    REQUIRE_MESSAGE(node != nullptr, error);
  }
  std::unique_ptr<Node> node;
};

// A client of its own registration.
struct VerbsClient {
  explicit VerbsClient(VerbsStore& given, uint32_t lanes = 2)
      : store(given), client(lanes, 1024, {"self"}) {
    std::string error;
    REQUIRE(store.node->admit("test", admission, error) == Status::kOk);
    const Status attached = attach(error);
    REQUIRE_MESSAGE(attached == Status::kOk, error);
  }

  Status attach(std::string& error) {
    kv_node_description description;
    store.node->describe(description);
    VerbsTarget target;
    target.node = rdma_addresses(description.verbs_gids[0], description.verbs_rails);
    target.registration = admission.registration;
    target.exchange = [this](uint32_t lane, const kv_verbs_endpoint& mine, uint64_t,
                             kv_verbs_grant& grant, std::string& line) {
      ++exchanges;
      if (!store.node) return Status::kNodeUnreachable;
      return store.node->connect_verbs(admission, lane, mine, grant, line);
    };
    return attach_verbs(client, 0, target, monotonic_ns() + kTimeoutNs, error);
  }

  Status run(std::vector<kv_call>& calls) {
    Status status = Status::kOk;
    Lane* lane = client.acquire_lane(kTimeoutNs, status);
    if (lane == nullptr) return status;
    lane->run(calls.data(), uint32_t(calls.size()), kTimeoutNs, false);
    client.release_lane(*lane);
    return Status(calls[0].status);
  }
  Status put(const std::string& key, const std::string& value) {
    std::vector<kv_call> calls{call_for(KV_PUT, key)};
    calls[0].value = value.data();
    calls[0].value_bytes = value.size();
    return run(calls);
  }
  Status get(const std::string& key, std::string& value) {
    value.assign(1 << 20, '\0');
    std::vector<kv_call> calls{call_for(KV_GET, key)};
    calls[0].buffer = value.data();
    calls[0].buffer_bytes = value.size();
    const Status status = run(calls);
    value.resize(status == Status::kOk ? calls[0].data_bytes : 0);
    return status;
  }
  Status remove(const std::string& key) {
    std::vector<kv_call> calls{call_for(KV_DELETE, key)};
    return run(calls);
  }
  static kv_call call_for(uint32_t kind, const std::string& key) {
    kv_call call{};
    call.kind = kind;
    call.key = key.data();
    call.key_bytes = key.size();
    return call;
  }

  VerbsStore& store;
  kv_admission admission{};
  std::atomic<int> exchanges{0};
  Client client;
};

std::string content(size_t bytes, unsigned seed) {
  const std::vector<uint8_t> made = test::pattern(bytes, seed);
  return {made.begin(), made.end()};
}

}  // namespace

TEST_CASE("verbs store: it holds what a map holds" * needs_device) {
  VerbsStore store;
  VerbsClient client(store);
  std::map<std::string, std::string> expected;
  std::mt19937 random(7);
  for (unsigned step = 0; step < 400; ++step) {
    const std::string key = "key" + std::to_string(random() % 40);
    const unsigned choice = random() % 10;
    if (choice < 4) {
      const std::string value = content(size_t(1) << (random() % 15), step);
      REQUIRE(client.put(key, value) == Status::kOk);
      expected[key] = value;
    } else if (choice < 5) {
      REQUIRE(client.remove(key) == (expected.erase(key) ? Status::kOk : Status::kAbsent));
    } else {
      std::string value;
      const auto found = expected.find(key);
      REQUIRE(client.get(key, value) == (found == expected.end() ? Status::kAbsent : Status::kOk));
      if (found != expected.end()) REQUIRE(value == found->second);
    }
  }
}

TEST_CASE("verbs store: a batch goes through one connection at once" * needs_device) {
  VerbsStore store;
  VerbsClient client(store);
  constexpr size_t kKeys = 64;
  std::vector<std::string> keys, values;
  for (size_t i = 0; i < kKeys; ++i) {
    keys.push_back("key" + std::to_string(i));
    values.push_back(content(100 + 500 * i, unsigned(i)));
  }
  std::vector<kv_call> puts, gets;
  std::vector<std::string> seen(kKeys, std::string(64 << 10, '\0'));
  for (size_t i = 0; i < kKeys; ++i) {
    puts.push_back(VerbsClient::call_for(KV_PUT, keys[i]));
    puts.back().value = values[i].data();
    puts.back().value_bytes = values[i].size();
    gets.push_back(VerbsClient::call_for(KV_GET, keys[i]));
    gets.back().buffer = seen[i].data();
    gets.back().buffer_bytes = seen[i].size();
  }
  client.run(puts);
  client.run(gets);
  for (size_t i = 0; i < kKeys; ++i) {
    REQUIRE(puts[i].status == KV_OK);
    REQUIRE(gets[i].status == KV_OK);
    CHECK(seen[i].substr(0, gets[i].data_bytes) == values[i]);
  }
}

TEST_CASE("verbs store: threads and clients see each other's writes" * needs_device) {
  VerbsStore store;
  VerbsClient first(store, 3), second(store, 3);
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      VerbsClient& writer = t % 2 == 0 ? first : second;
      VerbsClient& reader = t % 2 == 0 ? second : first;
      for (unsigned i = 0; i < 50; ++i) {
        const std::string key = std::to_string(t * 100 + i % 10);
        const std::string value = content(10 + i * 37, t * 1000 + i);
        std::string seen;
        failed += writer.put(key, value) != Status::kOk;
        failed += reader.get(key, seen) != Status::kOk || seen != value;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
}

TEST_CASE("verbs store: registered memory is read and written directly" * needs_device) {
  VerbsStore store(64 << 20);
  VerbsClient client(store);
  std::string error;
  const std::string key = "key", value = content(3'000'001, 5);
  std::string source(4 << 20, '\0'), into(4 << 20, '\0');
  for (const bool registered : {true, false}) {
    for (std::string* memory : {&source, &into}) {
      if (!registered) {
        client.client.unregister_memory(memory->data());
      } else {
        REQUIRE(client.client.register_memory(memory->data(), memory->size(), error) ==
                Status::kOk);
        CHECK(client.client.register_memory(memory->data(), memory->size(), error) ==
              Status::kRefused);
      }
    }
    std::copy(value.begin(), value.end(), source.begin() + 13);
    std::fill(into.begin(), into.end(), '\0');
    std::vector<kv_call> calls{VerbsClient::call_for(KV_PUT, key)};
    calls[0].value = source.data() + 13;
    calls[0].value_bytes = value.size();
    REQUIRE(client.run(calls) == Status::kOk);
    calls = {VerbsClient::call_for(KV_GET, key)};
    calls[0].buffer = into.data() + 5;
    calls[0].buffer_bytes = value.size();
    REQUIRE(client.run(calls) == Status::kOk);
    CHECK(into.substr(5, value.size()) == value);
  }
}

TEST_CASE("verbs store: a fenced client is cut off, the others are not" * needs_device) {
  VerbsStore store;
  VerbsClient victim(store), other(store);
  REQUIRE(victim.put("key", "value") == Status::kOk);
  REQUIRE(store.node->dismiss(victim.admission.registration) == Status::kOk);
  const Status refused = victim.put("key", "changed");
  CHECK((refused == Status::kNodeUnreachable || refused == Status::kFenced));
  std::string value;
  CHECK(other.get("key", value) == Status::kOk);
  CHECK(value == "value");
  std::string error;
  CHECK(victim.attach(error) != Status::kOk);
}

TEST_CASE("verbs store: a node that has gone is unreachable in bounded time" * needs_device) {
  VerbsStore store;
  VerbsClient client(store);
  REQUIRE(client.put("key", "value") == Status::kOk);
  store.node.reset();
  const uint64_t began_ns = monotonic_ns();
  CHECK(client.put("key", "other") == Status::kNodeUnreachable);
  CHECK(client.put("key", "other") == Status::kNodeUnreachable);
  CHECK(monotonic_ns() - began_ns < kTimeoutNs);
}

TEST_CASE("verbs store: what it refuses it gives a reason for" * needs_device) {
  VerbsStore store;
  std::string error;
  uint32_t registration = 0;
  LocalRegion region;
  CHECK(store.node->admit_local(registration, region, error) == Status::kRefused);
  CHECK(error.find("RDMA device") != std::string::npos);

  kv_admission admission{};
  kv_verbs_endpoint mine{};
  kv_verbs_grant grant{};
  REQUIRE(store.node->admit("test", admission, error) == Status::kOk);
  admission.token[3] ^= 1;
  CHECK(store.node->connect_verbs(admission, 0, mine, grant, error) == Status::kRefused);
  CHECK(grant.remote_key == 0);
  admission.token[3] ^= 1;
  CHECK(store.node->connect_verbs(admission, 0, mine, grant, error) == Status::kRefused);
  CHECK(error.find("impossible") != std::string::npos);
  CHECK(grant.remote_key == 0);

  kv_node_config config{};
  config.capacity_bytes = 16 << 20;
  config.verbs_device = "absent0";
  CHECK(Node::open(config, error) == nullptr);
  CHECK(error.find("absent0") != std::string::npos);
  config.verbs_device = "";
  config.verbs_address = "192.0.2.77";
  CHECK(Node::open(config, error) == nullptr);
  config.verbs_address = nullptr;
  config.tcp_host = "127.0.0.1";
  CHECK(Node::open(config, error) == nullptr);
  CHECK(error.find("destroy each other") != std::string::npos);
}

// In a build without an RDMA device as well.
TEST_CASE("a transport of the other atomic domain is refused with the reason") {
  layout::Superblock superblock{};
  std::string error;
  superblock.domain = uint32_t(layout::Domain::kVerbs);
  CHECK(!same_domain(superblock, layout::Domain::kCpu, error));
  CHECK(error.find("attach over verbs") != std::string::npos);
  CHECK(same_domain(superblock, layout::Domain::kVerbs, error));
  superblock.domain = uint32_t(layout::Domain::kCpu);
  CHECK(!same_domain(superblock, layout::Domain::kVerbs, error));
  CHECK(error.find("over shm or tcp") != std::string::npos);
}

TEST_CASE("a region is served over devices whose atomics exclude each other, or over none") {
  const auto port = [](const char* device, uint32_t number, uint32_t span) {
    kv_verbs_port_description made{};
    std::copy_n(device, std::string(device).size(), made.device);
    made.port = number;
    made.atomics_span_devices = span;
    return made;
  };
  std::string error;
  CHECK(one_atomic_domain({port("mlx5_0", 1, 0)}, error));
  CHECK(one_atomic_domain({port("mlx5_0", 1, 0), port("mlx5_0", 2, 0)}, error));
  CHECK(one_atomic_domain({port("rxe0", 1, 1), port("rxe1", 1, 1)}, error));
  CHECK(!one_atomic_domain({port("mlx5_0", 1, 0), port("mlx5_1", 1, 0)}, error));
  CHECK(error.find("mlx5_0 and mlx5_1") != std::string::npos);
  CHECK(error.find("start one node on each") != std::string::npos);
  CHECK(!one_atomic_domain({port("rxe0", 1, 1), port("mlx5_0", 1, 0)}, error));
  CHECK(!one_atomic_domain({port("mlx5_0", 1, 0), port("mlx5_0", 1, 0)}, error));
  CHECK(error.find("twice") != std::string::npos);
  CHECK(device_names("") == std::vector<std::string>{});
  CHECK(device_names("mlx5_0:1,,mlx5_0:2,") == std::vector<std::string>{"mlx5_0:1", "mlx5_0:2"});
}
