// One inner iteration for i.i.d. Gaussian channels: R = Y - sum_u w H X, H^H R w, |R|^2, the probe energies, and the
// update of mean and sample with the channel score w R X^H/s. Blocks of one item are taken a group at a time; the
// group's denoised channels and channel scores live in cache between the two halves, which are those of
// likelihood_score and pvd_update.
#include "run_blocks.hpp"
#include "draws.hpp"
#include "energy_sums.hpp"
#include "update_run.hpp"

namespace sf {
inline namespace SF_NS {

constexpr int64_t slab_reals = 2048;  // of a group's channels: two slabs and the draws stay in the first cache

template <class T>
struct channel_worker {
  const channel_step_args& a;
  int64_t entries, group;  // reals of one block of one user; blocks of a group
  block_worker<T, false> blocks;
  draw_buffer<T> buffer;
  scratch<T> memory;
  T *denoised, *score;

  static int64_t group_of(const block_args& s) {
    const int64_t fit = slab_reals / (2 * s.nr * s.nt * s.u);
    return fit < 1 ? 1 : fit < s.k ? fit : s.k;
  }
  explicit channel_worker(const channel_step_args& args)
      : a(args), entries(2 * a.score.nr * a.score.nt), group(group_of(a.score)), blocks(a.score) {
    const int64_t slab = (a.score.u * group * entries + 15) / 16 * 16;
    memory.allocate(2 * slab);
    denoised = memory, score = denoised + slab;
  }

  // The levels of user u, and whether they make sense.
  struct user_levels {
    double sigma, above, zeta, score_var, next_var, weight;
    bool valid;
  };
  user_levels levels_of(int64_t b, int64_t u) const {
    const pvd_args& p = a.move;
    const double sigma = at(p.sigma, 0, b, u), above = at(p.sigma_above, 0, b, u), var = at(a.var, 0, b, u);
    const double next = p.default_next_var ? pvd_default_next_var(sigma, above) : at(p.next_var, 0, b, u);
    const double s = at(p.score_var, 0, b, u);
    const bool valid =
        sigma > 0 && above > 0 && s > 0 && s - s == 0 && next >= 0 && next - next == 0 && var > 0 && var - var == 0;
    return {sigma, above, at(p.zeta, 0, b, u), s, next, gaussian_weight(var, sigma), valid};
  }

  // Moves n reals from real `begin` of the item on, whose denoised channels and scores start at `from` of the slabs.
  bool move(const user_levels& v, int64_t b, int64_t begin, int64_t n, int64_t from) {
    using P = native<T>;
    const pvd_args& p = a.move;
    const auto c = pvd_coefficients<T>::from(v.sigma, v.above, v.zeta, v.score_var / v.weight, 1.0);
    const P amp = T(__builtin_sqrt(v.next_var));
    const int64_t item = b * p.g * p.e, end = begin + n;
    const auto in = [&](const void* q, int64_t i) { return static_cast<const T*>(q) + item + i; };
    const auto out = [&](void* q, int64_t i) { return static_cast<T*>(q) + item + i; };
    P bad = T(0);
    for (int64_t i = begin, stop; i < end; i = stop) {
      const int64_t border = (i / draw_chunk + 1) * draw_chunk, skip = i % 4, j = from + i - begin;
      stop = border < end ? border : end;
      const T *mean = in(p.mean, i), *anchor = in(p.anchor, i), *noise = nullptr;
      if (p.draw == 1) noise = in(p.noise, i);
      if (p.draw == 2) {
        noise = buffer.data + skip;
        buffer.fill(p.key, uint64_t(b), 0, i - skip, skip + stop - i, p.scale,
                    [&](int64_t q) SF_LAMBDA { fetch_reals(mean + 4 * q), fetch_reals(anchor + 4 * q); });
      }
      const update_run<T> run{mean,      anchor, in(p.sample, i),    denoised + j,
                              score + j, noise,  out(p.new_mean, i), out(p.new_sample, i)};
      bad = bad + run.move(c, amp, stop - i);
    }
    return bad.sum() == T(0);
  }

  bool run_group(int64_t b, int64_t first) {
    const block_args& s = a.score;
    const int64_t last = first + group < s.k ? first + group : s.k, n = (last - first) * entries;
    bool good = true;
    for (int64_t u = 0; u < s.u; ++u) {
      const user_levels v = levels_of(b, u);
      const T* sample = static_cast<const T*>(a.move.sample) + ((b * s.u + u) * s.k + first) * entries;
      T* to = denoised + u * group * entries;
      const native<T> w = T(v.weight);
      each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA { put(to + i, get(sample + i, m) * w, m); });
      good = good && v.valid;
    }
    blocks.near = {denoised, score, group, first};
    good = blocks.template run<mode::score>(b, first, last, s.energies + (b * s.k + first) * (2 + s.u)) < 0 && good;
    for (int64_t u = 0; u < s.u; ++u)
      good = move(levels_of(b, u), b, (u * s.k + first) * entries, n, u * group * entries) && good;
    return good;
  }
};

template <class T>
void run_channel_step(channel_step_args& a) {
  const block_args& s = a.score;
  const int64_t group = channel_worker<T>::group_of(s), groups = (s.k + group - 1) / group;
  const int64_t work = group * (block_work<T>(s) + 4 * s.u * s.nr * s.nt);  // some 2 ns a drawn real
  a.bad = -1;
  parallel_for(s.pool, s.b * groups, 20000 / work + 1, [&](int64_t begin, int64_t end) {
    channel_worker<T> worker(a);
    for (int64_t i = begin; i < end; ++i)
      if (!worker.run_group(i / groups, i % groups * group)) note_lowest(a.bad, i / groups);
  });
}

template <class T>
void channel_step(channel_step_args& a) {
  run_channel_step<T>(a);
  sum_energies<T>(a.score);
}

void pvd_channel_step(channel_step_args& a) { a.score.is_double ? channel_step<double>(a) : channel_step<float>(a); }

}  // namespace SF_NS
}  // namespace sf
