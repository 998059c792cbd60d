// The tests of one program run worlds one after another.

#include "sim/heap.hpp"

namespace {

[[maybe_unused]] const bool kept = (kvstore::sim::keep_memory(), true);

}  // namespace
