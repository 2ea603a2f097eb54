#include "pack.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "memory.h"

namespace squarehead {
namespace {

// The mask bits [column, column + count) of a row, those behind its end 0; count <= 8 and column % count == 0.
unsigned bits_at(const uint8_t* mask, int64_t column, int64_t count, int64_t inputs) {
  if (column >= inputs) return 0;
  return (unsigned(mask[column / 8]) >> (column % 8)) & ((1u << count) - 1);
}

void pack_rows(const Rows& rows, const Weight& w, uint64_t* masks) {
  const int64_t bytes = (rows.inputs + 7) / 8, words = w.padded / 64;
#pragma omp parallel for
  for (int64_t row = 0; row < rows.outputs; row++) {
    masks[(row + 1) * words - 1] = 0;
    std::memcpy(masks + row * words, rows.bitmask + row * bytes, size_t(bytes));
  }
}

template <class Value, class Mask, int kGroup>
void pack_panels(const Rows& rows, const Weight& w, Mask* masks, Value* values) {
  const int64_t groups = w.padded / kGroup, bytes = (rows.inputs + 7) / 8;
  const auto* from = static_cast<const Value*>(rows.values);
#pragma omp parallel for
  for (int64_t panel = 0; panel < w.units; panel++) {
    const Value* next[kPanel];
    for (int64_t r = 0; r < kPanel; r++) {
      const int64_t row = panel * kPanel + r;
      next[r] = row >= rows.outputs ? nullptr : from + (rows.bitmask ? rows.row_offsets[row] : row * rows.inputs);
    }
    Value* out = values + (rows.bitmask ? w.offsets[panel] : panel * kPanel * w.padded);
    for (int64_t g = 0; g < groups; g++) {
      Mask mask = 0;
      for (int64_t r = 0; r < kPanel; r++) {
        const int64_t row = panel * kPanel + r;
        if (!rows.bitmask) {
          for (int64_t j = 0; j < kGroup; j++) {
            const int64_t column = g * kGroup + j;
            *out++ = row < rows.outputs && column < rows.inputs ? next[r][column] : Value(0);
          }
        } else if (row < rows.outputs) {
          const unsigned bits = bits_at(rows.bitmask + row * bytes, g * kGroup, kGroup, rows.inputs);
          mask |= Mask(bits) << (r * kGroup);
          for (unsigned left = bits; left; left &= left - 1) *out++ = *next[r]++;
        }
      }
      if (rows.bitmask) masks[panel * groups + g] = mask;
    }
  }
}

void sum_rows(const Rows& rows, int32_t* sums) {
  const auto* values = static_cast<const int8_t*>(rows.values);
  for (int64_t row = 0; row < rows.outputs; row++) {
    const int64_t start = rows.bitmask ? rows.row_offsets[row] : row * rows.inputs;
    const int64_t end = !rows.bitmask ? start + rows.inputs
                        : row + 1 < rows.outputs ? rows.row_offsets[row + 1] : rows.value_count;
    int32_t sum = 0;
    for (int64_t i = start; i < end; i++) sum += values[i];
    sums[row] = sum;
  }
}

}  // namespace

Weight* pack(const Rows& rows) {
  Weight w{};
  w.type = rows.type;
  w.outputs = rows.outputs;
  w.inputs = rows.inputs;
  w.padded = round_up(rows.inputs, kPad);
  const bool panels = rows.type != Type::fp32, dense = rows.bitmask == nullptr;
  w.units = panels ? round_up(rows.outputs, kPanel) / kPanel : rows.outputs;
  const int64_t size = size_of(rows.type), groups = w.padded / group_of(rows.type);
  const int64_t lines = round_up(rows.outputs, kPanel);
  const bool borrowed = dense && !panels;
  const int64_t count = borrowed ? 0 : dense ? w.units * kPanel * w.padded : rows.value_count;
  const int64_t mask_bytes =
      dense ? 0 : w.units * (panels ? groups * (rows.type == Type::int8 ? 8 : 4) : w.padded / 64 * 8);

  int64_t total = 0;
  auto place = [&total](int64_t bytes) {
    const int64_t at = total;
    total += round_up(bytes, 64);
    return at;
  };
  const int64_t values = place(count * size + kTail), masks = place(mask_bytes),
                offsets = place(dense ? 0 : (w.units + 1) * 8), scale = place(rows.scale ? lines * 4 : 0),
                sums = place(rows.scale ? lines * 4 : 0), bias = place(rows.bias ? lines * 4 : 0);
  auto* memory = static_cast<uint8_t*>(allocate(size_t(total)));
  w.memory = memory;
  w.memory_bytes = total;
  w.values = borrowed ? rows.values : memory + values;
  if (!dense) {
    auto* starts = reinterpret_cast<int64_t*>(memory + offsets);
    for (int64_t u = 0; u < w.units; u++) starts[u] = rows.row_offsets[panels ? u * kPanel : u];
    starts[w.units] = rows.value_count;
    w.offsets = starts;
    w.masks = memory + masks;
  }
  if (rows.scale) {
    auto* to = reinterpret_cast<float*>(memory + scale);
    for (int64_t i = 0; i < lines; i++) to[i] = i < rows.outputs ? rows.scale[i] : 0.0f;
    w.scale = to;
    auto* row_sums = reinterpret_cast<int32_t*>(memory + sums);
    std::memset(row_sums, 0, size_t(lines) * 4);
    sum_rows(rows, row_sums);
    w.sums = row_sums;
  }
  if (rows.bias) {
    auto* to = reinterpret_cast<float*>(memory + bias);
    for (int64_t i = 0; i < lines; i++) to[i] = i < rows.outputs ? rows.bias[i] : 0.0f;
    w.bias = to;
  }
  if (!borrowed) std::memset(memory + values + count * size, 0, size_t(kTail));
  if (rows.type == Type::fp32) {
    if (!dense) {
      if (count > 0) std::memcpy(memory + values, rows.values, size_t(count) * 4);  // no values may have no address
      pack_rows(rows, w, reinterpret_cast<uint64_t*>(memory + masks));
    }
  } else if (rows.type == Type::bf16) {
    pack_panels<uint16_t, uint32_t, 2>(rows, w, reinterpret_cast<uint32_t*>(memory + masks),
                                       reinterpret_cast<uint16_t*>(memory + values));
  } else {
    pack_panels<int8_t, uint64_t, 4>(rows, w, reinterpret_cast<uint64_t*>(memory + masks),
                                     reinterpret_cast<int8_t*>(memory + values));
  }
  return new Weight(w);
}

void release(Weight* w) {
  std::free(w->memory);
  delete w;
}

}  // namespace squarehead
