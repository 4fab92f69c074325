// Argument blocks and the table of kernels that every instruction-set level provides. Plain data only: this header is
// shared by baseline code (bindings, dispatch) and by code compiled for AVX-512.
#pragma once
#include <stdint.h>

namespace sf {

// torch's thread pool: body(begin, end, ctx) on slices of [begin, end); null when torch does not offer it.
using pool_fn = int32_t (*)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                            void* ctx);

// Block-diagonal MIMO: Y_k = sum_u H_k^(u) X_k^(u), blocks k of batch item b. Complex row-major arrays
// h [B,U,K,Nr,Nt], x and probe [B,U,K,Nt,T], y [B,K,Nr,T]; *_b are batch strides in complex entries (0 = shared).
struct block_args {
  int32_t is_double;
  int32_t h_adjoint;  // likelihood_score on the CPU: h holds H^H, [B,U,K,Nt,Nr] of conjugates
  int64_t b, u, k, nr, nt, t;
  const void *y, *h, *x, *probe;
  int64_t y_b, h_b, x_b, probe_b;
  const void* noise_var;  // real [B] or [1] with stride 0, or null for 1
  int64_t noise_var_b;
  void *out_y, *out_h, *out_x;  // any of apply's y, score_h, and adjoint's or score's x-side result
  double* energies;  // likelihood_score: [B,K,2+U] of blocks: residual, then with a probe probe_y and probe_x per user
  void *energy, *probe_x, *probe_y;  // their sums over K, on the CPU: real [B], [B,U], [B]
  pool_fn pool;
  int64_t bad;  // out: lowest flat block index b*K + k with a non-finite result, -1 if none
};

// A level argument: one number, or a strided array of float or double over (sample l, item b, group g).
struct level {
  double value;
  const void* data;
  int32_t is_double;
  int64_t l, b, g;
};

struct philox_key {
  uint64_t seed;
  uint32_t step, stream;
  uint64_t first_item;
};

struct normal_args {  // out [items, reals] = scale * N(0,1)
  int32_t is_double;
  int64_t items, reals;
  double scale;
  philox_key key;
  void* out;
  pool_fn pool;
};

struct pvd_args {  // mean, anchor [B,G,E]; sample, denoised, score, noise [L,B,G,E], reals; *_l, *_b strides in reals
  int32_t is_double;
  int64_t l, b, g, e;
  const void *mean, *anchor, *sample, *denoised, *score, *noise;
  void *new_mean, *new_sample;
  level sigma, sigma_above, zeta, score_var, next_var;
  int32_t default_next_var, draw;  // draw: 0 none, 1 noise given, 2 Philox
  double scale;                    // of the Philox normals: sqrt(1/2) for the two reals of a complex entry
  philox_key key;
  pool_fn pool;
  int64_t bad;  // out: lowest item with a non-finite result, -1 if none
};

// Scores at the denoised channels w * sample, then the update of the channels with them; `move` has L = 1, a group per
// user and reals [K,Nr,Nt,2], `score` everything else. Its h and out_h stay in cache: they are not read here.
struct channel_step_args {
  block_args score;
  pvd_args move;
  level var;    // of a channel entry
  int64_t bad;  // out: lowest item with a non-finite result or a level out of range, -1 if none
};

struct normalise_args {  // z, g [B,n] reals; norm [B]
  int32_t is_double;
  int64_t b, n;
  double scale;  // sqrt(power * count)
  const void *z, *g;
  void *out, *norm;
  pool_fn pool;
  int64_t bad;
};

struct calibrate_args {  // var_h, probe_x [B,U]; probe_y [B] -> out [B]
  int32_t is_double;
  int64_t b, u, nr, count;
  double x_energy;
  level noise_var;
  const void *var_h, *probe_x, *probe_y;
  int64_t var_h_b, var_h_u, probe_x_b, probe_x_u, probe_y_b;
  void* out;
  int64_t bad;
};

