// As much of CUDA as the kernels use, on a CPU: blocks run one after the other, and the threads of a block are fibers that change places
// where threads wait for each other. Every read and write of a kernel happens as written, so what is tested is its arithmetic, its indices
// and its barriers. Between two barriers of a block its warps run one after the other, each as far as it gets, and copies that are not
// waited for have not happened: a barrier or a wait that is missing gives wrong numbers. What is not tested is every other order.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct Index {
    unsigned x, y, z;
};

namespace emulator {

// Of the fiber that runs.
extern thread_local Index thread_index, block_index, block_extent, grid_extent;
extern thread_local unsigned char *shared_memory;

void block_barrier();
void warp_barrier();
// What the lane `from` passed at the same call; all lanes of a warp call together.
uint64_t exchange(uint64_t value, int from);
// Gathers what each lane passes, `words` of 32 bits; the result is valid until the next but one call. Lane l's are at l * words.
const uint32_t *gather(const uint32_t *mine, int words);
// Whether it lies in the shared memory that the kernel was launched with, 16 bytes at a multiple of 16; ends the process if not.
void check_shared(const void *at);
// Notes that the thread has waited for the kernels before; one that ends without ends the process.
void wait_for_previous();
// Of the fiber's copies. What one writes to is no number until it is waited for.
void begin_copy(void *to, const void *from, bool there);
void commit_copies();
void wait_copies(int but);

typedef void (*Trampoline)(void **arguments);
struct Export {
    Export(const char *name, Trampoline trampoline);
};

template <size_t... AT> struct Places {};
template <size_t N, size_t... AT> struct Count : Count<N - 1, N - 1, AT...> {};
template <size_t... AT> struct Count<0, AT...> {
    typedef Places<AT...> All;
};
template <auto KERNEL, typename... A, size_t... AT> void spread(void (*)(A...), Places<AT...>, void **arguments) {
    KERNEL(*static_cast<A *>(arguments[AT])...);
}
template <auto KERNEL, typename... A> void call_as(void (*kernel)(A...), void **arguments) {
    spread<KERNEL>(kernel, typename Count<sizeof...(A)>::All(), arguments);
}
template <auto KERNEL> void call(void **arguments) { call_as<KERNEL>(KERNEL, arguments); }

}  // namespace emulator

#define threadIdx (emulator::thread_index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_extent)
#define gridDim (emulator::grid_extent)
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// Blocks of one thread of the host run one after the other.
#define __shared__ static thread_local
#define SHARED_BYTES(name) unsigned char *name = emulator::shared_memory
#define KERNEL extern "C" void
#define EXPORT(name) static emulator::Export export_##name(#name, &emulator::call<&name>);
#define NEGATIVE_INFINITY (-INFINITY)

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { emulator::warp_barrier(); }

template <typename T> T __shfl_sync(unsigned, T value, int from) {
    static_assert(sizeof(T) <= 8, "a register or two");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulator::exchange(bits, from % 32);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int with) {
    return __shfl_sync(mask, value, (int)(threadIdx.x % 32) ^ with);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned by) {
    int lane = threadIdx.x % 32;
    return __shfl_sync(mask, value, lane >= (int)by ? lane - (int)by : lane);
}

inline int __any_sync(unsigned, int mine) {
    uint32_t word = mine != 0, any = 0;
    const uint32_t *all = emulator::gather(&word, 1);
    for (int lane = 0; lane < 32; lane++) any |= all[lane];
    return any != 0;
}

template <typename T> T atomicAdd(T *at, T value) {
    T before = *at;
    *at += value;
    return before;
}
template <typename T> T atomicMin(T *at, T value) {
    T before = *at;
    if (value < before) *at = value;
    return before;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
struct uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
// Of the eight bytes of both, those whose numbers the four lowest digits of `which` are.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t which) {
    uint64_t both = low | (uint64_t)high << 32;
    uint32_t bytes = 0;
    for (int i = 0; i < 4; i++) bytes |= (uint32_t)(both >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
    return bytes;
}
// Towards zero, where the sum has room in an F64.
inline float __fmaf_rz(float x, float y, float z) {
    double sum = (double)x * y + z;
    float rounded = (float)sum;
    return fabs(rounded) > fabs(sum) ? nextafterf(rounded, 0.0f) : rounded;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline float __fdividef(float a, float b) { return a / b; }
inline float exp2_fast(float x) { return exp2f(x); }

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

float float_of_f16(uint16_t bits);
uint16_t f16_of_float(float x);

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
inline float to_float(f16 x) { return float_of_f16(x.bits); }
template <typename T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
// To nearest, ties to even.
template <> inline bf16 from_float<bf16>(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return bf16{0x7fff};
    return bf16{(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <> inline f16 from_float<f16>(float x) {
    return f16{f16_of_float(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x)};
}
inline f16 f16_from_bits(uint16_t bits) { return f16{bits}; }

template <typename X> uint32_t pack_small(float low, float high) {
    return (uint32_t)from_float<X>(low).bits | (uint32_t)from_float<X>(high).bits << 16;
}

// See portable.cuh for what these do.
template <typename X> void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const uint32_t *all = emulator::gather(mine, 6);
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto number = [](uint32_t word, int high) {
        X x;
        x.bits = high ? word >> 16 : word & 0xffff;
        return to_float(x);
    };
    for (int i = 0; i < 4; i++) {
        int row = g + i / 2 * 8, column = 2 * t + i % 2;
        for (int k = 0; k < 16; k++) {
            // Registers of A: rows 0-7 then 8-15, of columns 0-7 and then of columns 8-15.
            const uint32_t *of_a = all + (row % 8 * 4 + k % 8 / 2) * 6, *of_b = all + (column * 4 + k % 8 / 2) * 6;
            d[i] += number(of_a[row / 8 + k / 8 * 2], k % 2) * number(of_b[4 + k / 8], k % 2);
        }
    }
}

template <bool TRANSPOSED> void load_matrices(uint32_t (&to)[4], const void *row) {
    emulator::check_shared(row);
    uint32_t mine[4];
    memcpy(mine, row, sizeof mine);
    const uint32_t *all = emulator::gather(mine, 4);
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    auto number = [=](int matrix, int at, int column) {
        return all[(matrix * 8 + at) * 4 + column / 2] >> column % 2 * 16 & 0xffff;
    };
    for (int i = 0; i < 4; i++) {
        uint32_t low = TRANSPOSED ? number(i, 2 * t, g) : number(i, g, 2 * t);
        uint32_t high = TRANSPOSED ? number(i, 2 * t + 1, g) : number(i, g, 2 * t + 1);
        to[i] = low | high << 16;
    }
}

inline void let_next_begin() {}
inline void prefetch(const void *) {}
inline void wait_for_previous() { emulator::wait_for_previous(); }
inline void copy_async(void *to, const void *from, bool there) { emulator::begin_copy(to, from, there); }
inline void commit_copies() { emulator::commit_copies(); }
template <int BUT> void wait_copies() { emulator::wait_copies(BUT); }
