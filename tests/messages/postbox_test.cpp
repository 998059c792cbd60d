// Messages between clients of a node: found through its postbox lines, proved by their codes.

#include "messages/postbox.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fabric/cpu/shm.hpp"
#include "fabric/sim/mail.hpp"
#include "node/region.hpp"

namespace kvstore::test {
namespace {

// The lines of a node, and mail between its clients.
class Office {
 public:
  explicit Office(const sim::MailTiming& timing = {}) : mail(schedule, timing) {
    std::string error;
    region = Region::create(layout::kRegionBytesMin, false, error);
    REQUIRE_MESSAGE(region != nullptr, error);
    geometry = format_region(region->data(), region->bytes(), {1, kIncarnation, 0, 0, 1000});
    connection = shm_connection(region->data(), region->bytes(), &dead);
    remote.bind(connection, &executor);
  }
  ~Office() {
    remote.bind(nullptr, nullptr);
    connection->ops->destroy(connection);
  }
  void deliver() {
    while (schedule.run_next()) {
    }
  }
  layout::PostboxLine& line(uint32_t registration) {
    return reinterpret_cast<layout::PostboxLine*>(
        region->data() + geometry.postboxes_offset)[registration % layout::kClientsMax];
  }

  static constexpr uint64_t kIncarnation = 99;
  sim::Schedule schedule{3};
  sim::SimMail mail;
  std::shared_ptr<Region> region;
  layout::Geometry geometry;
  std::atomic<uint32_t> dead{0};
  kv_connection* connection = nullptr;
  Executor executor;
  Remote remote;
};

class Resident {
 public:
  Resident(Office& office, uint32_t registration, bool open = true)
      : office_(office),
        postbox(office.mail.open(nullptr), registration, Office::kIncarnation, office.geometry) {
    postbox.set_handler(MessageKind::kLock, [this](const Message& message) {
      senders.push_back(message.from);
      texts.emplace_back(message.content.begin(), message.content.end());
    });
    if (open) REQUIRE(finish(postbox.open(office.remote)) == Status::kOk);
  }
  Status send(uint32_t to, const std::string& text) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    const Executor::Scope scope(office_.executor);
    return finish(postbox.send(office_.remote, to, MessageKind::kLock, {bytes, text.size()}));
  }

 private:
  static Status finish(Task<Status> task) {
    REQUIRE(task.done());  // everything completes inline here
    return task.take();
  }
  Office& office_;

 public:
  Postbox postbox;
  std::vector<uint32_t> senders;
  std::vector<std::string> texts;
};

}  // namespace

TEST_CASE("messages: clients find each other through the node; the line is read once") {
  Office office;
  Resident a(office, 5);
  Resident b(office, 6);
  const uint64_t before = office.remote.counts().reads.get();
  for (int i = 0; i < 10; ++i) REQUIRE(a.send(6, std::to_string(i)) == Status::kOk);
  CHECK(office.remote.counts().reads.get() == before + 1);
  office.deliver();
  CHECK(b.postbox.receive() == 10);
  CHECK(b.senders == std::vector<uint32_t>(10, 5));
  CHECK(b.texts.size() == 10);
  REQUIRE(b.send(5, "") == Status::kOk);
  REQUIRE(b.send(5, std::string(kMessageBytesMax, 'z')) == Status::kOk);
  office.deliver();
  CHECK(a.postbox.receive() == 2);
}

TEST_CASE("messages: who has no postbox is absent, who has left is not reached") {
  Office office;
  Resident a(office, 5);
  CHECK(a.send(6, "x") == Status::kAbsent);
  {
    Resident b(office, 6);
    REQUIRE(a.send(6, "x") == Status::kOk);
  }
  CHECK(a.send(6, "x") == Status::kOk);  // as far as anybody can tell
  office.deliver();
  // Another client with the same line.
  Resident c(office, 6 + layout::kClientsMax);
  REQUIRE(a.send(6 + layout::kClientsMax, "new") == Status::kOk);
  office.deliver();
  CHECK(c.postbox.receive() == 1);
  CHECK(c.texts == std::vector<std::string>{"new"});
  Resident d(office, 7);
  CHECK(d.send(6, "x") == Status::kAbsent);
}

