// Addresses of a port that come and go under it. Only in the lab, whose network card is ours.

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "verbs_node.hpp"

namespace kvstore::test {
namespace {

const auto needs_lab = doctest::skip(std::getenv("KVSTORE_RXE_GUEST") == nullptr);

using Address = std::array<uint8_t, 16>;

// 198.51.100.N, as a port knows it.
Address address(uint8_t number) {
  return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, number};
}

// A device follows its network card a moment later.
template <class Condition>
bool soon(Condition&& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < end) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

class CardAddress {
 public:
  explicit CardAddress(uint8_t number) : number_(number) { change("add"); }
  ~CardAddress() {
    if (there_) change("del");
  }
  CardAddress(const CardAddress&) = delete;
  CardAddress& operator=(const CardAddress&) = delete;

  void take_away() { change("del"); }
  void give_back() { change("add"); }
  VerbsPort open() const {
    VerbsPort port;
    std::string error;
    const Address wanted = address(number_);
    soon([&] { return (port = open_verbs_port("rxe0", &wanted, error)) != nullptr; });
    REQUIRE_MESSAGE(port != nullptr, error);
    return port;
  }

 private:
  void change(const std::string& verb) {
    const std::string command =
        "ip address " + verb + " 198.51.100." + std::to_string(number_) + "/32 dev v0";
    REQUIRE(std::system(command.c_str()) == 0);
    there_ = verb == "add";
  }

  const uint8_t number_;
  bool there_ = false;
};

}  // namespace

TEST_CASE("verbs port: a connection finds its address wherever it stands by now" * needs_lab) {
  std::string error;
  const kv_verbs_api* const api = verbs_library(error);
  REQUIRE_MESSAGE(api != nullptr, error);
  CardAddress earlier(1), own(2);
  const VerbsPort before = earlier.open();
  const VerbsPort port = own.open();
  REQUIRE(api->serves(port.get()) == 1);

  own.take_away();
  REQUIRE(soon([&] { return api->serves(port.get()) == 0; }));
  char line[512] = "";
  kv_verbs_endpoint mine{};
  CHECK(api->prepare(port.get(), &mine, line, sizeof line) == nullptr);
  CHECK(std::string(line).find("rxe0 port 1 has lost the address") != std::string::npos);

  // The place of the first address in the device's table is free, so the own one comes there.
  earlier.take_away();
  REQUIRE(soon([&] { return api->serves(before.get()) == 0; }));
  own.give_back();
  REQUIRE(soon([&] { return api->serves(port.get()) == 1; }));
  VerbsNode node(1 << 20);
  ConnectionPtr connection(api->prepare(port.get(), &mine, line, sizeof line));
  REQUIRE_MESSAGE(connection != nullptr, line);
  node.establish(*connection, mine);
  uint64_t word = 1;
  TestBatch batch({read_into(64, &word, sizeof word)});
  CHECK(execute(*connection, batch) == KV_FABRIC_OK);
  CHECK(word == node.region().word(64));
}

TEST_CASE("verbs port: why there is none" * needs_lab) {
  std::string error;
  const Address absent = address(77);
  CHECK(open_verbs_port("rxe0", &absent, error) == nullptr);
  CHECK(error.find("rxe0 port 1 is active, but not with the wanted address") != std::string::npos);
  CHECK(open_verbs_port("rxe0:2", nullptr, error) == nullptr);
  CHECK(error.find("no port of rxe0:2 is active") != std::string::npos);
  CHECK(open_verbs_port("absent0", nullptr, error) == nullptr);
  CHECK(error.find("there is no RDMA device absent0") != std::string::npos);
}

}  // namespace kvstore::test
