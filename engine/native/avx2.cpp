// AVX2 and FMA: x86 CPUs since 2013. It has no expanding instruction: packed values reach their lanes through tables.
#include "weight.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#include <immintrin.h>

#include <cfloat>
#include <cstring>

namespace squarehead {
namespace {

#define SQUAREHEAD_INLINE static inline __attribute__((always_inline))

// For each mask of 8 lanes: where each lane finds its value among the packed ones.
struct Tables {
  alignas(32) int32_t lanes32[256][8] = {};   // for permutevar8x32; lanes that are not set find anything
  alignas(16) uint8_t lanes16[256][16] = {};  // for shuffle_epi8; 0x80 gives zero
  alignas(8) uint8_t lanes8[256][8] = {};

  constexpr Tables() {
    for (int mask = 0; mask < 256; mask++) {
      int from = 0;
      for (int lane = 0; lane < 8; lane++) {
        const bool set = mask >> lane & 1;
        lanes32[mask][lane] = set ? from : 0;
        lanes16[mask][2 * lane] = uint8_t(set ? 2 * from : 0x80);
        lanes16[mask][2 * lane + 1] = uint8_t(set ? 2 * from + 1 : 0x80);
        lanes8[mask][lane] = uint8_t(set ? from : 0x80);
        from += set;
      }
    }
  }
};
constexpr Tables kTables;  // at compile time: nothing of this file may run where there is no AVX2

SQUAREHEAD_INLINE int popcount(uint64_t bits) { return int(__builtin_popcountll(bits)); }

SQUAREHEAD_INLINE __m256 expand32(unsigned mask, const float* packed) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(mask)), bit), bit);
  const __m256i from = _mm256_load_si256(reinterpret_cast<const __m256i*>(kTables.lanes32[mask]));
  return _mm256_and_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(packed), from), _mm256_castsi256_ps(set));
}

SQUAREHEAD_INLINE __m128i expand16(unsigned mask, const void* packed) {
  const __m128i from = _mm_load_si128(reinterpret_cast<const __m128i*>(kTables.lanes16[mask]));
  return _mm_shuffle_epi8(_mm_loadu_si128(static_cast<const __m128i*>(packed)), from);
}

SQUAREHEAD_INLINE __m128i expand8(unsigned mask, const void* packed) {
  const __m128i from = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTables.lanes8[mask]));
  return _mm_shuffle_epi8(_mm_loadl_epi64(static_cast<const __m128i*>(packed)), from);
}

SQUAREHEAD_INLINE float sum_of(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

void quantize(const float* x, int64_t n, int64_t padded, bool is_unsigned, void* out, float* scale) {
  // the largest magnitude by its bits: so NaN wins over everything and reaches the scale
  uint32_t largest = 0;
  for (int64_t k = 0; k < n; k++) {
    uint32_t bits;
    std::memcpy(&bits, x + k, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  float most;
  std::memcpy(&most, &largest, sizeof most);
  float s = most / kActivationSteps;
  if (s < FLT_MIN) s = 1.0f;
  *scale = s;
  const __m256 divisor = _mm256_set1_ps(s);
  auto* q = static_cast<uint8_t*>(out);
  for (int64_t k = 0; k < padded; k += 8) {
    alignas(32) float part[8] = {};
    alignas(32) int32_t whole[8];
    for (int64_t i = k; i < k + 8 && i < n; i++) part[i - k] = x[i];
    const __m256i nearest = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_load_ps(part), divisor));
    const __m256i rounded = _mm256_min_epi32(nearest, _mm256_set1_epi32(127));
    _mm256_store_si256(reinterpret_cast<__m256i*>(whole), rounded);
    for (int i = 0; i < 8; i++) q[k + i] = uint8_t(whole[i] + (is_unsigned ? 128 : 0));
  }
}

template <int B>
void rows(const Weight& w, const Input& x, int64_t token, float* y, int64_t ldy, int64_t first, int64_t last) {
  const int64_t words = w.padded / 64;
  const float* in[B];
  for (int b = 0; b < B; b++)
    in[b] = reinterpret_cast<const float*>(static_cast<const uint8_t*>(x.data) + (token + b) * x.stride);
  for (int64_t row = first; row < last; row++) {
    __m256 a[B][2];
    float rest[B] = {};
    for (int b = 0; b < B; b++) a[b][0] = a[b][1] = _mm256_setzero_ps();
    if (w.masks == nullptr) {
      const float* v = static_cast<const float*>(w.values) + row * w.inputs;
      int64_t k = 0;
      for (; k + 16 <= w.inputs; k += 16)
        for (int j = 0; j < 2; j++)
          for (int b = 0; b < B; b++)
            a[b][j] = _mm256_fmadd_ps(_mm256_loadu_ps(v + k + 8 * j), _mm256_loadu_ps(in[b] + k + 8 * j), a[b][j]);
      for (; k < w.inputs; k++)
        for (int b = 0; b < B; b++) rest[b] += v[k] * in[b][k];
    } else {
      const float* v = static_cast<const float*>(w.values) + w.offsets[row];
      const auto* mask = reinterpret_cast<const uint8_t*>(static_cast<const uint64_t*>(w.masks) + row * words);
      for (int64_t byte = 0; byte < 8 * words; byte++) {
        const __m256 weight = expand32(mask[byte], v);
        for (int b = 0; b < B; b++)
          a[b][byte & 1] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(in[b] + 8 * byte), a[b][byte & 1]);
        v += popcount(mask[byte]);
      }
    }
    for (int b = 0; b < B; b++)
      y[(token + b) * ldy + row] = sum_of(_mm256_add_ps(a[b][0], a[b][1])) + rest[b] + (w.bias ? w.bias[row] : 0.0f);
  }
}