// Regularised zero forcing, n channels h [n or 1, K, M], symbols s [n,K,T] ([n,T,K] with `rows`; null = unit symbols),
// x and g like s with M for K. The M-form factors H^H H + alpha I instead of H H^H + alpha I. lmmse_equalise reads y as
// s (with `rows`) and the channel's Nr x Nt as K x M.
struct rzf_args {
  int32_t is_double, rows, m_form;
  int32_t pinv;         // rows without a pivot are dropped instead of the whole channel
  int32_t refuse_zero;  // alpha = 0 is singular by the sizes alone (M < K)
  int32_t shared;       // vectors (`rows`) of a channel and a regulariser that have no leading dimensions
  int64_t n, k, m, t, h_b;
  int64_t alpha_run, items;  // consecutive channels that share an alpha; groups that share a power scale
  double scale;              // sqrt(power * count of an item); 0 = no power normalisation
  const void *h, *s, *alpha, *x, *g;
  void *out_x, *out_noise;
  double* norm;   // [items] of the unscaled x: forward writes, backward reads
  int32_t* info;  // [n] ([n,T] with `rows`) or null: 0, 1-based failing pivot, or -1 for a result that is not finite
  void *dh, *ds;
  double* da;  // [n]
  pool_fn pool;
  int64_t bad, spoilt, count;  // out: lowest singular entry, lowest non-finite one (-1 = none), singular entries
};

// h(f) = sum_p gains_p exp(-j 2 pi f tau_p): rows of P paths and F frequencies; `group` consecutive rows share delays.
struct cir_args {
  int32_t is_double;
  int64_t rows, group, p, f;
  const void *gains, *delays;
  const double* frequencies;
  const int64_t *gain_at, *delay_at, *out_at;  // offsets of a row's gains, of a group's delays, of a row's result
  int64_t gain_p, delay_p, out_f;              // strides
  void* out;
  pool_fn pool;
  int64_t bad;
};

// Water-filling on f = [Re | Im]: `b` items of `g` rows of `n` reals; d per real, or per symbol (`halves`: real i and
// i + n/2 share it), stride `d_row` over rows and `d_symbol` (0 or 1) within one. x0, uncond and prev are bfloat16 with
// `x0_bf16`. Without x0 this is the injection alone, at beta_s.
struct waterfill_args {
  int32_t is_double, x0_bf16, halves, draw;  // draw: 0 none, 1 noise given, 2 Philox
  int64_t b, g, n, d_row, d_symbol;
  const void *state, *x0, *uncond, *prev, *f, *d, *noise;
  void *out, *out_f;  // out_f: the authors' un-normalised state
  level beta_t, beta_s, guidance, ratio;
  int32_t variance_topup, renorm, common_base;  // of the authors' step
  philox_key key;
  pool_fn pool;
  int64_t bad;     // out: lowest item with a non-finite result or a level outside [0, 1], -1 if none
  int64_t joined;  // out: lowest item where `prev` was given although an element was still waiting, -1 if none
};

// y, h [rows, m] complex, h strides h_row and h_symbol in complex entries -> f [rows, 2m], d [rows, m].
struct equalise_args {
  int32_t is_double;
  int64_t rows, m, h_row, h_symbol;
  const void *y, *h;
  level noise_var;  // over rows (its item axis)
  void *f, *d;
  pool_fn pool;
  int64_t bad;
};

// H[b,i,j] = sum_r gains_r exp(j 2 pi (rx_r (i - (nr-1)/2) + tx_r (j - (nt-1)/2))); gains, rx, tx [B,R], H [B,nr,nt].
struct cdl_args {
  int32_t is_double;
  int64_t b, r, nr, nt;
  const void *gains, *rx, *tx;
  void* out;
  pool_fn pool;
  int64_t bad;
};

// One end of a clustered delay line, in double: ray progression = zenith (sine cos(yaw) - cosine sin(yaw)), tables
// [clusters,20] (and one entry of the specular path); yaw holds cosine and sine of item b at 2 b yaw_b.
struct cdl_end {
  const double *zenith, *sine, *cosine, *yaw;
  int64_t yaw_b;
};
// Rays of `b` channels of a profile: gains [b,f,rays], rx and tx [b,rays], rays = 20 clusters + los.
struct cdl_ray_args {
  int32_t is_double, los, los_random;
  int64_t b, clusters, f;
  const double* factors;  // [f,clusters+los] complex: amplitude exp(-j 2 pi f delay) of a path
  cdl_end rx_end, tx_end;
  philox_key key;
  void *gains, *rx, *tx;
  pool_fn pool;
  int64_t bad;
};

