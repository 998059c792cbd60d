// The rules of datagrams, on every fabric that has them.

#include "fabric/datagram.h"

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coro/clock.hpp"
#include "fabric/cpu/datagram_port.hpp"
#include "fabric/cpu/tcp_socket.hpp"
#include "fabric/sim/mail.hpp"

namespace kvstore::test {
namespace {

class DatagramFixture {
 public:
  virtual ~DatagramFixture() = default;
  virtual PortPtr open() = 0;
  // Where `port` is sent to by others of this fixture.
  virtual kv_datagram_address address_of(const kv_port& port) { return port.address; }
  // Lets what is under way arrive, or fails the test.
  virtual void await(kv_port& port) = 0;
};

class CpuFixture : public DatagramFixture {
 public:
  explicit CpuFixture(std::string towards, bool other_host)
      : towards_(std::move(towards)), other_host_(other_host) {}
  PortPtr open() override {
    std::string error;
    PortPtr port = open_datagram_port(towards_, error);
    REQUIRE_MESSAGE(port != nullptr, error);
    return port;
  }
  // With another host's identity the address is one for UDP.
  kv_datagram_address address_of(const kv_port& port) override {
    kv_datagram_address address = port.address;
    if (other_host_) address.bytes[0] ^= 1;
    return address;
  }
  void await(kv_port& port) override {
    pollfd descriptor{port.ops->wait_descriptor(&port), POLLIN, 0};
    REQUIRE(::poll(&descriptor, 1, 10'000) == 1);
  }

 private:
  const std::string towards_;
  const bool other_host_;
};

class SimMailFixture : public DatagramFixture {
 public:
  PortPtr open() override { return mail_.open(nullptr); }
  void await(kv_port&) override {
    while (schedule_.run_next()) {
    }
  }

 private:
  sim::Schedule schedule_{1};
  sim::SimMail mail_{schedule_, {}};
};

using MakeFixture = std::function<std::unique_ptr<DatagramFixture>()>;

void on_every_fabric(const std::function<void(DatagramFixture&)>& rule) {
  const std::pair<const char*, MakeFixture> fabrics[] = {
      {"unix", [] { return std::make_unique<CpuFixture>("", false); }},
      {"udp over IPv4", [] { return std::make_unique<CpuFixture>("127.0.0.1", true); }},
      {"udp over IPv6", [] { return std::make_unique<CpuFixture>("::1", true); }},
      {"sim", [] { return std::make_unique<SimMailFixture>(); }}};
  for (const auto& [name, make] : fabrics) {
    CAPTURE(name);
    rule(*make());
  }
}

bool send(kv_port& from, const kv_datagram_address& to, const std::string& data) {
  return from.ops->send(&from, &to, data.data(), uint32_t(data.size())) == 1;
}

std::string receive(kv_port& port) {
  char data[KV_DATAGRAM_BYTES_MAX];
  return {data, port.ops->receive(&port, data)};
}

}  // namespace

TEST_CASE("datagram: every length arrives whole") {
  on_every_fabric([](DatagramFixture& fabric) {
    const PortPtr a = fabric.open();
    const PortPtr b = fabric.open();
    CHECK(receive(*b).empty());
    for (size_t bytes = 1; bytes <= KV_DATAGRAM_BYTES_MAX; ++bytes) {
      CAPTURE(bytes);
      const std::string sent(bytes, char('a' + bytes % 26));
      REQUIRE(send(*a, fabric.address_of(*b), sent));
      fabric.await(*b);
      REQUIRE(receive(*b) == sent);
    }
    CHECK(receive(*b).empty());
    CHECK(receive(*a).empty());
  });
}

TEST_CASE("datagram: a port can be sent to from several, and answers") {
  on_every_fabric([](DatagramFixture& fabric) {
    const PortPtr center = fabric.open();
    for (int i = 0; i < 5; ++i) {
      const PortPtr other = fabric.open();
      REQUIRE(send(*other, fabric.address_of(*center), "question"));
      fabric.await(*center);
      REQUIRE(receive(*center) == "question");
      REQUIRE(send(*center, fabric.address_of(*other), "answer"));
      fabric.await(*other);
      REQUIRE(receive(*other) == "answer");
    }
  });
}

TEST_CASE("datagram: what nobody receives never blocks the sender, nor does a port that is gone") {
  on_every_fabric([](DatagramFixture& fabric) {
    const PortPtr a = fabric.open();
    PortPtr b = fabric.open();
    const kv_datagram_address address = fabric.address_of(*b);
    for (int i = 0; i < 20'000; ++i) send(*a, address, std::string(300, 'x'));
    fabric.await(*b);
    CHECK(receive(*b) == std::string(300, 'x'));
    b.reset();
    for (int i = 0; i < 100; ++i) send(*a, address, "too late");
    CHECK(receive(*a).empty());  // the kernel's word that nobody listens is no datagram
    send(*a, kv_datagram_address{}, "nowhere");
    kv_datagram_address strange;
    std::memset(&strange, 0xff, sizeof strange);
    send(*a, strange, "nowhere");
    const PortPtr c = fabric.open();
    REQUIRE(send(*a, fabric.address_of(*c), "still works"));
    fabric.await(*c);
    CHECK(receive(*c) == "still works");
  });
}

TEST_CASE("datagram: longer ones from outside are dropped, and the next one is received") {
  std::string error;
  const PortPtr port = open_datagram_port("127.0.0.1", error);
  REQUIRE_MESSAGE(port != nullptr, error);
  uint16_t number = 0;
  std::memcpy(&number, port->address.bytes + 32, sizeof number);
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = number;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const OwnedFd stranger(::socket(AF_INET, SOCK_DGRAM, 0));
  const auto send_raw = [&](const std::string& data) {
    REQUIRE(::sendto(stranger.get(), data.data(), data.size(), 0,
                     reinterpret_cast<sockaddr*>(&name), sizeof name) == ssize_t(data.size()));
  };
  send_raw(std::string(KV_DATAGRAM_BYTES_MAX + 1, 'x'));
  send_raw(std::string(60'000, 'x'));
  send_raw("fits");
  pollfd descriptor{port->ops->wait_descriptor(port.get()), POLLIN, 0};
  REQUIRE(::poll(&descriptor, 1, 10'000) == 1);
  CHECK(receive(*port) == "fits");
}

TEST_CASE("datagram: a host that can't be is refused") {
  std::string error;
  CHECK(open_datagram_port("not an address", error) == nullptr);
  CHECK(!error.empty());
}

TEST_CASE("datagram: simulated mail is lost, doubled and late as its timing says") {
  sim::Schedule schedule(7);
  sim::MailTiming timing;
  timing.lost_per_million = 200'000;
  timing.doubled_per_million = 100'000;
  timing.late_per_million = 300'000;
  sim::SimMail mail(schedule, timing);
  const PortPtr a = mail.open(nullptr);
  const PortPtr b = mail.open(nullptr);
  constexpr int kSent = 900;
  for (int i = 0; i < kSent; ++i) REQUIRE(send(*a, b->address, std::to_string(i)));
  while (schedule.run_next()) {
  }
  std::vector<int> arrived;
  for (std::string text = receive(*b); !text.empty(); text = receive(*b)) {
    arrived.push_back(std::stoi(text));
  }
  CHECK(!std::is_sorted(arrived.begin(), arrived.end()));
  CHECK(arrived.size() == mail.counts().delivered);
  CHECK(mail.counts().lost > kSent / 10);
  CHECK(mail.counts().doubled > kSent / 50);
  mail.set_route([](uint64_t, uint64_t) { return false; });
  send(*a, b->address, "cut off");
  while (schedule.run_next()) {
  }
  CHECK(receive(*b).empty());
}

}  // namespace kvstore::test
