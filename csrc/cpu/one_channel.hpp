// Many vectors behind one channel: the lanes of regularised.hpp hold vectors instead of channels, all with the same
// factor. The arithmetic of a lane is that of a channel of its own, so results have the same bits either way.
#pragma once
#include "packs.hpp"
#include "regularised.hpp"

namespace sf {
inline namespace SF_NS {

// Does the whole batch share one channel and one regulariser?
inline bool one_channel(const rzf_args& a) { return a.h_b == 0 && a.alpha_run == a.n && a.n > 1; }

// Walks through the packs of right-hand sides of channels [i, end), then of units up to `until`: Op::put(w, i, count)
// takes the results of a pack out of the tile, Op::close(w, unit) follows the last pack of a unit.
template <class Op, class R>
struct feed {
  const Op& op;
  const bool shared = one_channel(op.a);
  int64_t i, end, unit = -1, until = 0;
  int count = 0;

  feed(const Op& on, R& w, int64_t first, int64_t last) : op(on), i(first), end(last) { start(w); }
  feed(const Op& on, R& w, int64_t first, int64_t last, int64_t b, int64_t e)
      : op(on), i(first), end(last), unit(b), until(e) {
    start(w);
  }
  void start(R& w) {
    w.same_until = 0, w.from = 0;
    load(w, true);
  }
  SF_HD void load(R& w, bool channel) {
    if (w.from == 0) {
      count = end - i < R::W ? int(end - i) : R::W;
      channel ? w.load(i, count) : w.ask(i);
      op.ask(w, i);
    }
    w.take_piece(i, count);
  }
  bool next(R& w) {
    op.put(w, i, count);
    w.from += w.t;
    if (w.from == op.a.t) {
      w.from = 0, i += R::W;
      if (i >= end) {
        if (unit >= 0) op.close(w, unit);
        if (++unit >= until) return false;
        i = op.u.begin(unit), end = op.u.end(unit);
      }
    }
    load(w, !shared);
    return true;
  }
};

// body(part, first) with every half of the lanes that a factor serves: the half that it was made for, in one pack, or
// all of them in every pack that `feed` has.
template <class Feed, class Worker, class V, class Body>
SF_HD void serve(Feed& feed, Worker& w, const V& v, const Body& body) {
  if (feed.shared && v.lanes.half) return;  // lanes are alike: the first half's factor serves both
  if (feed.shared) w.info = typename Worker::P(w.info.v[0]);
  const int last = feed.shared ? Worker::W / V::width - 1 : v.lanes.half;
  V part = v;
  bool first = true;
  do {
    for (part.lanes.half = v.lanes.half; part.lanes.half <= last; ++part.lanes.half) body(part, first);
    first = false;
  } while (feed.shared && feed.next(w));
}
template <int N, template <class> class Job, class Feed, class Worker>
SF_HD void serve_all(Feed feed, Worker& w) {
  do w.template solve_lanes<N>(Job<Feed>{feed});
  while (!feed.shared && feed.next(w));
}

// Vectors side by side waste no lanes and no scratch, but cost a factor for every channel instead of every pack of
// them; a factor costs about as much as n / 2 + 1 packs of vectors.
inline bool may_lie_side_by_side(const rzf_args& a) { return a.rows && a.t >= 16; }
inline bool side_by_side(const rzf_args& a, int width) {
  if (!may_lie_side_by_side(a)) return false;
  const int64_t factor = (a.m_form ? a.m : a.k) / 2 + 1, packs = (a.n + width - 1) / width;
  return a.n * (factor + (a.t + width - 1) / width) < packs * (factor + a.t);
}

// Vectors [begin, end) of channel i of `a` as a batch of its own: as many channels that are all the same.
inline void point_at(rzf_args& one, const rzf_args& a, int64_t i, int64_t begin, int64_t end) {
  const int64_t complex_bytes = a.is_double ? 16 : 8, sides = i * a.t + begin;
  const auto in = [&](const void* p, int64_t at) { return static_cast<const char*>(p) + at; };
  const auto out = [&](void* p, int64_t at) { return p ? static_cast<char*>(p) + at : nullptr; };
  one.n = one.alpha_run = end - begin, one.t = one.items = 1, one.h_b = 0, one.scale = 0;
  one.h = in(a.h, i * a.h_b * complex_bytes), one.s = in(a.s, sides * a.k * complex_bytes);
  one.alpha = in(a.alpha, i / a.alpha_run * complex_bytes / 2);
  one.out_x = out(a.out_x, sides * a.m * complex_bytes),
  one.out_noise = out(a.out_noise, sides * a.m * complex_bytes / 2);
  one.info = a.info ? a.info + sides : nullptr;
  one.bad = one.spoilt = -1, one.count = 0;
}
inline void take_notes(rzf_args& a, const rzf_args& one, int64_t first) {
  if (one.bad >= 0) note_lowest(a.bad, first + one.bad);
  if (one.spoilt >= 0) note_lowest(a.spoilt, first + one.spoilt);
  if (one.count) __atomic_fetch_add(&a.count, one.count, __ATOMIC_RELAXED);
}

// Every channel as a batch of its own: Part(one) serves units of the batch that `one` is at the time.
template <class Part, int N>
void by_channel(rzf_args& a, int width) {
  const units u(a.t, 1, a.k * a.m, width);
  parallel_for(a.pool, a.n * u.chunks, 1, [&](int64_t b, int64_t e) {
    rzf_args one = a;
    point_at(one, a, b / u.chunks, 0, a.t);
    const Part part(one);
    typename Part::R w(one);
    while (b < e) {
      const int64_t i = b / u.chunks, until = e < (i + 1) * u.chunks ? e : (i + 1) * u.chunks;
      point_at(one, a, i, 0, a.t);
      part.template solve_lanes<N>(w, b - i * u.chunks, until - i * u.chunks);
      take_notes(a, one, i * a.t);
      b = until;
    }
  });
}

// Results [first, last) in memory: one that is not finite becomes zeros (with infinite noise), and is noted.
template <class T>
void drop_spoilt(rzf_args& a, int64_t first, int64_t last) {
  T *x = static_cast<T*>(a.out_x), *noise = static_cast<T*>(a.out_noise);
  for (int64_t v = first; a.info && v < last; ++v) a.info[v] = 0;
  if (first_spoilt(x + 2 * first * a.m, 0, 1, 2 * a.m * (last - first)) < 0) return;
  for (int64_t v = first; (v = first_spoilt(x, v, last, 2 * a.m)) >= 0; ++v) {
    for (int64_t j = 0; j < 2 * a.m; ++j) x[2 * v * a.m + j] = T(0);
    for (int64_t j = 0; noise && j < a.m; ++j) noise[v * a.m + j] = T(__builtin_inf());
    if (a.info) a.info[v] = -1;
    note_lowest(a.spoilt, v);
  }
}

// A batch that is vectors of one channel: its kernel is chosen by sizes alone, not by how many they are.
inline void as_one_channel(rzf_args& a) { a.t *= a.n, a.n = a.alpha_run = 1, a.rows = 1; }

}  // namespace SF_NS
}  // namespace sf
