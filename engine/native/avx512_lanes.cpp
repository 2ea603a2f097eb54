// AVX-512, many fp32 tokens: tokens are lanes, and only non-zero weights are multiplied.
#include "weight.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16,bmi,bmi2,popcnt,fma")
#include <immintrin.h>

#include <cstring>

#include "avx512.h"
#include "memory.h"

namespace squarehead {
namespace {

SQUAREHEAD_INLINE __m512 pairs_low(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

SQUAREHEAD_INLINE __m512 pairs_high(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

void transpose16(const float* from, int64_t ld_from, int64_t rows, float* to, int64_t ld_to, int64_t columns) {
  __m512 r[16], t[16];
  const __mmask16 lanes = first_lanes(columns);
  for (int i = 0; i < 16; i++)
    r[i] = i < rows ? _mm512_maskz_loadu_ps(lanes, from + i * ld_from) : _mm512_setzero_ps();
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i] = pairs_low(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = pairs_high(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = pairs_low(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = pairs_high(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
  for (int i = 0; i < columns; i++) _mm512_storeu_ps(to + i * ld_to, r[i]);
}

// Tokens are cut into blocks of 128 lanes and a last one of 16 to 128; a block is [inputs][lanes].
constexpr int64_t kLanes = 128;
int64_t lanes_of(int64_t tokens) { return tokens > 64 ? 128 : tokens > 32 ? 64 : tokens > 16 ? 32 : 16; }

}  // namespace

void avx512_transpose(const float* x, int64_t ldx, int64_t tokens, int64_t inputs, float* out, int64_t first,
                      int64_t last) {
  for (int64_t start = 0; start < tokens; start += kLanes) {
    const int64_t count = tokens - start < kLanes ? tokens - start : kLanes, lanes = lanes_of(count);
    float* block = out + start * inputs;
    for (int64_t k = first; k < last; k += 16)
      for (int64_t t = 0; t < lanes; t += 16)
        transpose16(x + (start + t) * ldx + k, ldx, count - t, block + k * lanes + t, lanes,
                    inputs - k < 16 ? inputs - k : 16);
  }
}

namespace {

constexpr int64_t lanes_bytes(int V) { return V * 64; }  // of one column of the inputs

template <int V>
SQUAREHEAD_INLINE void add_weight(float value, const uint8_t* lanes, __m512* sums) {
  const __m512 weight = _mm512_set1_ps(value);
#pragma GCC unroll 8
  for (int j = 0; j < V; j++)
    sums[j] = _mm512_fmadd_ps(weight, _mm512_load_ps(reinterpret_cast<const float*>(lanes) + 16 * j), sums[j]);
}

// Adds a row's products to its sums for V registers of 16 tokens. `offsets`: where the inputs of each weight are, in
// bytes.
template <int V>
inline void add_row(const float* values, const uint16_t* offsets, int64_t n, const uint8_t* x, float* sums) {
  constexpr int S = V >= 8 ? 1 : 8 / V, U = S > 1 ? S : 2;  // 8 sums that do not wait for each other
  __m512 a[S][V];
#pragma GCC unroll 8
  for (int s = 0; s < S; s++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) a[s][j] = s == 0 ? _mm512_load_ps(sums + 16 * j) : _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + U <= n; i += U)
#pragma GCC unroll 8
    for (int u = 0; u < U; u++) add_weight<V>(values[i + u], x + offsets[i + u], a[u % S]);
  for (; i < n; i++) add_weight<V>(values[i], x + offsets[i], a[0]);
#pragma GCC unroll 8
  for (int j = 0; j < V; j++) {
#pragma GCC unroll 8
    for (int s = 1; s < S; s++) a[0][j] = _mm512_add_ps(a[0][j], a[s][j]);
    _mm512_store_ps(sums + 16 * j, a[0][j]);
  }
}

// Byte offsets of the inputs of the set bits, whose first is column `base`; writes whole registers.
template <int V>
inline int64_t offsets_of(uint64_t bits, int base, uint16_t* out) {
  constexpr int kShift = V == 8 ? 9 : V == 4 ? 8 : V == 2 ? 7 : 6;
  static_assert(1 << kShift == lanes_bytes(V), "a shift multiplies by the bytes of a column");
  const __m512i low = _mm512_add_epi16(iota16(), _mm512_set1_epi16(short(base)));
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(32));
  const auto half = uint32_t(bits), other = uint32_t(bits >> 32);
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi16(half, _mm512_slli_epi16(low, kShift)));
  const int64_t n = popcount(half);
  _mm512_storeu_si512(out + n, _mm512_maskz_compress_epi16(other, _mm512_slli_epi16(high, kShift)));
  return n + popcount(other);
}

template <int V>
void lanes_block(const Weight& w, const float* x, int64_t tokens, float* y, int64_t ldy, int64_t first, int64_t last) {
  constexpr int64_t kRows = 128, kWords = V == 8 ? 1 : V == 4 ? 2 : 4;  // inputs of a tile fill 16 to 32 KB
  const int64_t words = w.padded / 64, lanes = V * 16;
  const auto* masks = static_cast<const uint64_t*>(w.masks);
  const auto* values = static_cast<const float*>(w.values);
  thread_local Scratch memory;
  auto* sums = static_cast<float*>(memory.get(size_t(kRows * lanes) * 4));
  alignas(64) uint16_t offsets[kWords * 64 + 64];
  const float* next[kRows];
  for (int64_t top = first; top < last; top += kRows) {
    const int64_t count = last - top < kRows ? last - top : kRows;
    std::memset(sums, 0, size_t(kRows * lanes) * 4);
    for (int64_t r = 0; r < count; r++) next[r] = values + (masks ? w.offsets[top + r] : (top + r) * w.inputs);
    for (int64_t word = 0; word < words; word += kWords) {
      const int64_t end = word + kWords < words ? word + kWords : words;
      for (int64_t r = 0; r < count; r++) {
        int64_t n = 0;
        for (int64_t i = word; i < end; i++) {
          const int64_t left = w.inputs - i * 64;
          const uint64_t all = left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
          n += offsets_of<V>(masks ? masks[(top + r) * words + i] : all, int((i - word) * 64), offsets + n);
        }
        add_row<V>(next[r], offsets, n, reinterpret_cast<const uint8_t*>(x + word * 64 * lanes), sums + r * lanes);
        next[r] += n;
      }
    }
    if (w.bias)
      for (int64_t r = 0; r < count; r++)
        for (int64_t t = 0; t < lanes; t++) sums[r * lanes + t] += w.bias[top + r];
    for (int64_t r = 0; r < count; r += 16) {
      const int64_t outputs = count - r < 16 ? count - r : 16;
      for (int64_t t = 0; t < tokens; t += 16) {
        alignas(64) float tile[256];
        transpose16(sums + r * lanes + t, lanes, outputs, tile, 16, 16);
        for (int64_t i = 0; i < 16 && t + i < tokens; i++)
          _mm512_mask_storeu_ps(y + (t + i) * ldy + top + r, first_lanes(outputs), _mm512_load_ps(tile + 16 * i));
      }
    }
  }
}

}  // namespace

void avx512_many_fp32(const Weight& w, const float* transposed, int64_t tokens, float* y, int64_t ldy, int64_t first,
                      int64_t last) {
  for (int64_t start = 0; start < tokens; start += kLanes) {
    const int64_t count = tokens - start < kLanes ? tokens - start : kLanes, lanes = lanes_of(count);
    const float* x = transposed + start * w.inputs;
    float* out = y + start * ldy;
    if (lanes == 128) lanes_block<8>(w, x, count, out, ldy, first, last);
    else if (lanes == 64) lanes_block<4>(w, x, count, out, ldy, first, last);
    else if (lanes == 32) lanes_block<2>(w, x, count, out, ldy, first, last);
    else lanes_block<1>(w, x, count, out, ldy, first, last);
  }
}

}  // namespace squarehead

#endif
