// What all kernels share: a packed weight matrix, prepared inputs, and the table of functions of one instruction set.
#pragma once

#include <cstdint>

namespace squarehead {

enum class Type : int { fp32 = 0, bf16 = 1, int8 = 2 };
enum class Activation : int { silu = 0, relu = 1, gelu = 2, gelu_tanh = 3 };

constexpr int64_t kPanel = 16;   // output rows of a panel: the 32-bit lanes of one AVX-512 register
constexpr int64_t kPad = 64;     // inputs are padded to this many columns: one mask word of a row
constexpr int64_t kFew = 8;      // tokens that the memory-bound kernels take at once
constexpr int64_t kTail = 64;    // readable bytes behind the last value: expanding loads whole registers
// A token's largest magnitude over its scale. compressed-tensors, whose logits should be ours, spans 255 steps by both
// signs of it: what rounds to -128 stands, what rounds to 128 becomes 127.
constexpr float kActivationSteps = 127.5f;

// A weight matrix of `outputs` x `inputs`. Its unit of work is a row (fp32) or a panel of 16 rows (bf16, int8).
//
// fp32: mask word [row][column / 64], bit column % 64; values of a row follow each other.
// bf16, int8: for each panel, groups of g = 2 or 4 columns; a group is [16 rows][g columns], one register wide, and its
// mask has bit row * g + column % g (32 or 64 bits). So a group is also one row of an AMX tile.
// Dense weights have no masks: fp32 values are [outputs][inputs], panels hold every group in full.
struct Weight {
  Type type;
  int64_t outputs, inputs;
  int64_t padded;           // inputs rounded up to kPad
  int64_t units;            // rows or panels
  const void* masks;        // null: dense
  const int64_t* offsets;   // [units + 1], in values; null: dense
  const void* values;
  const float* scale;       // [outputs rounded up to kPanel], int8 only
  const int32_t* sums;      // [the same], sum of a row's int8 values: undoes the +128 of unsigned inputs
  const float* bias;        // [the same], null: none
  void* memory;             // what `values` to `sums` live in, null where borrowed
  int64_t memory_bytes;
};

inline int64_t group_of(Type type) { return type == Type::int8 ? 4 : type == Type::bf16 ? 2 : 1; }
inline int64_t size_of(Type type) { return type == Type::int8 ? 1 : type == Type::bf16 ? 2 : 4; }
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Tokens in the form that the kernels of a type read: fp32, bf16 or 8-bit, each token padded to `stride` bytes.
struct Input {
  const void* data;
  int64_t stride;       // bytes from token to token
  int64_t tokens;
  const float* scale;   // [tokens], int8 only
};

// How one instruction set computes. Units [first, last) of the weight, outputs written to y[token * ldy + output].
struct Isa {
  const char* name;
  // n floats to `padded` values; 8-bit ones symmetric, plus 128 where `is_unsigned`; sets the token's scale
  void (*quantize)(const float* x, int64_t n, int64_t padded, bool is_unsigned, void* out, float* scale);
  void (*to_bf16)(const float* x, int64_t n, int64_t padded, uint16_t* out);
  // 1 to kFew tokens: reads each weight once; 8-bit inputs are unsigned
  void (*few)(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last);
  bool many_is_unsigned;
  // any number of bf16 or int8 tokens, with readable rows up to a multiple of 32; null: there is no such kernel
  void (*many)(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last);
  // fp32 that skips FLOPs: tokens are lanes, so inputs are transposed first; null: there is no such kernel
  void (*transpose)(const float* x, int64_t ldx, int64_t tokens, int64_t inputs, float* out, int64_t first,
                    int64_t last);
  void (*many_fp32)(const Weight& w, const float* transposed, int64_t tokens, float* y, int64_t ldy, int64_t first,
                    int64_t last);
  // y = activation(x), times `up` unless it is null
  void (*activate)(Activation activation, const float* x, const float* up, float* y, int64_t n);
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*softmax)(float* x, int64_t n);
  // scores[s] = scale * query · keys[s], of `count` vectors of `size`
  void (*scores)(const float* query, const float* keys, int64_t count, int64_t size, float scale, float* scores);
  // y += sum of weights[s] * values[s]
  void (*mix)(const float* weights, const float* values, int64_t count, int64_t size, float* y);
};

extern const Isa portable_isa;
const Isa* avx2_isa();     // null where this CPU has none
const Isa* avx512_isa();
const Isa* amx_isa();

}  // namespace squarehead
