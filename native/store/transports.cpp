#include "store/transports.hpp"

#include <netdb.h>
#include <sys/socket.h>

#include "base/assert.hpp"
#include "fabric/cpu/datagram_port.hpp"
#include "fabric/cpu/shm.hpp"

namespace kvstore {
std::string numeric_address(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  char text[NI_MAXHOST] = "";
  if (host.empty() || ::getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return {};
  ::getnameinfo(found->ai_addr, found->ai_addrlen, text, sizeof text, nullptr, 0, NI_NUMERICHOST);
  ::freeaddrinfo(found);
  return text;
}

namespace {

class LocalTransport : public Transport {
 public:
  explicit LocalTransport(LocalRegion region) : region_(std::move(region)) {}
  ~LocalTransport() override {
    if (region_.detached) region_.detached();
  }
  kv_connection* connect(uint32_t, uint64_t, std::string&) override {
    return shm_connection(region_.data, region_.bytes, region_.dead.get());
  }
  uint32_t fabric() const override { return KV_FABRIC_LOCAL; }
  PortPtr open_port(std::string& error) override { return open_datagram_port({}, error); }

 private:
  const LocalRegion region_;
};

class ShmTransport : public Transport {
 public:
  ShmTransport(const ShmMapping& mapping, std::string reached_at)
      : mapping_(mapping), reached_at_(std::move(reached_at)) {}
  ~ShmTransport() override { shm_detach(mapping_); }
  kv_connection* connect(uint32_t, uint64_t, std::string&) override {
    const uint8_t* liveness = mapping_.region + layout::kLivenessOffset;
    return shm_connection(mapping_.region, mapping_.region_bytes, &dead_,
                          reinterpret_cast<const uint32_t*>(liveness));
  }
  uint32_t fabric() const override { return KV_FABRIC_SHM; }
  PortPtr open_port(std::string& error) override {
    return open_datagram_port(numeric_address(reached_at_), error);
  }
  int hangup_descriptor() const override { return mapping_.socket; }
  void node_died() override { dead_.store(1, std::memory_order_release); }

 private:
  ShmMapping mapping_;
  const std::string reached_at_;
  std::atomic<uint32_t> dead_{0};
};

class TcpTransport : public Transport {
 public:
  explicit TcpTransport(TcpTarget target) : target_(std::move(target)) {}
  kv_connection* connect(uint32_t lane, uint64_t deadline_ns, std::string& error) override {
    TcpTarget target = target_;
    target.lane = lane;
    return tcp_connect(target, deadline_ns, error);
  }
  uint32_t fabric() const override { return KV_FABRIC_TCP; }
  PortPtr open_port(std::string& error) override {
    return open_datagram_port(numeric_address(target_.host), error);
  }

 private:
  const TcpTarget target_;
};

}  // namespace

Status take_up(Client& client, uint32_t member, std::unique_ptr<Transport> transport,
               uint32_t registration, uint64_t deadline_ns, std::string& error) {
  kv_connection* connection = transport->connect(kSetupLane, deadline_ns, error);
  if (connection == nullptr) return Status::kNodeUnreachable;

  Executor executor;
  executor.add_connection(connection);
  Remote remote;
  remote.bind(connection, &executor);
  Status status = Status::kOk;
  std::shared_ptr<Attachment> attachment;
  {
    const Executor::Scope scope(executor);
    Task<Status> task = read_attachment(remote, std::move(transport), registration,
                                        client.address_entries(), attachment, error);
    const auto done = [&] { return task.done(); };
    if (executor.run(done, deadline_ns, true) != Executor::Outcome::kDone) {
      connection->ops->close(connection);
      executor.run(done, UINT64_MAX, true);
    }
    status = task.take();
  }
  connection->ops->destroy(connection);
  if (status != Status::kOk) return status;
  if (!client.accepts(attachment->superblock.consistency, error)) return Status::kRefused;
  client.attach(member, std::move(attachment));
  return status;
}

Status attach_local(Client& client, uint32_t member, const LocalRegion& region,
                    uint32_t registration, std::string& error) {
  return take_up(client, member, std::make_unique<LocalTransport>(region), registration,
                 monotonic_ns() + kSecond, error);
}

Status attach_shm(Client& client, uint32_t member, const std::string& name, const ShmHello& hello,
                  const std::string& reached_at, uint64_t deadline_ns, std::string& error) {
  ShmMapping mapping;
  const Status attached = shm_attach(name, hello, deadline_ns, mapping, error);
  if (attached != Status::kOk) return attached;
  const uint32_t registration = mapping.registration;
  return take_up(client, member, std::make_unique<ShmTransport>(mapping, reached_at), registration,
                 deadline_ns, error);
}

Status attach_tcp(Client& client, uint32_t member, const TcpTarget& target, uint64_t deadline_ns,
                  std::string& error) {
  return take_up(client, member, std::make_unique<TcpTransport>(target), target.registration,
                 deadline_ns, error);
}

}  // namespace kvstore
