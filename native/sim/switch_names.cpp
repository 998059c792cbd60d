#include "sim/switch_names.hpp"

namespace kvstore::sim {
namespace {

constexpr SwitchName kVariants[] = {
#define KV_VARIANT_ENTRY(name, description) {#name, description},
#include "base/variants.def"
};

constexpr SwitchName kRarePaths[] = {
#define KV_BUGGIFY_ENTRY(name, per_million, description) {#name, description},
#include "base/variants.def"
};

}  // namespace

std::span<const SwitchName> variant_names() {
  return kVariants;
}

std::span<const SwitchName> rare_path_names() {
  return kRarePaths;
}

std::string read_switches(std::span<const SwitchName> known, std::string_view text,
                          SwitchBits& bits) {
  bits.reset();
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view name = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    size_t at = 0;
    while (at < known.size() && name != known[at].name) ++at;
    if (at == known.size()) return "there is no `" + std::string(name) + "`";
    bits.set(at);
  }
  return {};
}

}  // namespace kvstore::sim
