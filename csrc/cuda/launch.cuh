// The one __global__ template behind every body, and how it is launched: on the given device and stream, without
// synchronisation or allocation.
#pragma once
#include "launch.hpp"
#include "plan.hpp"

namespace sf::cuda {

template <class Body>
__global__ void __launch_bounds__(Body::max_threads, Body::min_ctas) run_body(const __grid_constant__ Body body) {
  body(device_cta{});
}

void check(int error, const char* op);  // throws std::runtime_error unless cudaSuccess

class on_device {  // makes `device` current and puts the old one back
 public:
  on_device(int device, const char* op);
  ~on_device();
  on_device(const on_device&) = delete;
  on_device& operator=(const on_device&) = delete;

 private:
  int device_, before_ = 0;
};

struct launcher {
  cudaStream_t stream;
  const char* op;
  template <class Body>
  void operator()(const Body& body, const launch_shape& g) const {
    run_body<Body>
        <<<unsigned(g.ctas), dim3(unsigned(g.per_block), unsigned(g.group)), size_t(g.shared_bytes), stream>>>(body);
    check(cudaGetLastError(), op);
  }
};

}  // namespace sf::cuda