TEST_CASE("messages: a damaged line is not taken for none, and not believed until it is whole") {
  Office office;
  Resident a(office, 5);
  Resident b(office, 6);
  layout::PostboxLine& line = office.line(6);
  const layout::PostboxLine good = line;
  for (size_t byte = 0; byte < sizeof line; ++byte) {
    CAPTURE(byte);
    reinterpret_cast<uint8_t*>(&line)[byte] ^= 0x10;
    REQUIRE(a.send(6, "x") == Status::kCorrupt);
    line = good;
  }
  CHECK(a.send(6, "x") == Status::kOk);
}

TEST_CASE("messages: a line read too early does not displace a newer client's") {
  Office office;
  Resident a(office, 5);
  Resident older(office, 6);
  const layout::PostboxLine early = office.line(6);
  Resident newer(office, 6 + layout::kClientsMax);
  REQUIRE(a.send(6 + layout::kClientsMax, "1") == Status::kOk);
  Resident neighbour(office, 7);
  // Lines come with their neighbours', and this is what a slow READ of them would bring.
  const layout::PostboxLine late = office.line(6);
  office.line(6) = early;
  REQUIRE(a.send(7, "x") == Status::kOk);
  office.line(6) = late;
  REQUIRE(a.send(6 + layout::kClientsMax, "2") == Status::kOk);
  office.deliver();
  CHECK(newer.postbox.receive() == 2);
}

TEST_CASE("messages: each is handed over once, however often the fabric delivers it") {
  sim::MailTiming timing;
  timing.doubled_per_million = 1'000'000;
  Office office(timing);
  Resident a(office, 5);
  Resident b(office, 6);
  for (int i = 0; i < 50; ++i) {
    REQUIRE(a.send(6, std::to_string(i)) == Status::kOk);
    office.deliver();
    CHECK(b.postbox.receive() == 1);
  }
  CHECK(b.postbox.counts().repeated.load() == 50);
  CHECK(b.texts.size() == 50);
}

TEST_CASE("messages: strangers and former owners of a line are not heard") {
  Office office;
  Resident b(office, 6);
  kv_datagram_address address;
  std::memcpy(address.bytes, office.line(6).address, sizeof address.bytes);
  const PortPtr stranger = office.mail.open(nullptr);
  Envelope forged;
  forged.seal(SipKey{}, {5, MessageKind::kLock, Office::kIncarnation, 1, {}});
  stranger->ops->send(stranger.get(), &address, forged.data(), forged.size());
  stranger->ops->send(stranger.get(), &address, "noise", 5);
  // Under the right key, but of another incarnation of the node.
  SipKey key;
  std::memcpy(key.data(), office.line(6).key, key.size());
  Envelope foreign;
  foreign.seal(key, {5, MessageKind::kLock, Office::kIncarnation + 1, 1, {}});
  stranger->ops->send(stranger.get(), &address, foreign.data(), foreign.size());
  office.deliver();
  CHECK(b.postbox.receive() == 0);
  CHECK(b.postbox.counts().forged.load() == 2);
  CHECK(b.postbox.counts().malformed.load() == 1);

  Resident newer(office, 5 + layout::kClientsMax);
  REQUIRE(newer.send(6, "newer") == Status::kOk);
  office.deliver();
  CHECK(b.postbox.receive() == 1);
  Resident older(office, 5, false);
  REQUIRE(older.send(6, "older") == Status::kOk);
  office.deliver();
  CHECK(b.postbox.receive() == 0);
  CHECK(b.texts == std::vector<std::string>{"newer"});
}

}  // namespace kvstore::test
