"""What every CUDA kernel stands on: correctly rounded operations, accesses of 16 bytes, packs of elements."""

from __future__ import annotations

__all__ = ["COMMON", "DEVICE"]

#: What the kernels stand on, on the device. The tests have the same functions for a host compiler.
DEVICE = r"""
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
#define KERNEL(name) extern "C" __global__ void __launch_bounds__(BLOCK) name
#define BY_VALUE const __grid_constant__
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
struct float16 { u16 bits; };
struct bfloat16 { u16 bits; };

#define ARITHMETIC(T, kind, f) \
  DEVICE T add(T a, T b) { return __##kind##add_rn(a, b); } \
  DEVICE T sub(T a, T b) { return __##kind##sub_rn(a, b); } \
  DEVICE T mul(T a, T b) { return __##kind##mul_rn(a, b); } \
  DEVICE T div(T a, T b) { return __##kind##div_rn(a, b); } \
  DEVICE T root(T a) { return __##kind##sqrt_rn(a); } \
  DEVICE T magnitude(T a) { return fabs##f(a); } \
  DEVICE T exponential(T a) { return exp##f(a); } \
  DEVICE T logarithm(T a) { return log##f(a); }
ARITHMETIC(float, f, f)
ARITHMETIC(double, d, )

DEVICE u32 bits_of(float a) { return __float_as_uint(a); }
DEVICE float float_of(u32 a) { return __uint_as_float(a); }
DEVICE i64 bits_of(double a) { return __double_as_longlong(a); }
DEVICE double double_of(i64 a) { return __longlong_as_double(a); }
DEVICE float widen(float16 a) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(a.bits)); return r; }
DEVICE void narrow(float16& a, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a.bits) : "f"(v)); }
DEVICE void narrow(float& a, double v) { a = __double2float_rn(v); }

// The arrays' addresses come out of a table, so the compiler cannot see that they are in global memory.
DEVICE void load(uint4& v, i64 at) {
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
}
DEVICE void store(i64 at, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :: "l"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
#define ACCESS(T, kind, in, out) \
  DEVICE void load(T& v, i64 at) { asm volatile("ld.global." kind " %0, [%1];" : out(v) : "l"(at) : "memory"); } \
  DEVICE void store(i64 at, T v) { asm volatile("st.global." kind " [%0], %1;" :: "l"(at), in(v) : "memory"); }
ACCESS(u16, "u16", "h", "=h")
ACCESS(float, "f32", "f", "=f")
ACCESS(double, "f64", "d", "=d")

DEVICE void sync_block() { __syncthreads(); }
DEVICE bool any_of_warp(bool v) { return __any_sync(0xffffffffu, v); }
DEVICE i64 of_other_lane(i64 v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE void add_atomic(i64* at, i64 v) { atomicAdd((u64*)at, (u64)v); }
"""

#: What stands on the prelude alone: packs of elements, and the half types' rounding.
COMMON = r"""
DEVICE float widen(bfloat16 a) { return float_of((u32)a.bits << 16); }
DEVICE real widen(real a) { return a; }
DEVICE void narrow(real& a, real v) { a = v; }
// To nearest, ties to even, by the carry out of the lower half. All NaNs become one.
DEVICE void narrow(bfloat16& a, float v) {
  const u32 u = bits_of(v);
  a.bits = v == v ? (u16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16) : (u16)0x7fc0;
}
DEVICE void load(float16& v, i64 at) { load(v.bits, at); }
DEVICE void load(bfloat16& v, i64 at) { load(v.bits, at); }
DEVICE void store(i64 at, float16 v) { store(at, v.bits); }
DEVICE void store(i64 at, bfloat16 v) { store(at, v.bits); }

template <class T> union Pack {
  uint4 quads[PACK * sizeof(T) / 16];
  T v[PACK];
};
template <class T> DEVICE void load(Pack<T>& pack, i64 at) {
  if ((at & 15) == 0) {
    #pragma unroll
    for (int q = 0; q < (int)(PACK * sizeof(T) / 16); ++q) load(pack.quads[q], at + 16 * q);
  } else {
    #pragma unroll
    for (int k = 0; k < PACK; ++k) load(pack.v[k], at + k * (i64)sizeof(T));
  }
}
template <class T> DEVICE void store(i64 at, const Pack<T>& pack) {
  if ((at & 15) == 0) {
    #pragma unroll
    for (int q = 0; q < (int)(PACK * sizeof(T) / 16); ++q) store(at + 16 * q, pack.quads[q]);
  } else {
    #pragma unroll
    for (int k = 0; k < PACK; ++k) store(at + k * (i64)sizeof(T), pack.v[k]);
  }
}
struct Numbers { double v[NUMBERS]; };
DEVICE double number(const Numbers& numbers, const double* live, u64 mask, int k) {
  return (mask >> k) & 1 ? live[k] : numbers.v[k];
}
"""
