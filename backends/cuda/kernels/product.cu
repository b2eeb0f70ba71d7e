// Products of few rows, where a weight is read once for all of them and the card's memory is what limits; and quantised weights as plain
// numbers, for products of many rows and for the vectors of tokens.
#include "multiply.cuh"

// y = x Wᵀ, rows of y `stride` apart. `inputs` is a multiple of the block's values, and so of eight.
template <typename W, typename X, int ROWS>
__device__ void skinny(const uint8_t *weight, const X *x, float *y, int rows, int inputs, int outputs, int stride) {
    const X *in[ROWS];
    float *out[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        in[row] = x + (int64_t)row * inputs;
        out[row] = y + (int64_t)row * stride;
    }
    multiply<W, X, ROWS>(weight, in, out, rows, inputs, outputs);
}

// Blocks as plain numbers; a thread for each eight.
template <typename W, typename X> __device__ void widen(const uint8_t *blocks, X *to, int64_t eights) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= eights) return;
    constexpr int PARTS = W::VALUES / 8;
    float values[8];
    W::eight(blocks + at / PARTS * W::BYTES, (int)(at % PARTS), values);
#pragma unroll
    for (int i = 0; i < 8; i++) to[at * 8 + i] = from_float<X>(values[i]);
}

// The vector of each token, of a quantised table. A block for each row.
template <typename W>
__device__ void embed_blocks(const uint8_t *table, const int *tokens, float *hidden, int width, float scale) {
    const uint8_t *from = table + (int64_t)tokens[blockIdx.x] * (width / W::VALUES) * W::BYTES;
    constexpr int PARTS = W::VALUES / 8;
    for (int at = threadIdx.x; at < width / 8; at += blockDim.x) {
        float values[8];
        W::eight(from + (int64_t)(at / PARTS) * W::BYTES, at % PARTS, values);
        for (int i = 0; i < 8; i++) hidden[(int64_t)blockIdx.x * width + at * 8 + i] = values[i] * scale;
    }
}

#define DEFINE_ROWS(W, NAME, X, ROWS)                                                                                                      \
    KERNEL __launch_bounds__(128) skinny_##NAME##_##X##_##ROWS(const uint8_t *weight, const X *x, float *y, int rows, int inputs,          \
                                                               int outputs, int stride) {                                                            \
        let_next_begin();                                                                                                                  \
        skinny<W, X, ROWS>(weight, x, y, rows, inputs, outputs, stride);                                                                           \
    }                                                                                                                                      \
    EXPORT(skinny_##NAME##_##X##_##ROWS)
#define DEFINE_SKINNY(W, NAME, X)                                                                                                          \
    DEFINE_ROWS(W, NAME, X, 1)                                                                                                             \
    DEFINE_ROWS(W, NAME, X, 2)                                                                                                             \
    DEFINE_ROWS(W, NAME, X, 4)                                                                                                             \
    DEFINE_ROWS(W, NAME, X, 8)
#define DEFINE_WIDEN(W, X)                                                                                                                 \
    KERNEL widen_##W##_##X(const uint8_t *blocks, X *to, int64_t eights) {                                                                 \
        begin_kernel();                                                                                                                    \
        widen<W, X>(blocks, to, eights);                                                                                                   \
    }                                                                                                                                      \
    EXPORT(widen_##W##_##X)
#define DEFINE_BLOCKS(W)                                                                                                                   \
    DEFINE_SKINNY(W, W, float)                                                                                                             \
    DEFINE_SKINNY(W, W, bf16)                                                                                                              \
    DEFINE_WIDEN(W, float)                                                                                                                 \
    DEFINE_WIDEN(W, bf16)                                                                                                                  \
    KERNEL embed_##W(const uint8_t *table, const int *tokens, float *hidden, int width, float scale) {                                     \
        begin_kernel();                                                                                                                    \
        embed_blocks<W>(table, tokens, hidden, width, scale);                                                                              \
    }                                                                                                                                      \
    EXPORT(embed_##W)

DEFINE_SKINNY(plain<float>, float, float)
DEFINE_SKINNY(plain<bf16>, bf16, bf16)
DEFINE_SKINNY(plain<f16>, f16, f16)
DEFINE_BLOCKS(q8_0)
DEFINE_BLOCKS(q4_0)
DEFINE_BLOCKS(q5_0)
DEFINE_BLOCKS(q4_k)
DEFINE_BLOCKS(q5_k)
DEFINE_BLOCKS(q6_k)
