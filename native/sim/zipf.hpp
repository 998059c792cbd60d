// Numbers from 0, the smaller the likelier, after Gray et al. (SIGMOD'94) as YCSB has it, without
// scrambling: number 0 is the hottest.

#pragma once

#include <cmath>
#include <cstdint>

#include "fabric/sim/schedule.hpp"

namespace kvstore::sim {

class Zipf {
 public:
  Zipf(uint64_t count, double exponent) : count_(count), exponent_(exponent) {
    if (exponent_ == 0) return;
    for (uint64_t i = 1; i <= count; ++i) sum_ += std::pow(1.0 / double(i), exponent);
    const double two = 1 + std::pow(0.5, exponent);
    alpha_ = 1 / (1 - exponent);
    eta_ = (1 - std::pow(2.0 / double(count), 1 - exponent)) / (1 - two / sum_);
  }

  uint64_t draw(Random& random) const {
    if (exponent_ == 0) return random.below(count_);
    const double share = double(random.next() >> 11) * 0x1p-53;
    if (share * sum_ < 1) return 0;
    if (share * sum_ < 1 + std::pow(0.5, exponent_)) return count_ > 1 ? 1 : 0;
    const double drawn = double(count_) * std::pow(eta_ * share - eta_ + 1, alpha_);
    const uint64_t number = uint64_t(drawn);
    return number < count_ ? number : count_ - 1;
  }

 private:
  const uint64_t count_;
  const double exponent_;  // below 1
  double sum_ = 0;
  double alpha_ = 0;
  double eta_ = 0;
};

}  // namespace kvstore::sim
