// The numbers of quantised weights, eight at a time, from blocks as GGUF files have them.
#pragma once
#include "portable.cuh"

__device__ __forceinline__ float f16_at(const uint8_t *at) {
    uint16_t bits = (uint16_t)(at[0] | at[1] << 8);
    return to_float(f16_from_bits(bits));
}

struct q8_0 {
    static constexpr int VALUES = 32, BYTES = 34;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        float d = f16_at(block);
        for (int i = 0; i < 8; i++) to[i] = d * (int8_t)block[2 + part * 8 + i];
    }
};

struct q4_0 {
    static constexpr int VALUES = 32, BYTES = 18;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        float d = f16_at(block);
        for (int i = 0; i < 8; i++) to[i] = d * ((block[2 + part % 2 * 8 + i] >> part / 2 * 4 & 15) - 8);
    }
};

struct q5_0 {
    static constexpr int VALUES = 32, BYTES = 22;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        float d = f16_at(block);
        for (int i = 0; i < 8; i++) {
            int low = block[6 + part % 2 * 8 + i] >> part / 2 * 4 & 15, high = block[2 + part] >> i & 1;
            to[i] = d * ((low | high << 4) - 16);
        }
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
        const uint8_t *low = block + 16 + run / 2 * 32 + part % 4 * 8;
        for (int i = 0; i < 8; i++) to[i] = d * (low[i] >> run % 2 * 4 & 15) - m;
    }
};

struct q5_k {
    static constexpr int VALUES = 256, BYTES = 176;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        int run = part / 4, scale, minimum;
        scale_and_minimum(block + 4, run, &scale, &minimum);
        float d = f16_at(block) * scale, m = f16_at(block + 2) * minimum;
        const uint8_t *high = block + 16 + part % 4 * 8, *low = block + 48 + run / 2 * 32 + part % 4 * 8;
        for (int i = 0; i < 8; i++) to[i] = d * ((low[i] >> run % 2 * 4 & 15) | (high[i] >> run & 1) << 4) - m;
    }
};

struct q6_k {
    static constexpr int VALUES = 256, BYTES = 210;
    static __device__ __forceinline__ void eight(const uint8_t *block, int part, float *to) {
        int half = part / 16, quarter = part / 4 % 4, within = part % 4 * 8;
        const uint8_t *low = block + half * 64 + quarter % 2 * 32 + within, *high = block + 128 + half * 32 + within;
        float d = f16_at(block + 208) * (int8_t)block[192 + half * 8 + quarter * 2 + within / 16];
        for (int i = 0; i < 8; i++) to[i] = d * (((low[i] >> quarter / 2 * 4 & 15) | (high[i] >> 2 * quarter & 3) << 4) - 32);
    }
};

// Numbers that stand for themselves.
template <typename X> struct plain {
    static constexpr int VALUES = 8, BYTES = 8 * sizeof(X);
    static __device__ __forceinline__ void eight(const uint8_t *block, int, float *to) {
        load_floats(reinterpret_cast<const X *>(block), to, 8 / Vector<X>::LEN);
    }
};
