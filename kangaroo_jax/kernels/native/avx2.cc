// The functions of isa.h for AVX2 with FMA.
#include "isa.h"
#if defined(__x86_64__)
// Before the pragma: what these define inline must run anywhere.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA avx2
#define LANES 8
#define ROW_TILE 6
#define MIX 2
#define AHEAD 64
#include "compute.inc"
#include "search.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace kangaroo {
const Isa kAvx2 = {
    "AVX2",
    avx2::product,
    avx2::norm,
    avx2::rotate,
    avx2::attend,
    avx2::to_bf16,
    avx2::from_bf16,
    avx2::to_int8,
    avx2::highest,
    avx2::highest_below,
    avx2::mass,
    avx2::search,
    false,
};
}  // namespace kangaroo
#endif
