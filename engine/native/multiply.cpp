#include "multiply.h"

#include <cstring>

namespace squarehead {

namespace {

int64_t mask_bytes_of_unit(const Weight& w) {
  if (w.masks == nullptr) return 0;
  return w.type == Type::int8 ? w.padded / 4 * 8 : w.type == Type::bf16 ? w.padded / 2 * 4 : w.padded / 64 * 8;
}

int64_t value_bytes_of_dense_unit(const Weight& w) {
  return w.type == Type::fp32 ? w.inputs * 4 : kPanel * w.padded * size_of(w.type);
}

// Bytes before unit `unit`.
int64_t bytes_before(const Weight& w, int64_t unit) {
  const int64_t values = w.masks ? w.offsets[unit] * size_of(w.type) : unit * value_bytes_of_dense_unit(w);
  return values + unit * mask_bytes_of_unit(w);
}

int64_t boundary(const Weight& w, int64_t bytes) {
  int64_t low = 0, high = w.units;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (bytes_before(w, middle) < bytes) low = middle + 1;
    else high = middle;
  }
  return low;
}

}  // namespace

Share share_of(const Weight& w, int thread, int threads) {
  const int64_t all = bytes_before(w, w.units);
  return {thread == 0 ? 0 : boundary(w, all * thread / threads),
          thread == threads - 1 ? w.units : boundary(w, all * (thread + 1) / threads)};
}

void multiply_few(const Isa& isa, const Weight& w, const float* x, int64_t tokens, int64_t ldx, float* y, int64_t ldy,
                  Share share) {
  thread_local Scratch memory;
  float scales[kFew];
  Input input{x, ldx * 4, tokens, scales};
  const int64_t size = size_of(w.type);
  // fp32 tokens are read where they are, unless a row of masks reaches behind their end
  if (w.type != Type::fp32 || (w.masks && w.padded != w.inputs)) {
    auto* prepared = static_cast<uint8_t*>(memory.get(size_t(tokens * w.padded * size)));
    input.data = prepared;
    input.stride = w.padded * size;
    for (int64_t t = 0; t < tokens; t++) {
      void* out = prepared + t * input.stride;
      if (w.type == Type::int8) {
        isa.quantize(x + t * ldx, w.inputs, w.padded, true, out, scales + t);
      } else if (w.type == Type::bf16) {
        isa.to_bf16(x + t * ldx, w.inputs, w.padded, static_cast<uint16_t*>(out));
      } else {
        std::memcpy(out, x + t * ldx, size_t(w.inputs) * 4);
        std::memset(static_cast<float*>(out) + w.inputs, 0, size_t(w.padded - w.inputs) * 4);
      }
    }
  }
  if (share.first < share.last) isa.few(w, input, y, ldy, share.first, share.last);
}

int64_t bytes_of(const Weight& w) {
  int64_t bytes = bytes_before(w, w.units);
  if (w.masks) bytes += (w.units + 1) * int64_t(sizeof(int64_t));
  if (w.scale) bytes += w.outputs * 8;  // and the sums
  if (w.bias) bytes += w.outputs * 4;
  return bytes;
}

}  // namespace squarehead
