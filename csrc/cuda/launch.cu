#include "launch.cuh"

namespace sf::cuda {

int device_count() {
  int n = 0;
  if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
  cudaGetLastError();  // clears it: no driver is not an error here
  return 0;
}

void check(int error, const char* op) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": CUDA error " + std::to_string(error) + ", " +
                             cudaGetErrorString(static_cast<cudaError_t>(error)));
}

on_device::on_device(int device, const char* op) : device_(device) {
  check(cudaGetDevice(&before_), op);
  if (before_ != device_) check(cudaSetDevice(device_), op);
}
on_device::~on_device() {
  if (before_ != device_) cudaSetDevice(before_);
}

}  // namespace sf::cuda
