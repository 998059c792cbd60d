// The store over verbs beside bare verbs that read the same bytes from the same device: one get, a
// cold get, a large value, a batch of gets.
//
// Usage: verbs_bench [DEVICE] [--json]. Node, client and bare reader are in this process; the
// device serves the READs by itself. Rounds of all contestants are interleaved; each figure is the
// median over the rounds, with its ratio to the bare reader in the same round.
// bench/verbs_measures.py puts the targets and perftest's figures beside it.

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "base/assert.hpp"
#include "base/crc32c.hpp"
#include "fabric/verbs/target.hpp"
#include "node/node.hpp"
#include "store_reader.hpp"

namespace {

using namespace kvstore;

constexpr uint64_t kSpinNs = 30'000;  // as an executor spins before it sleeps
// Short and many: what else the host does then hits some of them, and not the median.
constexpr int kRounds = 61;
constexpr uint32_t kSmallCalls = 30;
constexpr size_t kChainMax = 2 * kBatch;
constexpr uint32_t kPieceBytes = 128 << 10;  // of a large READ, as the fabric cuts it
constexpr uint64_t kRegionBytes = 64 << 20;
// What a get of a small value reads: its slot, two combined buckets, its object.
constexpr uint32_t kSlotBytes = 8;
constexpr uint32_t kBucketsBytes = layout::kCombinedBytes;
constexpr uint32_t kObjectBytes = 128;

// One queue pair to a region of its own, used with nothing in between.
class BareReader {
 public:
  explicit BareReader(const std::string& device) : region_(4 << 20), local_(4 << 20) {
    std::string error;
    port_ = verbs::open_port(device, nullptr, error);
    KV_ASSERT(port_ != nullptr);
    target_ = verbs::expose(*port_, region_.data(), region_.size(), error);
    KV_ASSERT(target_ != nullptr);
    memory_ = verbs::register_memory(port_->domain.get(), port_->limits, local_.data(),
                                     local_.size(), IBV_ACCESS_LOCAL_WRITE, error);
    channel_.reset(ibv_create_comp_channel(port_->context.get()));
    queue_.reset(ibv_create_cq(port_->context.get(), 64, nullptr, channel_.get(), 0));
    ibv_qp_cap capacity{};
    capacity.max_send_wr = kChainMax;
    capacity.max_send_sge = capacity.max_recv_sge = capacity.max_recv_wr = 1;
    pair_ = verbs::make_queue_pair(*port_, queue_.get(), capacity, 0, error);
    KV_ASSERT(pair_ != nullptr && memory_ != nullptr);
    kv_verbs_grant grant{};
    verbs::PortState state;
    KV_ASSERT(verbs::look_up(*port_, state, error));
    const kv_verbs_endpoint mine = verbs::describe_endpoint(*port_, state, *pair_, 7);
    peer_ = verbs::accept(*target_, mine, grant, error);
    KV_ASSERT(peer_ != nullptr);
    KV_ASSERT(verbs::connect_queue_pair(*port_, state, pair_.get(), 7, grant.node, error));
    key_ = grant.remote_key;
  }

  const uint8_t* local() const { return local_.data(); }

  // Reads pieces of these lengths, so many times over, in one chain and waits for the last.
  void read(std::initializer_list<uint32_t> lengths, size_t times = 1) {
    ibv_send_wr requests[kChainMax];
    ibv_sge pieces[kChainMax];
    size_t count = 0, at = 0;
    KV_ASSERT(lengths.size() * times <= kChainMax);
    for (size_t i = 0; i < lengths.size() * times; ++i) {
      const uint32_t length = lengths.begin()[i % lengths.size()];
      pieces[count] = {reinterpret_cast<uint64_t>(local_.data()) + at, length, memory_->lkey};
      at = (at + length) % kLargeBytes;
      ibv_send_wr& request = requests[count] = ibv_send_wr{};
      request.sg_list = &pieces[count];
      request.num_sge = 1;
      request.opcode = IBV_WR_RDMA_READ;
      request.wr.rdma.remote_addr = reinterpret_cast<uint64_t>(region_.data());
      request.wr.rdma.rkey = key_;
      if (count > 0) requests[count - 1].next = &request;
      ++count;
    }
    requests[count - 1].send_flags = IBV_SEND_SIGNALED;
    ibv_send_wr* bad = nullptr;
    KV_ASSERT(ibv_post_send(pair_.get(), requests, &bad) == 0);
    wait();
  }

