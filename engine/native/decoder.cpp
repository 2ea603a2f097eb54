#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "multiply.h"
#include "team.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace squarehead {
namespace {

void normalize(const Isa& isa, const float* x, const Norm& norm, float epsilon, int64_t n, float* out) {
  float mean = 0;
  if (norm.bias) {
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= float(n);
  }
  for (int64_t i = 0; i < n; i++) out[i] = x[i] - mean;
  const float scale = 1.0f / std::sqrt(isa.dot(out, out, n) / float(n) + epsilon);
  for (int64_t i = 0; i < n; i++) out[i] = out[i] * scale * norm.weight[i];
  if (norm.bias)
    for (int64_t i = 0; i < n; i++) out[i] += norm.bias[i];
}

// This thread's rows of a stage to y; where `sum` is given, they are added to it too.
void run_stage(const Isa& isa, const Stage& stage, const float* x, float* y, float* sum, int thread, int threads) {
  thread_local Scratch memory;
  if (stage.input_scale) {
    const int64_t n = stage.parts[0]->inputs;
    auto* scaled = static_cast<float*>(memory.get(size_t(n) * 4));
    for (int64_t i = 0; i < n; i++) scaled[i] = x[i] / stage.input_scale[i];
    x = scaled;
  }
  int64_t offset = 0;
  for (int p = 0; p < stage.count; p++) {
    const Weight& w = *stage.parts[p];
    const Share share = share_of(w, thread, threads);
    multiply_few(isa, w, x, 1, w.inputs, y + offset, w.outputs, share);
    if (sum) {
      const int64_t unit = w.type == Type::fp32 ? 1 : kPanel;
      const int64_t last = share.last * unit < w.outputs ? share.last * unit : w.outputs;
      for (int64_t row = share.first * unit; row < last; row++) sum[offset + row] += y[offset + row];
    }
    offset += w.outputs;
  }
}

// This thread's part of what stands between a block's products.
void run_middle(const Isa& isa, const Decoder& d, const Block& block, const float* x, int64_t position,
                Rotation rotation, int thread, int threads, float* out) {
  const int64_t n = block.kind == Kind::mlp ? block.out.parts[0]->inputs : d.heads;
  const int64_t first = n * thread / threads, last = n * (thread + 1) / threads;
  switch (block.kind) {
    case Kind::self_attention: attend_self(isa, d, block, x, position, rotation, first, last, out); break;
    case Kind::cross_attention: attend_source(isa, d, block, x, first, last, out); break;
    case Kind::mlp:
      isa.activate(d.activation, x + first, d.gated ? x + n + first : nullptr, out + first, last - first);
      break;
  }
}

int64_t width_of(const Stage& stage) {
  int64_t width = 0;
  for (int p = 0; p < stage.count; p++) width += stage.parts[p]->outputs;
  return width;
}

}  // namespace

void decode(const Isa& isa, const Decoder& d, int64_t token, int64_t position, float* logits, int threads,
            double* seconds) {
  thread_local Scratch memory;
  int64_t projected_width = 0, middle_width = 0;
  for (int64_t b = 0; b < d.block_count; b++) {
    projected_width = std::max(projected_width, width_of(d.blocks[b].inputs));
    middle_width = std::max(middle_width, d.blocks[b].out.parts[0]->inputs);
  }
  auto place = [](int64_t& at, int64_t floats) {
    const int64_t here = at;
    at += round_up(floats, 16);
    return here;
  };
  const int64_t half = d.frequencies ? d.head_size / 2 : 0;
  int64_t total = 0;
  const int64_t at_h = place(total, d.hidden), at_projected = place(total, projected_width),
                at_middle = place(total, middle_width), at_y = place(total, d.hidden), at_cos = place(total, half),
                at_sin = place(total, half);
  auto* base = static_cast<float*>(memory.get(size_t(total) * 4));
  float *h = base + at_h, *projected = base + at_projected, *middle = base + at_middle, *y = base + at_y,
        *cosines = base + at_cos, *sines = base + at_sin;
  std::memcpy(h, d.embedding + token * d.hidden, size_t(d.hidden) * 4);
  if (d.positions)
    for (int64_t i = 0; i < d.hidden; i++) h[i] += d.positions[position * d.hidden + i];
  for (int64_t i = 0; i < half; i++) {
    const float angle = float(position) * d.frequencies[i];
    cosines[i] = std::cos(angle) * d.rotation_scale;
    sines[i] = std::sin(angle) * d.rotation_scale;
  }
  const Rotation rotation = d.frequencies ? Rotation{cosines, sines} : Rotation{nullptr, nullptr};
  Barrier barrier;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#if defined(_OPENMP)
    const int thread = omp_get_thread_num(), team = omp_get_num_threads();  // may be fewer than asked for
#else
    const int thread = 0, team = 1;
#endif
    barrier.set_team(team);
#pragma omp barrier
    thread_local Scratch own;
    auto* normed = static_cast<float*>(own.get(size_t(d.hidden) * 4));
    Clock clock(thread == 0, seconds);
    auto end = [&](int phase) {
      barrier.wait();
      clock.end(phase);
    };
    for (int64_t b = 0; b < d.block_count; b++) {
      const Block& block = d.blocks[b];
      const int phase = int(block.kind) * kParts;
      normalize(isa, h, block.norm, d.epsilon, d.hidden, normed);
      run_stage(isa, block.inputs, normed, projected, nullptr, thread, team);
      end(phase);
      run_middle(isa, d, block, projected, position, rotation, thread, team, middle);
      end(phase + 1);
      run_stage(isa, block.out, middle, y, h, thread, team);
      end(phase + 2);
    }
    if (logits) {
      normalize(isa, h, d.final_norm, d.epsilon, d.hidden, normed);
      run_stage(isa, d.head, normed, logits, nullptr, thread, team);
      end(kKinds * kParts);
    }
  }
}

}  // namespace squarehead
