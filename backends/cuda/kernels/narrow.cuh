// Products of a few rows on tensor cores, the weight as it is in the file: 16 outputs at a time are what the instruction calls A, 8 rows of
// activations B. Quantised weights are multiplied as the whole numbers that they are, exactly, and what 32 (or 16) of them made is multiplied
// with their scale; so an operand costs a few instructions, and nothing is rounded but the activations.
//
// Lane l of a warp has, with g = l / 4 and t = l % 4, of two outputs (g and g + 8) the same inputs, and of row g of the activations these
// too: which of the 16 inputs of a product are whose is of no consequence as long as both agree.
#pragma once
#include "blocks.cuh"

constexpr int NARROW_WARPS = 8;
// Inputs that a warp takes at a time, and how many of these runs share a scale.
constexpr int CHUNK = 64, RUN = 32;

// Blocks that a processor is to have registers for at a time: what one waits for, others compute. Plain weights have more on the way anyhow.
template <typename W> constexpr int blocks_at_once(int row_tiles) { return row_tiles == 1 && W::VALUES > 8 ? 3 : 2; }

// Four bytes of up to 127 as two pairs of BF16, each 128 more: 0x43 above eight bits is that.
__device__ __forceinline__ void bytes_and_128(uint32_t bytes, uint32_t (&pairs)[2]) {
    pairs[0] = __byte_perm(bytes, 0x43434343u, 0x4140);
    pairs[1] = __byte_perm(bytes, 0x43434343u, 0x4342);
}
__device__ __forceinline__ uint32_t word_at(const uint8_t *at) { return *reinterpret_cast<const uint32_t *>(at); }
__device__ __forceinline__ uint32_t word_in_pairs(const uint8_t *at) {
    const uint16_t *pairs = reinterpret_cast<const uint16_t *>(at);
    return pairs[0] | (uint32_t)pairs[1] << 16;
}
// Bits 0 to 3, each as the fifth bit of a byte.
__device__ __forceinline__ uint32_t fifth_bits(uint32_t four) { return (four * 0x00204081u & 0x01010101u) << 4; }

// What a lane loads of a row's chunk, and how that becomes numbers. A value is `scale * number - minimum`; `numbers` makes those of half `h`
// of run `j`, four, which are inputs 8 t + 4 h and on, or, where 16 share a scale, 16 h + 4 t and on.
template <typename W> struct Operand;

template <> struct Operand<q4_k> {
    static constexpr int SHARING = 32;
    static constexpr bool MINIMUM = true;
    uint4 head;
    uint32_t quants[2];
    __device__ __forceinline__ void load(const uint8_t *row, int chunk, int t) {
        const uint8_t *block = row + (int64_t)(chunk / 4) * q4_k::BYTES;
        head = *reinterpret_cast<const uint4 *>(block);
        uint2 both = *reinterpret_cast<const uint2 *>(block + 16 + chunk % 4 * 32 + 8 * t);
        quants[0] = both.x;
        quants[1] = both.y;
    }
    __device__ __forceinline__ void numbers(int, int j, int h, int, uint32_t (&pairs)[2]) const {
        bytes_and_128(quants[h] >> 4 * j & 0x0f0f0f0fu, pairs);
    }
    __device__ __forceinline__ void scale(int chunk, int j, int, float *scale, float *minimum) const {
        k_scale(head, chunk % 4 * 2 + j, scale, minimum);
    }
    // Of Q4_K and Q5_K, by the first 16 bytes of their blocks: two numbers of F16, and 6 bits for each scale and each minimum.
    static __device__ __forceinline__ void k_scale(uint4 head, int run, float *scale, float *minimum) {
        int shift = run % 4 * 8;
        uint32_t low = head.y >> shift, middle = head.z >> shift, high = head.w >> shift;
        uint32_t s = run < 4 ? low & 63 : (high & 15) | (low >> 6 & 3) << 4;
        uint32_t m = run < 4 ? middle & 63 : (high >> 4 & 15) | (middle >> 6 & 3) << 4;
        *scale = to_float(f16_from_bits((uint16_t)(head.x & 0xffff))) * (float)s;
        *minimum = to_float(f16_from_bits((uint16_t)(head.x >> 16))) * (float)m + 128.0f * *scale;
    }
};