 private:
  void wait() {
    ibv_wc completion;
    const uint64_t spin_until_ns = monotonic_ns() + kSpinNs;
    int found = 0;
    while ((found = ibv_poll_cq(queue_.get(), 1, &completion)) == 0) {
      if (monotonic_ns() < spin_until_ns) {
        sched_yield();
        continue;
      }
      ibv_req_notify_cq(queue_.get(), 0);
      if ((found = ibv_poll_cq(queue_.get(), 1, &completion)) != 0) break;
      ibv_cq* queue = nullptr;
      void* context = nullptr;
      ibv_get_cq_event(channel_.get(), &queue, &context);
      ibv_ack_cq_events(queue, 1);
    }
    KV_ASSERT(found == 1 && completion.status == IBV_WC_SUCCESS);
  }

  std::vector<uint8_t> region_, local_;
  std::unique_ptr<kv_verbs_port> port_;
  std::unique_ptr<kv_verbs_target> target_;
  verbs::MemoryPtr memory_;
  verbs::ChannelPtr channel_;
  verbs::QueuePtr queue_;
  verbs::QueuePairPtr pair_;
  std::unique_ptr<kv_verbs_peer> peer_;
  uint32_t key_ = 0;
};

double microseconds_each(uint32_t calls, const std::function<void(uint32_t)>& call) {
  const uint64_t began_ns = monotonic_ns();
  for (uint32_t i = 0; i < calls; ++i) call(i);
  return double(monotonic_ns() - began_ns) / calls / 1000;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Contest {
  const char* name;
  uint32_t calls;
  std::function<void(uint32_t)> bare;
  std::function<void(uint32_t)> store;
};

struct Result {
  const char* name;
  double bare_us, store_us, ratio;  // medians
  double ratio_best;                // of the shortest rounds: what an idle host would show
};

std::vector<Result> run(const std::vector<Contest>& contests) {
  std::vector<std::vector<double>> bare(contests.size()), store(contests.size()),
      ratio(contests.size());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < contests.size(); ++i) {
      const Contest& contest = contests[i];
      bare[i].push_back(microseconds_each(contest.calls, contest.bare));
      store[i].push_back(microseconds_each(contest.calls, contest.store));
      ratio[i].push_back(store[i].back() / bare[i].back());
    }
  }
  std::vector<Result> results;
  for (size_t i = 0; i < contests.size(); ++i) {
    const double best = *std::min_element(store[i].begin(), store[i].end()) /
                        *std::min_element(bare[i].begin(), bare[i].end());
    results.push_back(
        {contests[i].name, median(bare[i]), median(store[i]), median(ratio[i]), best});
  }
  return results;
}

std::vector<Result> measure(BareReader& bare, StoreReader& warm, StoreReader& cold) {
  const std::vector<uint8_t> summed(kLargeBytes, 'z');
  uint32_t sum = 0;
  const auto address_known = [&](uint32_t) { bare.read({kSlotBytes, kObjectBytes}); };
  return run({
      {"get 64 B, address remembered", kSmallCalls, address_known,
       [&](uint32_t i) { warm.get(i % kKeys, kSmallBytes); }},
      {"get 64 B, cold", kSmallCalls,
       [&](uint32_t) {
         bare.read({kBucketsBytes, kBucketsBytes});
         bare.read({kObjectBytes});
       },
       [&](uint32_t i) { cold.get(i % kKeys, kSmallBytes); }},
      {"get 1 MiB into registered memory", 1, [&](uint32_t) { bare.read({uint32_t(kLargeBytes)}); },
       [&](uint32_t) { warm.get(kKeys, kLargeBytes); }},
      // What a large get must do: the READs that the fabric makes of it, and their checksum.
      {"get 1 MiB beside the same READs, summed up", 1,
       [&](uint32_t) {
         bare.read({kPieceBytes}, kLargeBytes / kPieceBytes);
         sum = crc32c(sum, bare.local(), kLargeBytes);
       },
       [&](uint32_t) { warm.get(kKeys, kLargeBytes); }},
      {"1 MiB of bare verbs: one READ, 8 READs", 1,
       [&](uint32_t) { bare.read({uint32_t(kLargeBytes)}); },
       [&](uint32_t) { bare.read({kPieceBytes}, kLargeBytes / kPieceBytes); }},
      {"1 MiB: bare READ, checksum alone", 1, [&](uint32_t) { bare.read({uint32_t(kLargeBytes)}); },
       [&](uint32_t) { sum = crc32c(sum, summed.data(), summed.size()); }},
      {"get 1 MiB into other memory", 1, [&](uint32_t) { bare.read({uint32_t(kLargeBytes)}); },
       [&](uint32_t) { warm.get_elsewhere(kKeys, kLargeBytes); }},
      {"32 gets of the store: single, batch", 1,
       [&](uint32_t) {
         for (uint32_t i = 0; i < kBatch; ++i) warm.get(i, kSmallBytes);
       },
       [&](uint32_t) { warm.get_batch(); }},
      {"32 gets of bare verbs: single, batch", 1,
       [&](uint32_t i) {
         for (uint32_t n = 0; n < kBatch; ++n) address_known(i);
       },
       [&](uint32_t) { bare.read({kSlotBytes, kObjectBytes}, kBatch); }},
      {"32 gets at once", 1, [&](uint32_t) { bare.read({kSlotBytes, kObjectBytes}, kBatch); },
       [&](uint32_t) { warm.get_batch(); }},
  });
}

