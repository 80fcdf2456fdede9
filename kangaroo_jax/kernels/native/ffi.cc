// The calls that XLA makes: arguments checked, work divided, and nothing computed here.

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "isa.h"
#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace kangaroo {
namespace ffi = xla::ffi;

const Isa& best_isa() {
  static const Isa& best = []() -> const Isa& {
#if defined(__x86_64__)
    const char* wanted = std::getenv("KANGAROO_KERNELS_ISA");
    const std::string most = wanted ? wanted : "";
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && most != kAvx2.name && most != kPortable.name) {
      const bool dots = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
      return dots && most != kAvx512.name ? kAvx512Bf16 : kAvx512;
    }
    if (avx2 && most != kPortable.name) return kAvx2;
#endif
    return kPortable;
  }();
  return best;
}

namespace {

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

ffi::Error invalid(const std::string& what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, "kernels: " + what); }

std::string shape_of(const ffi::AnyBuffer& buffer) {
  std::string text = "[";
  for (size_t i = 0; i < buffer.dimensions().size(); ++i) {
    text += (i ? ", " : "") + std::to_string(buffer.dimensions()[i]);
  }
  return text + "]";
}

// Collects the first thing that is wrong with the arguments.
class Checks {
 public:
  bool ok() const { return text_.empty(); }
  ffi::Error error() const { return invalid(text_); }

  void that(bool condition, const std::string& text) {
    if (!condition && text_.empty()) text_ = text;
  }

  // An array of one of two dtypes and of these dimensions (-1: any).
  void array(const char* name, const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> dimensions,
             ffi::DataType type, ffi::DataType other) {
    bool fits = buffer.dimensions().size() == dimensions.size();
    size_t axis = 0;
    for (int64_t size : dimensions) {
      fits = fits && (size < 0 || buffer.dimensions()[axis] == size);
      ++axis;
    }
    if (!fits) {
      std::string expected = "[";
      for (int64_t size : dimensions) {
        expected += (expected.size() > 1 ? ", " : "") + (size < 0 ? std::string("any") : std::to_string(size));
      }
      that(false, std::string(name) + " has shape " + shape_of(buffer) + "; expected " + expected + "]");
    }
    that(buffer.element_type() == type || buffer.element_type() == other,
         std::string(name) + " has another dtype than expected");
    const size_t width = buffer.element_count() ? buffer.size_bytes() / buffer.element_count() : 1;
    that(reinterpret_cast<uintptr_t>(buffer.untyped_data()) % width == 0, std::string(name) + " is not aligned");
  }

  void floats(const char* name, const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> dimensions) {
    array(name, buffer, dimensions, ffi::DataType::F32, ffi::DataType::F32);
  }

  // Floats of an array in fp32 or bf16; of the latter a copy, which lives as long as this does.
  const float* wide(const char* name, const ffi::AnyBuffer& buffer, int64_t size) {
    array(name, buffer, {size}, ffi::DataType::F32, ffi::DataType::BF16);
    if (!ok() || buffer.element_type() == ffi::DataType::F32) return static_cast<const float*>(buffer.untyped_data());
    widened_.emplace_back(size);
    best_isa().from_bf16(static_cast<const uint16_t*>(buffer.untyped_data()), size, widened_.back().data());
    return widened_.back().data();
  }

  Matrix matrix(const char* name, const ffi::AnyBuffer& buffer, int64_t depth, int64_t blocks) {
    Matrix matrix;
    if (buffer.element_type() == ffi::DataType::BF16) {
      matrix.storage = Storage::kBf16;
      array(name, buffer, {blocks, ceil_div(depth, 2), kBlock, 2}, ffi::DataType::BF16, ffi::DataType::BF16);
    } else if (buffer.element_type() == ffi::DataType::S8) {
      matrix.storage = Storage::kInt8;
      array(name, buffer, {blocks, kHead + ceil_div(depth, 4), kBlock, 4}, ffi::DataType::S8, ffi::DataType::S8);
      that(reinterpret_cast<uintptr_t>(buffer.untyped_data()) % 4 == 0, std::string(name) + " is not aligned");
      that(depth < 1 << 16, std::string(name) + " is too deep for sums in 32 bits");
    } else {
      floats(name, buffer, {blocks, depth, kBlock});
    }
    matrix.data = buffer.untyped_data();
    matrix.depth = depth;
    if (ok()) matrix.blocks = buffer.dimensions()[0];
    return matrix;
  }

 private:
  std::string text_;
  std::deque<std::vector<float>> widened_;
};

// Floats from one row of the workspace to the next. Rows a multiple of 4 KiB apart would share the same few lines of a
// cache.
int64_t row_stride(int64_t width) { return ceil_div(width, 16) * 16 + 16; }

