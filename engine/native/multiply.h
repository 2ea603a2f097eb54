// One linear layer, computed by a team of threads that are already running.
#pragma once

#include "memory.h"
#include "weight.h"

namespace squarehead {

// The units of thread `thread` of `threads`: contiguous, balanced by bytes of weights.
struct Share {
  int64_t first, last;
};
Share share_of(const Weight& w, int thread, int threads);

// 1 to kFew tokens, prepared by each thread for itself (cheaper than waiting for each other), then its share of
// outputs.
void multiply_few(const Isa& isa, const Weight& w, const float* x, int64_t tokens, int64_t ldx, float* y, int64_t ldy,
                  Share share);

// Bytes of weights, masks, offsets and scales that a product reads.
int64_t bytes_of(const Weight& w);

}  // namespace squarehead
