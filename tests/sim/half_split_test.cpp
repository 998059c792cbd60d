// What looks for references meets a split that has carried nothing yet.

#include <doctest/doctest.h>

#include "base/variant.hpp"
#include "layout/object.hpp"
#include "store/unreferenced.hpp"
#include "tests/index/half_split.hpp"

namespace kvstore::test {
namespace {

// Of the objects in the group, how many the index leads to.
struct Looked {
  unsigned objects = 0;
  unsigned referenced = 0;
};

Looked look_at_all(HalfSplit& half) {
  Looked looked;
  RawClient client(half.full.region, 2);
  REQUIRE(client.run([&] { return client.directory.refresh(client.remote); }) == Status::kOk);
  for (unsigned i = 0; i < layout::kSlotsPerGroup; ++i) {
    const layout::Slot slot = half.slot(half.in_source(), i);
    if (slot.empty()) continue;
    layout::ObjectHeader header;
    std::memcpy(&header, half.full.region.data() + slot.offset(), sizeof header);
    bool referenced = false;
    const Status s = client.run([&] {
      return is_referenced(client.remote, client.directory, header.key_hash, slot.address(),
                           referenced);
    });
    REQUIRE(s == Status::kOk);
    ++looked.objects;
    looked.referenced += referenced;
  }
  return looked;
}

}  // namespace

TEST_CASE("sweeps: objects that a split is to carry are referenced") {
  HalfSplit half;
  const Looked looked = look_at_all(half);
  CHECK(looked.objects > 8);
  CHECK(looked.referenced == looked.objects);
}

TEST_CASE("broken variants: sweep_ignores_splits is caught in the middle of a split") {
  HalfSplit half;
  switches.variants.set(unsigned(Variant::sweep_ignores_splits));
  const Looked looked = look_at_all(half);
  switches.variants.reset();
  CHECK(looked.referenced < looked.objects);
}

}  // namespace kvstore::test
