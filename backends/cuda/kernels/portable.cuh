// What all kernels stand on: types, conversions and the sums of warps and blocks. The same sources are compiled by nvcc for cards and, with
// TANDEM_EMULATED, by a C++ compiler for the emulator that tests run them in, so they use no more of CUDA than both have.
#pragma once

#ifdef TANDEM_EMULATED
#include "../emulator/emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>
#include <stdint.h>
typedef __nv_bfloat16 bf16;
typedef __half f16;
// Names of kernels are C's, so that they can be asked for; the emulator needs to be told of them as well.
#define KERNEL extern "C" __global__ void
#define EXPORT(name)
#define SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]
#define NEGATIVE_INFINITY (-CUDART_INF_F)
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
// What is too large for F16 becomes its largest number: an activation of infinity would end the sequence.
template <> __device__ __forceinline__ f16 from_float<f16>(float x) {
    return __float2half_rn(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}
__device__ __forceinline__ f16 f16_from_bits(uint16_t bits) { return __ushort_as_half(bits); }

// D += A B of 16 x 8 numbers, 16 deep, with the operands spread over a warp as the instruction has them (PTX ISA, "Matrix fragments for
// mma.m16n8k16 with floating point type"): of lane l, g = l / 4 and t = l % 4, A has rows g and g + 8 and the columns 2t, 2t + 1 and 8
// behind them; B has column g and the rows 2t, 2t + 1 and 8 behind them; D has rows g and g + 8 and the columns 2t and 2t + 1.
template <typename X> __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <> __device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 numbers of 16 bits, from shared memory to a warp (PTX ISA, "Warp-level matrix load instruction: ldmatrix"): lane l
// says where row l % 8 of matrix l / 8 begins, at a multiple of 16 bytes. Of matrix i it gets, in register i, the columns 2 (l % 4) and
// the one behind it of row l / 4; TRANSPOSED, these rows of that column.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void *row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at));
    }
}

// 16 bytes on their way to shared memory past the registers, or zeros where `there` is false; both ends at multiples of 16 (PTX ISA, "Data
// movement and conversion instructions: cp.async"). What was asked for up to a commit is a group. A thread that waits has what it asked for
// itself, but for so many groups that it committed last ("cp.async.wait_group"); that others have is what a barrier behind it says.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int BUT> __device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(BUT) : "memory"); }

// On cards of compute capability 9.0 and later the kernels of a stream overlap (PTX ISA, "griddepcontrol"): once all blocks of one have let it,
// those of the next begin where there is room for them. Until they have waited, what the kernels before it write is not there, and what these
// still read must not be written; weights and other constants may be loaded. Nothing that a kernel before it writes may be loaded as
// constant, which `const` with `__restrict__` allows the compiler: such loads may be older than the wait.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The 128 bytes around an address, on their way to the L2 cache (PTX ISA, "Data movement and conversion instructions: prefetch").
__device__ __forceinline__ void prefetch(const void *at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// 2^x to 22 bits, as exp2f; what is smaller than the normal numbers is nothing (PTX ISA, "Floating point instructions: ex2").
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers that the type has room for, as the register that the tensor cores take.
template <typename X> __device__ __forceinline__ uint32_t pack_small(float low, float high);
template <> __device__ __forceinline__ uint32_t pack_small<bf16>(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
}
template <> __device__ __forceinline__ uint32_t pack_small<f16>(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&pair);
}
#endif

// What each thread of a kernel does first, if it has nothing to do before.
__device__ __forceinline__ void begin_kernel() {
    let_next_begin();
    wait_for_previous();
}

// Eight bits of a float: 4 of exponent and 3 of fraction, no infinities ("E4M3", OCP 8-bit Floating Point Specification 1.0). For caches; the
// same on all cards, of which the older have no instruction for it.
struct fp8 {
    uint8_t bits;
};

// A number of F16 has one more bit of exponent, whose bias is 8 more: the rest only moves.
__device__ __forceinline__ float to_float(fp8 x) {
    unsigned size = x.bits & 0x7fu;
    float number = to_float(f16_from_bits((uint16_t)((x.bits & 0x80u) << 8 | size << 7))) * 256.0f;
    return size == 0x7f ? number * NEGATIVE_INFINITY * 0.0f : number;
}

// To nearest, ties to even; what is too large becomes the largest number, 448.
template <> __device__ __forceinline__ fp8 from_float<fp8>(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 24 & 0x80u;
    float size = fabsf(x);
    if (x != x) return fp8{(uint8_t)(sign | 0x7f)};
    if (size >= 464.0f) return fp8{(uint8_t)(sign | 0x7e)};
    // Below the least number with a first digit, those that are left are 2^-9 apart.
    if (size < 0.015625f) return fp8{(uint8_t)(sign | (unsigned)rintf(size * 512.0f))};
    unsigned rounded = (bits & 0x7fffffffu) + 0x7ffffu + (bits >> 20 & 1u);
    return fp8{(uint8_t)(sign | (rounded - (120u << 23)) >> 20)};
}

#define WARP 32
#define ALL_LANES 0xffffffffu

// Numbers of a type that lie in 16 bytes, loaded and stored as one.
template <typename T> struct __align__(16) Vector {
    static constexpr int LEN = 16 / sizeof(T);
    T at[LEN];
};

// Whole vectors, the second and each one after it so many numbers behind the one before it.
template <typename T> __device__ __forceinline__ void load_floats(const T *from, float *to, int vectors, int apart = Vector<T>::LEN) {
#pragma unroll
    for (int v = 0; v < vectors; v++) {
        Vector<T> loaded = *reinterpret_cast<const Vector<T> *>(from + v * apart);
#pragma unroll
        for (int i = 0; i < Vector<T>::LEN; i++) to[v * Vector<T>::LEN + i] = to_float(loaded.at[i]);
    }
}

// Two neighbours, the first of which is at an even place, as the register that the tensor cores take.
template <typename X> __device__ __forceinline__ void store_pair(X *to, uint32_t pair) { *reinterpret_cast<uint32_t *>(to) = pair; }

// Two numbers as such a register.
template <typename X> __device__ __forceinline__ uint32_t pack(float low, float high) {
    X pair[2] = {from_float<X>(low), from_float<X>(high)};
    uint32_t packed;
    memcpy(&packed, pair, sizeof packed);
    return packed;
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

// The sum over a block, known to all its threads; `scratch` has room for a number of each warp. Threads meet here.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < (int)(blockDim.x / WARP); warp++) total += scratch[warp];
    return total;
}