template <> struct Operand<q5_k> {
    static constexpr int SHARING = 32;
    static constexpr bool MINIMUM = true;
    uint4 head;
    uint32_t quants[2], fifths[2];
    __device__ __forceinline__ void load(const uint8_t *row, int chunk, int t) {
        const uint8_t *block = row + (int64_t)(chunk / 4) * q5_k::BYTES;
        head = *reinterpret_cast<const uint4 *>(block);
        uint2 of_all = *reinterpret_cast<const uint2 *>(block + 16 + 8 * t);
        uint2 both = *reinterpret_cast<const uint2 *>(block + 48 + chunk % 4 * 32 + 8 * t);
        fifths[0] = of_all.x;
        fifths[1] = of_all.y;
        quants[0] = both.x;
        quants[1] = both.y;
    }
    __device__ __forceinline__ void numbers(int chunk, int j, int h, int, uint32_t (&pairs)[2]) const {
        bytes_and_128((quants[h] >> 4 * j & 0x0f0f0f0fu) | (fifths[h] >> (chunk % 4 * 2 + j) & 0x01010101u) << 4, pairs);
    }
    __device__ __forceinline__ void scale(int chunk, int j, int, float *scale, float *minimum) const {
        Operand<q4_k>::k_scale(head, chunk % 4 * 2 + j, scale, minimum);
    }
};

template <> struct Operand<q6_k> {
    static constexpr int SHARING = 16;
    static constexpr bool MINIMUM = true;
    uint32_t low[2][2], high[2];
    uint32_t scales;
    uint16_t d;
    __device__ __forceinline__ void load(const uint8_t *row, int chunk, int t) {
        const uint8_t *block = row + (int64_t)(chunk / 4) * q6_k::BYTES;
        int half = chunk % 4 / 2;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int within = 16 * h + 4 * t;
            low[0][h] = word_in_pairs(block + half * 64 + within);
            low[1][h] = word_in_pairs(block + half * 64 + 32 + within);
            high[h] = word_in_pairs(block + 128 + half * 32 + within);
        }
        scales = word_in_pairs(block + 192 + chunk % 4 * 4);
        d = *reinterpret_cast<const uint16_t *>(block + 208);
    }
    __device__ __forceinline__ void numbers(int chunk, int j, int h, int, uint32_t (&pairs)[2]) const {
        int upper = chunk % 2;
        bytes_and_128((low[j][h] >> 4 * upper & 0x0f0f0f0fu) | (high[h] >> (4 * upper + 2 * j) & 0x03030303u) << 4, pairs);
    }
    __device__ __forceinline__ void scale(int, int j, int h, float *scale, float *minimum) const {
        *scale = to_float(f16_from_bits(d)) * (float)(int8_t)(scales >> (16 * j + 8 * h));
        *minimum = *scale * 160.0f;
    }
};

// Blocks of 32, of which a chunk has two.
template <> struct Operand<q4_0> {
    static constexpr int SHARING = 32;
    static constexpr bool MINIMUM = true;
    uint32_t quants[2][2];
    uint16_t d[2];
    __device__ __forceinline__ void load(const uint8_t *row, int chunk, int t) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint8_t *block = row + (int64_t)(chunk * 2 + j) * q4_0::BYTES;
            d[j] = *reinterpret_cast<const uint16_t *>(block);
#pragma unroll
            for (int h = 0; h < 2; h++) quants[j][h] = word_in_pairs(block + 2 + t % 2 * 8 + 4 * h);
        }
    }
    __device__ __forceinline__ void numbers(int, int j, int h, int t, uint32_t (&pairs)[2]) const {
        bytes_and_128(quants[j][h] >> t / 2 * 4 & 0x0f0f0f0fu, pairs);
    }
    __device__ __forceinline__ void scale(int, int j, int, float *scale, float *minimum) const {
        *scale = to_float(f16_from_bits(d[j]));
        *minimum = *scale * 136.0f;
    }
};

template <> struct Operand<q5_0> {
    static constexpr int SHARING = 32;
    static constexpr bool MINIMUM = true;
    uint32_t quants[2][2], fifths[2];
    uint16_t d[2];
    __device__ __forceinline__ void load(const uint8_t *row, int chunk, int t) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint8_t *block = row + (int64_t)(chunk * 2 + j) * q5_0::BYTES;
            d[j] = *reinterpret_cast<const uint16_t *>(block);
            fifths[j] = word_in_pairs(block + 2) >> 8 * t;
#pragma unroll
            for (int h = 0; h < 2; h++) quants[j][h] = word_in_pairs(block + 6 + t % 2 * 8 + 4 * h);
        }
    }
    __device__ __forceinline__ void numbers(int, int j, int h, int t, uint32_t (&pairs)[2]) const {
        bytes_and_128((quants[j][h] >> t / 2 * 4 & 0x0f0f0f0fu) | fifth_bits(fifths[j] >> 4 * h & 15), pairs);
    }
    __device__ __forceinline__ void scale(int, int j, int, float *scale, float *minimum) const {
        *scale = to_float(f16_from_bits(d[j]));
        *minimum = *scale * 144.0f;
    }
};