// `b` channels [nr,nt], predictions of `e` experts, pilots' singular vectors u [nt,r] and values s [r], one pair for
// all channels or (`own_basis`) one each. All arrays contiguous.
struct posterior_args {
  int32_t is_double, x0, own_basis;
  int64_t b, e, nr, nt, r;
  const void *h, *eps, *weights, *yv, *u, *s;
  level noise_var, alpha_bar, beta, lam;
  void* out;
  pool_fn pool;
  int64_t bad;  // out: lowest channel with a non-finite result, -1 if none
};

struct renoise_args {       // h [b,n] complex -> out [b,steps,n]
  int32_t is_double, draw;  // draw: 1 noise given, 2 Philox
  int64_t b, steps, n;
  const void *h, *noise;
  const int64_t* at;        // diffusion step of every entry of alpha_bar
  const double* alpha_bar;  // [steps]
  philox_key key;
  void* out;
  pool_fn pool;
  int64_t bad;
};

struct elbo_args {  // eps [b,steps,e,nr,nt] -> out_l, out_d [b,e]
  int32_t is_double, draw, own_basis;
  int64_t b, steps, e, nr, nt, r, tau;  // tau: index among the steps
  const void *eps, *h, *yv, *u, *s, *noise;
  const int64_t* at;
  const double *alpha_bar, *w;
  level noise_var;
  philox_key key;
  void *out_l, *out_d;
  pool_fn pool;
  int64_t bad;  // out: lowest channel * e + expert with a non-finite result, -1 if none
};

struct dirichlet_args {  // all [b,e]
  int32_t is_double;
  int64_t b, e;
  const void *l, *d, *gamma0, *gamma;
  double eta;
  void *rho, *after;
  pool_fn pool;
  int64_t bad;
};

// out [items,m,n] = A B: `size` holds the leading dimensions that make up `items`, outermost first, *_step their
// strides (0 = repeated), *_row and *_col the strides of A [m,k] and B [k,n] after transposing, all in complex entries.
struct matmul_args {
  int32_t is_double, conj_a, conj_b;
  int64_t m, k, n, dims, size[4], a_step[4], b_step[4];
  int64_t a_row, a_col, b_row, b_col;
  const void *a, *b;
  void* out;
  pool_fn pool;
  int64_t bad;  // out: lowest item with a non-finite result, -1 if none
};

struct kernel_table {
  void (*blockdiag_apply)(block_args&);
  void (*blockdiag_adjoint)(block_args&);
  void (*likelihood_score)(block_args&);
  void (*philox_normal)(normal_args&);
  void (*pvd_update)(pvd_args&);
  void (*pvd_calibrate)(calibrate_args&);
  void (*pvd_channel_step)(channel_step_args&);
  void (*power_normalise)(normalise_args&);
  void (*power_normalise_vjp)(normalise_args&);
  void (*rzf_precode)(rzf_args&);
  void (*rzf_precode_vjp)(rzf_args&);
  void (*lmmse_equalise)(rzf_args&);
  void (*cir_to_ofdm)(cir_args&);
  void (*cdl_channels)(cdl_args&);
  void (*cdl_rays)(cdl_ray_args&);
  void (*waterfill_equalise)(equalise_args&);
  void (*waterfill_inject)(waterfill_args&);
  void (*waterfill_step)(waterfill_args&);
  void (*waterfill_step_authors)(waterfill_args&);
  void (*pilot_posterior_step)(posterior_args&);
  void (*renoise)(renoise_args&);
  void (*elbo_reduce)(elbo_args&);
  void (*dirichlet_responsibilities)(dirichlet_args&);
  void (*mimo_matmul)(matmul_args&);
  void (*mimo_matmul_check)(matmul_args&);
};

}  // namespace sf