int64_t matrix_bytes(const Matrix& matrix) {
  const int64_t each = matrix.storage == Storage::kFloat ? 4 : matrix.storage == Storage::kBf16 ? 2 : 1;
  return matrix.depth * matrix.blocks * kBlock * each;
}

// How many threads this work is worth: one for each so many operations or bytes.
int64_t worth(int64_t rows, int64_t bytes) { return 1 + std::max(bytes, rows * bytes / 8) / (64 << 10); }

// The rows of a block of tokens that matter: the first `count` tokens of each sequence, one after the other.
struct Rows {
  std::vector<int64_t> place;  // sequence * tokens + token
  std::vector<int64_t> first;  // row of a sequence's first token, and one more: all rows

  Rows(const ffi::AnyBuffer& count, int64_t batch, int64_t tokens) {
    const int32_t* counts = static_cast<const int32_t*>(count.untyped_data());
    place.reserve(batch * tokens);
    for (int64_t sequence = 0; sequence < batch; ++sequence) {
      first.push_back(place.size());
      const int64_t valid = std::min<int64_t>(std::max(counts[sequence], 0), tokens);
      for (int64_t token = 0; token < valid; ++token) place.push_back(sequence * tokens + token);
    }
    first.push_back(place.size());
  }

  int64_t size() const { return place.size(); }
};

// Set the rows of `data` to zero that are not among `rows`: they must not hold what was there before.
void clear_others(const Rows& rows, int64_t all, int64_t row_bytes, void* data) {
  auto next = rows.place.begin();
  for (int64_t row = 0; row < all; ++row) {
    if (next != rows.place.end() && *next == row) {
      ++next;
    } else {
      std::memset(static_cast<char*>(data) + row * row_bytes, 0, row_bytes);
    }
  }
}

void run_product(Team& team, const Product& product) {
  const int64_t blocks = product.matrix.blocks, chunk = blocks >= 32 ? 2 : 1;
  // A run of blocks for each thread: what a processor fetches ahead is then the thread's own next block. The runs'
  // chunks come in turn, so that who is done first takes over from the others.
  const int64_t runs = team.size(), run = ceil_div(blocks, runs);
  const Isa& isa = best_isa();
  team.run(runs * ceil_div(run, chunk), [&](int64_t index) {
    const int64_t first = index % runs * run, begin = first + index / runs * chunk;
    isa.product(product, begin, std::min({begin + chunk, first + run, blocks}));
  });
}

void read_rows(const Isa& isa, const ffi::AnyBuffer& x, int64_t row, int64_t width, float* y) {
  if (x.element_type() == ffi::DataType::BF16) {
    isa.from_bf16(static_cast<const uint16_t*>(x.untyped_data()) + row * width, width, y);
  } else {
    std::memcpy(y, static_cast<const float*>(x.untyped_data()) + row * width, width * 4);
  }
}

// Round a row of the workspace to what a matrix is stored in, in place, for a product with `narrow`.
void narrow_row(const Isa& isa, Storage storage, float* row, int64_t width) {
  if (storage == Storage::kInt8) return isa.to_int8(row, width, reinterpret_cast<int8_t*>(row));
  uint16_t* narrowed = reinterpret_cast<uint16_t*>(row);
  isa.to_bf16(row, width, narrowed);
  narrowed[width] = 0;
}

// Whether what a matrix is multiplied with is rounded first: to int8 as the matrix is, or to bf16, as XLA does it for a
// model in bf16.
bool narrows(const Isa& isa, const Matrix& matrix, bool bf16) {
  return matrix.storage == Storage::kInt8 || (bf16 && isa.dots && matrix.storage == Storage::kBf16);
}

constexpr int64_t kRowsAtOnce = 16;  // Rows of a chunk of what is done row by row.

template <class Body>
void for_rows(Team& team, int64_t rows, Body&& body) {
  team.run(ceil_div(rows, kRowsAtOnce), [&](int64_t chunk) {
    const int64_t end = std::min((chunk + 1) * kRowsAtOnce, rows);
    for (int64_t row = chunk * kRowsAtOnce; row < end; ++row) body(row);
  });
}

}  // namespace

