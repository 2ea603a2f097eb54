// Aligned memory, in large pages where it is large.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace squarehead {
namespace {  // each file's own copy: those compiled for wider registers must not lend theirs to the others

constexpr size_t kPage = size_t(2) << 20;

// Weights and inputs are read from end to end: with pages of 2 MB the address translation keeps up, and neighbours do
// not fall on each other in the caches, which go by physical addresses. Throws std::bad_alloc; std::free releases it.
inline void* allocate(size_t bytes) {
  const size_t alignment = bytes >= kPage / 2 ? kPage : 64, whole = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, whole);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kPage) madvise(memory, whole, MADV_HUGEPAGE);
#endif
  return memory;
}

// Memory that a thread keeps for its kernels.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least `bytes`, aligned to 64; what was there is lost when it grows.
  void* get(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      data_ = nullptr;
      size_ = 0;
      data_ = allocate(bytes);
      size_ = bytes;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace
}  // namespace squarehead
