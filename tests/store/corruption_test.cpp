// Random damage to the memory of a node: operations end in time with a typed outcome, a value that
// is returned is whole and of its key, and neither client nor node falls over.
//
// Damage may end the process, so the seeds run in a process of their own. A failure prints the line
// that runs its seed alone.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <random>

#include "store/walk.hpp"
#include "tests/store/fixture.hpp"

extern char** environ;

namespace kvstore::test {
namespace {

constexpr const char* kSeedsVariable = "KVSTORE_CORRUPTION_SEEDS";  // "first" or "first:count"
constexpr const char* kTestCase = "store: damaged memory is reported and never believed";
constexpr uint64_t kCallNs = 50 * kMillisecond;
constexpr uint64_t kKeys = 700;

std::string name(uint64_t i) {
  return std::string("key-").append(std::to_string(i));
}

class Damage {
 public:
  Damage(StoreClient& client, std::mt19937_64& random)
      : region_(client.region()), geometry_(client.attachment()->geometry), random_(random) {}

  void strike() {
    switch (random_() % 10) {
      case 0:
      case 1:
      case 2:
        return hit(some_slot());
      case 3:
        return hit(subtable() + random_() % 1023 * layout::kBucketBytes);  // a bucket header
      case 4:
      case 5:
        return hit_object();
      case 6:
        return hit(geometry_.entry_offset(random_() % 60));
      case 7:
        return hit(random_() % 2 == 0 ? geometry_.directory_offset + random_() % 4 * 8
                                      : layout::kGlobalDepthOffset);
      case 8:
        return hit(geometry_.segment_offset(3 + random_() % 60) + random_() % 8 * 8);  // bitmaps
      default:
        return hit(layout::kSplitRecordOffset + random_() % 5 * 8);
    }
  }

 private:
  uint64_t subtable() { return geometry_.segment_offset(0); }
  uint64_t word(uint64_t offset) const {
    return __atomic_load_n(reinterpret_cast<uint64_t*>(region_ + offset), __ATOMIC_RELAXED);
  }
  // A slot in use, if a few tries find one.
  uint64_t some_slot() {
    uint64_t offset = 0;
    for (unsigned tries = 0; tries < 64; ++tries) {
      offset = subtable() + random_() % 1023 * layout::kBucketBytes + 8 + random_() % 7 * 8;
      if (!layout::Slot{word(offset)}.empty()) break;
    }
    return offset;
  }
  void hit_object() {
    const layout::Slot slot{word(some_slot())};
    if (!geometry_.holds_block(slot.offset(), slot.size_class())) return;
    hit(slot.offset() + random_() % (layout::kHeaderBytes / 8 + 1) * 8);
  }
  void hit(uint64_t offset) {
    uint64_t value = word(offset);
    switch (random_() % 4) {
      case 0:
      case 1:
        value ^= uint64_t{1} << random_() % 64;
        break;
      case 2:
        value = random_() % 2 == 0 ? random_() : 0;
        break;
      default:
        value = word(some_slot());
    }
    __atomic_store_n(reinterpret_cast<uint64_t*>(region_ + offset), value, __ATOMIC_RELEASE);
  }