// Two mask bytes of a group: 4 rows x 4 columns as 16-bit integers.
SQUAREHEAD_INLINE __m256i expand_int8(unsigned low, unsigned high, const uint8_t*& v) {
  const __m128i first = expand8(low, v);
  v += popcount(low);
  const __m128i second = expand8(high, v);
  v += popcount(high);
  return _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(first, second));
}

template <int B>
void panels_int8(const Weight& w, const Input& x, int64_t token, float* y, int64_t ldy, int64_t first, int64_t last) {
  const int64_t groups = w.padded / 4;
  for (int64_t panel = first; panel < last; panel++) {
    const auto* mask = static_cast<const uint8_t*>(w.masks) + (w.masks ? panel * groups * 8 : 0);
    const auto* v = static_cast<const uint8_t*>(w.values) + (w.masks ? w.offsets[panel] : panel * groups * 64);
    __m256i a[B][4];
    for (int b = 0; b < B; b++)
      for (int i = 0; i < 4; i++) a[b][i] = _mm256_setzero_si256();
    for (int64_t g = 0; g < groups; g++) {
      __m256i input[B];
      for (int b = 0; b < B; b++) {
        int32_t four;
        std::memcpy(&four, static_cast<const uint8_t*>(x.data) + (token + b) * x.stride + 4 * g, 4);
        const __m128i wide = _mm_sub_epi16(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)), _mm_set1_epi16(128));
        input[b] = _mm256_broadcastq_epi64(wide);
      }
      for (int i = 0; i < 4; i++) {
        __m256i weight;
        if (w.masks) {
          weight = expand_int8(mask[g * 8 + 2 * i], mask[g * 8 + 2 * i + 1], v);
        } else {
          weight = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v)));
          v += 16;
        }
        for (int b = 0; b < B; b++) a[b][i] = _mm256_add_epi32(a[b][i], _mm256_madd_epi16(weight, input[b]));
      }
    }
    for (int b = 0; b < B; b++) {
      alignas(32) int32_t halves[4][8];  // a row's even and odd sum
      for (int i = 0; i < 4; i++) _mm256_store_si256(reinterpret_cast<__m256i*>(halves[i]), a[b][i]);
      for (int64_t r = 0; r < kPanel && panel * kPanel + r < w.outputs; r++) {
        const int64_t row = panel * kPanel + r;
        const float sum = float(halves[r / 4][r % 4 * 2] + halves[r / 4][r % 4 * 2 + 1]);
        y[(token + b) * ldy + row] = sum * x.scale[token + b] * w.scale[row] + (w.bias ? w.bias[row] : 0.0f);
      }
    }
  }
}

