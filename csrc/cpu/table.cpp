// Gathers this instruction-set level's kernels; dispatch.cpp picks one table at import.
#include "../common/kernels.hpp"

#define SF_TABLE_NAME2(isa) table_##isa
#define SF_TABLE_NAME(isa) SF_TABLE_NAME2(isa)

namespace sf {
inline namespace SF_NS {
void blockdiag_apply(block_args&);
void blockdiag_adjoint(block_args&);
void likelihood_score(block_args&);
void philox_normal(normal_args&);
void pvd_update(pvd_args&);
void pvd_calibrate(calibrate_args&);
void pvd_channel_step(channel_step_args&);
void power_normalise(normalise_args&);
void power_normalise_vjp(normalise_args&);
void rzf_precode(rzf_args&);
void rzf_precode_vjp(rzf_args&);
void lmmse_equalise(rzf_args&);
void cir_to_ofdm(cir_args&);
void cdl_channels(cdl_args&);
void cdl_rays(cdl_ray_args&);
void waterfill_equalise(equalise_args&);
void waterfill_inject(waterfill_args&);
void waterfill_step(waterfill_args&);
void waterfill_step_authors(waterfill_args&);
void pilot_posterior_step(posterior_args&);
void renoise(renoise_args&);
void elbo_reduce(elbo_args&);
void dirichlet_responsibilities(dirichlet_args&);
void mimo_matmul(matmul_args&);
void mimo_matmul_check(matmul_args&);
}  // namespace SF_NS

extern const kernel_table SF_TABLE_NAME(SF_ISA);
const kernel_table SF_TABLE_NAME(SF_ISA) = {
    blockdiag_apply,
    blockdiag_adjoint,
    likelihood_score,
    philox_normal,
    pvd_update,
    pvd_calibrate,
    pvd_channel_step,
    power_normalise,
    power_normalise_vjp,
    rzf_precode,
    rzf_precode_vjp,
    lmmse_equalise,
    cir_to_ofdm,
    cdl_channels,
    cdl_rays,
    waterfill_equalise,
    waterfill_inject,
    waterfill_step,
    waterfill_step_authors,
    pilot_posterior_step,
    renoise,
    elbo_reduce,
    dirichlet_responsibilities,
    mimo_matmul,
    mimo_matmul_check,
};
}  // namespace sf
