#include "decoder.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>

#include "multiply.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

namespace squarehead {
namespace {

// Threads meet some 200 times a token, mostly within a microsecond: they spin, and yield when one is late.
class Barrier {
 public:
  // Every thread of the team calls this, and then passes a barrier of the team, before the first wait.
  void set_team(int threads) { threads_.store(threads, std::memory_order_relaxed); }

  void wait() {
    const int threads = threads_.load(std::memory_order_relaxed);
    if (threads == 1) return;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
      if (spins < 4000) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
#if defined(__unix__) || defined(__APPLE__)
        sched_yield();
#endif
      }
    }
  }

 private:
  std::atomic<int> threads_{1}, arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

class Clock {
 public:
  Clock(bool on, double* seconds) : on_(on), seconds_(seconds), last_(now()) {}

  void end(Phase phase) {
    if (!on_) return;
    const auto here = now();
    seconds_[phase] += std::chrono::duration<double>(here - last_).count();
    last_ = here;
  }

 private:
  using Time = std::chrono::steady_clock::time_point;
  static Time now() { return std::chrono::steady_clock::now(); }
  const bool on_;
  double* seconds_;
  Time last_;
};

void normalize(const Isa& isa, const float* x, const float* weight, float epsilon, int64_t n, float* out) {
  const float scale = 1.0f / std::sqrt(isa.dot(x, x, n) / float(n) + epsilon);
  for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
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

void rotate(const float* x, const float* cosines, const float* sines, int64_t size, float* out) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i++) {
    out[i] = x[i] * cosines[i] - x[i + half] * sines[i];
    out[i + half] = x[i + half] * cosines[i] + x[i] * sines[i];
  }
}

// Query heads [first, last) at `position`. The cache gets the position's key and value from the thread that has the
// first query head of the group; the others use their own copy, so nobody waits.
void attend(const Isa& isa, const Decoder& d, const float* qkv, float* keys, float* values, int64_t position,
            const float* cosines, const float* sines, int64_t first, int64_t last, float* out) {
  thread_local Scratch memory;
  const int64_t size = d.head_size, group = d.heads / d.key_heads;
  auto* scores = static_cast<float*>(memory.get(size_t(position + 16 + 2 * size) * 4));
  float *query = scores + round_up(position + 1, 16), *key = query + size;
  int64_t rotated = -1;
  for (int64_t head = first; head < last; head++) {
    const int64_t key_head = head / group;
    const float* value = qkv + (d.heads + d.key_heads + key_head) * size;
    float *cached_keys = keys + key_head * d.context * size, *cached_values = values + key_head * d.context * size;
    if (key_head != rotated) {
      rotate(qkv + (d.heads + key_head) * size, cosines, sines, size, key);
      rotated = key_head;
    }
    if (head % group == 0) {
      std::memcpy(cached_keys + position * size, key, size_t(size) * 4);
      std::memcpy(cached_values + position * size, value, size_t(size) * 4);
    }
    rotate(qkv + head * size, cosines, sines, size, query);
    for (int64_t s = 0; s < position; s++) scores[s] = isa.dot(query, cached_keys + s * size, size) * d.attention_scale;
    scores[position] = isa.dot(query, key, size) * d.attention_scale;
    isa.softmax(scores, position + 1);
    float* mixed = out + head * size;
    std::memset(mixed, 0, size_t(size) * 4);
    for (int64_t s = 0; s < position; s++) isa.add_scaled(cached_values + s * size, scores[s], mixed, size);
    isa.add_scaled(value, scores[position], mixed, size);
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
  const int64_t qkv_width = width_of(d.layers[0].qkv), mixed_width = d.heads * d.head_size;
  auto place = [](int64_t& at, int64_t floats) {
    const int64_t here = at;
    at += round_up(floats, 16);
    return here;
  };
  int64_t total = 0;
  const int64_t at_h = place(total, d.hidden), at_qkv = place(total, qkv_width), at_mixed = place(total, mixed_width),
                at_y = place(total, d.hidden), at_gate_up = place(total, 2 * d.intermediate),
                at_gated = place(total, d.intermediate), at_cos = place(total, d.head_size / 2),
                at_sin = place(total, d.head_size / 2);
  auto* base = static_cast<float*>(memory.get(size_t(total) * 4));
  float *h = base + at_h, *qkv = base + at_qkv, *mixed = base + at_mixed, *y = base + at_y,
        *gate_up = base + at_gate_up, *gated = base + at_gated, *cosines = base + at_cos, *sines = base + at_sin;
  std::memcpy(h, d.embedding + token * d.hidden, size_t(d.hidden) * 4);
  for (int64_t i = 0; i < d.head_size / 2; i++) {
    const float angle = float(position) * d.frequencies[i];
    cosines[i] = std::cos(angle) * d.rotation_scale;
    sines[i] = std::sin(angle) * d.rotation_scale;
  }
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
    auto end = [&](Phase phase) {
      barrier.wait();
      clock.end(phase);
    };
    const int64_t cache = d.key_heads * d.context * d.head_size;
    for (int64_t l = 0; l < d.layer_count; l++) {
      const Layer& layer = d.layers[l];
      normalize(isa, h, layer.attention_norm, d.epsilon, d.hidden, normed);
      run_stage(isa, layer.qkv, normed, qkv, nullptr, thread, team);
      end(kQkv);
      attend(isa, d, qkv, d.keys + l * cache, d.values + l * cache, position, cosines, sines, d.heads * thread / team,
             d.heads * (thread + 1) / team, mixed);
      end(kAttention);
      run_stage(isa, layer.out, mixed, y, h, thread, team);
      end(kOut);
      normalize(isa, h, layer.mlp_norm, d.epsilon, d.hidden, normed);
      run_stage(isa, layer.gate_up, normed, gate_up, nullptr, thread, team);
      end(kGateUp);
      const int64_t first = d.intermediate * thread / team, last = d.intermediate * (thread + 1) / team;
      isa.gated(gate_up + first, gate_up + d.intermediate + first, gated + first, last - first);
      end(kGated);
      run_stage(isa, layer.down, gated, y, h, thread, team);
      end(kDown);
    }
    normalize(isa, h, d.final_norm, d.epsilon, d.hidden, normed);
    run_stage(isa, d.head, normed, logits, nullptr, thread, team);
    end(kHead);
  }
}

}  // namespace squarehead
