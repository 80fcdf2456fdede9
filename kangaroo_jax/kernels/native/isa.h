// What is computed by code that exists once for each instruction set, and the views that it works on.
//
// Every function computes a row by the same operations in the same order, however many rows there are. That is what
// makes a verification of several tokens equal to as many single steps, bit by bit.
#pragma once

#include <cstdint>

namespace kangaroo {

constexpr int64_t kBlock = 32;  // Columns of a packed block.
constexpr int64_t kPair = kBlock / 2;  // Of a block of pairs: so many gates, then as many ups.

enum class Storage { kFloat, kBf16, kInt8 };

// A packed matrix, missing columns zero: [blocks][depth][kBlock] in fp32, [blocks][ceil(depth / 2)][kBlock][2] in bf16,
// [blocks][kHead + ceil(depth / 4)][kBlock][4] in int8. So two or four weights of a column lie in one 32-bit lane. The
// head of a block in int8: the scale of each column in fp32, then -128 times the sum of its weights in int32.
constexpr int64_t kHead = 2;
struct Matrix {
  const void* data = nullptr;
  Storage storage = Storage::kFloat;
  int64_t depth = 0;
  int64_t blocks = 0;
};

// Keys or values of one attention layer: [row][slot][width].
struct Cache {
  void* data = nullptr;
  bool bf16 = false;
};

enum class Finish {
  kStore,  // out = product (+ bias)
  kAdd,    // out += product, rounded to bf16 if `round`
  kGate,   // out = silu(gate) * up; blocks are pairs, `columns` counts the pairs
};

struct Product {
  const float* x = nullptr;  // [rows][stride], `depth` of them used
  // Whether x is stored as `matrix` is instead: bf16, [rows][2 * stride], and zero behind an odd depth; or what to_int8()
  // writes, [rows][4 * stride]. With a matrix in int8 it always is.
  bool narrow = false;
  int64_t stride = 0;
  int64_t rows = 0;
  Matrix matrix;
  float* out = nullptr;  // row r goes to out + place[r] * out_stride, or out + r * out_stride
  int64_t out_stride = 0;
  const int64_t* place = nullptr;
  int64_t columns = 0;
  const float* bias = nullptr;
  Finish finish = Finish::kStore;
  bool round = false;
};

struct Attend {
  const float* q = nullptr;  // [token][q_stride], heads in a row, rotated
  int64_t q_stride = 0;
  float* out = nullptr;  // [token][out_stride]
  int64_t out_stride = 0;
  const void* k = nullptr;  // of the sequence and key/value head: [slots][width]
  const void* v = nullptr;
  bool bf16 = false;
  const uint8_t* mask = nullptr;  // of the sequence: [token][slots], 1 is visible
  int64_t slots = 0;
  int64_t limit = 0;  // No slot from here on is visible.
  int64_t width = 0;
  int64_t heads = 0;  // query heads of this key/value head
  float scale = 0;
  // Slots in whose place each token's own key and value count for it, [token]; null where that is its own slot.
  const int32_t* twins = nullptr;
  int64_t first = 0;  // The slot of token 0.
  float* scores = nullptr;  // this chunk's own, of attend_floats()
};

constexpr int64_t kQueries = 16;  // Queries of one key/value head that are computed in one go, at most.
constexpr int64_t kGroup = 16;    // Slots are looked at in groups of so many, counted from slot 0.

// What `Attend::scores` has room for: scores of all queries, a tile of keys, and one key.
inline int64_t attend_floats(int64_t slots, int64_t width) {
  return kQueries * ((slots + kGroup - 1) / kGroup * kGroup) + width * kGroup + width;
}

// The logits of one token whose cuts are searched for.
struct Search {
  const float* logits = nullptr;
  int64_t size = 0;
  float highest = 0;
  float factor = 1;
  float top_k = 0;
  float top_p = 1;
  bool counted = false;  // Whether what top_k leaves in is known, `kth`: the lowest (logit - highest) * factor.
  float kth = 0;
  float last = 0;  // Probably not far from what is searched for.
  float* scratch = nullptr;  // of search_floats()
};

inline int64_t search_floats(int64_t size) { return size + 32; }

struct Isa {
  const char* name;
  // Columns of the blocks [begin, end).
  void (*product)(const Product&, int64_t begin, int64_t end);
  // y = x / sqrt(mean(x^2) + eps) * scale
  void (*norm)(const float* x, const float* scale, float eps, int64_t width, float* y);
  // Rotate pairs (x[i], x[i + width/2]) in place.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t width);
  // Queries [begin, end), at most kQueries; query number = token * heads + head.
  void (*attend)(const Attend&, int64_t begin, int64_t end);
  void (*to_bf16)(const float* x, int64_t count, uint16_t* y);  // y may begin where x does
  void (*from_bf16)(const uint16_t* x, int64_t count, float* y);
  // y = round(x / scale), zeros up to a multiple of 4, and then the scale, in fp32: the highest |x| / 127. Where that is
  // no number, so is the scale. y may begin where x does.
  void (*to_int8)(const float* x, int64_t count, int8_t* y);
  // The highest of some values; NaN if one of them is.
  float (*highest)(const float* values, int64_t size);
  // The highest of those values that are below another one; -infinity if there is none.
  float (*highest_below)(const float* values, int64_t size, float bound);
  // The sum of exp(value - highest).
  float (*mass)(const float* values, int64_t size, float highest);
  // The lowest (logit - highest) * factor that top_k and top_p leave in.
  float (*search)(const Search&);
  bool dots;  // whether there are instructions for products of bf16 pairs, and `narrow` is understood
};

extern const Isa kPortable;
#if defined(__x86_64__)
extern const Isa kAvx2;
extern const Isa kAvx512;
extern const Isa kAvx512Bf16;
#endif

const Isa& best_isa();

}  // namespace kangaroo
