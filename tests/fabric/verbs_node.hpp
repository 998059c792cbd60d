// A region on an RDMA device, for tests. The control plane's part is a function call here.

#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "conformance.hpp"
#include "fabric/verbs_library.hpp"
#include "tcp_node.hpp"

namespace kvstore::test {

// The device that the environment names, or nullptr: tests that need one then do not run.
inline const char* verbs_device() {
  return std::getenv("KVSTORE_VERBS_DEVICE");
}

class VerbsNode {
 public:
  explicit VerbsNode(uint64_t region_bytes) : region_(region_bytes) {
    api_ = verbs_library(error_);
    REQUIRE_MESSAGE(api_ != nullptr, error_);
    port_ = open_verbs_port(verbs_device(), nullptr, error_);
    REQUIRE_MESSAGE(port_ != nullptr, error_);
    target_ = api_->expose(port_.get(), region_.data(), region_bytes, line_, sizeof line_);
    REQUIRE_MESSAGE(target_ != nullptr, line_);
  }
  VerbsNode(const VerbsNode&) = delete;
  VerbsNode& operator=(const VerbsNode&) = delete;
  ~VerbsNode() {
    dismiss_all();
    api_->withdraw(target_);
  }

  // Every connection must have been destroyed before the node is.
  ConnectionPtr connect() {
    const std::lock_guard lock(mutex_);
    kv_verbs_endpoint mine{};
    ConnectionPtr connection(api_->prepare(port_.get(), &mine, line_, sizeof line_));
    REQUIRE_MESSAGE(connection != nullptr, line_);
    establish(*connection, mine);
    return connection;
  }
  // The same for a connection that was prepared on another port.
  void establish(kv_connection& connection, const kv_verbs_endpoint& mine) {
    kv_verbs_peer* const peer = api_->accept(target_, &mine, &grant_, line_, sizeof line_);
    REQUIRE_MESSAGE(peer != nullptr, line_);
    peers_.push_back(peer);
    const int established = api_->establish(&connection, &grant_, line_, sizeof line_);
    REQUIRE_MESSAGE(established == 0, line_);
  }

  void dismiss_all() {
    const std::lock_guard lock(mutex_);
    for (kv_verbs_peer* peer : peers_) api_->dismiss(peer);
    peers_.clear();
  }

  const kv_verbs_api& api() const { return *api_; }
  kv_verbs_port* port() const { return port_.get(); }
  const PrivateRegion& region() const { return region_; }

 private:
  PrivateRegion region_;
  std::mutex mutex_;
  std::string error_;
  char line_[512] = "";
  const kv_verbs_api* api_ = nullptr;
  VerbsPort port_;
  kv_verbs_target* target_ = nullptr;
  kv_verbs_grant grant_{};
  std::vector<kv_verbs_peer*> peers_;
};

}  // namespace kvstore::test
