// AVX-512 with VBMI2, VNNI and BF16: Zen 4, Sapphire Rapids and later.
#include "weight.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16,bmi,bmi2,popcnt,fma")
#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstring>

#include "avx512.h"
#include "memory.h"

namespace squarehead {
namespace {

// ---- inputs

void quantize(const float* x, int64_t n, int64_t padded, bool is_unsigned, void* out, float* scale) {
  // the largest magnitude by its bits: so NaN wins over everything and reaches the scale
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t k = 0; k < n; k += 16) {
    const __m512i bits = _mm512_maskz_loadu_epi32(first_lanes(n - k), x + k);
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, magnitude));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  float most;
  std::memcpy(&most, &bits, sizeof most);
  float s = most / 127.0f;
  if (s < FLT_MIN) s = 1.0f;
  *scale = s;
  const __m512 divisor = _mm512_set1_ps(s);
  const __m128i flip = _mm_set1_epi8(is_unsigned ? char(0x80) : char(0));
  auto* q = static_cast<uint8_t*>(out);
  for (int64_t k = 0; k < padded; k += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(n - k), x + k);
    const __m128i i = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_div_ps(v, divisor)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + k), _mm_xor_si128(i, flip));
  }
}

void to_bf16(const float* x, int64_t n, int64_t padded, uint16_t* out) {
  for (int64_t k = 0; k < padded; k += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(n - k), x + k);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k), (__m256i)_mm512_cvtneps_pbh(v));
  }
}

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

// ---- many tokens, fp32: tokens are lanes, and only non-zero weights are multiplied

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

void transpose(const float* x, int64_t ldx, int64_t tokens, int64_t inputs, float* out, int64_t first, int64_t last) {
  for (int64_t start = 0; start < tokens; start += kLanes) {
    const int64_t count = tokens - start < kLanes ? tokens - start : kLanes, lanes = lanes_of(count);
    float* block = out + start * inputs;
    for (int64_t k = first; k < last; k += 16)
      for (int64_t t = 0; t < lanes; t += 16)
        transpose16(x + (start + t) * ldx + k, ldx, count - t, block + k * lanes + t, lanes,
                    inputs - k < 16 ? inputs - k : 16);
  }
}

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

void many_fp32(const Weight& w, const float* transposed, int64_t tokens, float* y, int64_t ldy, int64_t first,
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

// ---- what a decoder needs beside linears

// e^x to about 2 ulp: 2^n times a polynomial of the rest in [-ln2 / 2, ln2 / 2].
__m512 exponential(__m512 x) {
  // in this order of operands NaN stays NaN
  x = _mm512_max_ps(_mm512_set1_ps(-87.0f), _mm512_min_ps(_mm512_set1_ps(88.0f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  constexpr float kTaylor[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (float c : kTaylor) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

void gated(const float* gate, const float* up, float* y, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 lanes = first_lanes(n - k);
    const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + k), u = _mm512_maskz_loadu_ps(lanes, up + k);
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), g))));
    _mm512_mask_storeu_ps(y + k, lanes, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), u));
  }
}

float dot(const float* a, const float* b, int64_t n) {
  __m512 s0 = _mm512_setzero_ps(), s1 = s0;
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) {
    s0 = _mm512_fmadd_ps(_mm512_loadu_ps(a + k), _mm512_loadu_ps(b + k), s0);
    s1 = _mm512_fmadd_ps(_mm512_loadu_ps(a + k + 16), _mm512_loadu_ps(b + k + 16), s1);
  }
  for (; k < n; k += 16) {
    const __mmask16 lanes = first_lanes(n - k);
    s0 = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, a + k), _mm512_maskz_loadu_ps(lanes, b + k), s0);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(s0, s1));
}

void softmax(float* x, int64_t n) {
  const __m512 lowest = _mm512_set1_ps(-FLT_MAX);
  __m512 most = lowest, sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < n; k += 16)
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(lowest, first_lanes(n - k), x + k));
  most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 lanes = first_lanes(n - k);
    const __m512 e = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + k), most));
    sum = _mm512_mask_add_ps(sum, lanes, sum, e);
    _mm512_mask_storeu_ps(x + k, lanes, e);
  }
  const __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 lanes = first_lanes(n - k);
    _mm512_mask_storeu_ps(x + k, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + k), scale));
  }
}

void add_scaled(const float* x, float scale, float* y, int64_t n) {
  const __m512 s = _mm512_set1_ps(scale);
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 lanes = first_lanes(n - k);
    const __m512 sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, x + k), s, _mm512_maskz_loadu_ps(lanes, y + k));
    _mm512_mask_storeu_ps(y + k, lanes, sum);
  }
}

constexpr Isa kIsa = {"avx512",  quantize,  to_bf16, few, true,    many,
                      transpose, many_fp32, gated,   dot, softmax, add_scaled};

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
