// out[item, i] = scale * N(0,1) from Philox4x32-10; one chunk of one item at a time.
#include "around.hpp"
#include "draws.hpp"
#include "packs.hpp"
#include "parallel.hpp"

namespace sf {
inline namespace SF_NS {

template <class T>
void run_normals(normal_args& a) {
  const int64_t chunks = (a.reals + draw_chunk - 1) / draw_chunk;
  parallel_for(a.pool, a.items * chunks, chunk_grain(a.reals), [&](int64_t begin, int64_t end) {
    draw_buffer<T> buffer;
    const around_caches around = goes_around<T>(a.out, a.items * a.reals, a.reals, draw_chunk);
    for (int64_t j = begin; j < end; ++j) {
      const int64_t item = j / chunks, first = j % chunks * draw_chunk;
      const int64_t n = a.reals - first < draw_chunk ? a.reals - first : draw_chunk;
      buffer.fill(a.key, uint64_t(item), 0, first, n, a.scale);
      T* out = static_cast<T*>(a.out) + item * a.reals + first;
      each_pack<T>(n, [&](int64_t i, int m) SF_LAMBDA { put(out + i, get(buffer.data + i, m), m, around); });
    }
  });
}

void philox_normal(normal_args& a) { a.is_double ? run_normals<double>(a) : run_normals<float>(a); }

}  // namespace SF_NS
}  // namespace sf
