// Memory that a thread keeps for its kernels.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace squarehead {
namespace {  // each file's own copy: those compiled for wider registers must not lend theirs to the others

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
      size_ = 0;
      data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (data_ == nullptr) throw std::bad_alloc();
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
