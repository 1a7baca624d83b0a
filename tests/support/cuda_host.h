// The functions that the CUDA kernels stand on, for a host compiler. Each thread of a block is a fiber, so that
// barriers and shuffles mean what they mean on a device; blocks run one after the other.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
struct alignas(16) uint4 { u32 x, y, z, w; };
struct Index { unsigned x; };
static Index blockIdx, threadIdx, gridDim;
#define KERNEL(name) static void name
#define BY_VALUE const
#define DEVICE static inline
#define SHARED static
struct float16 { u16 bits; };
struct bfloat16 { u16 bits; };

#define ARITHMETIC(T) \
  DEVICE T add(T a, T b) { return a + b; } \
  DEVICE T sub(T a, T b) { return a - b; } \
  DEVICE T mul(T a, T b) { return a * b; } \
  DEVICE T div(T a, T b) { return a / b; } \
  DEVICE T root(T a) { return std::sqrt(a); } \
  DEVICE T magnitude(T a) { return std::fabs(a); } \
  DEVICE T exponential(T a) { return std::exp(a); } \
  DEVICE T logarithm(T a) { return std::log(a); }
ARITHMETIC(float)
ARITHMETIC(double)

template <class To, class From> static To same_bits(From a) { To b; static_assert(sizeof a == sizeof b, ""); memcpy(&b, &a, sizeof b); return b; }
DEVICE u32 bits_of(float a) { return same_bits<u32>(a); }
DEVICE float float_of(u32 a) { return same_bits<float>(a); }
DEVICE i64 bits_of(double a) { return same_bits<i64>(a); }
DEVICE double double_of(i64 a) { return same_bits<double>(a); }
DEVICE float widen(float16 a) { return (float)same_bits<_Float16>(a.bits); }
DEVICE void narrow(float16& a, float v) { a.bits = same_bits<u16>((_Float16)v); }
DEVICE void narrow(float& a, double v) { a = (float)v; }

// A 16-byte access that is not aligned stops the program on a device; here it is counted.
static i64 misaligned, wide_accesses;
DEVICE void load(uint4& v, i64 at) { misaligned += (at & 15) != 0; ++wide_accesses; memcpy(&v, (void*)at, 16); }
DEVICE void store(i64 at, uint4 v) { misaligned += (at & 15) != 0; ++wide_accesses; memcpy((void*)at, &v, 16); }
#define ACCESS(T) \
  DEVICE void load(T& v, i64 at) { memcpy(&v, (void*)at, sizeof v); } \
  DEVICE void store(i64 at, T v) { memcpy((void*)at, &v, sizeof v); }
ACCESS(u16)
ACCESS(float)
ACCESS(double)

struct Barrier { int arrived = 0, round = 0; };
struct Fiber { ucontext_t context; std::vector<char> stack; bool done; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static Barrier whole_block, warps[64];
static i64 lanes[2048];
static void yield() {
  const unsigned me = threadIdx.x;
  swapcontext(&fibers[me].context, &scheduler);
  threadIdx.x = me;
}
static void meet(Barrier& barrier, int size) {
  const int round = barrier.round;
  if (++barrier.arrived == size) {
    barrier.arrived = 0;
    ++barrier.round;
  }
  while (barrier.round == round) yield();
}
static unsigned block_size;
DEVICE void sync_block() { meet(whole_block, (int)block_size); }
static i64 exchange(i64 v, unsigned other) {
  Barrier& warp = warps[threadIdx.x / 32];
  lanes[threadIdx.x] = v;
  meet(warp, 32);
  const i64 result = lanes[other];
  meet(warp, 32);
  return result;
}
DEVICE i64 of_other_lane(i64 v, int mask) { return exchange(v, threadIdx.x ^ (unsigned)mask); }
DEVICE bool any_of_warp(bool v) {
  Barrier& warp = warps[threadIdx.x / 32];
  lanes[threadIdx.x] = v;
  meet(warp, 32);
  bool any = false;
  for (unsigned lane = 0; lane < 32; ++lane) any = any || lanes[threadIdx.x / 32 * 32 + lane];
  meet(warp, 32);
  return any;
}
DEVICE void add_atomic(i64* at, i64 v) { *at += v; }

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*(typename std::remove_const<A>::type*)arguments[I]...);
}
static void (*current)(void**);
static void** current_arguments;
static void body() {
  const unsigned me = threadIdx.x;
  current(current_arguments);
  threadIdx.x = me;
  fibers[me].done = true;
  swapcontext(&fibers[me].context, &scheduler);
}
static void launch(void (*kernel)(void**), void** arguments, i64 grid, i64 block, bool meets) {
  current = kernel;
  current_arguments = arguments;
  gridDim.x = (unsigned)grid;
  block_size = (unsigned)block;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    if (!meets) {
      for (threadIdx.x = 0; threadIdx.x < block_size; ++threadIdx.x) kernel(arguments);
      continue;
    }
    fibers.resize(block_size);
    for (Fiber& fiber : fibers) {
      fiber.stack.resize(1 << 16);
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, body, 0);
    }
    for (unsigned left = block_size; left;) {
      left = 0;
      for (unsigned me = 0; me < block_size; ++me) {
        if (fibers[me].done) continue;
        ++left;
        threadIdx.x = me;
        swapcontext(&scheduler, &fibers[me].context);
      }
    }
  }
}
#define EXPORT(name, meets) \
  template <class... A> static void spread(void (*kernel)(A...), void** arguments) { \
    call(kernel, arguments, std::index_sequence_for<A...>()); \
  } \
  static void start(void** arguments) { spread(name, arguments); } \
  extern "C" { const char* kernel_name = #name; } \
  extern "C" void run(void** arguments, i64 grid, i64 block, i64* counts) { \
    misaligned = wide_accesses = 0; \
    launch(start, arguments, grid, block, meets); \
    counts[0] = misaligned; \
    counts[1] = wide_accesses; \
  }
