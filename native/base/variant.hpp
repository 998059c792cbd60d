// Switches in production code that only the simulator's build has: rules that can be broken, so
// that the checkers are proved by catching it (`KV_VARIANT`), and rare legal paths that a seed may
// choose
// (`KV_BUGGIFY`, after FoundationDB). Everywhere else both are the constant false.
//
// The switches belong to the thread, as a simulated world does.

#pragma once

#ifdef KVSTORE_SIMULATION

#include <bitset>
#include <cstdint>

namespace kvstore {

enum class Variant : unsigned {
#define KV_VARIANT_ENTRY(name, description) name,
#include "base/variants.def"
  kCount
};

enum class RarePath : unsigned {
#define KV_BUGGIFY_ENTRY(name, per_million, description) name,
#include "base/variants.def"
  kCount
};

inline constexpr uint64_t kRarePerMillion[] = {
#define KV_BUGGIFY_ENTRY(name, per_million, description) per_million,
#include "base/variants.def"
};

using SwitchBits = std::bitset<128>;

struct Switches {
  SwitchBits variants;  // bit n: the n-th variant is on
  SwitchBits rare;      // bit n: the n-th rare path may be taken
  uint64_t state = 0;   // of the generator that decides when

  bool is_broken(Variant variant) const { return variants[unsigned(variant)]; }
  bool takes(RarePath path) {
    if (!rare[unsigned(path)]) return false;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % 1'000'000 < kRarePerMillion[unsigned(path)];
  }
};
static_assert(unsigned(Variant::kCount) <= SwitchBits{}.size() &&
              unsigned(RarePath::kCount) <= SwitchBits{}.size());

inline constinit thread_local Switches switches;

}  // namespace kvstore

#define KV_VARIANT(name) (::kvstore::switches.is_broken(::kvstore::Variant::name))
#define KV_BUGGIFY(name) (::kvstore::switches.takes(::kvstore::RarePath::name))

#else

#define KV_VARIANT(name) false
#define KV_BUGGIFY(name) false

#endif
