// One token for each row of logits, as the reference sampler in tandem-core chooses it: temperature, min-p, top-k, top-p, and a draw by a
// number that the engine gives. Logits stay on the card.
//
// Weights are integers of 2^-SHIFT, so that their sums are the same in whatever order threads add them up.
#include "portable.cuh"

constexpr int SAMPLE_THREADS = 512, DIGITS = 256, SHIFT = 36;

struct Choice {
    float temperature, top_p, min_p, u;
    int top_k;
};

// Of the threads of a block: the sum of those before mine, and of all.
__device__ uint64_t scan(uint64_t mine, uint64_t *scratch, uint64_t *all) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint64_t sum = mine;
    for (int by = 1; by < WARP; by *= 2) {
        uint64_t other = __shfl_up_sync(ALL_LANES, sum, by);
        if (lane >= by) sum += other;
    }
    __syncthreads();
    if (lane == WARP - 1) scratch[warp] = sum;
    __syncthreads();
    uint64_t before = 0, total = 0;
    for (int w = 0; w < (int)(blockDim.x / WARP); w++) {
        if (w < warp) before += scratch[w];
        total += scratch[w];
    }
    *all = total;
    return before + sum - mine;
}

struct Weigher {
    const float *logits;
    float maximum, scale, floor;
    // The likeliest token weighs one; what is below the floor nothing.
    __device__ __forceinline__ float operator()(int at) const {
        float weight = expf((logits[at] - maximum) * scale);
        return weight >= floor ? weight : 0.0f;
    }
};

__device__ __forceinline__ uint64_t fixed(float weight) { return (uint64_t)(weight * (float)(1ull << SHIFT)); }

// The least weight that is kept when the likeliest tokens are, until they measure `wanted` together: each is one where `count` is true, and
// its weight otherwise. How much of those that weigh just that may be kept is left in `rest`. By digits of eight bits, the highest first:
// bits of positive numbers are in the order of the numbers.
__device__ float threshold(const Weigher &weigh, int vocab, bool count, uint64_t wanted, uint64_t *rest) {
    __shared__ unsigned long long histogram[DIGITS];
    __shared__ unsigned chosen;
    __shared__ unsigned long long left;
    unsigned prefix = 0;
    for (int digit = 3; digit >= 0; digit--) {
        for (int at = threadIdx.x; at < DIGITS; at += blockDim.x) histogram[at] = 0;
        __syncthreads();
        for (int at = threadIdx.x; at < vocab; at += blockDim.x) {
            float weight = weigh(at);
            unsigned bits = __float_as_uint(weight);
            bool candidate = weight > 0.0f && (digit == 3 || bits >> 8 * (digit + 1) == prefix);
            if (candidate) atomicAdd(&histogram[bits >> 8 * digit & 255], (unsigned long long)(count ? 1 : fixed(weight)));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint64_t open = wanted;
            unsigned at = DIGITS - 1;
            // The last digit with anything, where all together are less than wanted.
            unsigned lowest = DIGITS - 1;
            for (;; at--) {
                if (histogram[at] > 0) lowest = at;
                if (histogram[at] >= open || at == 0) break;
                open -= histogram[at];
            }
            if (histogram[at] < open) {
                at = lowest;
                open = histogram[at];
            }
            chosen = at;
            left = open;
        }
        __syncthreads();
        prefix = prefix << 8 | chosen;
        wanted = left;
        __syncthreads();
    }
    *rest = wanted;
    return __uint_as_float(prefix);
}

// A row's choice: for the host, and for the step that goes on from it. -1 where there is none.
__device__ __forceinline__ void answer(int token, const int *slots, int *tokens, int *last) {
    tokens[blockIdx.x] = token;
    last[slots[blockIdx.x]] = token;
}

