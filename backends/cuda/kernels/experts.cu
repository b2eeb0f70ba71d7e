// Layers of which each row goes through a few of many MLPs ("experts"). A pair is a row and one of its experts: row r has the pairs from
// r * per_token on. Pairs of one expert are grouped, so that its weights are read once for all of a group.
#include "multiply.cuh"
#include "narrow.cuh"

// Of what is not multiplied on tensor cores.
constexpr int GROUP = 8;
constexpr int MOST_EXPERTS = 1024, GROUPING_THREADS = 256;

// The likeliest experts of each row, the first of equals first, and how much each counts: its probability among all, or among those that are
// chosen. A warp for each row.
KERNEL __launch_bounds__(WARP) route(const float *scores, int experts, int per_token, int among_chosen, int *chosen, float *shares) {
    begin_kernel();
    __shared__ float left[MOST_EXPERTS];
    scores += (int64_t)blockIdx.x * experts;
    chosen += (int64_t)blockIdx.x * per_token;
    shares += (int64_t)blockIdx.x * per_token;
    for (int at = threadIdx.x; at < experts; at += WARP) left[at] = scores[at];
    __syncwarp();
    float highest = 0.0f, total = 0.0f;
    for (int pick = 0; pick < per_token; pick++) {
        float best = NEGATIVE_INFINITY;
        int where = MOST_EXPERTS;
        for (int at = threadIdx.x; at < experts; at += WARP) {
            // The first one also where scores are no numbers.
            if (where == MOST_EXPERTS || left[at] > best) {
                best = left[at];
                where = at;
            }
        }
        for (int apart = WARP / 2; apart > 0; apart /= 2) {
            float other = __shfl_xor_sync(ALL_LANES, best, apart);
            int place = __shfl_xor_sync(ALL_LANES, where, apart);
            if (place < experts && (where >= experts || other > best || (other == best && place < where))) {
                best = other;
                where = place;
            }
        }
        // Where nothing is a number, lanes may not agree.
        where = __shfl_sync(ALL_LANES, where, 0);
        best = __shfl_sync(ALL_LANES, best, 0);
        if (pick == 0) highest = best;
        float weight = expf(best - highest);
        if (among_chosen) total += weight;
        if (threadIdx.x == 0) {
            chosen[pick] = where;
            shares[pick] = weight;
            left[where] = NEGATIVE_INFINITY;
        }
        __syncwarp();
    }
    if (!among_chosen) {
        for (int at = threadIdx.x; at < experts; at += WARP) total += expf(scores[at] - highest);
        total = warp_sum(total);
    }
    __syncwarp();
    for (int pick = threadIdx.x; pick < per_token; pick += WARP) shares[pick] /= total;
}
EXPORT(route)

// Groups of up to `most` pairs of one expert each: the expert, -1 for a group that is not needed, and the pairs, -1 behind the last. One block.
KERNEL __launch_bounds__(GROUPING_THREADS)
    group_pairs(const int *chosen, int pairs, int experts, int groups, int most, int *group_expert, int *group_pairs) {
    begin_kernel();
    __shared__ int counts[MOST_EXPERTS], firsts[MOST_EXPERTS];
    for (int at = threadIdx.x; at < experts; at += blockDim.x) counts[at] = 0;
    for (int at = threadIdx.x; at < groups; at += blockDim.x) group_expert[at] = -1;
    for (int at = threadIdx.x; at < groups * most; at += blockDim.x) group_pairs[at] = -1;
    __syncthreads();
    for (int at = threadIdx.x; at < pairs; at += blockDim.x) atomicAdd(&counts[chosen[at]], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        int first = 0;
        for (int expert = 0; expert < experts; expert++) {
            firsts[expert] = first;
            first += (counts[expert] + most - 1) / most;
        }
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        for (int group = 0; group * most < counts[expert]; group++) group_expert[firsts[expert] + group] = expert;
        counts[expert] = 0;
    }
    __syncthreads();
    // In any order: a pair's products do not depend on those beside it.
    for (int at = threadIdx.x; at < pairs; at += blockDim.x) {
        int expert = chosen[at], place = atomicAdd(&counts[expert], 1);
        group_pairs[firsts[expert] * most + place] = at;
    }
}
EXPORT(group_pairs)

// y = x Wᵀ for each pair, with the weight of its expert; those of all experts lie behind each other. The row of a pair is every
// `pairs_of_row`-th. Grid: outputs, groups.
template <typename W, typename X>
__device__ void multiply_experts(const uint8_t *weight, const X *x, float *y, const int *group_expert, const int *group_pairs,
                                 int pairs_of_row, int inputs, int outputs) {
    int expert = group_expert[blockIdx.y], rows = 0;
    if (expert < 0) return;
    const X *in[GROUP];
    float *out[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        int pair = group_pairs[blockIdx.y * GROUP + i];
        if (pair >= 0) rows = i + 1;
        in[i] = x + (int64_t)(max(pair, 0) / pairs_of_row) * inputs;
        out[i] = y + (int64_t)max(pair, 0) * outputs;
    }
    multiply<W, X, GROUP>(weight + (int64_t)expert * outputs * (inputs / W::VALUES) * W::BYTES, in, out, rows, inputs, outputs);
}

