// Codes as an implementation that others trust computes them.

#include "base/siphash.hpp"

#include <doctest/doctest.h>

#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

namespace kvstore::test {

// Computed with OpenSSL: openssl mac -macopt hexkey:000102...0f -macopt size:16 SIPHASH
TEST_CASE("siphash: the codes of 0, 1, 2, ... are the known ones") {
  const std::pair<size_t, const char*> known[] = {
      {0, "a3817f04ba25a8e66df67214c7550293"},  {1, "da87c1d86b99af44347659119b22fc45"},
      {7, "a1f1ebbed8dbc153c0b84aa61ff08239"},  {8, "3b62a9ba6258f5610f83e264f31497b4"},
      {15, "5493e99933b0a8117e08ec0f97cfc3d9"}, {63, "5150d1772f50834a503e069a973fbd7c"}};
  SipKey key;
  std::iota(key.begin(), key.end(), uint8_t{0});
  for (const auto& [bytes, expected] : known) {
    CAPTURE(bytes);
    std::vector<uint8_t> message(bytes);
    std::iota(message.begin(), message.end(), uint8_t{0});
    std::string text;
    for (const uint8_t byte : siphash(key, message)) {
      char digits[3];
      std::snprintf(digits, sizeof digits, "%02x", byte);
      text += digits;
    }
    CHECK(text == expected);
  }
}

TEST_CASE("siphash: comparison tells every difference") {
  const std::vector<uint8_t> a{1, 2, 3};
  CHECK(equal_in_constant_time(a, std::vector<uint8_t>{1, 2, 3}));
  CHECK(!equal_in_constant_time(a, std::vector<uint8_t>{1, 2, 4}));
  CHECK(!equal_in_constant_time(a, std::vector<uint8_t>{0, 2, 3}));
  CHECK(!equal_in_constant_time(a, std::vector<uint8_t>{1, 2}));
  CHECK(!equal_in_constant_time(a, std::vector<uint8_t>{1, 2, 3, 0}));
}

}  // namespace kvstore::test
