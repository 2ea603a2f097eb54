// AVX-512 with VBMI2, VNNI and BF16 (Zen 4, Sapphire Rapids and later): products of few tokens, and of many in bf16 and
// int8.
#include "weight.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16,bmi,bmi2,popcnt,fma")
#include <immintrin.h>

#include <cstring>

#include "avx512.h"
#include "memory.h"

namespace squarehead {
namespace {

// ---- few tokens, fp32: rows

// Sums of an output that do not wait for each other. The same however many outputs are computed together, so that
// results do not depend on how threads share them.
template <int B>
constexpr int kChains = B == 1 ? 2 : 1;

// A range of rows or panels is cut into parts that are read side by side: each part is a stream of its own to the
// prefetcher of the processor, which follows one stream only so far ahead. Unit i of part p is first + p * step + i.
template <int B, bool kDense, int R>
void rows_together(const Weight& w, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t first, int64_t step) {
  constexpr int C = kChains<B>;
  const int64_t words = w.padded / 64, whole = kDense ? w.inputs / 64 : words;
  const auto* values = static_cast<const float*>(w.values);
  for (int64_t i = 0; i < step; i++) {
    const int64_t row = first + i;
    const float* v[R];
    const uint16_t* mask[R];  // 16 columns each
    __m512 a[R][B][C];
    for (int r = 0; r < R; r++) {
      v[r] = values + (kDense ? (row + r * step) * w.inputs : w.offsets[row + r * step]);
      mask[r] = kDense ? nullptr : static_cast<const uint16_t*>(w.masks) + (row + r * step) * words * 4;
      for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c++) a[r][b][c] = _mm512_setzero_ps();
    }
    for (int64_t word = 0; word < whole; word++) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        prefetch<kDense ? 4 : 2>(v[r]);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          const uint16_t bits = kDense ? 0 : mask[r][4 * word + j];
          const __m512 weight = kDense ? _mm512_loadu_ps(v[r]) : _mm512_castsi512_ps(expand32(bits, v[r]));
#pragma GCC unroll 8
          for (int b = 0; b < B; b++)
            a[r][b][j % C] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(x + b * ldx + word * 64 + 16 * j), a[r][b][j % C]);
          v[r] += kDense ? 16 : popcount(bits);
        }
      }
    }
    for (int64_t k = whole * 64; kDense && k < w.inputs; k += 16) {
      const __mmask16 lanes = first_lanes(w.inputs - k);
      for (int r = 0; r < R; r++, v[r - 1] += 16) {
        const __m512 weight = _mm512_maskz_loadu_ps(lanes, v[r]);
        for (int b = 0; b < B; b++)
          a[r][b][0] = _mm512_fmadd_ps(weight, _mm512_maskz_loadu_ps(lanes, x + b * ldx + k), a[r][b][0]);
      }
    }
    for (int r = 0; r < R; r++)
      for (int b = 0; b < B; b++) {
        __m512 sum = a[r][b][0];
        for (int c = 1; c < C; c++) sum = _mm512_add_ps(sum, a[r][b][c]);
        y[b * ldy + row + r * step] = _mm512_reduce_add_ps(sum) + (w.bias ? w.bias[row + r * step] : 0.0f);
      }
  }
}

template <int B, bool kDense>
void rows(const Weight& w, const float* x, int64_t ldx, float* y, int64_t ldy, int64_t first, int64_t last) {
    constexpr int R = B <= 2 ? 4 : B <= 4 ? 2 : 1;
  const int64_t step = (last - first) / R, rest = first + step * R;
  rows_together<B, kDense, R>(w, x, ldx, y, ldy, first, step);
  rows_together<B, kDense, 1>(w, x, ldx, y, ldy, rest, last - rest);
}

// ---- few tokens, bf16 and int8: panels

