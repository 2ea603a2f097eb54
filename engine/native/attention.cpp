#include "attention.h"

#include <cstring>

#include "memory.h"

namespace squarehead {
namespace {

void rotate(const float* x, Rotation rotation, int64_t size, float* out) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i++) {
    const float cosine = rotation.cosines[i], sine = rotation.sines[i];
    out[i] = x[i] * cosine - x[i + half] * sine;
    out[i + half] = x[i + half] * cosine + x[i] * sine;
  }
}

}  // namespace

void attend_self(const Isa& isa, const Decoder& d, const Block& block, const float* qkv, int64_t position,
                 Rotation rotation, int64_t first, int64_t last, float* out) {
  thread_local Scratch memory;
  const int64_t size = d.head_size, group = d.heads / d.key_heads;
  auto* scores = static_cast<float*>(memory.get(size_t(round_up(position + 1, 16) + 2 * size) * 4));
  float *rotated_query = scores + round_up(position + 1, 16), *rotated_key = rotated_query + size;
  int64_t rotated = -1;
  for (int64_t head = first; head < last; head++) {
    const int64_t key_head = head / group, at = key_head * d.context * size;
    const float *query = qkv + head * size, *key = qkv + (d.heads + key_head) * size;
    const float* value = qkv + (d.heads + d.key_heads + key_head) * size;
    float *keys = block.keys + at, *values = block.values + at;
    if (rotation.cosines) {
      if (key_head != rotated) rotate(key, rotation, size, rotated_key);
      rotated = key_head;
      key = rotated_key;
      rotate(query, rotation, size, rotated_query);
      query = rotated_query;
    }
    if (head % group == 0) {
      std::memcpy(keys + position * size, key, size_t(size) * 4);
      std::memcpy(values + position * size, value, size_t(size) * 4);
    }
    isa.scores(query, keys, position, size, d.attention_scale, scores);
    isa.scores(query, key, 1, size, d.attention_scale, scores + position);
    if (d.bias) {
      const float* bias = d.bias + head * d.context + (d.context - 1 - position);
      for (int64_t s = 0; s <= position; s++) scores[s] += bias[s];
    }
    isa.softmax(scores, position + 1);
    float* mixed = out + head * size;
    std::memset(mixed, 0, size_t(size) * 4);
    isa.mix(scores, values, position, size, mixed);
    isa.mix(scores + position, value, 1, size, mixed);
  }
}

void attend_source(const Isa& isa, const Decoder& d, const Block& block, const float* queries, int64_t first,
                   int64_t last, float* out) {
  thread_local Scratch memory;
  const int64_t size = d.head_size, group = d.heads / d.key_heads;
  auto* scores = static_cast<float*>(memory.get(size_t(d.source) * 4));
  for (int64_t head = first; head < last; head++) {
    const int64_t at = head / group * d.source * size;
    isa.scores(queries + head * size, block.keys + at, d.source, size, d.attention_scale, scores);
    isa.softmax(scores, d.source);
    std::memset(out + head * size, 0, size_t(size) * 4);
    isa.mix(scores, block.values + at, d.source, size, out + head * size);
  }
}

}  // namespace squarehead