// out = x @ matrix, or norm(x) @ matrix with a scale. Of each sequence the first `count` rows are multiplied, the
// others become zeros. args: x [B, T, depth], count [B], matrix, (scale [depth]).
static ffi::Error ProductCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::Result<ffi::AnyBuffer> out,
                              ffi::Result<ffi::AnyBuffer> workspace, float eps) {
  using ffi::DataType;
  if (args.size() != 3 && args.size() != 4) return invalid("a product takes 3 or 4 arrays");
  const ffi::AnyBuffer x = *args.get<ffi::AnyBuffer>(0), count = *args.get<ffi::AnyBuffer>(1);
  Checks checks;
  checks.array("x", x, {-1, -1, -1}, DataType::F32, DataType::BF16);
  if (!checks.ok()) return checks.error();
  const int64_t batch = x.dimensions()[0], tokens = x.dimensions()[1], depth = x.dimensions()[2];
  const int64_t stride = row_stride(depth);
  checks.array("count", count, {batch}, DataType::S32, DataType::S32);
  const Matrix matrix = checks.matrix("the matrix", *args.get<ffi::AnyBuffer>(2), depth, -1);
  checks.floats("the result", *out, {batch, tokens, -1});
  checks.floats("the workspace", *workspace, {batch * tokens * stride});
  const float* scale = nullptr;
  if (args.size() == 4) {
    scale = checks.wide("the scale", *args.get<ffi::AnyBuffer>(3), depth);
  }
  if (!checks.ok()) return checks.error();
  const int64_t columns = out->dimensions()[2];
  checks.that(ceil_div(columns, kBlock) == matrix.blocks, "the result has " + std::to_string(columns) +
              " columns, and the matrix " + std::to_string(matrix.blocks) + " blocks of 32");
  if (!checks.ok()) return checks.error();

  const Isa& isa = best_isa();
  const Rows rows(count, batch, tokens);
  const bool narrow = narrows(isa, matrix, x.element_type() == DataType::BF16);
  clear_others(rows, batch * tokens, columns * 4, out->untyped_data());
  if (rows.size() == 0 || columns == 0) return ffi::Error::Success();
  Team team(pool, worth(rows.size(), matrix_bytes(matrix)), 2);
  float* lines = static_cast<float*>(workspace->untyped_data());
  for_rows(team, rows.size(), [&](int64_t row) {
    float* values = lines + row * stride;
    read_rows(isa, x, rows.place[row], depth, values);
    if (scale) isa.norm(values, scale, eps, depth, values);
    if (narrow) narrow_row(isa, matrix.storage, values, depth);
  });
  Product product;
  product.narrow = narrow;
  product.x = lines;
  product.stride = stride;
  product.rows = rows.size();
  product.matrix = matrix;
  product.out = static_cast<float*>(out->untyped_data());
  product.place = rows.place.data();
  product.out_stride = product.columns = columns;
  run_product(team, product);
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(KangarooProduct3, ProductCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<float>("eps"));

namespace {

// The parts of a decoder layer; null where a model has none of the kind.
struct Layer {
  const float* input_norm = nullptr;
  Matrix qkv;
  const float* qkv_bias = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  Matrix o;
  const float* post_norm = nullptr;
  Matrix gate_up;
  Matrix down;
  Cache k, v;
};

// All layers of a call, on the rows of one block of tokens.
struct Stack {
  const Isa& isa;
  Team& team;
  const Rows& list;
  int64_t batch, tokens, width, heads, kv_heads, head_width, inner, slots;
  float eps;
  bool round;
  const float* cos;
  const float* sin;
  const uint8_t* mask;
  const int32_t* start;
  const int32_t* twins;
  float *x, *normed, *qkv, *mixed, *gated;  // rows of the workspace

  int64_t rows() const { return list.size(); }
  int64_t x_stride() const { return row_stride(width); }
  int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_width; }
  int64_t qkv_stride() const { return row_stride(qkv_width()); }
  int64_t mixed_stride() const { return row_stride(heads * head_width); }
  int64_t gated_stride() const { return row_stride(inner); }
  int64_t workspace() const {
    return batch * tokens * (2 * x_stride() + qkv_stride() + mixed_stride() + (inner ? gated_stride() : 0));
  }

  void set_workspace(float* at) {
    x = at;
    normed = x + rows() * x_stride();
    qkv = normed + rows() * x_stride();
    mixed = qkv + rows() * qkv_stride();
    gated = mixed + rows() * mixed_stride();
  }

  Product product(const float* from, int64_t stride, const Matrix& matrix, float* to, int64_t to_stride,
                  int64_t columns, Finish finish) const {
    Product p;
    p.x = from;
    p.stride = stride;
    p.rows = rows();
    p.matrix = matrix;
    p.out = to;
    p.out_stride = to_stride;
    p.columns = columns;
    p.finish = finish;
    p.round = round;
    p.narrow = narrows(isa, matrix, round);
    return p;
  }

  void narrow_rows(const Matrix& matrix, float* from, int64_t stride, int64_t count) {
    if (!narrows(isa, matrix, round)) return;
    for_rows(team, rows(), [&](int64_t row) { narrow_row(isa, matrix.storage, from + row * stride, count); });
  }

  // x, or its norm, for the product with a matrix.
  const float* normalise(const float* scale, const Matrix& matrix) {
    const bool narrow = narrows(isa, matrix, round);
    if (!scale && !narrow) return x;
    for_rows(team, rows(), [&](int64_t row) {
      const float* from = x + row * x_stride();
      float* to = normed + row * x_stride();
      if (scale) {
        isa.norm(from, scale, eps, width, to);
      } else {
        std::memcpy(to, from, width * 4);
      }
      if (narrow) narrow_row(isa, matrix.storage, to, width);
    });
    return normed;
  }

  // Where a row has the queries of a group, which the group's key and value follow.
  float* group_at(int64_t row, int64_t head) const {
    return qkv + row * qkv_stride() + head * (heads / kv_heads + 2) * head_width;
  }

  // As lax.dynamic_update_slice does, a block that would reach beyond the cache starts earlier.
  int64_t first_slot(int64_t sequence) const {
    return std::min(std::max<int64_t>(start[sequence], 0), slots - tokens);
  }

  // Norms and rotary positions of q and k; keys and values go to the cache.
  void place(const Layer& layer) {
    const int64_t group = heads / kv_heads;
    for_rows(team, rows(), [&](int64_t row) {
      const int64_t place = list.place[row], sequence = place / tokens;
      const float *c = cos + place * (head_width / 2), *s = sin + place * (head_width / 2);
      const int64_t slot = first_slot(sequence) + place % tokens;
      for (int64_t head = 0; head < kv_heads; ++head) {
        float *q = group_at(row, head), *k = q + group * head_width, *v = k + head_width;
        for (float* values = q; values < v; values += head_width) {
          const float* scale = values < k ? layer.q_norm : layer.k_norm;
          if (scale) isa.norm(values, scale, eps, head_width, values);
          isa.rotate(values, c, s, head_width);
        }
        const int64_t at = ((head * batch + sequence) * slots + slot) * head_width;
        put(layer.k, at, k);
        put(layer.v, at, v);
      }
    });
  }

  void put(const Cache& cache, int64_t at, const float* values) const {
    if (cache.bf16) {
      isa.to_bf16(values, head_width, static_cast<uint16_t*>(cache.data) + at);
    } else {
      std::memcpy(static_cast<float*>(cache.data) + at, values, head_width * 4);
    }
  }

  static const void* at(const Cache& cache, int64_t index) {
    return static_cast<const char*>(cache.data) + index * (cache.bf16 ? 2 : 4);
  }

  void attend(const Layer& layer) {
    const int64_t group = heads / kv_heads;
    int64_t most = 0;
    for (int64_t sequence = 0; sequence < batch; ++sequence) {
      most = std::max(most, list.first[sequence + 1] - list.first[sequence]);
    }
    // A chunk for each thread, if there are queries for so many; keys are rearranged once in each.
    const int64_t all = batch * kv_heads * most * group;
    const int64_t some = std::min(std::max<int64_t>(ceil_div(all, team.size()), 1), std::min(kQueries, most * group));
    const int64_t pieces = ceil_div(most * group, some);
    team.run(batch * kv_heads * pieces, [&](int64_t chunk) {
      const int64_t piece = chunk % pieces, row = chunk / pieces, head = row / batch, sequence = row % batch;
      const int64_t first = list.first[sequence], valid = list.first[sequence + 1] - first, queries = valid * group;
      if (piece * some >= queries) return;
      static thread_local std::vector<float> scores;
      scores.resize(attend_floats(slots, head_width));
      Attend a;
      a.q = group_at(first, head);
      a.q_stride = qkv_stride();
      a.out = mixed + first * mixed_stride() + head * group * head_width;
      a.out_stride = mixed_stride();
      a.k = at(layer.k, row * slots * head_width);
      a.v = at(layer.v, row * slots * head_width);
      a.bf16 = layer.k.bf16;
      a.mask = mask + sequence * tokens * slots;
      a.slots = slots;
      a.limit = std::min(std::max<int64_t>(start[sequence], 0) + tokens, slots);
      a.width = head_width;
      a.heads = group;
      a.twins = twins ? twins + sequence * tokens : nullptr;
      a.first = first_slot(sequence);
      a.scale = 1.0f / std::sqrt(static_cast<float>(head_width));
      a.scores = scores.data();
      isa.attend(a, piece * some, std::min((piece + 1) * some, queries));
    });
  }

  void run(const Layer& layer) {
    const float* input = normalise(layer.input_norm, layer.qkv);
    Product p = product(input, x_stride(), layer.qkv, qkv, qkv_stride(), qkv_width(), Finish::kStore);
    p.bias = layer.qkv_bias;
    run_product(team, p);
    place(layer);
    attend(layer);
    narrow_rows(layer.o, mixed, mixed_stride(), heads * head_width);
    run_product(team, product(mixed, mixed_stride(), layer.o, x, x_stride(), width, Finish::kAdd));
    if (!inner) return;
    input = normalise(layer.post_norm, layer.gate_up);
    run_product(team, product(input, x_stride(), layer.gate_up, gated, gated_stride(), inner, Finish::kGate));
    narrow_rows(layer.down, gated, gated_stride(), inner);
    run_product(team, product(gated, gated_stride(), layer.down, x, x_stride(), width, Finish::kAdd));
  }
};

constexpr int64_t kPhases = 10;  // Of a layer, at most.

}  // namespace

