// A job of the simulator: lines of `name=value` on standard input, and rows of JSON in return.
//
// What takes a line or parses a value returns what is wrong with it, or an empty string.
#pragma once

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

namespace kvstore::sim {

// Both included.
struct Seeds {
  uint64_t first = 1;
  uint64_t last = 1;
};

inline std::string parse_number(const std::string& name, const std::string& text, uint64_t least,
                                uint64_t most, uint64_t& number) {
  const char* const end = text.data() + text.size();
  uint64_t value = 0;
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || at != end || value < least || value > most) {
    return name + " is `" + text + "`; it may be " + std::to_string(least) + " to " +
           std::to_string(most);
  }
  number = value;
  return "";
}

inline std::string parse_seeds(const std::string& text, Seeds& seeds) {
  const size_t dash = text.find('-');
  const bool good =
      dash != std::string::npos &&
      parse_number("", text.substr(0, dash), 0, UINT64_MAX, seeds.first).empty() &&
      parse_number("", text.substr(dash + 1), seeds.first, UINT64_MAX, seeds.last).empty();
  return good ? "" : "seeds is `" + text + "`; it may be FIRST-LAST";
}

// Gives each line's name and value to `take`, up to the first that is wrong.
template <typename Take>
std::string read_job(Take&& take) {
  char buffer[4096];
  while (std::fgets(buffer, sizeof buffer, stdin) != nullptr) {
    buffer[std::strcspn(buffer, "\r\n")] = 0;
    const std::string line = buffer;
    if (line.empty()) continue;
    const size_t equals = line.find('=');
    if (equals == std::string::npos) return "`" + line + "` is not name=value";
    const std::string wrong = take(line.substr(0, equals), line.substr(equals + 1));
    if (!wrong.empty()) return wrong;
  }
  return "";
}

// As a string of JSON.
inline std::string quoted(const std::string& text) {
  std::string line = "\"";
  for (const char letter : text) {
    const bool plain = letter >= ' ' && letter != '"' && letter != '\\' && letter != 0x7f;
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\u%04x", unsigned(uint8_t(letter)));
    line += plain ? std::string(1, letter) : std::string(escaped);
  }
  return line + "\"";
}

}  // namespace kvstore::sim
