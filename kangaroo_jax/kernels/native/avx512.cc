// The functions of isa.h for AVX-512.
#include "isa.h"
#if defined(__x86_64__)
// Before the pragma: what these define inline must run anywhere.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
#define ISA avx512
#define LANES 16
#define ROW_TILE 12
#define MIX 4
#define AHEAD 64
#include "compute.inc"
#include "search.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace kangaroo {
const Isa kAvx512 = {
    "AVX-512",
    avx512::product,
    avx512::norm,
    avx512::rotate,
    avx512::attend,
    avx512::to_bf16,
    avx512::from_bf16,
    avx512::to_int8,
    avx512::highest,
    avx512::highest_below,
    avx512::mass,
    avx512::search,
    false,
};
}  // namespace kangaroo
#endif
