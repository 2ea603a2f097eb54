// Threads that walk through a step together.
#pragma once

#include <atomic>
#include <chrono>

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

namespace squarehead {
namespace {  // as in memory.h

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

// Adds up the seconds between the ends of phases, for one thread of the team.
class Clock {
 public:
  Clock(bool on, double* seconds) : on_(on), seconds_(seconds), last_(now()) {}

  void end(int phase) {
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

}  // namespace
}  // namespace squarehead
