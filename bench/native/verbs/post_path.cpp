// The path from a post to its completion in the verbs fabric, without a device: what it allocates,
// which system calls it makes, and, under callgrind, how many instructions it takes.
//
// Usage: post_path check       every kind of operation under a filter that kills the process at a
//                              system call, and under a count of allocations
//        post_path stray       a write to another descriptor than stdout, under the same filter
//        post_path KIND COUNT  so many calls, to be counted from outside: see bench/post_path.py
//
// Exit status: 0 if `check` found nothing, 1 if memory was allocated, 2 if called wrongly;
// SIGSYS if there was a system call.

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/assert.hpp"
#include "fabric/remote.hpp"
#include "fabric/verbs/connection.hpp"
#include "fabric/verbs/target.hpp"

// ---- Counting allocations: every one of this process goes through here --------------------------

namespace {
std::atomic<uint64_t> allocations{0};
}

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) noexcept {
  ++allocations;
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) noexcept {
  ++allocations;
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) noexcept {
  ++allocations;
  return __libc_realloc(memory, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  ++allocations;
  return __libc_memalign(alignment, bytes);
}
}

namespace {

using namespace kvstore;

constexpr uint64_t kRegionBytes = 4 << 20;
constexpr uint32_t kBatches = 32;
constexpr uint32_t kLargeBytes = 1 << 20;

class Path {
 public:
  Path() : region_(kRegionBytes), local_(kRegionBytes) {
    std::string error;
    port_ = verbs::open_port("", nullptr, error);
    KV_ASSERT(port_ != nullptr);
    target_ = verbs::expose(*port_, region_.data(), region_.size(), error);
    kv_verbs_endpoint mine{};
    connection_ = verbs::Connection::prepare(*port_, mine, error);
    KV_ASSERT(target_ != nullptr && connection_ != nullptr);
    kv_verbs_grant grant{};
    peer_ = verbs::accept(*target_, mine, grant, error);
    KV_ASSERT(peer_ != nullptr && connection_->establish(grant, error));
    KV_ASSERT(
        port_->memory.add(port_->domain.get(), port_->limits, local_.data(), kLargeBytes, error));
  }
  ~Path() { connection_.reset(); }

  struct Kind {
    const char* name;
    uint32_t calls;  // at a time
    void (Path::*run)();
  };
  static const Kind kKinds[7];

 private:
  // The address of an object is known: its slot and it are read in one chain.
  void get() { run_batch({read_op(8, at(0), 8), read_op(4096, at(64), 128)}); }
  void write() { run_batch({write_op(4096, at(64), 128)}); }
  void cas() { run_batch({cas_op(8, 0, 0)}); }
  void faa() { run_batch({faa_op(16, 1)}); }
  void put() { run_batch({write_op(4096, at(64), 128), cas_op(8, 0, 0)}); }
  void large() { run_batch({read_op(0, at(0), kLargeBytes)}); }
  void get_many() {
    for (uint32_t i = 0; i < kBatches; ++i) {
      ops_[2 * i] = read_op(8, at(0), 8);
      ops_[2 * i + 1] = read_op(4096, at(64), 128);
      post(i, &ops_[2 * i], 2);
    }
    finish();
  }

  uint8_t* at(uint64_t offset) { return local_.data() + offset; }
  void run_batch(std::initializer_list<kv_op> ops) {
    uint32_t count = 0;
    for (const kv_op& op : ops) ops_[count++] = op;
    post(0, ops_, count);
    finish();
  }
  void post(uint32_t number, kv_op* ops, uint32_t count) {
    kv_batch& batch = batches_[number];
    batch =
        kv_batch{ops,       count,   0, [](kv_batch* done) { --*static_cast<int*>(done->context); },
                 &pending_, nullptr, 0};
    ++pending_;
    KV_ASSERT(connection_->ops->post(connection_.get(), &batch) == KV_FABRIC_PENDING);
  }
  void finish() {
    while (pending_ > 0) KV_ASSERT(connection_->ops->poll(connection_.get()) > 0);
    KV_ASSERT(batches_[0].status == KV_FABRIC_OK);
  }

  std::vector<uint8_t> region_, local_;
  std::unique_ptr<kv_verbs_port> port_;
  std::unique_ptr<kv_verbs_target> target_;
  std::unique_ptr<kv_verbs_peer> peer_;
  std::unique_ptr<verbs::Connection> connection_;
  kv_op ops_[2 * kBatches] = {};
  kv_batch batches_[kBatches] = {};
  int pending_ = 0;
};

const Path::Kind Path::kKinds[7] = {
    {"get", 1, &Path::get},         {"write", 1, &Path::write},
    {"cas", 1, &Path::cas},         {"faa", 1, &Path::faa},
    {"put", 1, &Path::put},         {"get-32", kBatches, &Path::get_many},
    {"read-1MiB", 1, &Path::large},
};

// From here on a system call kills this process, but for those that end it and tell of it on
// stdout.
void forbid_system_calls() {
  const uint32_t number = offsetof(seccomp_data, nr);
  const uint32_t descriptor = offsetof(seccomp_data, args);  // its low half
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, number),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, descriptor),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, STDOUT_FILENO, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  const sock_fprog program = {sizeof filter / sizeof filter[0], filter};
  KV_ASSERT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  KV_ASSERT(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

void say(const char* text) {
  KV_ASSERT(::write(STDOUT_FILENO, text, std::strlen(text)) > 0);
}

// A counter that is not called would find nothing.
bool counts_allocations() {
  const uint64_t before = allocations.load();
  void* volatile memory = std::malloc(1);
  std::free(memory);
  return allocations.load() == before + 1;
}

int check(Path& path) {
  KV_ASSERT(counts_allocations());
  constexpr int kCalls = 2'000;
  uint64_t allocated = 0;
  forbid_system_calls();
  for (const Path::Kind& kind : Path::kKinds) {
    const uint64_t before = allocations.load();
    for (int i = 0; i < kCalls; ++i) (path.*kind.run)();
    allocated += allocations.load() - before;
    say(kind.name);
    say(allocations.load() == before ? ": no allocation, no system call\n" : ": it allocates\n");
  }
  return allocated == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  Path path;
  if (count == 2 && std::strcmp(arguments[1], "check") == 0) std::_Exit(check(path));
  if (count == 2 && std::strcmp(arguments[1], "stray") == 0) {
    forbid_system_calls();
    std::_Exit(::write(STDERR_FILENO, "", 0) == 0 ? 0 : 1);
  }
  for (const Path::Kind& kind : Path::kKinds) {
    if (count != 3 || std::strcmp(arguments[1], kind.name) != 0) continue;
    const long calls = std::atol(arguments[2]);
    for (long done = 0; done < calls; done += kind.calls) (path.*kind.run)();
    return 0;
  }
  std::fprintf(stderr,
               "usage: post_path check, or stray, or post_path KIND COUNT with KIND one of:");
  for (const Path::Kind& kind : Path::kKinds) std::fprintf(stderr, " %s", kind.name);
  std::fprintf(stderr, "\n");
  return 2;
}
