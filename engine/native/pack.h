#pragma once

#include "weight.h"

namespace squarehead {

// A matrix as files hold it: rows one after the other, bit c % 8 of byte c / 8 of a row's mask is column c.
struct Rows {
  Type type;
  int64_t outputs, inputs;
  const uint8_t* bitmask;      // [outputs][ceil(inputs / 8)]; null: dense, `values` has every weight
  const int64_t* row_offsets;  // [outputs], in values; null: dense
  const void* values;
  int64_t value_count;
  const float* scale;          // [outputs], int8 only
  const float* bias;           // [outputs] or null
};

// Throws std::bad_alloc. A dense fp32 matrix is borrowed: its values must outlive the weight.
Weight* pack(const Rows& rows);
void release(Weight* w);

}  // namespace squarehead
