// C = A B with either operand transposed, conjugated or strided, for many small matrices: lanes along the batch
// (matmul_batch.hpp), along N (matmul_columns.hpp) or along K (matmul_dots.hpp; matmul_packed.hpp for a few terms), by
// sizes and strides alone. The first two run multiply_tile; a column times a row (matmul_scalar.hpp) needs neither a
// tile nor a transposition. conj(A) is the conjugating product; A conj(B) = conj(conj(A) B), so that B never is
// conjugated: the result is, when it is stored. Every entry is the same sum in the same order whatever the tile, the
// band, the batch or the thread.
#include "matmul_batch.hpp"
#include "matmul_columns.hpp"
#include "matmul_dots.hpp"
#include "matmul_packed.hpp"
#include "matmul_scalar.hpp"

namespace sf {
inline namespace SF_NS {

// Fewer columns than half a pack leave most lanes along N empty.
template <class T>
bool along_batch(const matmul_args& a) {
  constexpr int WC = native_width<T> / 2;
  return a.n < WC && 2 * a.n <= WC + 2 && a.k * (a.n + packed_tile_rows) <= 1024;
}

// Nanoseconds of one product, as measured with operands from beyond the caches and a result in memory that torch's
// allocator hands out again and again.
template <class T>
int64_t time_of(const matmul_args& a) {
  const int64_t read = 2 * a.k * (a.m + a.n), written = 2 * a.m * a.n, work = a.m * a.k * a.n;
  return 2 + int64_t(sizeof(T)) * (read / 10 + written / 30 + work / 80);
}
constexpr int64_t worth_a_thread = 12000;  // nanoseconds of each

template <class T, bool Conj>
void matmul_on(matmul_args& a) {
  const int64_t items = items_of(a), each = time_of<T>(a);
  prepare_result(a.out, items * a.m * a.n * 2 * int64_t(sizeof(T)));
  const auto share = [&](int64_t parts, int64_t of_one, const auto& run) {
    parallel_for(a.pool, parts, worth_a_thread / (of_one + 1) + 1, run);
  };
  if (scaled_rows<T, Conj>::takes(a))
    return share(items * a.m, each / a.m,
                 [&](int64_t begin, int64_t end) { scaled_rows<T, Conj>(a).run(begin, end, a.bad); });
  if (dot_rows<T, Conj>::takes(a))
    return share(items * a.m, each / a.m,
                 [&](int64_t begin, int64_t end) { dot_rows<T, Conj>(a).run(begin, end, a.bad); });
  if (packed_rows<T, Conj>::takes(a))
    return share(items * a.m, each / a.m,
                 [&](int64_t begin, int64_t end) { packed_rows<T, Conj>(a).run(begin, end, a.bad); });
  if (along_batch<T>(a)) {
    constexpr int W = batch_lanes<T, Conj>::W;
    return share((items + W - 1) / W, W * each, [&](int64_t begin, int64_t end) {
      batch_lanes<T, Conj>(a).run(begin * W, end * W < items ? end * W : items, a.bad);
    });
  }
  using columns = column_lanes<T, Conj>;
  const int64_t parts = columns::row_parts(a) * columns::col_parts(a);
  share(items * parts, each / parts, [&](int64_t begin, int64_t end) { columns(a).run(begin, end, a.bad); });
}

template <class T>
void matmul_of(matmul_args& a) {
  a.conj_a != a.conj_b ? matmul_on<T, true>(a) : matmul_on<T, false>(a);
}

// One column of A stored by columns is one row times A^T stored by rows: lanes along M need no transposing. So is a
// column times a number.
template <class T>
bool row_times_matrix(const matmul_args& a) {
  if (a.k == 1) return a.n == 1 && a.m > 1;
  return a.n == 1 && a.a_row == 1 && a.a_col != 1 && a.m >= native_width<T>;
}
static matmul_args transposed(const matmul_args& a) {
  matmul_args t = a;
  t.conj_a = a.conj_b, t.conj_b = a.conj_a, t.m = a.n, t.n = a.m, t.a = a.b, t.b = a.a;
  t.a_row = a.b_col, t.a_col = a.b_row, t.b_row = a.a_col, t.b_col = a.a_row;
  for (int d = 0; d < 4; ++d) t.a_step[d] = a.b_step[d], t.b_step[d] = a.a_step[d];
  return t;
}

void mimo_matmul(matmul_args& a) {
  a.bad = -1;
  if (a.is_double ? row_times_matrix<double>(a) : row_times_matrix<float>(a)) {
    matmul_args t = transposed(a);
    t.is_double ? matmul_of<double>(t) : matmul_of<float>(t);
    a.bad = t.bad;
    return;
  }
  a.is_double ? matmul_of<double>(a) : matmul_of<float>(a);
}

// The lowest item of `out` with an entry that is not finite, for products that another library computed.
template <class T>
void finite_items(matmul_args& a) {
  const int64_t reals = 2 * a.m * a.n;
  parallel_for(a.pool, a.size[0], 200000 / (reals + 1) + 1, [&](int64_t begin, int64_t end) {
    const int64_t at = first_spoilt(static_cast<const T*>(a.out), begin, end, reals);
    if (at >= 0) note_lowest(a.bad, at);
  });
}
void mimo_matmul_check(matmul_args& a) {
  a.bad = -1;
  a.is_double ? finite_items<double>(a) : finite_items<float>(a);
}

}  // namespace SF_NS
}  // namespace sf
