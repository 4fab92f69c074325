// Launch entries of the CUDA kernels: torch-free, asynchronous on the given stream, errors as std::runtime_error.
#pragma once
#include <string>

#include "../common/kernels.hpp"

namespace sf::cuda {
int device_count();        // 0 when no usable driver
bool runs_on(int device);  // whether this build holds machine code for it, or PTX that its driver compiles
void blockdiag_apply(const block_args& a, int device, void* stream);
void blockdiag_adjoint(const block_args& a, int device, void* stream);
// energy [B], probe_x [B,U], probe_y [B] in the real dtype; a.energies is the [B,K,2+U] scratch
void likelihood_score(const block_args& a, void* energy, void* probe_x, void* probe_y, int device, void* stream);
// scratch: rzf_scratch_bytes of device memory, for partial sums and the workspace of large matrices
int64_t rzf_scratch_bytes(const rzf_args& a, const std::string& op);
void rzf_precode(const rzf_args& a, void* scratch, int device, void* stream);
void rzf_precode_vjp(const rzf_args& a, void* scratch, int device, void* stream);
void lmmse_equalise(const rzf_args& a, void* scratch, int device, void* stream);
void cir_to_ofdm(const cir_args& a, int device, void* stream);
void mimo_matmul(const matmul_args& g, int device, void* stream);
}  // namespace sf::cuda
