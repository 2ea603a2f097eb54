// AMX tiles for many tokens (Sapphire Rapids and later): bf16 and int8. Few tokens and fp32 are AVX-512's.
//
// A tile of weights is 16 groups of a panel, which is how panels are stored: expanding is all that is left to do.
#include "weight.h"

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni,avx512bf16,bmi,bmi2,popcnt,fma,amx-tile,amx-int8,amx-bf16")
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cpuid.h>

#include "avx512.h"
#include "memory.h"

namespace squarehead {
namespace {

constexpr int64_t kTile = 16;         // rows of a tile: tokens, outputs or groups
constexpr int64_t kTileBytes = 1024;  // 16 rows of 64 bytes

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

constexpr TileConfig whole_tiles() {
  TileConfig config;
  for (int i = 0; i < 8; i++) {
    config.bytes_per_row[i] = 64;
    config.rows[i] = kTile;
  }
  return config;
}

// Tiles 0-3: sums of 2 x 16 tokens times 2 panels; 4, 5: tokens; 6, 7: weights.
// A constant in memory: gcc 12 does not know that loading a configuration reads it, and drops stores to a local one.
constexpr TileConfig kConfig = whole_tiles();

template <Type kType>
SQUAREHEAD_INLINE void multiply_tiles() {
  if constexpr (kType == Type::int8) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  } else {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Panels are expanded together so that tokens are read the fewer times; they fill up to half of a 2 MB cache.
template <Type kType, bool kDense>
void expanded(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  constexpr int kTogether = kType == Type::int8 ? 8 : 4;
  const int64_t tiles = w.padded / group_of(kType) / kTile;
  thread_local Scratch memory;
  auto* weights = static_cast<uint8_t*>(memory.get(size_t(kTogether * tiles * kTileBytes)));
  alignas(64) int32_t sums[4][kTile * kPanel];
  _tile_loadconfig(&kConfig);
  for (int64_t panel = first; panel < last; panel += kTogether) {
    const int count = int(last - panel < kTogether ? last - panel : kTogether);
    Readers<kType, kDense, kTogether> readers(w, panel, 1, count);
    for (int64_t tile = 0; tile < tiles; tile++)
      for (int p = 0; p < count; p++) {
        uint8_t* to = weights + (p / 2 * 2 * tiles + 2 * tile + p % 2) * kTileBytes;
        for (int64_t row = 0; row < kTile; row++) {
          if (row % 4 == 0) readers.prefetch_ahead(p, tile * kTile + row);
          _mm512_store_si512(to + row * 64, readers.next(p, tile * kTile + row));
        }
      }
    for (int64_t token = 0; token < x.tokens; token += 2 * kTile) {
      const auto* data = static_cast<const uint8_t*>(x.data) + token * x.stride;
      for (int pair = 0; pair < count; pair += 2) {
        const uint8_t* both = weights + pair * tiles * kTileBytes;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t tile = 0; tile < tiles; tile++) {
          _tile_loadd(4, data + tile * 64, x.stride);
          _tile_loadd(6, both + 2 * tile * kTileBytes, 64);
          _tile_loadd(7, both + (2 * tile + 1) * kTileBytes, 64);
          _tile_loadd(5, data + kTile * x.stride + tile * 64, x.stride);
          multiply_tiles<kType>();
        }
        _tile_stored(0, sums[0], 64);
        _tile_stored(1, sums[1], 64);
        _tile_stored(2, sums[2], 64);
        _tile_stored(3, sums[3], 64);
        for (int half = 0; half < 2; half++)
          for (int p = 0; p < 2 && pair + p < count; p++)
            for (int64_t t = 0; t < kTile && token + half * kTile + t < x.tokens; t++) {
              const int64_t b = token + half * kTile + t;
              const __m512i sum = _mm512_load_si512(sums[2 * half + p] + t * kPanel);
              finish<kType, false>(sum, w, x, panel + pair + p, b, y + b * ldy);
            }
      }
    }
  }
  _tile_release();
}

void many(const Weight& w, const Input& x, float* y, int64_t ldy, int64_t first, int64_t last) {
  const bool dense = w.masks == nullptr;
  if (w.type == Type::bf16)
    (dense ? expanded<Type::bf16, true> : expanded<Type::bf16, false>)(w, x, y, ldy, first, last);
  else
    (dense ? expanded<Type::int8, true> : expanded<Type::int8, false>)(w, x, y, ldy, first, last);
}

// Linux gives a process its tile registers on request only.
bool tiles_allowed() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25;
  return (d & (kBf16 | kTiles | kInt8)) == (kBf16 | kTiles | kInt8);
}

}  // namespace

const Isa* amx_isa() {
  static const Isa* const found = []() -> const Isa* {
    const Isa* base = avx512_isa();
    if (base == nullptr || !has_tiles() || !tiles_allowed()) return nullptr;
    static Isa isa = *base;
    isa.name = "amx";
    isa.many_is_unsigned = false;
    isa.many = many;
    return &isa;
  }();
  return found;
}

}  // namespace squarehead

#else

namespace squarehead {
const Isa* amx_isa() { return nullptr; }
}  // namespace squarehead

#endif
