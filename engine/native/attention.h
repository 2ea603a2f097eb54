// What stands between the products of a block: attention of one query position over keys and values in memory.
#pragma once

#include "decoder.h"

namespace squarehead {

// This position's rotation of queries and keys; null: none.
struct Rotation {
  const float* cosines;  // [head_size / 2]
  const float* sines;
};

// Query heads [first, last) over all positions up to `position`, whose query, key and value are in `qkv`; writes
// [heads][head_size]. The cache gets the position's key and value from the thread that has the first query head of the
// group; the others use their own copy, so nobody waits.
void attend_self(const Isa& isa, const Decoder& d, const Block& block, const float* qkv, int64_t position,
                 Rotation rotation, int64_t first, int64_t last, float* out);

// The same over the positions of the encoder, whose keys and values are there since the sequence began.
void attend_source(const Isa& isa, const Decoder& d, const Block& block, const float* queries, int64_t first,
                   int64_t last, float* out);

}  // namespace squarehead
