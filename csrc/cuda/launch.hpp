// Launch entries of the CUDA kernels: torch-free, asynchronous on the given stream, errors as std::runtime_error.
#pragma once
#include "../common/kernels.hpp"

namespace sf::cuda {
int device_count();  // 0 when no usable driver
void blockdiag_apply(const block_args& a, int device, void* stream);
void blockdiag_adjoint(const block_args& a, int device, void* stream);
// energy [B], probe_x [B,U], probe_y [B] in the real dtype; a.energies is the [B,K,2+U] scratch
void likelihood_score(const block_args& a, void* energy, void* probe_x, void* probe_y, int device, void* stream);
}  // namespace sf::cuda
