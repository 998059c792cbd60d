// The store's own client on a simulated host: its lanes and its service run in virtual time,
// stepped by drivers instead of threads, and another driver keeps it attached: it asks a node for
// admission, reads what an attachment begins with, and does so again when the node gave it up or
// began another incarnation.

#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fabric/sim/mail.hpp"
#include "sim/host.hpp"
#include "store/client.hpp"
#include "store/service.hpp"

namespace kvstore::sim {

// What a node answers who asks for admission: where to connect, and as whom. Registration 0: not
// now.
struct Grant {
  uint32_t registration = 0;
  SimNode* fabric = nullptr;
};

// A member of the cluster as a client sees it.
struct Home {
  std::string name;
  std::function<Grant()> admit;  // at the instant when the request is there
};

// Messages between the clients of a world. What cuts a client off from a node cuts it off from the
// other clients too.
class ClientMail {
 public:
  ClientMail(Schedule& schedule, const MailTiming& timing);

  // `reach` outlives the mail's last message.
  PortPtr open(SimListener* listener, const Reach& reach);
  void cut(uint64_t number) { mail_.cut(number); }
  void heal() { mail_.timing() = MailTiming{}; }

 private:
  Schedule& schedule_;
  SimMail mail_;
  std::map<uint64_t, const Reach*> reaches_;
};

class DrivenClient {
 public:
  // So few that worlds of a few hundred keys use both ways of a get.
  static constexpr uint32_t kAddressEntriesDefault = 256;
  // Without `mail` it has no messages.
  DrivenClient(Schedule& schedule, HostClock& clock, const std::vector<Home>& homes, uint32_t lanes,
               ClientMail* mail = nullptr, uint64_t cache_bytes = 0,
               uint32_t address_entries = kAddressEntriesDefault);
  ~DrivenClient();
  DrivenClient(const DrivenClient&) = delete;
  DrivenClient& operator=(const DrivenClient&) = delete;

  Client& client() { return *client_; }
  // To be called by whoever drives lane `index`, before it steps it.
  void set_listener(uint32_t lane, Driver* driver);
  void order_ready(Lane& lane) { lane.executor().set_ready_order(&order_); }
  // To be called after steps of a lane: the service may have been asked to hurry, or an attachment
  // may have ended.
  void notice();

  // It has been attached to every member at least once.
  bool begun() const;
  // It is attached to every member now.
  bool attached() const;
  // The latest, 0 before the first; and since when.
  uint32_t registration(uint32_t member) const;
  const Grant& grant(uint32_t member) const;
  uint64_t attached_ns(uint32_t member) const;
  uint64_t attachments() const { return attachments_; }
  Reach& reach(uint32_t member) { return *reaches_[member]; }
  SimNode* fabric(uint32_t member) const;
  // For messages of an attachment to this member.
  PortPtr open_port(uint32_t member);

  // Nothing of it steps before then.
  void pause_until(uint64_t instant_ns);
  // As if the process was killed: nothing more is sent, and nobody says good-bye. What was sent may
  // still execute. The tasks of lanes other than the service's are wound down by `wind_down`.
  void crash();
  // Steps the lane past its deadline until nothing of it is under way.
  void wind_down(const std::function<bool()>& step);

 private:
  class ServiceDriver;
  class Attacher;

  Schedule& schedule_;
  HostClock& clock_;
  ClientMail* const mail_;
  const uint32_t address_entries_;
  std::vector<uint64_t> ports_;
  SeededOrder order_;
  // Lane numbers of the transport to whoever waits for their completions.
  std::shared_ptr<std::vector<Driver*>> listeners_;
  std::shared_ptr<bool> cut_ = std::make_shared<bool>(false);
  std::vector<std::unique_ptr<Reach>> reaches_;
  uint64_t attachments_ = 0;
  std::unique_ptr<Client> client_;
  std::unique_ptr<ServiceDriver> service_driver_;
  std::vector<std::unique_ptr<Attacher>> attachers_;
};

}  // namespace kvstore::sim
