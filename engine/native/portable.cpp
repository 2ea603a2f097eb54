// Plain C++: right on every CPU, and what the other instruction sets are tested against.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "weight.h"

namespace squarehead {
namespace {

float from_bf16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// To the nearest, ties to even; NaN stays NaN.
uint16_t to_bf16_one(float value) {
  if (std::isnan(value)) return 0x7fc0;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7fff + ((bits >> 16) & 1);
  return uint16_t(bits >> 16);
}

void quantize(const float* x, int64_t n, int64_t padded, bool is_unsigned, void* out, float* scale) {
  float most = 0;
  for (int64_t k = 0; k < n; k++) {
    const float magnitude = std::fabs(x[k]);
    if (std::isnan(magnitude)) most = magnitude;
    if (magnitude > most) most = magnitude;
  }
  float s = most / kActivationSteps;
  if (s < FLT_MIN) s = 1.0f;
  *scale = s;
  auto* q = static_cast<uint8_t*>(out);
  for (int64_t k = 0; k < padded; k++) {
    const float scaled = k < n ? x[k] / s : 0.0f;
    // a token that is not finite has a scale that is not: its outputs are NaN whatever stands here
    const int value = std::fabs(scaled) < 128.0f ? std::min(int(std::nearbyint(scaled)), 127) : 0;
    q[k] = uint8_t(value + (is_unsigned ? 128 : 0));
  }
}

void to_bf16(const float* x, int64_t n, int64_t padded, uint16_t* out) {
  for (int64_t k = 0; k < padded; k++) out[k] = k < n ? to_bf16_one(x[k]) : 0;
}

void rows(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  const auto* values = static_cast<const float*>(w.values);
  const auto* masks = static_cast<const uint64_t*>(w.masks);
  for (int64_t row = first; row < last; row++)
    for (int64_t t = 0; t < x.tokens; t++) {
      const auto* in = reinterpret_cast<const float*>(static_cast<const uint8_t*>(x.data) + t * x.stride);
      const float* v = values + (masks ? w.offsets[row] : row * w.inputs);
      float sum = 0;
      for (int64_t k = 0; k < w.inputs; k++)
        if (!masks || masks[row * (w.padded / 64) + k / 64] >> (k % 64) & 1) sum += *v++ * in[k];
      y[t * ldy + row] = sum + (w.bias ? w.bias[row] : 0.0f);
    }
}

float product_bf16(const uint8_t* value, const uint8_t* input) {
  uint16_t a, b;
  std::memcpy(&a, value, sizeof a);
  std::memcpy(&b, input, sizeof b);
  return from_bf16(a) * from_bf16(b);
}

void panels(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  const int64_t group = group_of(w.type), size = size_of(w.type), groups = w.padded / group, slots = kPanel * group;
  const auto* values = static_cast<const uint8_t*>(w.values);
  for (int64_t panel = first; panel < last; panel++)
    for (int64_t t = 0; t < x.tokens; t++) {
      const auto* in = static_cast<const uint8_t*>(x.data) + t * x.stride;
      const uint8_t* v = values + (w.masks ? w.offsets[panel] * size : panel * groups * 64);
      float sums[kPanel] = {};
      int32_t exact[kPanel] = {};
      for (int64_t g = 0; g < groups; g++) {
        uint64_t mask = ~uint64_t(0);
        if (w.masks && w.type == Type::int8) mask = static_cast<const uint64_t*>(w.masks)[panel * groups + g];
        if (w.masks && w.type == Type::bf16) mask = static_cast<const uint32_t*>(w.masks)[panel * groups + g];
        for (int64_t slot = 0; slot < slots; slot++) {
          if (!(mask >> slot & 1)) continue;
          const int64_t row = slot / group, k = g * group + slot % group;
          if (w.type == Type::int8)
            exact[row] += int32_t(int8_t(*v)) * (int32_t(in[k]) - 128);
          else
            sums[row] += product_bf16(v, in + 2 * k);
          v += size;
        }
      }
      for (int64_t r = 0; r < kPanel && panel * kPanel + r < w.outputs; r++) {
        const int64_t row = panel * kPanel + r;
        const float sum = w.type == Type::int8 ? float(exact[r]) * x.scale[t] * w.scale[row] : sums[r];
        y[t * ldy + row] = sum + (w.bias ? w.bias[row] : 0.0f);
      }
    }
}

void few(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  (w.type == Type::fp32 ? rows : panels)(w, x, y, ldy, first, last);
}

float silu(float x) { return x / (1.0f + std::exp(-x)); }
float relu(float x) { return x < 0 ? 0 : x; }
float gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); }
// x / 2 * (1 + tanh(z)) is x * sigmoid(2 z)
float gelu_tanh(float x) { return x / (1.0f + std::exp(-1.59576912f * (x + 0.044715f * x * x * x))); }

void activate(Activation activation, const float* x, const float* up, float* y, int64_t n) {
  float (*const all[])(float) = {silu, relu, gelu, gelu_tanh};
  float (*const function)(float) = all[int(activation)];
  for (int64_t k = 0; k < n; k++) y[k] = up ? function(x[k]) * up[k] : function(x[k]);
}

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < n; k++) sum += a[k] * b[k];
  return sum;
}

void softmax(float* x, int64_t n) {
  float most = x[0], sum = 0;
  for (int64_t k = 1; k < n; k++) most = x[k] > most ? x[k] : most;
  for (int64_t k = 0; k < n; k++) sum += x[k] = std::exp(x[k] - most);
  for (int64_t k = 0; k < n; k++) x[k] /= sum;
}

void scores(const float* query, const float* keys, int64_t count, int64_t size, float scale, float* out) {
  for (int64_t s = 0; s < count; s++) out[s] = dot(query, keys + s * size, size) * scale;
}

void mix(const float* weights, const float* values, int64_t count, int64_t size, float* y) {
  for (int64_t s = 0; s < count; s++)
    for (int64_t k = 0; k < size; k++) y[k] += weights[s] * values[s * size + k];
}

}  // namespace

const Isa portable_isa = {"portable", quantize, to_bf16, few,     true,   nullptr, nullptr,
                          nullptr,    activate, dot,     softmax, scores, mix};

}  // namespace squarehead
