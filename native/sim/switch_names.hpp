// The switches of base/variants.def by name.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/variant.hpp"

namespace kvstore::sim {

struct SwitchName {
  const char* name;
  const char* description;
};
// Bit n of WorldOptions::variants and ::rare is the n-th of these.
std::span<const SwitchName> variant_names();
std::span<const SwitchName> rare_path_names();

// Reads names with commas between them. Returns an empty string, or one line that says what is
// wrong.
std::string read_switches(std::span<const SwitchName> known, std::string_view text,
                          SwitchBits& bits);

}  // namespace kvstore::sim