struct Price {
  const char* name;
  double reads, round_trips;  // of one get
};

Price price_of(const char* name, StoreReader& reader) {
  constexpr uint32_t kCounted = 50;
  const kv_client_stats before = reader.stats();
  for (uint32_t i = 0; i < kCounted; ++i) reader.get(i % kKeys, kSmallBytes);
  const kv_client_stats after = reader.stats();
  return {name, double(after.reads - before.reads) / kCounted,
          double(after.round_trips - before.round_trips) / kCounted};
}

void print_json(const std::vector<Result>& results, const std::vector<Price>& prices) {
  std::printf("{\"contests\": [");
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& result = results[i];
    std::printf(
        "%s{\"name\": \"%s\", \"bare_us\": %.3f, \"store_us\": %.3f, \"ratio\": %.4f, "
        "\"ratio_best\": %.4f}",
        i == 0 ? "" : ", ", result.name, result.bare_us, result.store_us, result.ratio,
        result.ratio_best);
  }
  std::printf("], \"prices\": [");
  for (size_t i = 0; i < prices.size(); ++i) {
    std::printf("%s{\"name\": \"%s\", \"reads\": %.2f, \"round_trips\": %.2f}", i == 0 ? "" : ", ",
                prices[i].name, prices[i].reads, prices[i].round_trips);
  }
  std::printf("]}\n");
}

void print_table(const std::vector<Result>& results, const std::vector<Price>& prices) {
  std::printf("%-44s %12s %12s %8s %8s\n", "", "bare us", "store us", "ratio", "best");
  for (const Result& result : results) {
    std::printf("%-44s %12.1f %12.1f %8.2f %8.2f\n", result.name, result.bare_us, result.store_us,
                result.ratio, result.ratio_best);
  }
  for (const Price& price : prices) {
    std::printf("%-44s %.2f READs, %.2f round trips\n", price.name, price.reads, price.round_trips);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool as_json = false;
  std::string device;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--json") {
      as_json = true;
    } else {
      device = word;
    }
  }
  kv_node_config config{};
  config.capacity_bytes = kRegionBytes;
  config.verbs_device = device.c_str();
  std::string error;
  const std::unique_ptr<Node> node = Node::open(config, error);
  if (!node) {
    std::fprintf(stderr, "verbs_bench: %s\n", error.c_str());
    return 1;
  }
  BareReader bare(device);
  StoreReader warm(*node, 1024), cold(*node, 1);
  for (uint32_t i = 0; i < kKeys; ++i) warm.put(i, std::string(kSmallBytes, 'x'));
  warm.put(kKeys, std::string(kLargeBytes, 'y'));
  for (uint32_t i = 0; i <= kKeys; ++i) warm.get(i, kLargeBytes);

  const std::vector<Result> results = measure(bare, warm, cold);
  const std::vector<Price> prices = {price_of("get 64 B, address remembered", warm),
                                     price_of("get 64 B, cold", cold)};
  (as_json ? print_json : print_table)(results, prices);
  return 0;
}
