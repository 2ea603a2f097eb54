// One decoding step of a Llama-like model: everything between a token and its logits in one parallel region.
#pragma once

#include "weight.h"

namespace squarehead {

// A product of one or more matrices with the same input; outputs follow each other.
struct Stage {
  const Weight* parts[3];
  int count;
  const float* input_scale;  // [inputs], inputs are divided by it; null: none
};

struct Layer {
  Stage qkv, out, gate_up, down;
  const float* attention_norm;  // [hidden]
  const float* mlp_norm;
};

struct Decoder {
  int64_t hidden, intermediate, heads, key_heads, head_size, context, layer_count;
  float epsilon;              // of the norms
  float attention_scale;      // of query times key
  float rotation_scale;       // of the rotary cosines and sines
  const float* frequencies;   // [head_size / 2]
  const float* embedding;     // [vocabulary][hidden]
  const float* final_norm;
  const Layer* layers;
  Stage head;
  float* keys;                // [layer][key head][context][head_size]
  float* values;
};

enum Phase { kQkv, kAttention, kOut, kGateUp, kGated, kDown, kHead, kPhases };

// Runs `token` at `position` (the positions before it are in the cache) and writes [vocabulary] logits.
// Adds the seconds of each phase, waiting included, to `seconds`.
void decode(const Isa& isa, const Decoder& decoder, int64_t token, int64_t position, float* logits, int threads,
            double* seconds);

}  // namespace squarehead
