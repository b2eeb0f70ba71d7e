// The numbers of quantised weights, eight at a time, from blocks as GGUF files have them.
#pragma once
#include "portable.cuh"

// All blocks are an even number of bytes, and so is what lies before each of their parts but for single bytes.
__device__ __forceinline__ float f16_at(const uint8_t *at) { return to_float(f16_from_bits(*reinterpret_cast<const uint16_t *>(at))); }

// Eight bytes, the first one lowest: at once where they begin at a multiple of eight, as they do in blocks of a multiple of 16.
__device__ __forceinline__ uint64_t eight_bytes(const uint8_t *at) { return *reinterpret_cast<const uint64_t *>(at); }
__device__ __forceinline__ uint64_t eight_bytes_in_pairs(const uint8_t *at) {
    const uint16_t *pairs = reinterpret_cast<const uint16_t *>(at);
    return pairs[0] | (uint64_t)pairs[1] << 16 | (uint64_t)pairs[2] << 32 | (uint64_t)pairs[3] << 48;
}
__device__ __forceinline__ int byte_of(uint64_t bytes, int i) { return (int)(bytes >> 8 * i & 255); }

struct q8_0 {
    static constexpr int VALUES = 32, BYTES = 34;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        float d = f16_at(block);
        uint64_t quants = eight_bytes_in_pairs(block + 2 + part * 8);
        for (int i = 0; i < 8; i++) to[i] = d * (int8_t)byte_of(quants, i);
    }
};

struct q4_0 {
    static constexpr int VALUES = 32, BYTES = 18;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        float d = f16_at(block);
        uint64_t quants = eight_bytes_in_pairs(block + 2 + part % 2 * 8) >> part / 2 * 4;
        for (int i = 0; i < 8; i++) to[i] = d * ((byte_of(quants, i) & 15) - 8);
    }
};

struct q5_0 {
    static constexpr int VALUES = 32, BYTES = 22;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        float d = f16_at(block);
        uint64_t quants = eight_bytes_in_pairs(block + 6 + part % 2 * 8) >> part / 2 * 4;
        int high = block[2 + part];
        for (int i = 0; i < 8; i++) to[i] = d * (((byte_of(quants, i) & 15) | (high >> i & 1) << 4) - 16);
    }
};

// Scale and minimum of one of the eight runs of a block of Q4_K or Q5_K, each of 6 bits.
__device__ __forceinline__ void scale_and_minimum(const uint8_t *packed, int run, int *scale, int *minimum) {
    if (run < 4) {
        *scale = packed[run] & 63;
        *minimum = packed[run + 4] & 63;
    } else {
        *scale = (packed[run + 4] & 15) | packed[run - 4] >> 6 << 4;
        *minimum = packed[run + 4] >> 4 | packed[run] >> 6 << 4;
    }
}

struct q4_k {
    static constexpr int VALUES = 256, BYTES = 144;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        int run = part / 4, scale, minimum;
        scale_and_minimum(block + 4, run, &scale, &minimum);
        float d = f16_at(block) * scale, m = f16_at(block + 2) * minimum;
        uint64_t low = eight_bytes(block + 16 + run / 2 * 32 + part % 4 * 8) >> run % 2 * 4;
        for (int i = 0; i < 8; i++) to[i] = d * (byte_of(low, i) & 15) - m;
    }
};

struct q5_k {
    static constexpr int VALUES = 256, BYTES = 176;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        int run = part / 4, scale, minimum;
        scale_and_minimum(block + 4, run, &scale, &minimum);
        float d = f16_at(block) * scale, m = f16_at(block + 2) * minimum;
        uint64_t high = eight_bytes(block + 16 + part % 4 * 8) >> run;
        uint64_t low = eight_bytes(block + 48 + run / 2 * 32 + part % 4 * 8) >> run % 2 * 4;
        for (int i = 0; i < 8; i++) to[i] = d * ((byte_of(low, i) & 15) | (byte_of(high, i) & 1) << 4) - m;
    }
};

struct q6_k {
    static constexpr int VALUES = 256, BYTES = 210;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        int half = part / 16, quarter = part / 4 % 4, within = part % 4 * 8;
        uint64_t low = eight_bytes_in_pairs(block + half * 64 + quarter % 2 * 32 + within) >> quarter / 2 * 4;
        uint64_t high = eight_bytes_in_pairs(block + 128 + half * 32 + within) >> 2 * quarter;
        float d = f16_at(block + 208) * (int8_t)block[192 + half * 8 + quarter * 2 + within / 16];
        for (int i = 0; i < 8; i++) to[i] = d * (((byte_of(low, i) & 15) | (byte_of(high, i) & 3) << 4) - 32);
    }
};

// Numbers that stand for themselves.
template <typename X> struct plain {
    static constexpr int VALUES = 8, BYTES = 8 * sizeof(X);
    static __device__ __forceinline__ void eight(const uint8_t *block, int, float *to) {
        load_floats(reinterpret_cast<const X *>(block), to, 8 / Vector<X>::LEN);
    }
};
