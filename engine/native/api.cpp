// The C interface that engine/kernels.py loads. Pointers in, pointers out; nothing here throws.
#include <cstddef>
#include <cstring>
#include <new>

#include "decoder.h"
#include "multiply.h"
#include "pack.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#define SQUAREHEAD_API extern "C" __attribute__((visibility("default")))

namespace squarehead {
namespace {

// From the slowest to the fastest; null where this CPU lacks it.
const Isa* isa_at(int level) {
  switch (level) {
    case 0: return &portable_isa;
    case 1: return avx2_isa();
    case 2: return avx512_isa();
    case 3: return amx_isa();
    default: return nullptr;
  }
}

void many_tokens(const Isa& isa, const Weight& w, const float* x, int64_t tokens, int64_t ldx, float* y, int64_t ldy,
                 int threads) {
  thread_local Scratch memory, scale_memory;
  const bool lanes = w.type == Type::fp32 && isa.many_fp32 != nullptr;
  // a line more than the token: at a power of two all rows of a tile would fall into the same set of the cache
  const int64_t rows = round_up(tokens, 32), size = size_of(w.type), stride = w.padded * size + 64;
  // threads of the team use the caller's scratch
  auto* prepared = static_cast<uint8_t*>(
      memory.get(size_t(lanes ? round_up(tokens, 128) * w.inputs * 4 : rows * stride)));
  auto* scales = static_cast<float*>(scale_memory.get(size_t(rows) * 4));
  const Input input{prepared, stride, tokens, scales};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#if defined(_OPENMP)
    const int thread = omp_get_thread_num(), team = omp_get_num_threads();
#else
    const int thread = 0, team = 1;
#endif
    const Share share = share_of(w, thread, team);
    if (lanes) {
      const int64_t tiles = round_up(w.inputs, 16) / 16;
      const int64_t first = tiles * thread / team * 16, last = tiles * (thread + 1) / team * 16;
      isa.transpose(x, ldx, tokens, w.inputs, reinterpret_cast<float*>(prepared), first,
                    last < w.inputs ? last : w.inputs);
    } else {
      for (int64_t t = thread; t < rows; t += team) {
        uint8_t* out = prepared + t * input.stride;
        if (t >= tokens) std::memset(out, 0, size_t(input.stride));
        else if (w.type == Type::int8)
          isa.quantize(x + t * ldx, w.inputs, w.padded, isa.many_is_unsigned, out, scales + t);
        else
          isa.to_bf16(x + t * ldx, w.inputs, w.padded, reinterpret_cast<uint16_t*>(out));
      }
    }
#pragma omp barrier
    if (share.first < share.last) {
      if (lanes)
        isa.many_fp32(w, reinterpret_cast<const float*>(prepared), tokens, y, ldy, share.first, share.last);
      else
        isa.many(w, input, y, ldy, share.first, share.last);
    }
  }
}

void few_tokens(const Isa& isa, const Weight& w, const float* x, int64_t tokens, int64_t ldx, float* y, int64_t ldy,
                int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#if defined(_OPENMP)
    const int thread = omp_get_thread_num(), team = omp_get_num_threads();
#else
    const int thread = 0, team = 1;
#endif
    const Share share = share_of(w, thread, team);
    for (int64_t t = 0; t < tokens; t += kFew)
      multiply_few(isa, w, x + t * ldx, tokens - t < kFew ? tokens - t : kFew, ldx, y + t * ldy, ldy, share);
  }
}

struct Field {
  const char* name;
  int64_t offset, size;
};

#define FIELD(structure, field) {#structure "." #field, offsetof(structure, field), sizeof(structure::field)}

