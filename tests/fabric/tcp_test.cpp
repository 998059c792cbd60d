// What the tcp fabric does beyond the rules of the conformance suite: names, greetings, malformed
// frames, fences, back-pressure, and the cost of doing nothing.

#include "fabric/cpu/tcp.hpp"

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/resource.h>

#include <random>
#include <thread>

#include "fabric/cpu/tcp_registrations.hpp"
#include "raw_client.hpp"
#include "tcp_node.hpp"

using namespace kvstore;
using namespace kvstore::test;

namespace {

constexpr uint64_t kRegionBytes = 1 << 20;

std::string connect_error(const TcpTarget& target, uint64_t limit_ms = 5000) {
  std::string error;
  kv_connection* connection = tcp_connect(target, monotonic_ns() + limit_ms * 1'000'000, error);
  REQUIRE(connection == nullptr);
  CHECK(error.find('\n') == std::string::npos);
  return error;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void check_serves(TcpNode& node) {
  const ConnectionPtr connection = node.connect(900);
  TestBatch batch({fetch_and_add(512, 1)});
  CHECK(execute(*connection, batch) == KV_FABRIC_OK);
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

}  // namespace

TEST_CASE("tcp: a host may be IPv4, IPv6 or a name") {
  TcpNode node(kRegionBytes, 1, "");
  for (const char* host : {"127.0.0.1", "localhost", "::1", "[::1]"}) {
    CAPTURE(std::string(host));
    TcpTarget target = node.target();
    target.host = host;
    std::string error;
    ConnectionPtr connection(tcp_connect(target, monotonic_ns() + 5'000'000'000, error));
    if (connection == nullptr && contains(host, ":")) {
      MESSAGE("no IPv6 here: " << error);
      continue;
    }
    REQUIRE_MESSAGE(connection != nullptr, error);
    TestBatch batch({fetch_and_add(0, 1)});
    CHECK(execute(*connection, batch) == KV_FABRIC_OK);
  }
}

TEST_CASE("tcp: a connection that cannot be made is one clear line") {
  TcpNode node(kRegionBytes, 1);
  TcpTarget target = node.target();
  target.token[3] ^= 1;
  CHECK(contains(connect_error(target), "token is wrong"));
  target = node.target(TcpNode::kUnknownRegistration);
  CHECK(contains(connect_error(target), "registration is no longer valid"));
  target = node.target();
  target.incarnation ^= 1;
  CHECK(contains(connect_error(target), "restarted"));
  CHECK(node.agent().stats().refused_tokens == 3);

  target = node.target();
  target.host = "name.invalid";
  CHECK(contains(connect_error(target), "cannot resolve name.invalid"));
  target.host = "";
  CHECK(contains(connect_error(target), "no host"));
  target = node.target();
  node.kill();
  CHECK(contains(connect_error(target), "Connection refused"));
}

TEST_CASE("tcp: connecting to a silent or foreign server ends at the deadline") {
  std::string error;
  uint16_t port = 0;
  const OwnedFd listener = listen_socket("127.0.0.1", 0, port, error);
  REQUIRE(listener.valid());
  TcpTarget target;
  target.host = "127.0.0.1";
  target.port = port;
  const uint64_t begin_ns = monotonic_ns();
  CHECK(contains(connect_error(target, 200), "timed out"));
  CHECK(monotonic_ns() - begin_ns < 3'000'000'000);

  std::thread foreign([&] {
    pollfd entry{listener.get(), POLLIN, 0};
    for (int i = 0; i < 2; ++i) {
      poll(&entry, 1, 5000);
      const OwnedFd peer(accept(listener.get(), nullptr, nullptr));
      const std::string text = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
      std::string ignored;
      if (i == 1) send_exactly(peer.get(), text.data(), text.size(), monotonic_ns(), ignored);
      if (i == 1) receive_exactly(peer.get(), &entry, sizeof(entry), monotonic_ns(), ignored);
    }
  });
  CHECK(contains(connect_error(target), "not a kvstore data port"));
  foreign.join();
}

TEST_CASE("tcp: an agent that cannot start is one clear line") {
  TcpNode node(kRegionBytes, 1);
  std::string error;
  TcpAgentConfig config;
  uint64_t word = 0;
  config.region = &word;
  config.region_bytes = 8;
  config.listen_host = "127.0.0.1";
  config.listen_port = node.agent().port();
  config.authenticate = [](uint32_t, const std::array<uint8_t, 16>&) { return true; };
  CHECK(TcpAgent::start(config, error) == nullptr);
  CHECK(contains(error, "Address already in use"));
  config.listen_host = "203.0.113.1";
  CHECK(TcpAgent::start(config, error) == nullptr);
  CHECK(contains(error, "cannot listen on 203.0.113.1"));
  config.threads = 0;
  CHECK(TcpAgent::start(config, error) == nullptr);
}

TEST_CASE("tcp: bad greetings are refused and counted") {
  TcpNode node(kRegionBytes, 1);
  frame::Hello hello = RawClient::good_hello();
  hello.magic ^= 1;
  RawClient wrong_magic(node);
  CHECK(wrong_magic.say(hello));
  CHECK(wrong_magic.closed_by_agent());

  hello = RawClient::good_hello();
  hello.reserved = 1;
  RawClient wrong_reserved(node);
  CHECK(wrong_reserved.say(hello));
  CHECK(wrong_reserved.closed_by_agent());

  hello = RawClient::good_hello();
  hello.version = frame::kVersion + 1;
  RawClient wrong_version(node);
  frame::Welcome welcome{};
  CHECK(wrong_version.say(hello));
  CHECK(wrong_version.hear(welcome));
  CHECK(welcome.status == frame::kWelcomeVersion);
  CHECK(welcome.version == frame::kVersion);
  CHECK(welcome.region_bytes == 0);
  CHECK(wrong_version.closed_by_agent());
  CHECK(node.agent().stats().refused_frames == 3);
  check_serves(node);
}

TEST_CASE("tcp: a client that never greets is dropped") {
  TcpNode node(kRegionBytes, 1);
  RawClient silent(node), hesitant(node);
  CHECK(hesitant.say("KV", 2));
  const uint64_t begin_ns = monotonic_ns();
  CHECK(silent.closed_by_agent());
  CHECK(hesitant.closed_by_agent());
  CHECK(monotonic_ns() - begin_ns > 4'000'000'000);
  CHECK(monotonic_ns() - begin_ns < 8'000'000'000);
  CHECK(node.agent().stats().refused_frames == 2);
  CHECK(eventually([&] { return node.agent().stats().connections_open == 0; }));
  check_serves(node);
}

TEST_CASE("tcp: malformed requests are refused, counted, and harm nobody") {
  TcpNode node(kRegionBytes, 2);
  frame::RequestHeader wrong_magic = request_header(1);
  wrong_magic.magic ^= 0x100;
  const frame::RequestHeader table[] = {wrong_magic, request_header(0),
                                        request_header(frame::kMaxBatchOps + 1),
                                        request_header(UINT32_MAX)};
  uint64_t expected = 0;
  for (const frame::RequestHeader& row : table) {
    RawClient client(node);
    client.enter();
    CHECK(client.say(row));
    CHECK(client.closed_by_agent());
    CHECK(node.agent().stats().refused_frames == ++expected);
  }
  // A payload must be followed by zeros.
  RawClient client(node);
  client.enter();
  CHECK(client.say(request_header(1)));
  CHECK(client.say(frame::OpDescriptor{KV_OP_WRITE, 0, 0, 3, 0}));
  CHECK(client.say("abcdefgh", 8));
  frame::ResponseHeader ignored{};
  client.hear(ignored);
  CHECK(client.closed_by_agent());
  CHECK(node.agent().stats().refused_frames == ++expected);
  check_serves(node);
}

TEST_CASE("tcp: operations outside the region are answered REFUSED, counted, and not executed") {
  TcpNode node(kRegionBytes, 1);
  const frame::OpDescriptor table[] = {{KV_OP_READ, 0, kRegionBytes, 1, 0},
                                       {KV_OP_WRITE, 0, UINT64_MAX, 2, 0},
                                       {KV_OP_WRITE, 0, 8, UINT64_MAX - 4, 0},
                                       {KV_OP_READ, 0, 0, 0, 0},
                                       {KV_OP_CAS, 0, 4, 0, 1},
                                       {KV_OP_FAA, 0, kRegionBytes - 4, 1, 0},
                                       {KV_OP_FAA, 0, UINT64_MAX - 7, 1, 0},
                                       {9, 0, 0, 8, 0},
                                       {KV_OP_FAA, 2, 0, 1, 0}};
  uint64_t expected = 0;
  for (const frame::OpDescriptor& row : table) {
    RawClient client(node);
    client.enter();
    CHECK(client.say(request_header(2, 42)));
    CHECK(client.say(frame::OpDescriptor{KV_OP_FAA, 0, 0, 1, 0}));
    CHECK(client.say(row));
    // Unread input must not cost the client its answer.
    const auto noise = pattern(100'000, expected);
    client.say(noise.data(), noise.size());
    frame::ResponseHeader answer{};
    CHECK(client.hear(answer));
    CHECK(answer.magic == frame::kResponseMagic);
    CHECK(answer.status == KV_FABRIC_REFUSED);
    CHECK(answer.sequence == 42);
    CHECK(client.closed_by_agent());
    CHECK(node.agent().stats().refused_bounds == ++expected);
  }
  CHECK(node.region().word(0) == 0);
  check_serves(node);
}

TEST_CASE("tcp: requests cut off or split anywhere") {
  TcpNode node(kRegionBytes, 1);
  std::vector<uint8_t> stream;
  const auto append = [&stream](const void* bytes, size_t count) {
    const auto* begin = static_cast<const uint8_t*>(bytes);
    stream.insert(stream.end(), begin, begin + count);
  };
  const frame::RequestHeader header = request_header(2);
  const frame::OpDescriptor ops[] = {{KV_OP_WRITE, 0, 8, 11, 0}, {KV_OP_FAA, 0, 0, 1, 0}};
  append(&header, sizeof(header));
  append(ops, sizeof(ops));
  append("hello world\0\0\0\0\0", 16);
  for (size_t cut = 0; cut < stream.size(); cut += 3) {
    RawClient client(node);
    client.enter();
    CHECK(client.say(stream.data(), cut));
    client.stop_sending();
    frame::ResponseHeader answer{};
    client.hear(answer);
    CHECK(client.closed_by_agent());
  }
  CHECK(node.region().word(0) == 0);
  RawClient slow(node);
  slow.enter();
  for (const uint8_t& byte : stream) CHECK(slow.say(&byte, 1));
  struct {
    frame::ResponseHeader header;
    uint64_t word;
    frame::ResponseEnd end;
  } answer{};
  CHECK(slow.hear(answer));
  CHECK(answer.header.status == KV_FABRIC_OK);
  CHECK(answer.word == 0);
  CHECK(answer.end.magic == frame::kEndMagic);
  CHECK(node.region().word(0) == 1);
  CHECK(std::memcmp(static_cast<char*>(node.region().data()) + 8, "hello world", 11) == 0);
}

TEST_CASE("tcp: the agent survives random bytes") {
  TcpNode node(kRegionBytes, 2);
  std::mt19937_64 random(20'240);
  for (int round = 0; round < 300; ++round) {
    RawClient client(node);
    if (round % 2 == 0) client.enter();
    if (round % 3 == 0) client.say(request_header(1 + random() % 8));
    std::vector<uint8_t> noise(random() % 3000);
    for (uint8_t& byte : noise) byte = static_cast<uint8_t>(random());
    client.say(noise.data(), noise.size());
  }
  check_serves(node);
  CHECK(eventually([&] { return node.agent().stats().connections_open == 0; }));
  CHECK(node.agent().stats().refused_frames > 50);
}

TEST_CASE("tcp: fence ends one registration for ever and no other") {
  TcpNode node(kRegionBytes, 2);
  std::vector<ConnectionPtr> fenced;
  for (int i = 0; i < 4; ++i) fenced.push_back(node.connect(5));
  const ConnectionPtr other = node.connect(6);
  // Long batches under way while the fence falls.
  std::vector<std::unique_ptr<TestBatch>> batches;
  for (const ConnectionPtr& connection : fenced) {
    for (int i = 0; i < 20; ++i) {
      batches.push_back(std::make_unique<TestBatch>(std::vector<kv_op>(1024, fetch_and_add(0, 1))));
      batches.back()->post(*connection);
    }
    connection->ops->poll(connection.get());
  }
  node.agent().fence(5);
  const uint64_t at_fence = node.region().word(0);
  for (const ConnectionPtr& connection : fenced) {
    for (int i = 0; i < 50; ++i) connection->ops->poll(connection.get());
    TestBatch late({fetch_and_add(0, 1)});
    late.post(*connection);
    CHECK(drive(*connection, late));
    CHECK(late.status() != KV_FABRIC_OK);
  }
  CHECK(node.region().word(0) == at_fence);
  CHECK(contains(connect_error(node.target(5)), "no longer valid"));
  TestBatch alive({fetch_and_add(0, 1)});
  CHECK(execute(*other, alive) == KV_FABRIC_OK);
  node.agent().fence(5);
  node.agent().fence(12'345);
  CHECK(node.last_closed_calls == 0);
}

TEST_CASE("tcp: a newer connection of a lane ends the older one before it is served") {
  for (const uint32_t threads : {1u, 3u}) {
    CAPTURE(threads);
    TcpNode node(kRegionBytes, threads);
    const ConnectionPtr other_lane = node.connect_lane(5, 1000);
    const ConnectionPtr other_client = node.connect_lane(6, 0);
    for (uint32_t lane = 0; lane < 8; ++lane) {
      const ConnectionPtr older = node.connect_lane(5, lane);
      // Much is under way when the client connects again: of what was posted, a prefix happens, and
      // nothing after the welcome.
      std::vector<std::unique_ptr<TestBatch>> batches;
      for (int i = 0; i < 64; ++i) {
        batches.push_back(
            std::make_unique<TestBatch>(std::vector<kv_op>(1024, fetch_and_add(0, 1))));
        batches.back()->post(*older);
      }
      older->ops->poll(older.get());
      const ConnectionPtr newer = node.connect_lane(5, lane);
      const uint64_t at_welcome = node.region().word(0);
      for (int i = 0; i < 50; ++i) older->ops->poll(older.get());
      CHECK(drive(*older, *batches.back()));
      CHECK(node.region().word(0) == at_welcome);
      TestBatch alive({fetch_and_add(8, 1)});
      CHECK(execute(*newer, alive) == KV_FABRIC_OK);
    }
    for (kv_connection* connection : {other_lane.get(), other_client.get()}) {
      TestBatch alive({fetch_and_add(8, 1)});
      CHECK(execute(*connection, alive) == KV_FABRIC_OK);
    }
    CHECK(eventually([&] { return node.agent().stats().connections_open == 2; }));
  }
}

TEST_CASE("tcp: what arrives on an ended connection of a lane is not executed") {
  for (const uint32_t threads : {1u, 3u}) {
    CAPTURE(threads);
    TcpNode node(kRegionBytes, threads);
    for (uint32_t lane = 0; lane < 8; ++lane) {
      RawClient older(node);
      older.enter_lane(5, lane);
      CHECK(older.say(request_header(1)));
      const ConnectionPtr newer = node.connect_lane(5, lane);
      older.say(frame::OpDescriptor{KV_OP_FAA, 0, 0, 1, 0});
      CHECK(older.closed_by_agent());
      TestBatch alive({fetch_and_add(8, 1)});
      CHECK(execute(*newer, alive) == KV_FABRIC_OK);
    }
    CHECK(node.region().word(0) == 0);
    CHECK(node.region().word(8) == 8);
    CHECK(eventually([&] { return node.agent().stats().connections_open == 0; }));
    CHECK(node.last_closed_registration == 5);
  }
}

TEST_CASE("tcp: a stranger does not end the connection of a lane") {
  TcpNode node(kRegionBytes, 2);
  const ConnectionPtr connection = node.connect_lane(5, 3);
  TcpTarget stranger = node.target(5, 3);
  stranger.token[0] ^= 1;
  CHECK(contains(connect_error(stranger), "token is wrong"));
  stranger = node.target(5, 3);
  stranger.incarnation ^= 1;
  CHECK(contains(connect_error(stranger), "restarted"));
  TestBatch alive({fetch_and_add(0, 1)});
  CHECK(execute(*connection, alive) == KV_FABRIC_OK);
}

TEST_CASE("tcp: fenced registrations are remembered in any order") {
  TcpRegistrations registrations;
  std::vector<uint32_t> fenced = {5, 7, 6, 0, UINT32_MAX, 1, 9, 8, 5, UINT32_MAX - 1, 3};
  for (const uint32_t registration : fenced) {
    CHECK(registrations.admit(100));
    registrations.fence(registration);
    CHECK_FALSE(registrations.admit(registration));
  }
  for (const uint32_t registration : fenced) CHECK_FALSE(registrations.admit(registration));
  for (const uint32_t registration : {2u, 4u, 10u, UINT32_MAX - 2}) {
    CHECK(registrations.admit(registration));
    CHECK(registrations.release(registration));
  }
}

TEST_CASE("tcp: the end of the last connection of a registration is told once") {
  TcpNode node(kRegionBytes, 2);
  ConnectionPtr first = node.connect(8), second = node.connect(8);
  first.reset();
  CHECK(eventually([&] { return node.agent().stats().connections_open == 1; }));
  CHECK(node.last_closed_calls == 0);
  second.reset();
  CHECK(eventually([&] { return node.last_closed_calls == 1; }));
  CHECK(node.last_closed_registration == 8);
}

TEST_CASE("tcp: a client that takes no answers stops only itself") {
  constexpr uint64_t kLength = 512 * 1024;
  TcpNode node(kRegionBytes, 1);
  RawClient greedy(node);
  greedy.enter();
  // Far more answers are asked for than any buffer between the two holds.
  std::vector<frame::OpDescriptor> reads(1024, frame::OpDescriptor{KV_OP_READ, 0, 0, kLength, 0});
  for (int i = 0; i < 3; ++i) {
    CHECK(greedy.say(request_header(1024)));
    CHECK(greedy.say(reads.data(), reads.size() * sizeof(frame::OpDescriptor)));
  }
  const auto executed = [&] { return node.agent().stats().reads; };
  uint64_t before = 0;
  CHECK(eventually([&] {
    const bool settled = executed() == before && before > 0;
    before = executed();
    const timespec pause{0, 50'000'000};
    nanosleep(&pause, nullptr);
    return settled;
  }));
  CHECK(executed() < 200);
  check_serves(node);
  // Waiting for the client costs nothing.
  const double cpu_before = cpu_seconds();
  const timespec second{1, 0};
  nanosleep(&second, nullptr);
  CHECK(cpu_seconds() - cpu_before < 0.05);
  // It goes on as soon as the client reads.
  std::vector<uint8_t> sink(64 << 20);
  std::string error;
  CHECK(receive_exactly(greedy.fd(), sink.data(), sink.size(), RawClient::deadline(), error));
  CHECK(executed() >= (sink.size() - 65'536) / kLength - 1);
}

TEST_CASE("tcp: a client that moves much does not starve one that moves little") {
  constexpr uint64_t kLarge = 16 << 20;
  TcpNode node(kLarge, 1);
  std::atomic<bool> stop{false};
  std::thread mover([&] {
    const ConnectionPtr connection = node.connect(2);
    std::vector<uint8_t> bytes(kLarge);
    while (!stop) {
      TestBatch batch({read_into(0, bytes.data(), kLarge)});
      batch.post(*connection);
      drive(*connection, batch);
    }
  });
  const ConnectionPtr connection = node.connect(3);
  uint64_t worst_ns = 0;
  for (int i = 0; i < 300; ++i) {
    const uint64_t begin_ns = monotonic_ns();
    TestBatch batch({fetch_and_add(0, 1)});
    CHECK(execute(*connection, batch) == KV_FABRIC_OK);
    worst_ns = std::max(worst_ns, monotonic_ns() - begin_ns);
  }
  stop = true;
  mover.join();
  // A share is 1 MiB, far below a millisecond; the rest is for a loaded machine.
  CHECK(worst_ns < 500'000'000);
}

TEST_CASE("tcp: idle connections cost nothing") {
  TcpNode node(kRegionBytes, 2);
  std::vector<ConnectionPtr> connections;
  for (uint32_t i = 0; i < 16; ++i) connections.push_back(node.connect(i));
  for (const ConnectionPtr& connection : connections) {
    TestBatch batch({fetch_and_add(0, 1)});
    CHECK(execute(*connection, batch) == KV_FABRIC_OK);
  }
  const timespec settle{0, 200'000'000}, second{1, 0};
  nanosleep(&settle, nullptr);
  const double before = cpu_seconds();
  nanosleep(&second, nullptr);
  CHECK(cpu_seconds() - before < 0.01);
}

TEST_CASE("tcp: the number of connections is bounded") {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max < 9000) {
    MESSAGE("too few descriptors allowed to try it");
    return;
  }
  TcpNode node(kRegionBytes, 2);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 4096; ++i) {
    clients.push_back(std::make_unique<RawClient>(node));
    clients.back()->enter();
  }
  CHECK(contains(connect_error(node.target()), "as many connections as it takes"));
  clients.pop_back();
  CHECK(eventually([&] { return node.agent().stats().connections_open == 4095; }));
  check_serves(node);
}

TEST_CASE("tcp: statistics count what was done") {
  TcpNode node(kRegionBytes, 2);
  const ConnectionPtr connection = node.connect();
  std::vector<uint8_t> bytes(100'000);
  TestBatch batch({write_from(0, bytes.data(), bytes.size()), fetch_and_add(0, 1),
                   compare_and_swap(8, 0, 1), read_into(0, bytes.data(), bytes.size())});
  CHECK(execute(*connection, batch) == KV_FABRIC_OK);
  const TcpAgentStats stats = node.agent().stats();
  CHECK(stats.connections_open == 1);
  CHECK(stats.connections_total == 1);
  CHECK(stats.batches == 1);
  CHECK(stats.reads == 1);
  CHECK(stats.writes == 1);
  CHECK(stats.atomics == 2);
  CHECK(stats.bytes_in == 48 + 16 + 4 * 32 + 100'000);
  CHECK(stats.bytes_out >= 32 + 16 + 2 * 8 + 100'000);
}
