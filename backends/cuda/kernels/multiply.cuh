// A weight times a few rows, wherever these are.
#pragma once
#include "blocks.cuh"

// Bytes that memory is read by.
constexpr int LINE = 128;

// A warp for each two outputs, the lanes of which take eight inputs at a time in turn: the weight is read once for all ROWS rows, of which
// `rows` are there. `inputs` is a multiple of the block's values, and so of eight. Waits for the kernels before.
template <typename W, typename X, int ROWS>
__device__ __forceinline__ void multiply(const uint8_t *weight, const X *const (&in)[ROWS], float *const (&out)[ROWS], int rows, int inputs,
                                         int outputs) {
    int warps = blockDim.x / WARP, lane = threadIdx.x % WARP, first = (blockIdx.x * warps + threadIdx.x / WARP) * 2;
    int64_t row_bytes = (int64_t)inputs / W::VALUES * W::BYTES;
    const uint8_t *of_first = weight + first * row_bytes;
    // The last warp of an odd number of outputs computes its one twice.
    const uint8_t *of_second = first + 1 < outputs ? of_first + row_bytes : of_first;
    // Weights are on their way before the activations are there.
    if (first < outputs && lane * LINE < row_bytes) {
        prefetch(of_first + lane * LINE);
        prefetch(of_second + lane * LINE);
    }
    wait_for_previous();
    if (first >= outputs) return;
    float sums[2][ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) sums[0][row] = sums[1][row] = 0.0f;
    constexpr int PARTS = W::VALUES / 8;
    for (int at = lane; at < inputs / 8; at += WARP) {
        float one[8], other[8];
        W::eight(of_first + (int64_t)(at / PARTS) * W::BYTES, at % PARTS, one);
        W::eight(of_second + (int64_t)(at / PARTS) * W::BYTES, at % PARTS, other);
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            if (row >= rows) break;
            float x[8];
            load_floats(in[row] + at * 8, x, 8 / Vector<X>::LEN);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sums[0][row] += one[i] * x[i];
                sums[1][row] += other[i] * x[i];
            }
        }
    }
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        float one = warp_sum(sums[0][row]), other = warp_sum(sums[1][row]);
        if (row < rows && lane == 0) {
            out[row][first] = one;
            if (first + 1 < outputs) out[row][first + 1] = other;
        }
    }
}