// One token's group times a register of weights. For bf16 two fp32 products: the instruction that has both takes longer
// than they do together on Intel.
template <Type kType>
SQUAREHEAD_INLINE __m512i multiply_add_few(__m512i sum, const uint8_t* input, __m512i weight) {
  if constexpr (kType == Type::int8) return multiply_add<kType>(sum, broadcast32(input), weight);
  const auto* pair = reinterpret_cast<const float*>(input);
  const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(weight, 16));
  const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(weight, _mm512_set1_epi32(int(0xffff0000))));
  const __m512 first = _mm512_fmadd_ps(even, _mm512_set1_ps(pair[0]), _mm512_castsi512_ps(sum));
  return _mm512_castps_si512(_mm512_fmadd_ps(odd, _mm512_set1_ps(pair[1]), first));
}

// bf16 tokens as the fp32 numbers that they are.
Input widened(const Weight& w, const Input& x) {
  thread_local Scratch memory;
  auto* out = static_cast<float*>(memory.get(size_t(x.tokens * w.padded) * 4));
  for (int64_t t = 0; t < x.tokens; t++) {
    const auto* in = reinterpret_cast<const uint16_t*>(static_cast<const uint8_t*>(x.data) + t * x.stride);
    for (int64_t k = 0; k < w.padded; k += 16) {
      const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + k)));
      _mm512_storeu_si512(out + t * w.padded + k, _mm512_slli_epi32(wide, 16));
    }
  }
  return {out, w.padded * 4, x.tokens, x.scale};
}

template <Type kType, int B, bool kDense, int P>
void panels_together(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t step) {
  constexpr int C = kChains<B>;
  const int64_t groups = w.padded / group_of(kType);
  const auto* data = static_cast<const uint8_t*>(x.data);  // 4 int8 or 2 fp32 of each group
  constexpr int kBytes = kType == Type::int8 ? 4 : 8;
  for (int64_t panel = first; panel < first + step; panel++) {
    Readers<kType, kDense, P> readers(w, panel, step);
    __m512i a[P][B][C];
    for (int p = 0; p < P; p++)
      for (int b = 0; b < B; b++)
        for (int c = 0; c < C; c++) a[p][b][c] = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; g += 4) {
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) readers.prefetch_ahead(p, g);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
          const __m512i weight = readers.next(p, g + j);
#pragma GCC unroll 8
          for (int b = 0; b < B; b++)
            a[p][b][j % C] = multiply_add_few<kType>(a[p][b][j % C], data + b * x.stride + kBytes * (g + j), weight);
        }
      }
    }
    for (int p = 0; p < P; p++)
      for (int b = 0; b < B; b++) {
        __m512i sum = a[p][b][0];
        for (int c = 1; c < C; c++) sum = add<kType>(sum, a[p][b][c]);
        finish<kType, true>(sum, w, x, panel + p * step, b, y + b * ldy);
      }
  }
}

template <Type kType, int B, bool kDense>
void panels(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
    constexpr int P = B <= 2 ? 4 : B <= 4 ? 2 : 1;
  const int64_t step = (last - first) / P, rest = first + step * P;
  panels_together<kType, B, kDense, P>(w, x, y, ldy, first, step);
  panels_together<kType, B, kDense, 1>(w, x, y, ldy, rest, last - rest);
}

template <int B>
void few_of(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  const bool dense = w.masks == nullptr;
  if (w.type == Type::fp32) {
    const auto* data = static_cast<const float*>(x.data);
    (dense ? rows<B, true> : rows<B, false>)(w, data, x.stride / 4, y, ldy, first, last);
  } else if (w.type == Type::bf16) {
    (dense ? panels<Type::bf16, B, true> : panels<Type::bf16, B, false>)(w, widened(w, x), y, ldy, first, last);
  } else {
    (dense ? panels<Type::int8, B, true> : panels<Type::int8, B, false>)(w, x, y, ldy, first, last);
  }
}