// The same on tensor cores, of groups of up to 8 ROW_TILES pairs. Grid: outputs, groups.
template <typename W, typename X, int TILES, int ROW_TILES>
__device__ void narrow_experts(const uint8_t *weight, const X *x, float *y, const int *group_expert, const int *group_pairs,
                               int pairs_of_row, int inputs, int outputs, int beside) {
    // Which weights are wanted is what kernels before have found out.
    begin_kernel();
    int expert = group_expert[blockIdx.y], lane = threadIdx.x % WARP;
    if (expert < 0) return;
    const int *pairs = group_pairs + blockIdx.y * 8 * ROW_TILES;
    int rows = (int)warp_sum(lane < 8 * ROW_TILES && pairs[lane] >= 0 ? 1.0f : 0.0f);
    auto in = [=](int row) { return x + (int64_t)(pairs[row] / pairs_of_row) * inputs; };
    auto out = [=](int row) { return y + (int64_t)pairs[row] * outputs; };
    weight += (int64_t)expert * outputs * (inputs / W::VALUES) * W::BYTES;
    narrow<W, X, TILES, ROW_TILES>(weight, in, out, rows, inputs, outputs, beside);
}

// The same where rows are not whole vectors; a thread for each product. Grid: pairs, outputs.
template <typename X>
__device__ void multiply_experts_any(const X *weight, const X *x, float *y, const int *chosen, int pairs_of_row, int inputs, int outputs) {
    int output = blockIdx.y * blockDim.x + threadIdx.x, pair = blockIdx.x;
    if (output >= outputs) return;
    weight += ((int64_t)chosen[pair] * outputs + output) * inputs;
    x += (int64_t)(pair / pairs_of_row) * inputs;
    float sum = 0.0f;
    for (int at = 0; at < inputs; at++) sum += to_float(weight[at]) * to_float(x[at]);
    y[(int64_t)pair * outputs + output] = sum;
}

// What the experts of each row made, each by how much it counts. A thread for each number.
KERNEL join_experts(const float *of_pairs, const float *shares, float *out, int per_token, int width, int rows) {
    begin_kernel();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (int64_t)rows * width) return;
    int64_t row = at / width;
    int column = at % width;
    float sum = 0.0f;
    for (int pair = 0; pair < per_token; pair++) sum += shares[row * per_token + pair] * of_pairs[(row * per_token + pair) * width + column];
    out[at] = sum;
}
EXPORT(join_experts)

#define DEFINE_EXPERTS(W, NAME, X)                                                                                                         \
    KERNEL __launch_bounds__(128) experts_##NAME##_##X(const uint8_t *weight, const X *x, float *y, const int *group_expert,               \
                                                       const int *group_pairs, int pairs_of_row, int inputs, int outputs) {                \
        begin_kernel();                                                                                                                    \
        multiply_experts<W, X>(weight, x, y, group_expert, group_pairs, pairs_of_row, inputs, outputs);                                    \
    }                                                                                                                                      \
    EXPORT(experts_##NAME##_##X)
#define DEFINE_NARROW(W, NAME, X, TILES, ROW_TILES)                                                                                        \
    KERNEL __launch_bounds__(NARROW_WARPS *WARP, blocks_at_once<W>(ROW_TILES))                                                             \
        experts_##NAME##_##X##_##ROW_TILES(const uint8_t *weight, const X *x, float *y, const int *group_expert, const int *group_pairs,   \
                                           int pairs_of_row, int inputs, int outputs, int beside) {                                        \
        narrow_experts<W, X, TILES, ROW_TILES>(weight, x, y, group_expert, group_pairs, pairs_of_row, inputs, outputs, beside);            \
    }                                                                                                                                      \
    EXPORT(experts_##NAME##_##X##_##ROW_TILES)
#define DEFINE_BOTH(W, NAME, X)                                                                                                            \
    DEFINE_NARROW(W, NAME, X, 1, 1)                                                                                                        \
    DEFINE_NARROW(W, NAME, X, 2, 4)
#define DEFINE_BLOCKS(W)                                                                                                                   \
    DEFINE_EXPERTS(W, W, float)                                                                                                            \
    DEFINE_EXPERTS(W, W, bf16)                                                                                                             \
    DEFINE_BOTH(W, W, bf16)
#define DEFINE_ANY(X)                                                                                                                      \
    KERNEL __launch_bounds__(128) experts_any_##X(const X *weight, const X *x, float *y, const int *chosen, int pairs_of_row, int inputs,  \
                                                  int outputs) {                                                                           \
        begin_kernel();                                                                                                                    \
        multiply_experts_any<X>(weight, x, y, chosen, pairs_of_row, inputs, outputs);                                                      \
    }                                                                                                                                      \
    EXPORT(experts_any_##X)

DEFINE_EXPERTS(plain<float>, float, float)
DEFINE_EXPERTS(plain<bf16>, bf16, bf16)
DEFINE_EXPERTS(plain<f16>, f16, f16)
DEFINE_BOTH(plain<bf16>, bf16, bf16)
DEFINE_BOTH(plain<f16>, f16, f16)
DEFINE_ANY(float)
DEFINE_ANY(bf16)
DEFINE_ANY(f16)
DEFINE_BLOCKS(q8_0)
DEFINE_BLOCKS(q4_0)
DEFINE_BLOCKS(q5_0)
DEFINE_BLOCKS(q4_k)
DEFINE_BLOCKS(q5_k)
DEFINE_BLOCKS(q6_k)
