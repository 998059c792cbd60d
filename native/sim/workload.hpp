// What the compute nodes of a world share: what they are to do, and what they were told.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cache/host_stamps.hpp"
#include "index/key.hpp"
#include "layout/layout.hpp"
#include "sim/linearizability.hpp"
#include "sim/values.hpp"
#include "sim/world.hpp"

namespace kvstore::sim {

// Of the names that a key may have, the first one whose coherence record is among those wanted.
inline std::string key_name(const WorldOptions& options, uint64_t key) {
  const std::string name = "key " + std::to_string(key);
  if (options.records == 0) return name;
  const layout::Geometry geometry = layout::make_geometry(options.node.region_bytes);
  for (uint64_t i = 0;; ++i) {
    const std::string tried = name + "." + std::to_string(i);
    if (geometry.record_of(make_key(tried.data(), tried.size()).hash) < options.records) {
      return tried;
    }
  }
}

struct Workload {
  explicit Workload(const WorldOptions& given)
      : options(given),
        last_version(given.keys, 0),
        under_way_at(given.keys, 0),
        uses(given.keys) {}

  const WorldOptions& options;
  class ClientMail* mail = nullptr;
  // What the clients of one host share, by host and incarnation.
  std::map<std::pair<unsigned, uint64_t>, std::shared_ptr<HostStamps>> stamps;
  std::vector<Operation> history;
  std::string violation;  // the first one
  uint64_t begun = 0;
  uint64_t under_way = 0;
  uint64_t next_value = 1;
  uint64_t last_fence = 0;
  uint64_t faults = 0;  // that have been injected so far

  // By key: the version that anybody saw last, and which operations use the key.
  std::vector<uint64_t> last_version;
  std::vector<uint32_t> under_way_at;
  std::vector<uint64_t> uses;

  // The world comes to rest: nothing begins any more but reads of one key after another.
  bool resting = false;
  uint64_t last_reads = 0;  // how many of them are to be done
  uint64_t last_reads_begun = 0;

  uint64_t costed = 0;  // operations whose cost was judged
  // No other key has its fingerprint, so nobody looks at a wrong object on the way to it.
  std::vector<bool> lone_keys;
  bool is_lone_key(uint64_t key) const { return key < lone_keys.size() && lone_keys[key]; }

  void report(const std::string& what) {
    if (violation.empty()) violation = what;
  }
  std::vector<uint8_t> value_of(uint64_t number) const {
    return sim::value_of(number, options.value_bytes_min, options.value_bytes_max);
  }
  uint64_t number_of(const void* data, uint64_t bytes) const {
    return sim::number_of(data, bytes, options.value_bytes_min, options.value_bytes_max);
  }
  bool may_begin() const {
    return resting ? last_reads_begun < last_reads : begun < options.operations;
  }
  bool over() const { return !may_begin() && under_way == 0; }
};

}  // namespace kvstore::sim
