#include "cache/host_stamps.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>

namespace kvstore {
namespace {

constexpr char kFolder[] = "/dev/shm";

// Whoever lays the table out otherwise must not share it.
constexpr unsigned kFormat = 3;

// Of all files of this user.
std::string prefix() {
  return "kvstore-stamps-" + std::to_string(kFormat) + "-" + std::to_string(::geteuid()) + "-";
}

std::string path_of(uint64_t incarnation) {
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016" PRIx64, incarnation);
  return std::string(kFolder) + "/" + prefix() + digits;
}

int open_file(const std::string& path, int flags) {
  return ::open(path.c_str(), flags | O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
}

// A file that nobody else may write to and that still has its name.
bool is_ours(int descriptor) {
  struct stat facts;
  return ::fstat(descriptor, &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_nlink == 1 &&
         facts.st_uid == ::geteuid() && (facts.st_mode & 0077) == 0;
}

// Takes the file away unless somebody uses it. Who has opened it meanwhile and not yet locked it
// finds that it has lost its name.
void remove_unused(const std::string& path, int descriptor) {
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0 && is_ours(descriptor)) ::unlink(path.c_str());
}

// What clients that were killed have left, but for one file that may be of use.
void remove_leftovers(const std::string& but) {
  DIR* const folder = ::opendir(kFolder);
  if (folder == nullptr) return;
  const std::string mine = prefix();
  while (const dirent* const entry = ::readdir(folder)) {
    if (std::strncmp(entry->d_name, mine.c_str(), mine.size()) != 0) continue;
    const std::string path = std::string(kFolder) + "/" + entry->d_name;
    if (path == but) continue;
    const int descriptor = open_file(path, 0);
    if (descriptor < 0) continue;
    remove_unused(path, descriptor);
    ::close(descriptor);
  }
  ::closedir(folder);
}

// A descriptor of the incarnation's file, locked for sharing; -1 if it can't be had.
int open_shared(uint64_t incarnation) {
  constexpr unsigned kTries = 8;
  const std::string path = path_of(incarnation);
  for (unsigned i = 0; i < kTries; ++i) {
    const int descriptor = open_file(path, O_CREAT);
    if (descriptor < 0) return -1;
    if (::flock(descriptor, LOCK_SH | LOCK_NB) == 0 && is_ours(descriptor)) return descriptor;
    ::close(descriptor);
  }
  return -1;
}

}  // namespace

std::shared_ptr<HostStamps> HostStamps::open(uint64_t incarnation) {
  static_assert(
      sizeof(Table) == (32 + 8) * (1 << kStampBits) + 64 + 4 * 1024 + sizeof(HandedValues) &&
          sizeof(HandedValues) == 64 + 8 * 8192 + (4 << 20),
      "another one: raise kFormat");
  remove_leftovers(path_of(incarnation));
  const int descriptor = open_shared(incarnation);
  if (descriptor < 0) return nullptr;
  // All of it, now: a write to a page that can't be had would kill the process.
  void* table = MAP_FAILED;
  if (::posix_fallocate(descriptor, 0, sizeof(Table)) == 0) {
    table = ::mmap(nullptr, sizeof(Table), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  }
  if (table == MAP_FAILED) {
    remove_unused(path_of(incarnation), descriptor);
    ::close(descriptor);
    return nullptr;
  }
  return std::shared_ptr<HostStamps>(
      new HostStamps(static_cast<Table*>(table), descriptor, incarnation));
}

HostStamps::HostStamps() : own_(std::make_unique<Table>()), table_(own_.get()) {}

HostStamps::~HostStamps() {
  if (own_ != nullptr) return;
  ::munmap(table_, sizeof(Table));
  remove_unused(path_of(incarnation_), descriptor_);
  ::close(descriptor_);
}

}  // namespace kvstore
