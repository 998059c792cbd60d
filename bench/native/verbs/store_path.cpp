// Gets of the store over verbs from a device that answers at once, to be counted from outside: see
// bench/post_path.py.
//
// Usage: KVSTORE_VERBS_LIBRARY=... store_path KIND COUNT, where the library is the verbs fabric
// over the stand-in for a device. All instructions of a call are within `Lane::run`.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "node/node.hpp"
#include "store_reader.hpp"

namespace {

using namespace kvstore;

constexpr uint64_t kRegionBytes = 16 << 20;

struct Kind {
  const char* name;
  uint32_t calls;  // at a time
  uint32_t address_entries;
  void (*run)(StoreReader&, uint32_t number);
};

void get(StoreReader& reader, uint32_t number) {
  reader.get(number % kBatch, kSmallBytes);
}
void get_many(StoreReader& reader, uint32_t) {
  reader.get_batch();
}

constexpr Kind kKinds[] = {
    {"get", 1, 1024, get}, {"get-cold", 1, 1, get}, {"get-32", kBatch, 1024, get_many}};

int run(const Kind& kind, long calls) {
  kv_node_config config{};
  config.capacity_bytes = kRegionBytes;
  config.verbs_device = "";
  std::string error;
  const std::unique_ptr<Node> node = Node::open(config, error);
  if (!node) {
    std::fprintf(stderr, "store_path: %s\n", error.c_str());
    return 1;
  }
  StoreReader reader(*node, kind.address_entries);
  for (uint32_t i = 0; i < kBatch; ++i) {
    reader.put(i, std::string(kSmallBytes, 'x'));
    reader.get(i, kSmallBytes);
  }
  for (long done = 0; done < calls; done += kind.calls) kind.run(reader, uint32_t(done));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  for (const Kind& kind : kKinds) {
    if (count != 3 || std::strcmp(arguments[1], kind.name) != 0) continue;
    return run(kind, std::atol(arguments[2]));
  }
  std::fprintf(stderr, "usage: store_path KIND COUNT with KIND one of:");
  for (const Kind& kind : kKinds) std::fprintf(stderr, " %s", kind.name);
  std::fprintf(stderr, "\n");
  return 2;
}