// Decoder layers, in place in their caches.
// args: x [B, T, D], cos and sin [B, T, hd/2], mask [B, T, S], start [B], count [B], (twins [B, T],) then of each layer:
// (input norm), qkv, (qkv bias), (q norm, k norm), o, (post norm, gate and up, down), k, v; at last (norm).
// results: x, the workspace, then k and v of each layer, which share their memory with the arguments.
static ffi::Error LayersCall(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results, int64_t layers,
                             int64_t heads, int64_t kv_heads, int64_t head_width, int64_t inner, float eps,
                             bool input_norm, bool qkv_bias, bool qk_norm, bool last_norm, bool has_twins) {
  using ffi::DataType;
  const int64_t each = 4 + input_norm + qkv_bias + 2 * qk_norm + 3 * (inner > 0);
  Checks checks;
  // What is computed from numbers as large as this one does not overflow.
  const int64_t most = 1 << 24;
  checks.that(layers >= 0 && layers <= most && heads > 0 && heads <= most && kv_heads > 0 && heads % kv_heads == 0 &&
              head_width > 0 && head_width <= most && head_width % 2 == 0 && inner >= 0 && inner <= most,
              "impossible numbers of layers, heads or columns");
  if (!checks.ok()) return checks.error();
  checks.that(static_cast<int64_t>(args.size()) == 6 + has_twins + layers * each + last_norm, "wrong number of arrays");
  checks.that(static_cast<int64_t>(results.size()) == 2 + 2 * layers, "wrong number of results");
  if (!checks.ok()) return checks.error();

  size_t next = 0;
  auto take = [&] { return *args.get<ffi::AnyBuffer>(next++); };
  const ffi::AnyBuffer x = take(), cos = take(), sin = take(), mask = take(), start = take(), count = take();
  checks.array("x", x, {-1, -1, -1}, DataType::F32, DataType::BF16);
  if (!checks.ok()) return checks.error();
  const int64_t batch = x.dimensions()[0], tokens = x.dimensions()[1], width = x.dimensions()[2];
  checks.floats("cos", cos, {batch, tokens, head_width / 2});
  checks.floats("sin", sin, {batch, tokens, head_width / 2});
  checks.array("mask", mask, {batch, tokens, -1}, DataType::PRED, DataType::PRED);
  checks.array("start", start, {batch}, DataType::S32, DataType::S32);
  checks.array("count", count, {batch}, DataType::S32, DataType::S32);
  if (!checks.ok()) return checks.error();
  const int32_t* twins = nullptr;
  const int64_t slots = mask.dimensions()[2], query_width = heads * head_width;
  const int64_t qkv_width = (heads + 2 * kv_heads) * head_width;
  checks.that(tokens <= slots, "a block of " + std::to_string(tokens) + " tokens does not fit " +
              std::to_string(slots) + " slots");

  if (has_twins) {
    const ffi::AnyBuffer given = take();
    checks.array("the twins", given, {batch, tokens}, DataType::S32, DataType::S32);
    twins = static_cast<const int32_t*>(given.untyped_data());
  }
  std::vector<Layer> stack(layers);
  int64_t most_bytes = 0;
  auto scale = [&](const char* name, bool given, int64_t size) -> const float* {
    if (!given) return nullptr;
    return checks.wide(name, take(), size);
  };
  auto matrix = [&](const char* name, int64_t depth, int64_t blocks) {
    const Matrix found = checks.matrix(name, take(), depth, blocks);
    if (checks.ok()) most_bytes = std::max(most_bytes, matrix_bytes(found));
    return found;
  };
  auto cache = [&](const char* name, size_t result) {
    const ffi::AnyBuffer buffer = take(), updated = **results.get<ffi::AnyBuffer>(result);
    const int64_t rows = batch * kv_heads;
    if (buffer.dimensions().size() == 2 && rows == 1) {
      checks.array(name, buffer, {slots, head_width}, DataType::F32, DataType::BF16);
    } else {
      checks.array(name, buffer, {rows, slots, head_width}, DataType::F32, DataType::BF16);
    }
    checks.that(buffer.untyped_data() == updated.untyped_data() && buffer.size_bytes() == updated.size_bytes(),
                std::string(name) + " is not updated in place");
    Cache found;
    found.data = buffer.untyped_data();
    found.bf16 = buffer.element_type() == DataType::BF16;
    return found;
  };
  for (int64_t index = 0; index < layers; ++index) {
    Layer& layer = stack[index];
    layer.input_norm = scale("the input norm", input_norm, width);
    layer.qkv = matrix("qkv", width, ceil_div(qkv_width, kBlock));
    layer.qkv_bias = scale("the bias of qkv", qkv_bias, qkv_width);
    layer.q_norm = scale("the norm of q", qk_norm, head_width);
    layer.k_norm = scale("the norm of k", qk_norm, head_width);
    layer.o = matrix("o", query_width, ceil_div(width, kBlock));
    if (inner) {
      layer.post_norm = scale("the norm before the MLP", true, width);
      layer.gate_up = matrix("gate and up", width, ceil_div(inner, kPair));
      layer.down = matrix("down", inner, ceil_div(width, kBlock));
    }
    layer.k = cache("the cache of keys", 2 + 2 * index);
    layer.v = cache("the cache of values", 3 + 2 * index);
    checks.that(layer.k.bf16 == layer.v.bf16, "keys and values have different dtypes");
    if (!checks.ok()) return checks.error();
  }
  const float* norm = scale("the last norm", last_norm, width);
  const ffi::AnyBuffer out = **results.get<ffi::AnyBuffer>(0), workspace = **results.get<ffi::AnyBuffer>(1);
  checks.array("the result", out, {batch, tokens, width}, x.element_type(), x.element_type());
  if (!checks.ok()) return checks.error();
  const Rows rows(count, batch, tokens);
  // Attention reads keys and values once for a few queries.
  const int64_t attention = rows.size() * heads * slots * head_width * 2;
  Team team(pool, std::max(worth(rows.size(), most_bytes), worth(1, attention)), kPhases * layers + 2);
  Stack s{best_isa(), team, rows, batch, tokens, width, heads, kv_heads, head_width, inner, slots, eps,
          x.element_type() == DataType::BF16, static_cast<const float*>(cos.untyped_data()),
          static_cast<const float*>(sin.untyped_data()), static_cast<const uint8_t*>(mask.untyped_data()),
          static_cast<const int32_t*>(start.untyped_data()), twins, nullptr, nullptr, nullptr, nullptr, nullptr};
  checks.floats("the workspace", workspace, {s.workspace()});
  if (!checks.ok()) return checks.error();
  clear_others(rows, batch * tokens, width * (s.round ? 2 : 4), out.untyped_data());
  if (rows.size() == 0) return ffi::Error::Success();
  s.set_workspace(static_cast<float*>(workspace.untyped_data()));

  for_rows(team, rows.size(), [&](int64_t row) {
    read_rows(s.isa, x, rows.place[row], width, s.x + row * s.x_stride());
  });
  for (const Layer& layer : stack) s.run(layer);
  for_rows(team, rows.size(), [&](int64_t row) {
    float* values = s.x + row * s.x_stride();
    const int64_t place = rows.place[row] * width;
    if (norm) s.isa.norm(values, norm, eps, width, values);
    if (s.round) {
      s.isa.to_bf16(values, width, static_cast<uint16_t*>(out.untyped_data()) + place);
    } else {
      std::memcpy(static_cast<float*>(out.untyped_data()) + place, values, width * 4);
    }
  });
  return ffi::Error::Success();
}

