#include "fabric/sim/link.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "base/crc32c.hpp"
#include "fabric/sim/masked.hpp"

namespace kvstore::sim {
namespace {

constexpr uint32_t kBatchOpsMax = 4096;
constexpr uint32_t kOutstandingMax = 256;
constexpr uint32_t kEagerReadBytes = 4096;

bool is_masked(const kv_op& op) {
  return op.kind == kOpMaskedSwap || op.kind == kOpWideAdd;
}
bool is_atomic(const kv_op& op) {
  return op.kind == KV_OP_CAS || op.kind == KV_OP_FAA || is_masked(op);
}

void execute_masked(const kv_op& op, uint8_t* at) {
  uint64_t words[2];
  std::memcpy(words, at, sizeof words);
  if (op.kind == kOpWideAdd) {
    WideAdd& sum = *static_cast<WideAdd*>(op.local);
    std::memcpy(sum.old, words, sizeof words);
    for (unsigned i = 0; i < 2; ++i) words[i] += sum.add[i];
  } else {
    MaskedSwap& swap = *static_cast<MaskedSwap*>(op.local);
    std::memcpy(swap.old, words, sizeof words);
    for (unsigned i = 0; swap.swapped() && i < 2; ++i) {
      words[i] = (words[i] & ~swap.swap_mask[i]) | (swap.swap[i] & swap.swap_mask[i]);
    }
  }
  std::memcpy(at, words, sizeof words);
}

}  // namespace

// ---- Pieces ---------------------------------------------------------------------------------

void Pieces::plan(const kv_op& op, unsigned pieces_max, Random& random) {
  count_ = 0;
  next_ = 0;
  cuts_[count_++] = 0;
  if (pieces_max == 1) {
    order_[0] = 0;
    cuts_[count_] = op.length;
    return;
  }
  // Words of the region are never cut, wherever the transfer begins.
  const uint64_t first_word = op.offset / 8;
  const uint64_t last_word = (op.offset + op.length - 1) / 8;
  const uint64_t places = last_word - first_word;
  const uint64_t wanted = 1 + random.below(std::min<uint64_t>(pieces_max, places + 1));
  for (uint64_t n = 1; n < wanted; ++n) {
    cuts_[count_++] = (first_word + 1 + random.below(places)) * 8 - op.offset;
  }
  std::sort(cuts_.begin(), cuts_.begin() + count_);
  count_ = unsigned(std::unique(cuts_.begin(), cuts_.begin() + count_) - cuts_.begin());
  cuts_[count_] = op.length;
  for (unsigned n = 0; n < count_; ++n) {
    const unsigned other = unsigned(random.below(n + 1));
    order_[n] = order_[other];
    order_[other] = uint8_t(n);
  }
}

void Pieces::take(uint64_t& begin, uint64_t& end) {
  const unsigned piece = order_[next_++];
  begin = cuts_[piece];
  end = cuts_[piece + 1];
}

// ---- The client's side ----------------------------------------------------------------------

SimLink& SimLink::of(kv_connection* connection) {
  return *reinterpret_cast<Client*>(connection)->link;
}

const kv_connection_ops SimLink::kOps = {
    KV_FABRIC_ABI_VERSION,
    [](kv_connection* connection, kv_batch* batch) { return of(connection).post(batch); },
    [](kv_connection* connection) { return of(connection).poll(); },
    [](kv_connection*, short*) { return -1; },
    [](kv_connection* connection) { of(connection).close(); },
    [](kv_connection* connection) { of(connection).destroyed(); }};

SimLink::SimLink(SimNode& node, uint32_t registration, uint32_t lane, SimListener* listener,
                 const Reach& reach)
    : node_(node), registration_(registration), lane_(lane), listener_(listener), reach_(reach) {
  kv_connection& connection = client_.connection;
  connection.ops = &kOps;
  connection.region_bytes = node.region_bytes();
  connection.max_batch_ops = kBatchOpsMax;
  connection.max_outstanding = kOutstandingMax;
  connection.eager_read_bytes = kEagerReadBytes;
  client_.link = this;
}

uint32_t SimLink::post(kv_batch* batch) {
  if (client_.connection.broken != 0) return KV_FABRIC_DOWN;
  if (batch->op_count == 0 || batch->op_count > kBatchOpsMax) {
    close();
    return KV_FABRIC_REFUSED;
  }
  KV_ASSERT(requests_.size() < kOutstandingMax);
  batch->status = KV_FABRIC_PENDING;
  requests_.push_back({batch, batch->ops, batch->op_count, KV_FABRIC_PENDING, {}, {}, {}});
  if (node_.schedule_.traced() && listener_ != nullptr) {
    requests_.back().purpose = listener_->purpose;
  }
  ++node_.counts_.batches;
  if (client_.told) return KV_FABRIC_PENDING;  // it goes nowhere any more
  const uint64_t now_ns = node_.schedule_.now_ns();
  const uint64_t post_ns = node_.timing_.post_ns * batch->op_count;
  const uint64_t sent_ns = listener_ == nullptr ? now_ns : listener_->occupy(now_ns, post_ns);
  last_arrival_ns_ = std::max(request_arrival_ns(sent_ns), last_arrival_ns_ + 1);
  schedule(last_arrival_ns_, kArrive);
  if (node_.schedule_.random().chance(node_.timing_.breaks_per_million)) {
    ++node_.counts_.breaks;
    end_node_side_later();
    end_client_side_later();
  }
  return KV_FABRIC_PENDING;
}

uint32_t SimLink::poll() {
  if (client_.connection.broken != 0) return 0;
  uint32_t completed = 0;
  bool over = client_.told;
  while (answered_ > 0) {
    Request request = std::move(requests_.front());
    requests_.pop_front();
    --arrived_;
    --executed_;
    --answered_;
    over |= request.status != KV_FABRIC_OK;
    request.batch->status = request.status;
    request.batch->complete(request.batch);
    ++completed;
  }
  if (listener_ != nullptr) {
    listener_->occupy(node_.schedule_.now_ns(), node_.timing_.complete_ns * completed);
  }
  if (!over) return completed;
  completed += uint32_t(requests_.size());
  break_client_side();
  return completed;
}

void SimLink::close() {
  if (client_.connection.broken != 0) return;
  break_client_side();
  // The node hears of it when it does; until then it goes on.
  end_node_side_later();
}

void SimLink::destroyed() {
  close();
  client_.gone = true;
  listener_ = nullptr;
  if (is_over()) node_.collect(*this);
}

void SimLink::break_client_side() {
  client_.connection.broken = 1;
  std::vector<kv_batch*> lost;
  for (Request& request : requests_) {
    lost.push_back(request.batch);
    keep_what_may_execute(request);
  }
  for (kv_batch* batch : lost) {
    batch->status = KV_FABRIC_LOST;
    batch->complete(batch);
  }
}

// The poster takes its memory back now.
void SimLink::keep_what_may_execute(Request& request) {
  request.batch = nullptr;
  if (node_over_ || request.status != KV_FABRIC_PENDING) {
    request.ops = nullptr;
    return;
  }
  request.own_ops.assign(request.ops, request.ops + request.op_count);
  request.ops = request.own_ops.data();
  for (kv_op& op : request.own_ops) {
    if (op.kind == KV_OP_WRITE && acceptable(op)) {
      auto payload = std::make_unique_for_overwrite<uint8_t[]>(op.length);
      std::memcpy(payload.get(), op.local, op.length);
      op.local = payload.get();
      request.payloads.push_back(std::move(payload));
    } else {
      op.local = nullptr;
    }
  }
}

// ---- The node's side ------------------------------------------------------------------------

bool SimLink::acceptable(const kv_op& op) const {
  const uint64_t bytes = node_.region_bytes();
  if (op.length == 0 || op.offset > bytes || op.length > bytes - op.offset) return false;
  if (is_masked(op)) return op.length == 16 && op.offset % 16 == 0 && op.local != nullptr;
  if (is_atomic(op)) return op.length == 8 && op.offset % 8 == 0;
  return op.kind == KV_OP_READ || op.kind == KV_OP_WRITE;
}

bool SimLink::move_piece(const Request& request, kv_op& op) {
  uint64_t begin = 0;
  uint64_t end = 0;
  pieces_.take(begin, end);
  uint8_t* const at = node_.region() + op.offset;
  uint8_t* const local = static_cast<uint8_t*>(op.local);
  if (op.kind == KV_OP_WRITE) {
    std::memcpy(at + begin, local + begin, end - begin);
  } else if (local != nullptr) {
    std::memcpy(local + begin, at + begin, end - begin);
  }
  if (pieces_.left()) return false;
  watch_write(op);
  if ((op.flags & KV_OP_CRC32C) != 0 && request.batch != nullptr) {
    op.result = crc32c(uint32_t(op.operand), local, op.length);
  }
  return true;
}

void SimLink::watch_write(const kv_op& op) const {
  if (node_.watch_ == nullptr || op.kind != KV_OP_WRITE) return;
  node_.watch_->written(registration_, lane_, op.offset, op.length);
}

bool SimLink::execute(Request& request, kv_op& op) {
  if (!is_atomic(op)) {
    if (!op_begun_) {
      watch_write(op);
      pieces_.plan(op, node_.timing_.pieces_max, node_.schedule_.random());
      node_.counts_.torn += pieces_.count() > 1;
    }
    op_begun_ = true;
    return move_piece(request, op);
  }
  uint8_t* const at = node_.region() + op.offset;
  if (is_masked(op)) {
    execute_masked(op, at);
    return true;
  }
  uint64_t word = 0;
  std::memcpy(&word, at, 8);
  op.result = word;
  const bool swaps = op.kind == KV_OP_CAS && word == op.operand;
  const uint64_t next = op.kind == KV_OP_FAA ? word + op.operand : swaps ? op.desire : word;
  std::memcpy(at, &next, 8);
  if (node_.watch_ != nullptr && next != word) node_.watch_->swapped(op.offset, word, next);
  return true;
}

void SimLink::finish(Request& request, uint32_t status) {
  request.status = status;
  ++executed_;
  op_at_ = 0;
  last_answer_ns_ = std::max(answer_arrival_ns(), last_answer_ns_ + 1);
  schedule(last_answer_ns_, kAnswer);
  if (status != KV_FABRIC_OK) end_node_side();
}

void SimLink::tell(const Request& request, const kv_op& op) const {
  node_.schedule_.tell(request.purpose.key, [&] {
    static constexpr const char* kNames[] = {"READ", "WRITE", "CAS", "FAA"};
    if (is_masked(op)) return request.purpose.text + ": a masked atomic";
    char text[160];
    int length = std::snprintf(text, sizeof text, "%s on %s, client line %u lane %u, at 0x%" PRIx64,
                               kNames[op.kind - KV_OP_READ], node_.name_.c_str(), registration_,
                               lane_, op.offset);
    char* const end = text + std::min<size_t>(size_t(length), sizeof text - 1);
    const size_t left = size_t(text + sizeof text - end);
    if (!is_atomic(op)) {
      std::snprintf(end, left, ", %" PRIu64 " bytes", uint64_t(op.length));
    } else if (op.kind == KV_OP_FAA) {
      std::snprintf(end, left, ": %" PRIx64 " + %" PRIx64, op.result, op.operand);
    } else {
      std::snprintf(end, left, ": %" PRIx64 " -> %" PRIx64 "%s", op.operand, op.desire,
                    op.result == op.operand ? "" : ", lost");
    }
    const char* const orphan = request.batch == nullptr ? ", given up by its client" : "";
    return request.purpose.text + ": " + text + orphan;
  });
}

void SimLink::arrive() {
  const Request& request = requests_[arrived_++];
  if (node_over_) return;
  for (uint32_t n = 0; n < request.op_count; ++n) {
    const kv_op& op = request.ops[n];
    const uint64_t bytes = std::min(op.length, node_.region_bytes());
    due_ns_.push_back(node_.nic_.admit(op.kind, op.offset, bytes, node_.schedule_.now_ns()));
  }
  if (!stepping_) execute_arrived();
}

bool SimLink::may_stall() const {
  const uint64_t bytes = node_.timing_.stall_bytes;
  return bytes == 0 || (op_begun_ && requests_[executed_].ops[op_at_].length == bytes);
}

// Between two operations, and between two pieces of one, passes a while that chance decides.
uint64_t SimLink::next_step_ns() {
  uint64_t when_ns = node_.schedule_.now_ns();
  const SimTiming& timing = node_.timing_;
  Random& random = node_.schedule_.random();
  if (op_begun_ || op_at_ > 0) {
    when_ns += random.below(timing.step_ns_max + 1);
    if (may_stall() && random.chance(timing.stalls_per_million)) {
      when_ns += random.below(timing.stall_ns_max + 1);
    }
  }
  return op_begun_ ? when_ns : std::max(when_ns, due_ns_.front());
}

void SimLink::execute_arrived() {
  Schedule& schedule = node_.schedule_;
  while (!node_over_ && executed_ < arrived_) {
    const uint64_t when_ns = next_step_ns();
    if (when_ns > schedule.now_ns() && !schedule.advance(when_ns)) {
      stepping_ = true;
      this->schedule(when_ns, kStep);
      return;
    }
    step();
  }
}

void SimLink::step() {
  Request& request = requests_[executed_];
  kv_op& op = request.ops[op_at_];
  if (!op_begun_) due_ns_.pop_front();
  if (!acceptable(op)) {
    finish(request, KV_FABRIC_REFUSED);
    return;
  }
  if (!execute(request, op)) return;
  op_begun_ = false;
  ++op_at_;
  ++node_.counts_.operations;
  node_.counts_.orphans += request.batch == nullptr;
  tell(request, op);
  if (op_at_ == request.op_count) finish(request, KV_FABRIC_OK);
}

// ---- Ends and events ------------------------------------------------------------------------

uint64_t SimLink::request_arrival_ns(uint64_t sent_ns) const {
  return std::max(sent_ns, reach_.requests_from_ns) + node_.delay_ns();
}

uint64_t SimLink::answer_arrival_ns() const {
  // A client that is gone has taken its part of the network along.
  const uint64_t from_ns = client_.gone ? 0 : reach_.answers_from_ns;
  return std::max(node_.schedule_.now_ns(), from_ns) + node_.delay_ns();
}

void SimLink::end_node_side() {
  node_over_ = true;
}

void SimLink::end_node_side_later() {
  schedule(request_arrival_ns(node_.schedule_.now_ns()), kNodeEnd);
}

void SimLink::end_client_side_later() {
  schedule(answer_arrival_ns(), kClientEnd);
}

void SimLink::schedule(uint64_t when_ns, Event event) {
  ++events_;
  node_.schedule_.at(when_ns, *this, event);
}

void SimLink::fire(uint64_t event) {
  --events_;
  switch (event) {
    case kArrive:
      arrive();
      break;
    case kStep:
      stepping_ = false;
      if (!node_over_ && executed_ < arrived_) step();
      execute_arrived();
      break;
    case kNodeEnd:
      end_node_side();
      break;
    default:
      // An answer that comes after the client was told of the end is no longer heard.
      if (client_.connection.broken != 0 || client_.told) break;
      if (event == kAnswer) {
        ++answered_;
      } else {
        client_.told = true;
      }
      if (listener_ != nullptr) listener_->arrived();
  }
  if (is_over()) node_.collect(*this);
}

}  // namespace kvstore::sim