// A block for each row. `tokens` gets the choice, or -1 where a logit is not finite, and so does the row's place in `last`.
KERNEL __launch_bounds__(SAMPLE_THREADS) sample(const float *logits, const int *rows, const float *choices, const int *top_ks,
                                                const int *slots, int vocab, int *tokens, int *last) {
    __shared__ float numbers[WARP];
    __shared__ uint64_t sums[WARP];
    __shared__ int found;
    Choice choice = {choices[4 * blockIdx.x], choices[4 * blockIdx.x + 1], choices[4 * blockIdx.x + 2], choices[4 * blockIdx.x + 3],
                     top_ks[blockIdx.x]};
    logits += (int64_t)rows[blockIdx.x] * vocab;
    float highest = NEGATIVE_INFINITY;
    bool broken = false;
    for (int at = threadIdx.x; at < vocab; at += blockDim.x) {
        float logit = logits[at];
        broken |= !(logit <= 3.0e38f);
        highest = fmaxf(highest, logit);
    }
    highest = warp_max(highest);
    if (threadIdx.x == 0) found = vocab;
    __syncthreads();
    if (threadIdx.x % WARP == 0) numbers[threadIdx.x / WARP] = highest;
    if (broken) atomicMin(&found, -1);
    __syncthreads();
    for (int warp = 0; warp < (int)(blockDim.x / WARP); warp++) highest = fmaxf(highest, numbers[warp]);
    if (found < 0 || highest == NEGATIVE_INFINITY) {
        if (threadIdx.x == 0) answer(-1, slots, tokens, last);
        return;
    }
    __syncthreads();
    if (choice.temperature <= 0.0f) {
        // The first of the likeliest.
        for (int at = threadIdx.x; at < vocab; at += blockDim.x) {
            if (logits[at] == highest) {
                atomicMin(&found, at);
                break;
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) answer(found, slots, tokens, last);
        return;
    }
    Weigher weigh = {logits, highest, 1.0f / choice.temperature, choice.min_p};
    // What is kept: all that weighs more than `least`, and of what weighs just that the first few tokens, `equals` of them.
    float least = 0.0f;
    uint64_t equals = ~0ull;
    if (choice.top_k > 0 && choice.top_k < vocab) least = threshold(weigh, vocab, true, choice.top_k, &equals);
    if (choice.top_p < 1.0f) {
        // The total of what top-k has left, with as many of the last weight as it lets stand.
        uint64_t mine = 0, all;
        for (int at = threadIdx.x; at < vocab; at += blockDim.x) {
            float weight = weigh(at);
            if (weight > least) mine += fixed(weight);
        }
        scan(mine, sums, &all);
        uint64_t of_last = fixed(least);
        if (equals != ~0ull) all += of_last * equals;
        uint64_t wanted = (uint64_t)((double)choice.top_p * (double)all), rest;
        Weigher kept = weigh;
        kept.floor = fmaxf(kept.floor, least);
        float nucleus = threshold(kept, vocab, false, wanted > 0 ? wanted : 1, &rest);
        uint64_t of_nucleus = fixed(nucleus), few = of_nucleus > 0 ? (rest + of_nucleus - 1) / of_nucleus : ~0ull;
        if (nucleus > least) {
            least = nucleus;
            equals = few;
        } else {
            equals = equals < few ? equals : few;
        }
    }
    // The draw: tokens in the order of their ids, a tile of them at a time. Twice: for the total, and for the place in it.
    uint64_t total = 0, seen_equals = 0;
    for (int pass = 0; pass < 2; pass++) {
        uint64_t target = (uint64_t)((double)choice.u * (double)total), mass = 0;
        seen_equals = 0;
        for (int base = 0; base < vocab; base += blockDim.x) {
            int at = base + threadIdx.x;
            float weight = at < vocab ? weigh(at) : 0.0f;
            uint64_t equal = weight == least && weight > 0.0f, all_equals = 0, all, value = 0;
            if (equals != ~0ull) {
                uint64_t before = seen_equals + scan(equal, sums, &all_equals);
                if (weight > least || (equal && before < equals)) value = fixed(weight);
            } else if (weight >= least) {
                value = fixed(weight);
            }
            seen_equals += all_equals;
            uint64_t before = mass + scan(value, sums, &all);
            if (pass == 1) {
                if (value > 0 && before <= target && target < before + value) found = at;
                __syncthreads();
                if (found < vocab) break;
            }
            mass += all;
        }
        total = mass;
        __syncthreads();
    }
    if (threadIdx.x == 0) answer(found < vocab ? found : -1, slots, tokens, last);
}
EXPORT(sample)

// Puts the tokens in their places that were chosen for rows: these say so by -1 less the place in `last`. Whatever follows on a row that had
// no choice is thrown away, so it may be any token.
KERNEL follow(int *tokens, const int *last, int rows) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows || tokens[row] >= 0) return;
    int chosen = last[-1 - tokens[row]];
    tokens[row] = chosen < 0 ? 0 : chosen;
}
EXPORT(follow)
