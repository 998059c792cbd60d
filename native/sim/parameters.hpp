// The options of a world by name, as scenario files and the command line give them: whole numbers
// in a stated unit, each with its range and one line of help.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "sim/world.hpp"

namespace kvstore::sim {

struct Parameter {
  const char* name;
  const char* group;  // the table of a scenario file in which it stands
  const char* unit;   // empty for a count or a switch
  uint64_t scale;     // from the unit to that of the field
  uint64_t least;
  uint64_t most;
  const char* help;
  void (*set)(WorldOptions& options, uint64_t value);
  uint64_t (*get)(const WorldOptions& options);
};

std::span<const Parameter> parameters();

// Sets the parameter `name`. Returns an empty string, or one line that says what is wrong.
std::string set_parameter(WorldOptions& options, std::string_view name, std::string_view text);

// What no parameter alone can be wrong with: an empty string, or one line.
std::string check_parameters(const WorldOptions& options);

}  // namespace kvstore::sim