template <> struct Operand<q8_0> {
    static constexpr int SHARING = 32;
    static constexpr bool MINIMUM = false;
    uint32_t quants[2][2];
    uint16_t d[2];
    __device__ __forceinline__ void load(const uint8_t *row, int chunk, int t) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint8_t *block = row + (int64_t)(chunk * 2 + j) * q8_0::BYTES;
            d[j] = *reinterpret_cast<const uint16_t *>(block);
#pragma unroll
            for (int h = 0; h < 2; h++) quants[j][h] = word_in_pairs(block + 2 + 8 * t + 4 * h);
        }
    }
    __device__ __forceinline__ void numbers(int, int j, int h, int, uint32_t (&pairs)[2]) const {
        uint32_t four = quants[j][h];
        pairs[0] = pack<bf16>((float)(int8_t)four, (float)(int8_t)(four >> 8));
        pairs[1] = pack<bf16>((float)(int8_t)(four >> 16), (float)(int8_t)(four >> 24));
    }
    __device__ __forceinline__ void scale(int, int j, int, float *scale, float *minimum) const {
        *scale = to_float(f16_from_bits(d[j]));
        *minimum = 0.0f;
    }
};

// Numbers that stand for themselves, all of which share the scale of 1.
template <typename X> struct Operand<plain<X>> {
    static constexpr int SHARING = CHUNK;
    static constexpr bool MINIMUM = false;
    uint32_t pairs_of[2][4];
    __device__ __forceinline__ void load(const uint8_t *row, int chunk, int t) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 eight = *reinterpret_cast<const uint4 *>(row + ((int64_t)chunk * CHUNK + j * RUN + 8 * t) * sizeof(X));
            pairs_of[j][0] = eight.x;
            pairs_of[j][1] = eight.y;
            pairs_of[j][2] = eight.z;
            pairs_of[j][3] = eight.w;
        }
    }
    __device__ __forceinline__ void numbers(int, int j, int h, int, uint32_t (&pairs)[2]) const {
        pairs[0] = pairs_of[j][2 * h];
        pairs[1] = pairs_of[j][2 * h + 1];
    }
    __device__ __forceinline__ void scale(int, int, int, float *, float *) const {}
};

// Of row g, those inputs of a run that the lane has of the weight: two pairs for each half.
template <int SHARING, typename X> __device__ __forceinline__ void load_run(const X *run, int t, uint32_t (&pairs)[2][2]) {
    if (SHARING == 16) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint2 four = *reinterpret_cast<const uint2 *>(run + 16 * h + 4 * t);
            pairs[h][0] = four.x;
            pairs[h][1] = four.y;
        }
    } else {
        uint4 eight = *reinterpret_cast<const uint4 *>(run + 8 * t);
        pairs[0][0] = eight.x;
        pairs[0][1] = eight.y;
        pairs[1][0] = eight.z;
        pairs[1][1] = eight.w;
    }
}

template <typename X> __device__ __forceinline__ uint32_t two_ones() { return pack<X>(1.0f, 1.0f); }

