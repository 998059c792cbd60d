// A client of the tcp fabric that says whatever it likes.

#pragma once

#include <sys/socket.h>

#include <cstring>
#include <string>
#include <vector>

#include "fabric/cpu/frame.hpp"
#include "tcp_node.hpp"

namespace kvstore::test {

class RawClient {
 public:
  explicit RawClient(const TcpNode& node) : lane_(node.unused_lane()) {
    std::string error;
    const TcpTarget target = node.target();
    fd_ = connect_socket(target.host, target.port, deadline(), error);
    REQUIRE_MESSAGE(fd_.valid(), error);
  }

  static uint64_t deadline() { return monotonic_ns() + 10'000'000'000; }

  static frame::Hello good_hello(uint32_t registration = 1) {
    frame::Hello hello{};
    hello.magic = frame::kHelloMagic;
    hello.version = frame::kVersion;
    hello.registration = registration;
    hello.incarnation = TcpNode::kIncarnation;
    std::copy(TcpNode::kToken.begin(), TcpNode::kToken.end(), hello.token);
    return hello;
  }

  // False if the agent has closed the connection.
  bool say(const void* bytes, size_t count) {
    std::string error;
    return send_exactly(fd_.get(), bytes, count, deadline(), error);
  }
  template <typename Structure>
  bool say(const Structure& structure) {
    return say(&structure, sizeof(structure));
  }
  template <typename Structure>
  bool hear(Structure& structure) {
    std::string error;
    return receive_exactly(fd_.get(), &structure, sizeof(structure), deadline(), error);
  }

  // Greets and expects to be welcome, on a lane of its own unless told otherwise.
  void enter() { enter_lane(1, lane_); }
  void enter_lane(uint32_t registration, uint32_t lane) {
    frame::Welcome welcome{};
    frame::Hello hello = good_hello(registration);
    hello.lane = lane;
    REQUIRE(say(hello));
    REQUIRE(hear(welcome));
    REQUIRE(welcome.status == frame::kWelcomeOk);
  }

  // Whether the agent says nothing more and closes within the deadline.
  bool closed_by_agent() {
    uint8_t byte;
    std::string error;
    return !receive_exactly(fd_.get(), &byte, 1, deadline(), error) && error != "timed out";
  }

  void stop_sending() { shutdown(fd_.get(), SHUT_WR); }
  int fd() const { return fd_.get(); }

 private:
  uint32_t lane_;
  OwnedFd fd_;
};

inline frame::RequestHeader request_header(uint32_t op_count, uint64_t sequence = 1) {
  return frame::RequestHeader{frame::kRequestMagic, op_count, sequence};
}

}  // namespace kvstore::test
