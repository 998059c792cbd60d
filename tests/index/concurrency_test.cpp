// Readers and writers on threads of their own while the index grows and its splitters break off one
// after the other: each key is seen in a state that it had, none is lost, none is there twice.

#include <doctest/doctest.h>

#include <random>
#include <thread>

#include "tests/index/contents.hpp"
#include "tests/index/index_user.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kRegionBytes = uint64_t{96} << 20;
constexpr uint64_t kFirstKeys = 1000;

struct Shared {
  explicit Shared(uint64_t count) : keys(count), states(count) {}
  FormattedRegion region{kRegionBytes};
  KeySet keys;
  KeyStates states;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::atomic<uint64_t> late{0};
  std::atomic<uint64_t> reads{0};
  std::atomic<uint64_t> broken_splits{0};
};

void change(Shared& shared, IndexUser& user, uint64_t key) {
  const uint64_t version = shared.states.begin(key);
  const bool done =
      version % 2 == 1 ? user.put(shared.keys[key], version) : user.remove(shared.keys[key]);
  shared.late += !done;
  shared.states.end(key);
}

// Inserts its share of the keys, and on the way removes and inserts again some of the earlier.
void write_share(Shared& shared, uint32_t registration, uint64_t part, uint64_t parts) {
  IndexUser user(shared.region, registration);
  std::mt19937_64 random(registration);
  for (uint64_t key = kFirstKeys + part; key < shared.keys.size(); key += parts) {
    change(shared, user, key);
    const uint64_t earlier = part + random() % (key / parts) * parts;
    if (earlier < key && random() % 2 == 0) change(shared, user, earlier);
  }
}

void read_all_the_time(Shared& shared, uint32_t registration) {
  IndexUser user(shared.region, registration);
  std::mt19937_64 random(registration);
  while (!shared.stop.load()) {
    const uint64_t key = random() % shared.keys.size();
    const uint64_t before = shared.states.done(key);
    const std::optional<uint64_t> version = user.find(shared.keys[key]);
    const uint64_t after = shared.states.begun(key);
    ++shared.reads;
    if (!version) {
      ++shared.late;
    } else if (!KeyStates::allowed(*version, before, after)) {
      ++shared.wrong;
    }
  }
}

// Splits that break off after a while, each by a client of its own, and the client that goes on
// where they stopped, as the node's sweep does.
void break_splits(Shared& shared, uint32_t first_registration) {
  RawClient janitor(shared.region, first_registration);
  std::mt19937_64 random(first_registration);
  for (uint32_t n = 1; !shared.stop.load(); ++n) {
    RawClient splitter(shared.region, first_registration + n);
    splitter.fault.batches = random() % 120;
    splitter.fault.ops = uint32_t(random() % 4);
    // Without a limit all memory would become subtables.
    if (splitter.directory.depth() < 5) splitter.split(random());
    shared.broken_splits += splitter.remote.broken();
    if (random() % 2 == 0) std::this_thread::yield();
    shared.wrong += janitor.resume(first_registration + n) != Status::kOk;
    const timespec pause{0, 200'000};
    nanosleep(&pause, nullptr);
  }
}

void check_end(Shared& shared) {
  IndexUser user(shared.region, 900);
  const Contents contents = contents_of(shared.region, user.client.directory);
  CHECK(contents.moving == 0);
  CHECK(contents.tentative == 0);
  CHECK(contents.filling == 0);
  uint64_t present = 0, lost = 0;
  for (uint64_t key = 0; key < shared.keys.size(); ++key) {
    const uint64_t state = shared.states.done(key);
    REQUIRE(state == shared.states.begun(key));
    const uint64_t expected = state % 2 == 1 ? state : 0;
    present += expected != 0;
    lost += user.find(shared.keys[key]) != expected;
  }
  CHECK(lost == 0);
  CHECK(contents.slots == present);  // so none is there twice
  CHECK(contents.addresses.size() == present);
}

}  // namespace

