// The functions of isa.h for AVX-512 with its instructions for bf16 and int8 (VNNI).
#include "isa.h"
#if defined(__x86_64__)
// Before the pragma: what these define inline must run anywhere.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include <immintrin.h>
namespace kangaroo::avx512 {
void product(const Product& p, int64_t begin, int64_t end);
void norm(const float* x, const float* scale, float eps, int64_t width, float* y);
void rotate(float* x, const float* cos, const float* sin, int64_t width);
void attend(const Attend& a, int64_t from, int64_t to);
void from_bf16(const uint16_t* x, int64_t count, float* y);
void to_int8(const float* x, int64_t count, int8_t* y);
float highest(const float* values, int64_t size);
float highest_below(const float* values, int64_t size, float bound);
float mass(const float* values, int64_t size, float highest);
float search(const Search& s);
}  // namespace kangaroo::avx512

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma")
#endif
#define ISA avx512bf16
#define DOTS
#define LANES 16
#define ROW_TILE 12
#define MIX 4
#define AHEAD 64
#include "compute.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace kangaroo {
const Isa kAvx512Bf16 = {
    "AVX-512 BF16",
    avx512bf16::product,
    avx512::norm,
    avx512::rotate,
    avx512::attend,
    avx512bf16::to_bf16,
    avx512::from_bf16,
    avx512::to_int8,
    avx512::highest,
    avx512::highest_below,
    avx512::mass,
    avx512::search,
    true,
};
}  // namespace kangaroo
#endif