void few(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  using Function = void (*)(const Weight&, const Input&, float*, int64_t, int64_t, int64_t);
  static constexpr Function by_tokens[kFew] = {few_of<1>, few_of<2>, few_of<3>, few_of<4>,
                                               few_of<5>, few_of<6>, few_of<7>, few_of<8>};
  by_tokens[x.tokens - 1](w, x, y, ldy, first, last);
}

// ---- many tokens, bf16 and int8: a few panels are expanded into the cache, then multiplied as dense ones

template <Type kType, bool kDense>
void expanded(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  constexpr int P = 3, B = 8;              // 24 accumulators, 3 weights, 1 input: 28 of 32 registers
  constexpr int64_t kChunk = 96;           // groups: 18 KB of expanded weights stay in the first cache
  const int64_t groups = w.padded / group_of(kType), blocks = (x.tokens + B - 1) / B;
  thread_local Scratch weights, sums;
  auto* buffer = static_cast<uint8_t*>(weights.get(P * kChunk * 64));
  auto* partial = static_cast<__m512i*>(sums.get(size_t(blocks) * B * P * 64));
  for (int64_t panel = first; panel < last; panel += P) {
    const int count = int(last - panel < P ? last - panel : P);
    Readers<kType, kDense, P> readers(w, panel, 1, count);
    std::memset(static_cast<void*>(partial), 0, size_t(blocks) * B * P * 64);
    for (int64_t start = 0; start < groups; start += kChunk) {
      const int64_t n = groups - start < kChunk ? groups - start : kChunk;
      for (int p = 0; p < P; p++)
        for (int64_t g = 0; g < n; g++) _mm512_store_si512(buffer + (g * P + p) * 64, readers.next(p, start + g));
      for (int64_t block = 0; block < blocks; block++) {
        const uint8_t* data = static_cast<const uint8_t*>(x.data) + block * B * x.stride + 4 * start;
        __m512i* total = partial + block * B * P;
        __m512i a[B * P];
#pragma GCC unroll 24
        for (int i = 0; i < B * P; i++) a[i] = total[i];
        for (int64_t g = 0; g < n; g++) {
          const __m512i w0 = _mm512_load_si512(buffer + g * P * 64), w1 = _mm512_load_si512(buffer + (g * P + 1) * 64),
                        w2 = _mm512_load_si512(buffer + (g * P + 2) * 64);
#pragma GCC unroll 8
          for (int b = 0; b < B; b++) {
            const __m512i input = broadcast32(data + b * x.stride + 4 * g);
            a[b * P] = multiply_add<kType>(a[b * P], input, w0);
            a[b * P + 1] = multiply_add<kType>(a[b * P + 1], input, w1);
            a[b * P + 2] = multiply_add<kType>(a[b * P + 2], input, w2);
          }
        }
#pragma GCC unroll 24
        for (int i = 0; i < B * P; i++) total[i] = a[i];
      }
    }
    for (int64_t b = 0; b < x.tokens; b++)
      for (int p = 0; p < count; p++) finish<kType, true>(partial[b * P + p], w, x, panel + p, b, y + b * ldy);
  }
}

void many(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  const bool dense = w.masks == nullptr;
  if (w.type == Type::bf16)
    (dense ? expanded<Type::bf16, true> : expanded<Type::bf16, false>)(w, x, y, ldy, first, last);
  else
    (dense ? expanded<Type::int8, true> : expanded<Type::int8, false>)(w, x, y, ldy, first, last);
}

constexpr Isa kIsa = {"avx512",          avx512_quantize, avx512_to_bf16, few,           true,
                      many,              avx512_transpose, avx512_many_fp32, avx512_activate, avx512_dot,
                      avx512_softmax,    avx512_scores,   avx512_mix};

}  // namespace

const Isa* avx512_isa() {
  __builtin_cpu_init();
  const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
                    __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  return here ? &kIsa : nullptr;
}

}  // namespace squarehead

#else

namespace squarehead {
const Isa* avx512_isa() { return nullptr; }
}  // namespace squarehead

#endif
