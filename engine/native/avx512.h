// Pieces of the AVX-512 kernels, for the files that set their target to it before they include this.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "weight.h"

#define SQUAREHEAD_INLINE static inline __attribute__((always_inline))
#define SQUAREHEAD_INLINE_MEMBER inline __attribute__((always_inline))

namespace squarehead {

void avx512_quantize(const float* x, int64_t n, int64_t padded, bool is_unsigned, void* out, float* scale);
void avx512_to_bf16(const float* x, int64_t n, int64_t padded, uint16_t* out);
void avx512_transpose(const float* x, int64_t ldx, int64_t tokens, int64_t inputs, float* out, int64_t first,
                      int64_t last);
void avx512_many_fp32(const Weight& w, const float* transposed, int64_t tokens, float* y, int64_t ldy, int64_t first,
                      int64_t last);
void avx512_activate(Activation activation, const float* x, const float* up, float* y, int64_t n);
float avx512_dot(const float* a, const float* b, int64_t n);
void avx512_softmax(float* x, int64_t n);
void avx512_scores(const float* query, const float* keys, int64_t count, int64_t size, float scale, float* scores);
void avx512_mix(const float* weights, const float* values, int64_t count, int64_t size, float* y);

namespace {

SQUAREHEAD_INLINE int64_t popcount(uint64_t bits) { return __builtin_popcountll(bits); }
// Asks for `kLines` cache lines 4 KB ahead of `p`: into the second cache, which has room for that many.
template <int kLines>
SQUAREHEAD_INLINE void prefetch(const void* p) {
  for (int i = 0; i < kLines; i++) _mm_prefetch(static_cast<const char*>(p) + 4096 + 64 * i, _MM_HINT_T1);
}

// The first `n` of 16 lanes; none for n <= 0.
SQUAREHEAD_INLINE __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1);
}

SQUAREHEAD_INLINE __m512i iota16() {
  return _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8,
                          7, 6, 5, 4, 3, 2, 1, 0);
}

// Packed values to the lanes whose mask bit is set, zeros elsewhere; reads 64 bytes.
// The zero-masked form waits for the old value of its destination on Zen 4. Zeroing it first and merging does not, but
// gcc folds those two intrinsics back into one instruction: hence assembly.
#define SQUAREHEAD_EXPAND(name, instruction)                                                       \
  SQUAREHEAD_INLINE __m512i name(uint64_t mask, const void* packed) {                              \
    __m512i out;                                                                                   \
    const __m512i in = _mm512_loadu_si512(packed);                                                 \
    asm("vpxor %x0, %x0, %x0\n\t" instruction " %2, %0%{%1%}"                                      \
        : "=&x"(out)                                                                               \
        : "Yk"(static_cast<__mmask64>(mask)), "v"(in));                                            \
    return out;                                                                                    \
  }
SQUAREHEAD_EXPAND(expand32, "vpexpandd")
SQUAREHEAD_EXPAND(expand16, "vpexpandw")
SQUAREHEAD_EXPAND(expand8, "vpexpandb")
#undef SQUAREHEAD_EXPAND

// Walk the groups of P panels, each in order.
template <Type kType, bool kDense, int P>
class Readers {
 public:
  // Every `step`th panel from `panel` on, `count` of them; the others repeat the first.
  SQUAREHEAD_INLINE_MEMBER Readers(const Weight& w, int64_t panel, int64_t step, int count = P) {
    const int64_t groups = w.padded / group_of(kType);
    for (int p = 0; p < P; p++) {
      const int64_t at = panel + (p < count ? p * step : 0);
      masks_[p] = static_cast<const uint8_t*>(w.masks) + (kDense ? 0 : at * groups * kMaskBytes);
      values_[p] = static_cast<const uint8_t*>(w.values) +
                   (kDense ? at * groups * 64 : w.offsets[at] * size_of(kType));
    }
  }

  SQUAREHEAD_INLINE_MEMBER __m512i next(int p, int64_t group) {
    if constexpr (kDense) {
      const __m512i out = _mm512_loadu_si512(values_[p]);
      values_[p] += 64;
      return out;
    } else if constexpr (kType == Type::int8) {
      const uint64_t bits = reinterpret_cast<const uint64_t*>(masks_[p])[group];
      const __m512i out = expand8(bits, values_[p]);
      values_[p] += popcount(bits);
      return out;
    } else {
      const uint32_t bits = reinterpret_cast<const uint32_t*>(masks_[p])[group];
      const __m512i out = expand16(bits, values_[p]);
      values_[p] += 2 * popcount(bits);
      return out;
    }
  }

  // For 4 groups from `group` on.
  SQUAREHEAD_INLINE_MEMBER void prefetch_ahead(int p, int64_t group) const {
    prefetch<kDense ? 4 : 2>(values_[p]);
    if (!kDense) prefetch<1>(masks_[p] + group * kMaskBytes);
  }

 private:
  static constexpr int64_t kMaskBytes = kType == Type::int8 ? 8 : 4;
  const uint8_t* masks_[P];
  const uint8_t* values_[P];
};

SQUAREHEAD_INLINE __m512i broadcast32(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof value);
  return _mm512_set1_epi32(value);
}

template <Type kType>
SQUAREHEAD_INLINE __m512i multiply_add(__m512i sum, __m512i input, __m512i weight) {
  if constexpr (kType == Type::int8) return _mm512_dpbusd_epi32(sum, input, weight);
  return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), (__m512bh)weight, (__m512bh)input));
}

template <Type kType>
SQUAREHEAD_INLINE __m512i add(__m512i a, __m512i b) {
  if constexpr (kType == Type::int8) return _mm512_add_epi32(a, b);
  return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
}

// Sums of a panel's 16 rows for one token to outputs: scales and bias.
template <Type kType, bool kUnsigned>
SQUAREHEAD_INLINE void finish(__m512i sum, const Weight& w, const Input& x, int64_t panel, int64_t token, float* y) {
  const int64_t row = panel * kPanel;
  __m512 out;
  if constexpr (kType == Type::int8) {
    if (kUnsigned) sum = _mm512_sub_epi32(sum, _mm512_slli_epi32(_mm512_loadu_si512(w.sums + row), 7));
    out = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(x.scale[token]));
    out = _mm512_mul_ps(out, _mm512_loadu_ps(w.scale + row));
  } else {
    out = _mm512_castsi512_ps(sum);
  }
  if (w.bias) out = _mm512_add_ps(out, _mm512_loadu_ps(w.bias + row));
  _mm512_mask_storeu_ps(y + row, first_lanes(w.outputs - row), out);
}

}  // namespace
}  // namespace squarehead
