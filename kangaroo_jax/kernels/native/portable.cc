// The functions of isa.h for any processor: SSE2, NEON, or what the compiler is told to use.
#include "isa.h"
#define ISA portable
#define LANES 4
#define ROW_TILE 6
#define MIX 2
#define AHEAD 64
#include "compute.inc"
#include "search.inc"

namespace kangaroo {
const Isa kPortable = {
    "portable",
    portable::product,
    portable::norm,
    portable::rotate,
    portable::attend,
    portable::to_bf16,
    portable::from_bf16,
    portable::to_int8,
    portable::highest,
    portable::highest_below,
    portable::mass,
    portable::search,
    false,
};
}  // namespace kangaroo
