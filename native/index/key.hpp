// A key and where its hash puts it.
//
//   bits  0..31  suffix: chooses the directory entry, as many low bits as the directory is deep
//   bits 24..55  scaled: the first group
//   bits 56..63  fingerprint in the slot
// The second group and the two sides come from a mix of the whole hash. Positions in a subtable do
// not depend on the suffix, so a split moves every entry to the same group of the new subtable.

#pragma once

#include <cstdint>

#include "layout/layout.hpp"

namespace kvstore {

inline unsigned fingerprint_of(uint64_t hash) {
  return unsigned(hash >> 56);
}

struct Key {
  const uint8_t* data = nullptr;
  uint32_t bytes = 0;
  uint64_t hash = 0;

  unsigned fingerprint() const { return fingerprint_of(hash); }
};

Key make_key(const void* data, uint64_t bytes);

// One of the two combined buckets of a hash: two adjacent buckets of a group.
struct Position {
  unsigned group;
  unsigned side;  // 0: main0 and overflow, 1: overflow and main1

  uint64_t offset_in_subtable() const {
    return group * layout::kGroupBytes + side * layout::kBucketBytes;
  }
};

struct Positions {
  Position at[2];
};

// The two groups differ.
inline Positions positions_of(uint64_t hash) {
  uint64_t mixed = hash;  // the finaliser of splitmix64
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
  mixed ^= mixed >> 31;
  constexpr uint64_t kGroups = layout::kGroupsPerSubtable;
  const unsigned first = unsigned((uint64_t(uint32_t(hash >> 24)) * kGroups) >> 32);
  const unsigned step = unsigned(((mixed >> 32) * (kGroups - 1)) >> 32);
  const unsigned second = unsigned((first + 1 + step) % kGroups);
  return Positions{{{first, unsigned(mixed & 1)}, {second, unsigned(mixed >> 1 & 1)}}};
}

}  // namespace kvstore