// What engine/structures.py mirrors, in the same order: each structure with its size, after it its fields.
constexpr Field kFields[] = {
    {"Stage", 0, sizeof(Stage)},
    FIELD(Stage, parts), FIELD(Stage, count), FIELD(Stage, input_scale),
    {"Norm", 0, sizeof(Norm)},
    FIELD(Norm, weight), FIELD(Norm, bias),
    {"Block", 0, sizeof(Block)},
    FIELD(Block, kind), FIELD(Block, norm), FIELD(Block, inputs), FIELD(Block, out), FIELD(Block, keys),
    FIELD(Block, values),
    {"Decoder", 0, sizeof(Decoder)},
    FIELD(Decoder, hidden), FIELD(Decoder, heads), FIELD(Decoder, key_heads), FIELD(Decoder, head_size),
    FIELD(Decoder, block_count), FIELD(Decoder, context), FIELD(Decoder, source), FIELD(Decoder, activation),
    FIELD(Decoder, gated), FIELD(Decoder, epsilon), FIELD(Decoder, attention_scale), FIELD(Decoder, rotation_scale),
    FIELD(Decoder, frequencies), FIELD(Decoder, embedding), FIELD(Decoder, positions), FIELD(Decoder, bias),
    FIELD(Decoder, blocks), FIELD(Decoder, final_norm), FIELD(Decoder, head),
};

}  // namespace
}  // namespace squarehead

using namespace squarehead;

// Digest of the sources this was built from: engine/kernels.py refuses a library of other sources.
SQUAREHEAD_API const char* squarehead_sources() { return SQUAREHEAD_SOURCES; }

// Name of a structure or of one of its fields, and its offset and size; null behind the last one.
SQUAREHEAD_API const char* squarehead_field(int index, int64_t* offset, int64_t* size) {
  if (index >= int(sizeof(kFields) / sizeof(Field))) return nullptr;
  *offset = kFields[index].offset;
  *size = kFields[index].size;
  return kFields[index].name;
}

SQUAREHEAD_API int squarehead_has_threads() {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

// Name of an instruction set (0: portable, 1: AVX2, 2: AVX-512, 3: AMX), null where this CPU lacks it.
SQUAREHEAD_API const char* squarehead_isa(int level) {
  const Isa* isa = isa_at(level);
  return isa ? isa->name : nullptr;
}

// Null when memory is short. `type` 0: fp32, 1: bf16, 2: int8; the other arguments as in pack.h.
SQUAREHEAD_API void* squarehead_pack(int type, int64_t outputs, int64_t inputs, const uint8_t* bitmask,
                                     const int64_t* row_offsets, const void* values, int64_t value_count,
                                     const float* scale, const float* bias) {
  try {
    return pack({Type(type), outputs, inputs, bitmask, row_offsets, values, value_count, scale, bias});
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

SQUAREHEAD_API void squarehead_release(void* weight) { release(static_cast<Weight*>(weight)); }

SQUAREHEAD_API int64_t squarehead_bytes(const void* weight) { return bytes_of(*static_cast<const Weight*>(weight)); }

// y[t * ldy + o] = sum over i of W[o, i] x[t * ldx + i], plus bias. 0: done, 1: no such instruction set.
SQUAREHEAD_API int squarehead_linear(const void* weight, const float* x, int64_t tokens, int64_t ldx, float* y,
                                     int64_t ldy, int threads, int level) {
  const Isa* isa = isa_at(level);
  if (isa == nullptr) return 1;
  const Weight& w = *static_cast<const Weight*>(weight);
  const bool few = tokens <= kFew || (w.type == Type::fp32 ? isa->many_fp32 == nullptr : isa->many == nullptr);
  (few ? few_tokens : many_tokens)(*isa, w, x, tokens, ldx, y, ldy, threads);
  return 0;
}

// One decoding step; 0: done, 1: no such instruction set. `logits` may be null, `seconds` has kPhases sums.
SQUAREHEAD_API int squarehead_decode(const Decoder* decoder, int64_t token, int64_t position, float* logits,
                                     int threads, int level, double* seconds) {
  const Isa* isa = isa_at(level);
  if (isa == nullptr) return 1;
  decode(*isa, *decoder, token, position, logits, threads, seconds);
  return 0;
}
