// One decoding step: everything between a token and its logits in one parallel region. A decoder is a list of residual
// blocks: so Llama, T5 and Whisper are three lists for the same code.
#pragma once

#include "weight.h"

namespace squarehead {

// A product of one or more matrices with the same input; outputs follow each other.
struct Stage {
  const Weight* parts[3];
  int count;
  const float* input_scale;  // [inputs], inputs are divided by it; null: none
};

// LayerNorm; without a bias the norm by the root mean square, which takes no mean away.
struct Norm {
  const float* weight;  // [hidden]
  const float* bias;    // null: none
};

enum class Kind : int { self_attention, cross_attention, mlp };
constexpr int kKinds = 3;

// h += out(middle(inputs(norm(h)))). The middle is attention, or the activation.
struct Block {
  Kind kind;
  Norm norm;
  Stage inputs;   // query, key and value; the query alone; or (gate and) up
  Stage out;
  float* keys;    // [key head][context, or source][head_size]; null: mlp
  float* values;  // the same
};

struct Decoder {
  int64_t hidden, heads, key_heads, head_size, block_count;
  int64_t context;            // positions that self-attention has room for
  int64_t source;             // positions of the encoder, for cross-attention
  Activation activation;
  int gated;                  // its result is multiplied by the second half of the product before it
  float epsilon;              // of the norms
  float attention_scale;      // of query times key
  float rotation_scale;       // of the rotary cosines and sines
  const float* frequencies;   // [head_size / 2], of the rotation of queries and keys; null: none
  const float* embedding;     // [vocabulary][hidden]
  const float* positions;     // [context][hidden], added to the embedding; null: none
  const float* bias;          // [heads][context], added to scores: of a key d positions back, entry context - 1 - d
  const Block* blocks;
  Norm final_norm;
  Stage head;
};

// Phases of the timing: for each kind of block the product before its middle, the middle, and the product behind it;
// then the head. Norms stand with the product that follows them.
constexpr int kParts = 3, kPhases = kKinds * kParts + 1;

// Runs `token` at `position` (the positions before it are in the cache) and writes [vocabulary] logits; none where
// `logits` is null. Adds the seconds of each phase, waiting included, to `seconds`.
void decode(const Isa& isa, const Decoder& decoder, int64_t token, int64_t position, float* logits, int threads,
            double* seconds);

}  // namespace squarehead
