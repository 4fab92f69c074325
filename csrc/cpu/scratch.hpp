// Working memory of a worker: on whole cache lines, for as long as the worker lives.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace sf {
inline namespace SF_NS {

template <class T>
class scratch {
  T* memory = nullptr;

 public:
  explicit scratch(int64_t count = 0) {
    if (count > 0) allocate(count);
  }
  ~scratch() { free(memory); }
  scratch(const scratch&) = delete;
  scratch& operator=(const scratch&) = delete;
  operator T*() const { return memory; }

  // Kernels have no way back from here: threads of torch's pool are under way.
  void allocate(int64_t count) {
    free(memory);
    void* p = nullptr;
    if (posix_memalign(&p, 64, size_t(count) * sizeof(T))) {
      fprintf(stderr, "semcom_fast: no memory for %lld bytes of scratch\n", (long long)(count * int64_t(sizeof(T))));
      abort();
    }
    memory = static_cast<T*>(p);
  }
  void allocate_zeros(int64_t count) {
    allocate(count);
    memset(static_cast<void*>(memory), 0, size_t(count) * sizeof(T));
  }
};

}  // namespace SF_NS
}  // namespace sf
