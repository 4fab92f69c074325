#include "dispatch.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>

namespace sf {

#if defined(SF_HAVE_v2)
extern const kernel_table table_v2, table_v3, table_v4;
#else
extern const kernel_table table_base;
#endif

namespace {

struct choice {
  const char* name;
  const kernel_table* table;
  bool runs;
};

std::vector<choice> choices() {
#if defined(SF_HAVE_v2)
  __builtin_cpu_init();
  const auto has = [](auto... bits) { return (... && bits); };
  const bool v2 = has(__builtin_cpu_supports("sse4.2"), __builtin_cpu_supports("popcnt"));
  const bool v3 =
      has(v2, __builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("bmi2"));
  const bool v4 =
      has(v3, __builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512cd"),
          __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl"));
  return {{"v4", &table_v4, v4}, {"v3", &table_v3, v3}, {"v2", &table_v2, v2}};
#else
  return {{"base", &table_base, true}};
#endif
}

choice pick() {
  const char* wanted = std::getenv("SEMCOM_FAST_ISA");
  if (wanted && !*wanted) wanted = nullptr;  // empty is as good as unset
  std::string built;
  for (const choice& c : choices()) {
    built += std::string(built.empty() ? "" : ", ") + c.name;
    if (wanted ? std::string(wanted) == c.name : c.runs) {
      if (!c.runs)
        throw std::runtime_error(std::string("SEMCOM_FAST_ISA=") + c.name + ": this processor cannot run it");
      return c;
    }
  }
  if (wanted)
    throw std::runtime_error(std::string("SEMCOM_FAST_ISA=") + wanted + " is unknown; built levels: " + built);
  throw std::runtime_error("this processor is older than x86-64-v2; no kernel can run");
}

const choice& chosen() {
  static const choice c = pick();
  return c;
}

}  // namespace

const kernel_table& kernels() { return *chosen().table; }
std::string isa() { return chosen().name; }

std::vector<std::string> isa_built() {
  std::vector<std::string> names;
  for (const choice& c : choices()) names.emplace_back(c.name);
  return names;
}

pool_fn torch_pool() {  // a C symbol of torch's stable shim; the library is already loaded, so nothing is opened anew
  static const pool_fn f = [] {
    void* lib = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
    return lib ? reinterpret_cast<pool_fn>(dlsym(lib, "torch_parallel_for")) : nullptr;
  }();
  return f;
}

}  // namespace sf