  uint8_t* const region_;
  const layout::Geometry geometry_;
  std::mt19937_64& random_;
};

// Outcomes that damage may have.
bool is_typed(Status status) {
  switch (status) {
    case Status::kOk:
    case Status::kAbsent:
    case Status::kConditionFailed:
    case Status::kOutOfMemory:
    case Status::kNodeUnreachable:
    case Status::kDeadlineExceeded:
    case Status::kOutcomeUnknown:
    case Status::kBufferTooSmall:
    case Status::kCorrupt:
    case Status::kRefused:
    case Status::kFenced:
      return true;
    default:
      return false;
  }
}

void operate(StoreClient& client, std::mt19937_64& random) {
  const std::string key = name(random() % kKeys);
  const std::string value = value_of(key, random() % 1000, random() % 4 == 0 ? 6000 : 40);
  constexpr uint32_t kKinds[] = {KV_GET, KV_GET, KV_PUT, KV_PUT, KV_DELETE, KV_CONTAINS};
  kv_call call = StoreClient::call_for(kKinds[random() % std::size(kKinds)], key);
  if (call.kind == KV_PUT) {
    call.value = value.data();
    call.value_bytes = value.size();
    if (random() % 4 == 0) call.flags = KV_IF_ABSENT;
  }
  const uint64_t began = monotonic_ns();
  const Outcome outcome = client.run_one(call, kCallNs);
  CHECK(monotonic_ns() - began < 10 * kSecond);
  CAPTURE(int(outcome.status));
  CHECK(is_typed(outcome.status));
  uint64_t number = 0;
  if (call.kind == KV_GET && outcome.status == Status::kOk) {
    CHECK(value_matches(outcome.value, key, number));
  }
}

void walk(StoreClient& client, std::mt19937_64& random) {
  const uint64_t began = monotonic_ns();
  uint64_t count = 0;
  Status status = Status::kOk;
  if (random() % 3 == 0) {
    status = client.run_task([&](Channel& channel) { return clear_keys(channel, count); }, kCallNs);
  } else if (random() % 2 == 0) {
    status = client.run_task([&](Channel& channel) { return count_keys(channel, count); }, kCallNs);
  } else {
    std::vector<kv_scan_entry> entries(256);
    uint64_t cursor = 0;
    uint32_t found = 0;
    const auto page = [&](Channel& channel) {
      return scan_page(channel, cursor, entries.data(), 256, found);
    };
    for (unsigned pages = 0; cursor != UINT64_MAX && status == Status::kOk && pages < 300;
         ++pages) {
      status = client.run_task(page, kCallNs);
    }
  }
  CHECK(is_typed(status));
  CHECK(monotonic_ns() - began < 10 * kSecond);
}

void run_seed(uint64_t seed) {
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  StoreNode node(uint64_t{8} << 20, random() % 2);
  StoreClient survivor(node);
  auto dying = std::make_unique<StoreClient>(node);
  for (uint64_t i = 0; i < kKeys; ++i) {
    const std::string value = value_of(name(i), i, i % 7 == 0 ? 5000 : 30 + i);
    REQUIRE((i % 2 == 0 ? survivor : *dying).put(name(i), value).status == Status::kOk);
  }
  REQUIRE(survivor.put("large", std::string(1 << 20, 'L')).status == Status::kOk);
  Damage damage(survivor, random);
  const unsigned rounds = 1 + random() % 3;
  for (unsigned round = 0; round < rounds; ++round) {
    for (unsigned n = 0, strikes = 1 + random() % 40; n < strikes; ++n) damage.strike();
    for (unsigned n = 0; n < 60; ++n) {
      operate(random() % 4 == 0 && dying ? *dying : survivor, random);
      if (random() % 20 == 0) walk(survivor, random);
      // What is up again after a refusal serves on, as after an attachment anew.
    }
    if (round == 0 && random() % 2 == 0) {
      if (dying->attachment()->state.load() != Attachment::State::kFenced) dying->vanish();
      dying.reset();
    }
  }
  node.stats();
}

// ---- The process of its own -----------------------------------------------------------------

struct Child {
  pid_t process = -1;
  int output = -1;
};

Child spawn(const std::string& seeds) {
  Child child;
  child.output = int(::syscall(SYS_memfd_create, "corruption-output", 0));
  const std::string setting = std::string(kSeedsVariable) + "=" + seeds;
  std::vector<char*> variables{const_cast<char*>(setting.c_str())};
  for (char** variable = environ; *variable != nullptr; ++variable) variables.push_back(*variable);
  variables.push_back(nullptr);
  const std::string filter = std::string("--test-case=") + kTestCase;
  char* arguments[] = {const_cast<char*>("kvstore_native_tests"), const_cast<char*>(filter.c_str()),
                       nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, child.output, 1);
  posix_spawn_file_actions_adddup2(&actions, child.output, 2);
  const int failed =
      posix_spawn(&child.process, "/proc/self/exe", &actions, nullptr, arguments, variables.data());
  posix_spawn_file_actions_destroy(&actions);
  REQUIRE(failed == 0);
  return child;
}

// Its exit status as of waitpid, or -1 if it had to be killed.
int wait_for(const Child& child, uint64_t timeout_ns) {
  const uint64_t end_ns = monotonic_ns() + timeout_ns;
  int status = 0;
  while (::waitpid(child.process, &status, WNOHANG) == 0) {
    if (monotonic_ns() > end_ns) {
      ::kill(child.process, SIGABRT);  // for a trace of where it hangs
      ::waitpid(child.process, &status, 0);
      return -1;
    }
    usleep(2000);
  }
  return status;
}

std::string read_output(const Child& child) {
  std::string text(size_t(::lseek(child.output, 0, SEEK_END)), '\0');
  const ssize_t got = ::pread(child.output, text.data(), text.size(), 0);
  text.resize(size_t(std::max<ssize_t>(got, 0)));
  ::close(child.output);
  return text;
}

void run_seeds(const char* setting) {
  char* end = nullptr;
  const uint64_t first = std::strtoull(setting, &end, 10);
  const uint64_t count = *end == ':' ? std::strtoull(end + 1, nullptr, 10) : 1;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    std::printf("seed %lu\n", static_cast<unsigned long>(seed));
    std::fflush(stdout);
    run_seed(seed);
  }
}

}  // namespace

TEST_CASE("store: damaged memory is reported and never believed") {
  if (const char* setting = std::getenv(kSeedsVariable)) return run_seeds(setting);
  const Child child = spawn(sanitized() ? "1:4" : "1:30");
  const int status = wait_for(child, (sanitized() ? 200 : 60) * kSecond);
  const std::string output = read_output(child);
  REQUIRE(output.find("seed ") != std::string::npos);
  if (status == 0) return;
  const size_t last = output.rfind("seed ");
  const std::string seed =
      last == std::string::npos
          ? "1"
          : std::to_string(std::strtoull(output.c_str() + last + 5, nullptr, 10));
  const size_t shown = output.size() > 4000 ? output.size() - 4000 : 0;
  const std::string replay = std::string(kSeedsVariable) + "=" + seed +
                             " kvstore_native_tests --test-case='" + kTestCase + "'";
  FAIL("the process " << (status == -1 ? "hung" : "failed") << " at seed " << seed
                      << "; replay: " << replay << "\n"
                      << output.substr(shown));
}

}  // namespace kvstore::test
