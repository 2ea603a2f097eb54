// AVX-512: what stands between the products. Inputs are rounded; activations, softmax and sums.
#include "weight.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16,bmi,bmi2,popcnt,fma")
#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstring>

#include "avx512.h"

namespace squarehead {

void avx512_quantize(const float* x, int64_t n, int64_t padded, bool is_unsigned, void* out, float* scale) {
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
  float s = most / kActivationSteps;
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

void avx512_to_bf16(const float* x, int64_t n, int64_t padded, uint16_t* out) {
  for (int64_t k = 0; k < padded; k += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(n - k), x + k);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k), (__m256i)_mm512_cvtneps_pbh(v));
  }
}

namespace {

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

__m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

__m512 silu(__m512 x) { return _mm512_mul_ps(x, sigmoid(x)); }

// In this order of operands NaN stays NaN.
__m512 relu(__m512 x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }

// x times the normal distribution up to x. Its upper tail is erfc, by 7.1.26 of Abramowitz and Stegun, whose error is
// at most 1.5e-7; taken from x or from nothing, so that small results lose no digits.
__m512 gelu(__m512 x) {
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  constexpr float kLower[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  __m512 p = _mm512_set1_ps(1.061405429f);
  for (float c : kLower) p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
  const __m512 power = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z)));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(p, t), power), _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
  return _mm512_mask_sub_ps(tail, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLT_UQ), x, tail);
}

// x / 2 * (1 + tanh(z)) is x * sigmoid(2 z).
__m512 gelu_tanh(__m512 x) {
  const __m512 square = _mm512_mul_ps(x, x), two = _mm512_set1_ps(1.59576912f);
  const __m512 z = _mm512_mul_ps(x, _mm512_fmadd_ps(square, _mm512_mul_ps(two, _mm512_set1_ps(0.044715f)), two));
  return _mm512_mul_ps(x, sigmoid(z));
}

template <typename Function>
void apply(Function function, const float* x, const float* up, float* y, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 lanes = first_lanes(n - k);
    __m512 out = function(_mm512_maskz_loadu_ps(lanes, x + k));
    if (up) out = _mm512_mul_ps(out, _mm512_maskz_loadu_ps(lanes, up + k));
    _mm512_mask_storeu_ps(y + k, lanes, out);
  }
}

}  // namespace

void avx512_activate(Activation activation, const float* x, const float* up, float* y, int64_t n) {
  switch (activation) {
    case Activation::silu: return apply(silu, x, up, y, n);
    case Activation::relu: return apply(relu, x, up, y, n);
    case Activation::gelu: return apply(gelu, x, up, y, n);
    case Activation::gelu_tanh: return apply(gelu_tanh, x, up, y, n);
  }
}

float avx512_dot(const float* a, const float* b, int64_t n) {
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

void avx512_softmax(float* x, int64_t n) {
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

void avx512_scores(const float* query, const float* keys, int64_t count, int64_t size, float scale, float* scores) {
  for (int64_t s = 0; s < count; s++) scores[s] = avx512_dot(query, keys + s * size, size) * scale;
}

namespace {

// V registers of y at once; the last one has the lanes of `tail`.
template <int V>
void mix_lanes(const float* weights, const float* values, int64_t count, int64_t size, __mmask16 tail, float* y) {
  __m512 sums[V];
  for (int i = 0; i < V; i++) sums[i] = _mm512_maskz_loadu_ps(i < V - 1 ? 0xffff : tail, y + 16 * i);
  for (int64_t s = 0; s < count; s++) {
    const __m512 weight = _mm512_set1_ps(weights[s]);
    for (int i = 0; i < V; i++) {
      const __m512 value = _mm512_maskz_loadu_ps(i < V - 1 ? 0xffff : tail, values + s * size + 16 * i);
      sums[i] = _mm512_fmadd_ps(weight, value, sums[i]);
    }
  }
  for (int i = 0; i < V; i++) _mm512_mask_storeu_ps(y + 16 * i, i < V - 1 ? 0xffff : tail, sums[i]);
}

}  // namespace

void avx512_mix(const float* weights, const float* values, int64_t count, int64_t size, float* y) {
  int64_t k = 0;
  for (; k + 64 <= size; k += 64) mix_lanes<4>(weights, values + k, count, size, 0xffff, y + k);
  for (; k < size; k += 16) mix_lanes<1>(weights, values + k, count, size, first_lanes(size - k), y + k);
}

}  // namespace squarehead

#endif
