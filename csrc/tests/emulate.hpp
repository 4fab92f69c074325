// A CTA on the host: csrc/cuda/cta.cuh's `phase` runs every thread in turn. Shared memory is exactly as large as the
// launch asks for and starts as NaN. Running the threads forwards, backwards and shuffled must give the same bits: a
// thread that reads what another writes in the same phase (a missing barrier on the GPU) breaks that.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../cuda/plan.hpp"

namespace sf::cuda {

struct host_cta {
  int64_t cta;
  const std::vector<thread_place>& order;
  unsigned char* memory;

  template <class S>
  std::vector<S> registers() const {
    return std::vector<S>(order.size());
  }
  int64_t index() const { return cta; }
  int32_t threads() const { return int32_t(order.size()); }
  unsigned char* shared() const { return memory; }
  template <class F>
  void phase(const F& f) const {
    for (const thread_place& t : order) f(t);
  }
  template <class F>
  void last(const F& f) const {
    phase(f);
  }
  template <class F>
  void loads(const F& f) const {
    phase(f);
  }
  template <class F>
  bool any(const F& f) const {
    bool found = false;
    for (const thread_place& t : order) found |= f(t);
    return found;
  }
};

enum class thread_order { forward, backward, shuffled };

struct host_launcher {
  thread_order order;
  std::vector<std::string>* bodies;

  template <class Body>
  static std::string name() {  // "... [with Body = sf::cuda::apply_tiles<float, 4, 2>; ..."
    const std::string s = __PRETTY_FUNCTION__;
    const size_t from = s.find("Body = ") + 7;
    return s.substr(from, s.find_first_of(";]", from) - from);
  }

  template <class Body>
  void operator()(const Body& body, const launch_shape& g) const {
    if (g.group * g.per_block > Body::max_threads || g.shared_bytes > max_shared)
      throw std::runtime_error("launch too large");
    std::vector<thread_place> tids;
    for (int i = 0; i < g.group * g.per_block; ++i) tids.push_back({i, i % g.per_block, i / g.per_block});
    if (order == thread_order::backward) std::reverse(tids.begin(), tids.end());
    if (order == thread_order::shuffled) std::shuffle(tids.begin(), tids.end(), std::mt19937(7));
    for (int64_t cta = 0; cta < g.ctas; ++cta) {
      std::unique_ptr<unsigned char[]> shared(new unsigned char[size_t(g.shared_bytes)]);
      std::memset(shared.get(), 0xff, size_t(g.shared_bytes));
      body(host_cta{cta, tids, shared.get()});
    }
    bodies->push_back(name<Body>());
  }
};

}  // namespace sf::cuda