TEST_CASE("index: it grows under readers and writers while splitters break off") {
  Shared shared(sanitized() ? 4000 : 150'000);
  {
    IndexUser user(shared.region, 1);
    for (uint64_t key = 0; key < kFirstKeys; ++key) change(shared, user, key);
  }
  constexpr uint64_t kWriters = 2;
  std::thread breaker(break_splits, std::ref(shared), 1000);
  std::vector<std::thread> readers, writers;
  for (uint32_t r = 0; r < 2; ++r) {
    readers.emplace_back(read_all_the_time, std::ref(shared), 500 + r);
  }
  for (uint32_t w = 0; w < kWriters; ++w) {
    writers.emplace_back(write_share, std::ref(shared), 10 + w, w, kWriters);
  }
  for (std::thread& writer : writers) writer.join();
  shared.stop.store(true);
  for (std::thread& reader : readers) reader.join();
  breaker.join();
  CHECK(shared.wrong == 0);
  CHECK(shared.late == 0);
  CHECK(shared.reads > 100);
  CHECK(shared.broken_splits > 0);
  check_end(shared);
}

TEST_CASE("index: two inserters of one key agree on one") {
  FormattedRegion region(uint64_t{16} << 20);
  const unsigned rounds = sanitized() ? 300 : 4000;
  KeySet keys(rounds);
  std::atomic<unsigned> turn{0};
  std::atomic<unsigned> winners{0};
  const auto work = [&](uint32_t registration) {
    RawClient client(region, registration);
    Entries entries(region);
    for (unsigned round = 0; round < rounds; ++round) {
      const layout::Slot contents = layout::Slot{}.successor(
          0, 0, Entries::kClass, entries.write_object(client, keys[round]));
      // Both begin the round together.
      turn.fetch_add(1);
      while (turn.load() < 2 * (round + 1)) std::this_thread::yield();
      for (;;) {
        if (entries.copies(client, keys[round]) > 0) break;
        const InsertOutcome outcome = entries.try_insert(client, keys[round], contents);
        if (outcome == InsertOutcome::kInserted) ++winners;
        if (outcome != InsertOutcome::kConflict) break;
      }
    }
  };
  std::thread first(work, 1), second(work, 2);
  first.join();
  second.join();
  CHECK(winners == rounds);
  RawClient client(region, 3);
  Entries entries(region);
  unsigned wrong = 0;
  for (unsigned round = 0; round < rounds; ++round) {
    wrong += entries.copies(client, keys[round]) != 1;
  }
  CHECK(wrong == 0);
  const Contents contents = contents_of(region, client.directory);
  CHECK(contents.slots == rounds);
  CHECK(contents.tentative == 0);
}

// An inserter that waits between its phases: it has begun, with the rivals that it saw.
struct Waiting {
  Waiting(FormattedRegion& region, uint32_t registration, const Key& inserted)
      : client(region, registration), key(inserted) {
    Entries entries(region);
    const layout::Slot contents =
        layout::Slot{}.successor(0, 0, Entries::kClass, entries.write_object(client, key));
    Places places;
    REQUIRE(client.run([&] {
      return read_places(client.remote, client.directory, key.hash, places);
    }) == Status::kOk);
    begun = client.run([&] {
      return begin_insert(client.remote, client.directory, region.geometry(), key, places, contents,
                          {}, rivals, {});
    });
    REQUIRE(begun.outcome == InsertOutcome::kTentative);
  }
  InsertOutcome commit() {
    return client.run([&] { return commit_insert(client.remote, begun, rivals); }).outcome;
  }

  RawClient client;
  Key key;
  Rivals rivals;
  InsertResult begun;
};

TEST_CASE("index: of inserters that wait, the first that is ready wins") {
  for (const bool later_first : {false, true}) {
    FormattedRegion region(uint64_t{16} << 20);
    KeySet keys(1);
    Waiting early(region, 1, keys[0]);
    Waiting late(region, 2, keys[0]);
    CHECK(early.rivals.count == 0);
    CHECK(late.rivals.count == 1);
    Waiting& first = later_first ? late : early;
    Waiting& second = later_first ? early : late;
    CHECK(first.commit() == InsertOutcome::kInserted);
    CHECK(second.commit() == InsertOutcome::kConflict);
    const Contents contents = contents_of(region, early.client.directory);
    CHECK(contents.slots == 1);
    CHECK(contents.tentative == 0);
  }
}

}  // namespace kvstore::test