template <int B>
void panels_bf16(const Weight& w, const Input& x, int64_t token, float* y, int64_t ldy, int64_t first, int64_t last) {
  const int64_t groups = w.padded / 2;
  const __m256i odd = _mm256_set1_epi32(int(0xffff0000));
  for (int64_t panel = first; panel < last; panel++) {
    const auto* mask = static_cast<const uint8_t*>(w.masks) + (w.masks ? panel * groups * 4 : 0);
    const auto* v = static_cast<const uint8_t*>(w.values) + (w.masks ? w.offsets[panel] * 2 : panel * groups * 64);
    __m256 a[B][2][2];
    for (int b = 0; b < B; b++)
      for (int i = 0; i < 2; i++) a[b][i][0] = a[b][i][1] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
      for (int i = 0; i < 2; i++) {
        __m256i weight;
        if (w.masks) {
          const unsigned low = mask[g * 4 + 2 * i], high = mask[g * 4 + 2 * i + 1];
          const __m128i four = expand16(low, v);
          v += 2 * popcount(low);
          weight = _mm256_set_m128i(expand16(high, v), four);
          v += 2 * popcount(high);
        } else {
          weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v));
          v += 32;
        }
        const __m256 w0 = _mm256_castsi256_ps(_mm256_slli_epi32(weight, 16));
        const __m256 w1 = _mm256_castsi256_ps(_mm256_and_si256(weight, odd));
        for (int b = 0; b < B; b++) {
          int32_t two;
          std::memcpy(&two, static_cast<const uint8_t*>(x.data) + (token + b) * x.stride + 4 * g, 4);
          const __m256i both = _mm256_set1_epi32(two);
          a[b][i][0] = _mm256_fmadd_ps(w0, _mm256_castsi256_ps(_mm256_slli_epi32(both, 16)), a[b][i][0]);
          a[b][i][1] = _mm256_fmadd_ps(w1, _mm256_castsi256_ps(_mm256_and_si256(both, odd)), a[b][i][1]);
        }
      }
    }
    for (int b = 0; b < B; b++) {
      alignas(32) float sums[kPanel];
      for (int i = 0; i < 2; i++) _mm256_store_ps(sums + 8 * i, _mm256_add_ps(a[b][i][0], a[b][i][1]));
      for (int64_t r = 0; r < kPanel && panel * kPanel + r < w.outputs; r++) {
        const int64_t row = panel * kPanel + r;
        y[(token + b) * ldy + row] = sums[r] + (w.bias ? w.bias[row] : 0.0f);
      }
    }
  }
}

template <int B>
void few_of(const Weight& w, const Input& x, int64_t token, float* y, int64_t ldy, int64_t first, int64_t last) {
  (w.type == Type::fp32 ? rows<B> : w.type == Type::bf16 ? panels_bf16<B> : panels_int8<B>)(w, x, token, y, ldy, first,
                                                                                            last);
}

void few(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  int64_t token = 0;
  for (; token + 2 <= x.tokens; token += 2) few_of<2>(w, x, token, y, ldy, first, last);
  if (token < x.tokens) few_of<1>(w, x, token, y, ldy, first, last);
}

float dot(const float* a, const float* b, int64_t n) {
  __m256 sum = _mm256_setzero_ps();
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + k), _mm256_loadu_ps(b + k), sum);
  float out = sum_of(sum);
  for (; k < n; k++) out += a[k] * b[k];
  return out;
}

void scores(const float* query, const float* keys, int64_t count, int64_t size, float scale, float* out) {
  for (int64_t s = 0; s < count; s++) out[s] = dot(query, keys + s * size, size) * scale;
}

void mix(const float* weights, const float* values, int64_t count, int64_t size, float* y) {
  int64_t k = 0;
  for (; k + 8 <= size; k += 8) {
    __m256 sum = _mm256_loadu_ps(y + k);
    for (int64_t s = 0; s < count; s++)
      sum = _mm256_fmadd_ps(_mm256_set1_ps(weights[s]), _mm256_loadu_ps(values + s * size + k), sum);
    _mm256_storeu_ps(y + k, sum);
  }
  for (; k < size; k++)
    for (int64_t s = 0; s < count; s++) y[k] += weights[s] * values[s * size + k];
}

}  // namespace

const Isa* avx2_isa() {
  static const Isa* const found = []() -> const Isa* {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
      return nullptr;
    static Isa isa = portable_isa;
    isa.name = "avx2";
    isa.quantize = quantize;
    isa.few = few;
    isa.dot = dot;
    isa.scores = scores;
    isa.mix = mix;
    return &isa;
  }();
  return found;
}

}  // namespace squarehead

#else

namespace squarehead {
const Isa* avx2_isa() { return nullptr; }
}  // namespace squarehead

#endif
