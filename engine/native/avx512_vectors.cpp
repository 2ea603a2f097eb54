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

}  // namespace

void avx512_gated(const float* gate, const float* up, float* y, int64_t n) {
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 lanes = first_lanes(n - k);
    const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + k), u = _mm512_maskz_loadu_ps(lanes, up + k);
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), g))));
    _mm512_mask_storeu_ps(y + k, lanes, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), u));
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

void avx512_add_scaled(const float* x, float scale, float* y, int64_t n) {
  const __m512 s = _mm512_set1_ps(scale);
  for (int64_t k = 0; k < n; k += 16) {
    const __mmask16 lanes = first_lanes(n - k);
    const __m512 sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, x + k), s, _mm512_maskz_loadu_ps(lanes, y + k));
    _mm512_mask_storeu_ps(y + k, lanes, sum);
  }
}

}  // namespace squarehead

#endif
