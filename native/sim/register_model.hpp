// What one key of the store is to its users: a register that holds nothing, or a value with a
// version, and refuses writes with an older fence than it has seen. The checker asks it whether an
// answer was possible.

#pragma once

#include <cstdint>

#include "sim/linearizability.hpp"

namespace kvstore::sim {

struct RegisterState {
  uint64_t value = 0;    // 0: the key is absent
  uint64_t version = 0;  // 0: nobody has seen it yet
  bool mortal = false;   // it has a time to live
  uint64_t fence = 0;    // the latest token of a write, that of a delete too
  bool operator==(const RegisterState&) const = default;
};

class RegisterModel {
 public:
  explicit RegisterModel(bool may_vanish) : may_vanish_(may_vanish) {}

  // Whether the operation, executed in `state`, could have had its outcome; if so `state` becomes
  // what it leaves. Of an unknown outcome: whether it has an effect at all.
  bool step(const Operation& operation, RegisterState& state) const {
    const bool reads =
        operation.kind == OperationKind::kGet || operation.kind == OperationKind::kContains;
    if (operation.kind == OperationKind::kWipe) {
      state = {};
      return true;
    }
    switch (operation.outcome) {
      case OperationOutcome::kAbsent:
        return operation.kind != OperationKind::kPut && passes_fence(operation, state) &&
               become_absent(state);
      case OperationOutcome::kConditionFailed:
        return !reads && !is_refused(operation, state) && condition_fails(operation, state);
      case OperationOutcome::kFenced:
        return !reads && operation.fence < state.fence;
      case OperationOutcome::kOk:
        return reads ? reads_this(operation, state) : changes(operation, state);
      case OperationOutcome::kUnknown:
        return !reads && changes(operation, state);
      default:
        return false;
    }
  }

 private:
  // What vanishes takes its fence along.
  bool is_refused(const Operation& operation, const RegisterState& state) const {
    return operation.fence != 0 && operation.fence < state.fence && !may_vanish_;
  }
  bool passes_fence(const Operation& operation, RegisterState& state) const {
    if (is_refused(operation, state)) return false;
    if (operation.fence != 0) state.fence = operation.fence;
    return true;
  }

  // Whoever is the first to see a version tells it.
  static bool is_version(RegisterState& state, uint64_t seen) {
    if (seen == 0) return true;
    if (state.version == 0) state.version = seen;
    return state.version == seen;
  }

  // No value has version 0, and whoever names a version has seen it.
  static bool has_version(const Operation& operation, const RegisterState& state) {
    return state.value != 0 && operation.if_version != 0 && state.version == operation.if_version;
  }

  static bool reads_this(const Operation& operation, RegisterState& state) {
    if (state.value == 0) return false;
    if (operation.kind == OperationKind::kGet && operation.value != state.value) return false;
    return is_version(state, operation.version);
  }

  bool become_absent(RegisterState& state) const {
    // Clients know the node's clock as of their heartbeats: at its end a value is gone for one
    // before it is for another.
    if (state.mortal) return true;
    if (state.value != 0 && !may_vanish_) return false;
    state = {.fence = state.fence};
    return true;
  }

  bool changes(const Operation& operation, RegisterState& state) const {
    if (!passes_fence(operation, state) || !condition_holds(operation, state)) return false;
    if (operation.kind == OperationKind::kPut) {
      state = {operation.value, operation.version, operation.mortal, state.fence};
      return true;
    }
    if (state.value == 0) {  // nothing to delete, but its fence stays
      return operation.outcome == OperationOutcome::kUnknown && operation.fence != 0;
    }
    if (!is_version(state, operation.version)) return false;
    state = {.fence = state.fence};
    return true;
  }

  bool condition_holds(const Operation& operation, RegisterState& state) const {
    switch (operation.condition) {
      case OperationCondition::kNone:
        return true;
      case OperationCondition::kIfAbsent:
        return become_absent(state);
      default:
        return has_version(operation, state);
    }
  }

  // A failed condition tells the version that it met, 0 where there was nothing.
  bool condition_fails(const Operation& operation, RegisterState& state) const {
    if (operation.condition == OperationCondition::kNone) return false;
    if (operation.condition == OperationCondition::kIfAbsent) {
      return state.value != 0 && is_version(state, operation.version);
    }
    if (operation.version == 0 && become_absent(state)) return true;
    return state.value != 0 && !has_version(operation, state) &&
           is_version(state, operation.version);
  }

  const bool may_vanish_;
};

}  // namespace kvstore::sim