// The number is that of the order of weights and caches: a library that was compiled for another has no such function.
XLA_FFI_DEFINE_HANDLER_SYMBOL(KangarooLayers4, LayersCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("layers")
                                  .Attr<int64_t>("heads")
                                  .Attr<int64_t>("kv_heads")
                                  .Attr<int64_t>("head_width")
                                  .Attr<int64_t>("inner")
                                  .Attr<float>("eps")
                                  .Attr<bool>("input_norm")
                                  .Attr<bool>("qkv_bias")
                                  .Attr<bool>("qk_norm")
                                  .Attr<bool>("last_norm")
                                  .Attr<bool>("has_twins"));

// Move slots start[b] + path[b, t] of each sequence to start[b] + t, in place; path rises, so nothing is overwritten that
// is still to be moved. args: start [B], path [B, T], then caches [K * B, S, hd] or [S, hd]; results: the caches.
static ffi::Error MoveCall(ffi::RemainingArgs args, ffi::RemainingRets results) {
  using ffi::DataType;
  Checks checks;
  checks.that(args.size() >= 2 && args.size() == results.size() + 2, "wrong number of arrays");
  if (!checks.ok()) return checks.error();
  const ffi::AnyBuffer start = *args.get<ffi::AnyBuffer>(0), path = *args.get<ffi::AnyBuffer>(1);
  checks.array("start", start, {-1}, DataType::S32, DataType::S32);
  if (!checks.ok()) return checks.error();
  const int64_t batch = start.dimensions()[0];
  checks.array("path", path, {batch, -1}, DataType::S32, DataType::S32);
  if (!checks.ok()) return checks.error();
  const int64_t tokens = path.dimensions()[1];
  const int32_t* starts = static_cast<const int32_t*>(start.untyped_data());
  const int32_t* paths = static_cast<const int32_t*>(path.untyped_data());
  for (size_t index = 0; index < results.size(); ++index) {
    const ffi::AnyBuffer cache = *args.get<ffi::AnyBuffer>(index + 2), out = **results.get<ffi::AnyBuffer>(index);
    const int64_t axes = cache.dimensions().size();
    checks.that(axes == 3 || (axes == 2 && batch == 1), "a cache has shape " + shape_of(cache));
    checks.that(cache.untyped_data() == out.untyped_data() && cache.size_bytes() == out.size_bytes(),
                "a cache is not updated in place");
    if (!checks.ok()) return checks.error();
    const int64_t rows = axes == 3 ? cache.dimensions()[0] : 1, slots = cache.dimensions()[axes - 2];
    checks.that(rows % batch == 0, "a cache has shape " + shape_of(cache));
    if (!checks.ok() || cache.element_count() == 0) continue;
    const int64_t bytes = cache.size_bytes() / (rows * slots);
    for (int64_t row = 0; row < rows; ++row) {
      char* data = static_cast<char*>(cache.untyped_data()) + row * slots * bytes;
      const int64_t first = starts[row % batch];
      for (int64_t token = 0; token < tokens; ++token) {
        const int64_t from = first + paths[row % batch * tokens + token], to = first + token;
        if (from != to && to >= 0 && from > to && from < slots) std::memcpy(data + to * bytes, data + from * bytes, bytes);
      }
    }
  }
  return checks.ok() ? ffi::Error::Success() : checks.error();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(KangarooMove, MoveCall, ffi::Ffi::Bind().RemainingArgs().RemainingRets());

// The place of the highest value of each row of x [B, T, size]; with a second result its softmax, and with a third the
// places of the next lower values [B, T, K]; of each sequence the first `count` rows, 0 elsewhere.
ffi::Error HighestCall(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer count, ffi::Result<ffi::AnyBuffer> out,
                       ffi::RemainingRets more) {
  using ffi::DataType;
  constexpr int64_t kPart = 4 << 10;  // Values whose highest is found first; its place, in the part that has it.
  Checks checks;
  checks.floats("x", x, {-1, -1, -1});
  if (!checks.ok()) return checks.error();
  const int64_t batch = x.dimensions()[0], tokens = x.dimensions()[1], size = x.dimensions()[2];
  checks.array("count", count, {batch}, DataType::S32, DataType::S32);
  checks.array("the result", *out, {batch, tokens}, DataType::S32, DataType::S32);
  checks.that(size > 0, "there is no highest of no values");
  checks.that(more.size() <= 2, "there are one to three results");
  if (!checks.ok()) return checks.error();
  float* shares = nullptr;
  if (more.size() > 0) {
    const ffi::AnyBuffer share = **more.get<ffi::AnyBuffer>(0);
    checks.floats("the share", share, {batch, tokens});
    if (!checks.ok()) return checks.error();
    shares = static_cast<float*>(share.untyped_data());
  }
  int32_t* others = nullptr;
  int64_t each = 0;
  if (more.size() > 1) {
    const ffi::AnyBuffer other = **more.get<ffi::AnyBuffer>(1);
    checks.array("the others", other, {batch, tokens, -1}, DataType::S32, DataType::S32);
    if (!checks.ok()) return checks.error();
    others = static_cast<int32_t*>(other.untyped_data());
    each = other.dimensions()[2];
  }
  const Isa& isa = best_isa();
  const Rows rows(count, batch, tokens);
  clear_others(rows, batch * tokens, 4, out->untyped_data());
  if (shares) clear_others(rows, batch * tokens, 4, shares);
  if (others) clear_others(rows, batch * tokens, 4 * each, others);
  const int64_t parts = ceil_div(size, kPart);
  std::vector<float> found(rows.size() * parts), most(rows.size());
  auto part_of = [&](int64_t row, int64_t part) {
    return static_cast<const float*>(x.untyped_data()) + rows.place[row] * size + part * kPart;
  };
  auto size_of = [&](int64_t part) { return std::min(kPart, size - part * kPart); };
  Team team(pool, worth(rows.size(), size * 4), 3);
  team.run(rows.size() * parts, [&](int64_t chunk) {
    const int64_t part = chunk % parts;
    found[chunk] = isa.highest(part_of(chunk / parts, part), size_of(part));
  });
  for_rows(team, rows.size(), [&](int64_t row) {
    const float* highest = &found[row * parts];
    auto odd = [](float value) { return value != value; };
    const float* part = std::find_if(highest, highest + parts, odd);
    if (part == highest + parts) part = std::max_element(highest, highest + parts);
    auto place_in = [&](int64_t part, float wanted) {
      const float* values = part_of(row, part);
      auto right = [&](float value) { return value == wanted || (odd(wanted) && odd(value)); };
      return static_cast<int32_t>(part * kPart + (std::find_if(values, values + size_of(part), right) - values));
    };
    most[row] = *part;
    static_cast<int32_t*>(out->untyped_data())[rows.place[row]] = place_in(part - highest, *part);
    float bound = *part;
    for (int64_t k = 0; k < each; ++k) {
      int64_t where = 0;
      float next = -INFINITY;
      for (int64_t index = 0; index < parts; ++index) {
        const float found = isa.highest_below(part_of(row, index), size_of(index), bound);
        if (found > next) where = index;
        next = std::max(next, found);
      }
      others[rows.place[row] * each + k] = next == -INFINITY ? 0 : place_in(where, next);
      bound = next;
    }
  });
  if (!shares) return ffi::Error::Success();
  team.run(rows.size() * parts, [&](int64_t chunk) {
    const int64_t part = chunk % parts;
    found[chunk] = isa.mass(part_of(chunk / parts, part), size_of(part), most[chunk / parts]);
  });
  for (int64_t row = 0; row < rows.size(); ++row) {
    float mass = 0;
    for (int64_t part = 0; part < parts; ++part) mass += found[row * parts + part];
    shares[rows.place[row]] = 1.0f / mass;
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(KangarooHighest2, HighestCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .RemainingRets());

ffi::Error SearchCall(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer highest, ffi::AnyBuffer factor,
                      ffi::AnyBuffer top_k, ffi::AnyBuffer top_p, ffi::AnyBuffer kth, ffi::AnyBuffer last,
                      ffi::AnyBuffer counted, ffi::AnyBuffer sought, ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> workspace) {
  Checks checks;
  checks.floats("logits", logits, {-1, -1});
  if (!checks.ok()) return checks.error();
  const int64_t batch = logits.dimensions()[0], size = logits.dimensions()[1];
  checks.floats("highest", highest, {batch});
  checks.floats("factor", factor, {batch});
  checks.floats("top_k", top_k, {batch});
  checks.floats("top_p", top_p, {batch});
  checks.floats("kth", kth, {batch});
  checks.floats("last", last, {batch});
  checks.array("counted", counted, {batch}, ffi::DataType::PRED, ffi::DataType::PRED);
  checks.array("sought", sought, {batch}, ffi::DataType::PRED, ffi::DataType::PRED);
  checks.floats("the result", *out, {batch});
  checks.floats("the workspace", *workspace, {batch, search_floats(size)});
  if (!checks.ok()) return checks.error();
  auto of = [](const ffi::AnyBuffer& buffer, int64_t row) { return static_cast<const float*>(buffer.untyped_data())[row]; };
  auto flag = [](const ffi::AnyBuffer& buffer, int64_t row) {
    return static_cast<const uint8_t*>(buffer.untyped_data())[row] != 0;
  };
  Team team(pool, batch, 1);
  std::atomic<int64_t> next{0};
  // A thread has scratch of its own, which stays in the cache of its core.
  team.run(team.size(), [&](int64_t thread) {
    for (int64_t row; (row = next.fetch_add(1, std::memory_order_relaxed)) < batch;) {
      float found = of(kth, row);
      if (flag(sought, row)) {
        found = best_isa().search({static_cast<const float*>(logits.untyped_data()) + row * size, size, of(highest, row),
                                   of(factor, row), of(top_k, row), of(top_p, row), flag(counted, row), found, of(last, row),
                                   static_cast<float*>(workspace->untyped_data()) + thread * search_floats(size)});
      }
      static_cast<float*>(out->untyped_data())[row] = found;
    }
  });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(KangarooSearch, SearchCall,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

}  // namespace kangaroo

extern "C" const char* kangaroo_kernels_isa() { return kangaroo::best_isa().name; }