// y = x Wᵀ of up to 8 ROW_TILES rows, which `in` and `out` find; `inputs` is a multiple of 64. A block is 8 warps, each of which has 16 TILES
// outputs: `beside` warps have others, and those that have the same share the inputs. Their sums are added in the order of the warps.
template <typename W, typename X, int TILES, int ROW_TILES, typename IN, typename OUT>
__device__ __forceinline__ void narrow(const uint8_t *weight, IN in, OUT out, int rows, int inputs, int outputs, int beside) {
    typedef Operand<W> Part;
    SHARED_BYTES(shared);
    float *sums_of_warps = reinterpret_cast<float *>(shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int first_of_block = blockIdx.x * beside * 16 * TILES, first = first_of_block + warp % beside * 16 * TILES;
    int64_t row_bytes = (int64_t)(inputs / W::VALUES) * W::BYTES;
    // Outputs and rows that are not there are computed as the last ones, and not written.
    const uint8_t *of_output[TILES][2];
    const X *of_row[ROW_TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int r = 0; r < 2; r++) of_output[tile][r] = weight + min(first + tile * 16 + r * 8 + g, outputs - 1) * row_bytes;
    }
#pragma unroll
    for (int n = 0; n < ROW_TILES; n++) of_row[n] = in(min(n * 8 + g, rows - 1));
    float sums[TILES][ROW_TILES][4];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int n = 0; n < ROW_TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[tile][n][i] = 0.0f;
        }
    }
    int sharing = NARROW_WARPS / beside, chunks = inputs / CHUNK, each = (chunks + sharing - 1) / sharing;
    int chunk = warp / beside * each, end = min(chunk + each, chunks);
    Part parts[TILES][2], next[TILES][2];
    auto load = [&](Part(&into)[TILES][2], int chunk) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int r = 0; r < 2; r++) into[tile][r].load(of_output[tile][r], chunk, t);
        }
    };
    // Where there are registers for it, what comes next is on its way while this is multiplied; otherwise other warps are there to do that.
    constexpr bool AHEAD = TILES == 1;
    if (AHEAD && chunk < end) load(parts, chunk);
    // Weights are there before the activations are.
    wait_for_previous();
    for (; chunk < end; chunk++) {
        if (!AHEAD) load(parts, chunk);
        if (AHEAD && chunk + 1 < end) load(next, chunk + 1);
#pragma unroll
        for (int j = 0; j < CHUNK / RUN; j++) {
            uint32_t a[TILES][2][4];
            float scales[TILES][2][2], minima[TILES][2][2];
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        uint32_t pairs[2];
                        parts[tile][r].numbers(chunk, j, h, t, pairs);
                        a[tile][h][r] = pairs[0];
                        a[tile][h][2 + r] = pairs[1];
                        if (h == 0 || Part::SHARING == 16) parts[tile][r].scale(chunk, j, h, &scales[tile][h][r], &minima[tile][h][r]);
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < ROW_TILES; n++) {
                uint32_t b[2][2];
                load_run<Part::SHARING>(of_row[n] + chunk * CHUNK + j * RUN, t, b);
                if (Part::SHARING == CHUNK) {
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++) {
                        mma<X>(sums[tile][n], a[tile][0], b[0][0], b[0][1]);
                        mma<X>(sums[tile][n], a[tile][1], b[1][0], b[1][1]);
                    }
                    continue;
                }
                constexpr int HALVES = Part::SHARING == 16 ? 2 : 1;
#pragma unroll
                for (int half = 0; half < HALVES; half++) {
                    // Sums of the activations, for what is taken off all values: every row of this product is the same.
                    float of_x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                    if (Part::MINIMUM) {
                        const uint32_t ones[4] = {two_ones<X>(), two_ones<X>(), two_ones<X>(), two_ones<X>()};
                        mma<X>(of_x, ones, b[half][0], b[half][1]);
                        if (HALVES == 1) mma<X>(of_x, ones, b[1][0], b[1][1]);
                    }
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++) {
                        float products[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                        mma<X>(products, a[tile][half], b[half][0], b[half][1]);
                        if (HALVES == 1) mma<X>(products, a[tile][1], b[1][0], b[1][1]);
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            float sum = sums[tile][n][i] + scales[tile][half][i / 2] * products[i];
                            sums[tile][n][i] = Part::MINIMUM ? sum - minima[tile][half][i / 2] * of_x[i % 2] : sum;
                        }
                    }
                }
            }
        }
        if constexpr (AHEAD) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (int r = 0; r < 2; r++) parts[tile][r] = next[tile][r];
            }
        }
    }
    constexpr int OF_LANE = TILES * ROW_TILES * 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int n = 0; n < ROW_TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums_of_warps[(warp * OF_LANE + (tile * ROW_TILES + n) * 4 + i) * WARP + lane] = sums[tile][n][i];
        }
    }
    __syncthreads();
    int here = min(beside * 16 * TILES, outputs - first_of_block);
    for (int at = threadIdx.x; at < here * rows; at += blockDim.x) {
        int output = at % here, row = at / here, within = output % (16 * TILES), column = row % 8;
        int place = ((within / 16 * ROW_TILES + row / 8) * 4 + within % 16 / 8 * 2 + column % 2) * WARP + within % 8 * 4 + column / 2;
        float sum = 0.0f;
        for (int part = 0; part < sharing; part++) sum += sums_of_warps[(part * beside + output / (16 * TILES)) * OF_LANE * WARP + place];
        out(row)[first_of_block + output] = sum;
    }
}
