// One token for each row of logits, as the reference sampler in tandem-core chooses it: temperature, min-p, top-k, top-p, and a draw by a
// number that the engine gives. Logits stay on the card.
//
// Weights are integers of 2^-36, so that their sums are the same in whatever order threads add them up.
#include "portable.cuh"

// A weight as an integer has two halves of 18 bits.
constexpr int SAMPLE_THREADS = 1024, AT_ONCE = 4, DIGITS = 256, HALF = 18;

struct Choice {
    float temperature, top_p, min_p, u;
    int top_k;
};

// A row of logits as groups of four that lie at multiples of 16 bytes. Of the first and of the last some may be outside of the row: as if the
// logits of tokens that there are not were -inf, which is to weigh nothing.
struct Row {
    const float *logits;
    int vocab, skew;

    __device__ Row(const float *logits, int vocab) : logits(logits), vocab(vocab), skew((int)((uintptr_t)logits / sizeof(float) % 4)) {}

    __device__ __forceinline__ int groups() const { return (skew + vocab + 3) / 4; }
    // The first token of a group; below zero for what is before the row.
    __device__ __forceinline__ int token(int group) const { return 4 * group - skew; }

    // Each `step`th group from one on and before `end`. All are on their way before the first is looked at: memory takes as long for one.
    __device__ __forceinline__ void load(int group, int step, int end, float (&into)[4 * AT_ONCE]) const {
        int first = token(group), bound = min(token(end), vocab);
        if (first >= 0 && first + 4 * (AT_ONCE - 1) * step + 4 <= bound) {
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) load_floats(logits + first + 4 * i * step, into + 4 * i, 1);
            return;
        }
#pragma unroll
        for (int i = 0; i < 4 * AT_ONCE; i++) {
            int at = first + 4 * (i / 4) * step + i % 4;
            into[i] = at >= 0 && at < bound ? logits[at] : NEGATIVE_INFINITY;
        }
    }
};

struct Weigher {
    float maximum, scale, floor, least_exponent;

    // Only what weighs at least `cut` matters, and is more than nothing as an integer. Rounding must not leave out what weighs just that.
    __device__ Weigher(float maximum, float scale, float floor, float cut)
        : maximum(maximum), scale(scale), floor(floor),
          least_exponent(logf(fmaxf(fmaxf(cut, floor), 1.0f / (1ull << 2 * HALF))) - 0.01f) {}

    __device__ __forceinline__ float exponent(float logit) const { return (logit - maximum) * scale; }
    // The likeliest token weighs one; what is below the floor nothing.
    __device__ __forceinline__ float operator()(float logit) const {
        float weight = expf(exponent(logit));
        return weight >= floor ? weight : 0.0f;
    }
    // Whether none of four matters, as of nearly all. One look at the likeliest of them is much less than four weights.
    __device__ __forceinline__ bool skips(const float *four) const {
        return exponent(fmaxf(fmaxf(four[0], four[1]), fmaxf(four[2], four[3]))) < least_exponent;
    }
};

// A weight as an integer, by halves: sums of each, of up to 2^14 weights, have room in a register. What 2^23 is added to leaves off what is
// behind the point and has the rest in its last bits; conversions are several times as slow.
struct Fixed {
    unsigned high, low;
    __device__ __forceinline__ Fixed(float weight) {
        const float scale = 1 << HALF, point = 1 << 23;
        float above = __fmaf_rz(weight, scale, point);
        float rest = weight * scale - (above - point);
        high = __float_as_uint(above) - __float_as_uint(point);
        low = __float_as_uint(__fmaf_rz(rest, scale, point)) - __float_as_uint(point);
    }
};

__device__ __forceinline__ uint64_t whole(unsigned high, unsigned low) { return ((uint64_t)high << HALF) + low; }
__device__ __forceinline__ uint64_t fixed(float weight) {
    Fixed halves(weight);
    return whole(halves.high, halves.low);
}

// Of the lanes of a warp: the sum of those up to mine.
template <typename T> __device__ __forceinline__ T warp_scan(T mine) {
#pragma unroll
    for (int by = 1; by < WARP; by *= 2) {
        T other = __shfl_up_sync(ALL_LANES, mine, by);
        if ((int)(threadIdx.x % WARP) >= by) mine += other;
    }
    return mine;
}

// Of the threads of a block: the sum of those before mine, and of all.
__device__ uint64_t scan(uint64_t mine, uint64_t *scratch, uint64_t *all) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint64_t sum = warp_scan(mine);
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

// Some tokens: what those weigh together that weigh more than `least`, and how many weigh just that, which may be nothing.
struct Part {
    uint64_t mass;
    unsigned equals;
};

// Of each `step`th group from `group` on and before `end`.
__device__ __forceinline__ Part measure(const Row &row, const Weigher &weigh, float least, int group, int step, int end) {
    unsigned high = 0, low = 0, equals = 0;
    for (; group < end; group += AT_ONCE * step) {
        float logits[4 * AT_ONCE];
        row.load(group, step, end, logits);
#pragma unroll
        for (int i = 0; i < 4 * AT_ONCE; i += 4) {
            if (weigh.skips(logits + i)) continue;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float weight = weigh(logits[i + j]);
                if (weight > least) {
                    Fixed halves(weight);
                    high += halves.high;
                    low += halves.low;
                }
                if (weight == least) equals++;
            }
        }
    }
    return Part{whole(high, low), equals};
}

// The least weight that is kept when the likeliest tokens are, until they measure `wanted` together: each is one where `count` is true, and
// its weight otherwise. How much of those that weigh just that may be kept is left in `rest`. By digits of eight bits, the highest first:
// bits of positive numbers are in the order of the numbers.
//
// Nearly all tokens have one of a few digits. So each lane has counters of its own: lanes of a warp never meet in one, nor in a bank.
__device__ float threshold(const Row &row, const Weigher &weigh, bool count, uint64_t wanted, uint64_t *rest, unsigned *counters,
                           uint64_t *sums) {
    __shared__ unsigned chosen;
    __shared__ uint64_t left;
    int lane = threadIdx.x % WARP, end = row.groups();
    unsigned *low = counters, *high = counters + DIGITS * WARP;
    unsigned known = 0, prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int at = threadIdx.x; at < 2 * DIGITS * WARP; at += blockDim.x) counters[at] = 0;
        __syncthreads();
        for (int group = threadIdx.x; group < end; group += AT_ONCE * blockDim.x) {
            float logits[4 * AT_ONCE];
            row.load(group, blockDim.x, end, logits);
#pragma unroll
            for (int i = 0; i < 4 * AT_ONCE; i += 4) {
                if (weigh.skips(logits + i)) continue;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float weight = weigh(logits[i + j]);
                    unsigned bits = __float_as_uint(weight);
                    if (!(weight > 0.0f) || (bits & known) != prefix) continue;
                    int at = (bits >> shift & (DIGITS - 1)) * WARP + lane;
                    if (count) {
                        atomicAdd(&low[at], 1u);
                    } else {
                        Fixed halves(weight);
                        atomicAdd(&low[at], halves.low);
                        atomicAdd(&high[at], halves.high);
                    }
                }
            }
        }
        // Where nothing weighs anything.
        if (threadIdx.x == 0) {
            chosen = DIGITS - 1;
            left = 0;
        }
        __syncthreads();
        // A digit for each of the first threads, the highest first. They begin at different lanes, and so in different banks.
        int digit = DIGITS - 1 - (int)threadIdx.x;
        uint64_t mine = 0, all;
        for (int i = 0; i < WARP && digit >= 0; i++) {
            int at = digit * WARP + (lane + i) % WARP;
            mine += whole(high[at], low[at]);
        }
        uint64_t before = scan(mine, sums, &all);
        // All together may be less than wanted.
        if (all < wanted) wanted = all;
        if (before < wanted && wanted <= before + mine) {
            chosen = digit;
            left = wanted - before;
        }
        __syncthreads();
        prefix |= chosen << shift;
        known |= (unsigned)(DIGITS - 1) << shift;
        wanted = left;
    }
    *rest = wanted;
    return __uint_as_float(prefix);
}

// Where a draw falls: so far behind the beginning of what is looked at, of which so many count that weigh just `least`.
struct Draw {
    uint64_t target;
    unsigned equals;
};

// Whether a draw falls into my lane's part; if so it becomes one within that. Where the warp's parts are `all` there is, it is yet to be made:
// a share of their sum.
__device__ bool falls_into(const Part &part, uint64_t of_least, bool all, float share, Draw *draw) {
    unsigned before = warp_scan(part.equals) - part.equals;
    unsigned left = draw->equals > before ? draw->equals - before : 0;
    uint64_t mass = part.mass + of_least * (part.equals < left ? part.equals : left);
    uint64_t up_to = warp_scan(mass), total = __shfl_sync(ALL_LANES, up_to, WARP - 1);
    if (all) draw->target = (uint64_t)((double)share * (double)total);
    if (draw->target < up_to - mass || draw->target >= up_to) return false;
    *draw = Draw{draw->target - (up_to - mass), left};
    return true;
}

// A row's choice: for the host, and for the step that goes on from it. -1 where there is none.
__device__ __forceinline__ void answer(int token, const int *slots, int *tokens, int *last) {
    tokens[blockIdx.x] = token;
    last[slots[blockIdx.x]] = token;
}

// A block for each row. `tokens` gets the choice, or -1 where a logit is not finite, and so does the row's place in `last`. For top-k and
// top-p there must be room for two times DIGITS * WARP counters.
KERNEL __launch_bounds__(SAMPLE_THREADS) sample(const float *logits, const int *rows, const float *choices, const int *top_ks,
                                                const int *slots, int vocab, int *tokens, int *last) {
    begin_kernel();
    SHARED_BYTES(shared);
    __shared__ float numbers[WARP];
    __shared__ uint64_t sums[WARP];
    __shared__ Part parts[WARP];
    __shared__ int found, next;
    __shared__ Draw next_draw;
    unsigned *counters = reinterpret_cast<unsigned *>(shared);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    Choice choice = {choices[4 * blockIdx.x], choices[4 * blockIdx.x + 1], choices[4 * blockIdx.x + 2], choices[4 * blockIdx.x + 3],
                     top_ks[blockIdx.x]};
    Row row(logits + (int64_t)rows[blockIdx.x] * vocab, vocab);
    int end = row.groups();
    float mine = NEGATIVE_INFINITY;
    int where = 0;
    bool broken = false;
    for (int group = threadIdx.x; group < end; group += AT_ONCE * blockDim.x) {
        float some[4 * AT_ONCE];
        row.load(group, blockDim.x, end, some);
        float most = NEGATIVE_INFINITY;
#pragma unroll
        for (int i = 0; i < 4 * AT_ONCE; i++) {
            float logit = some[i];
            broken |= !(logit <= 3.0e38f);
            most = fmaxf(most, logit);
        }
        if (most > mine) {
            mine = most;
            where = group;
        }
    }
    float highest = warp_max(mine);
    if (threadIdx.x == 0) {
        found = vocab;
        next = end;
    }
    __syncthreads();
    if (lane == 0) numbers[warp] = highest;
    if (broken) atomicMin(&found, -1);
    __syncthreads();
    highest = warp_max(lane < warps ? numbers[lane] : NEGATIVE_INFINITY);
    if (found < 0 || highest == NEGATIVE_INFINITY) {
        if (threadIdx.x == 0) answer(-1, slots, tokens, last);
        return;
    }
    __syncthreads();
    if (choice.temperature <= 0.0f) {
        // The first of the likeliest: each thread that has any knows where it met the first of its own.
        if (mine == highest) {
            float some[4 * AT_ONCE];
            row.load(where, blockDim.x, end, some);
            int first = vocab;
            for (int i = 4 * AT_ONCE - 1; i >= 0; i--) {
                if (some[i] == highest) first = row.token(where + i / 4 * blockDim.x) + i % 4;
            }
            atomicMin(&found, first);
        }
        __syncthreads();
        if (threadIdx.x == 0) answer(found, slots, tokens, last);
        return;
    }
    const float scale = 1.0f / choice.temperature;
    Weigher weigh(highest, scale, choice.min_p, 0.0f);
    // What is kept: all that weighs more than `least`, and of what weighs just that the first few tokens, `equals` of them.
    float least = 0.0f;
    uint64_t equals = ~0ull;
    if (choice.top_k > 0 && choice.top_k < vocab) {
        // There are as many tokens as warps that are at least as likely as this one: the likeliest of each warp.
        float likely = -warp_max(lane < warps ? -numbers[lane] : NEGATIVE_INFINITY);
        Weigher counted(highest, scale, choice.min_p, choice.top_k <= warps ? expf(weigh.exponent(likely)) : 0.0f);
        least = threshold(row, counted, true, choice.top_k, &equals, counters, sums);
        weigh = Weigher(highest, scale, choice.min_p, least);
    }
    if (choice.top_p < 1.0f) {
        // The total of what top-k has left, with as many of the last weight as it lets stand.
        uint64_t all;
        scan(measure(row, weigh, least, threadIdx.x, blockDim.x, end).mass, sums, &all);
        uint64_t of_last = fixed(least);
        if (equals != ~0ull) all += of_last * equals;
        uint64_t wanted = (uint64_t)((double)choice.top_p * (double)all), rest;
        if (wanted == 0) wanted = 1;
        // Tokens that are not in the nucleus even if all weigh as much.
        float outside = all > wanted ? (float)((double)(all - wanted) / vocab / (1ull << 2 * HALF)) : 0.0f;
        Weigher kept(highest, scale, fmaxf(choice.min_p, least), outside);
        float nucleus = threshold(row, kept, false, wanted, &rest, counters, sums);
        uint64_t of_nucleus = fixed(nucleus), few = of_nucleus > 0 ? (rest + of_nucleus - 1) / of_nucleus : ~0ull;
        if (nucleus > least) {
            least = nucleus;
            equals = few;
        } else {
            equals = equals < few ? equals : few;
        }
        weigh = Weigher(highest, scale, choice.min_p, least);
    }
    // The draw, among tokens in the order of their ids. Each warp sums up a part of them; then the part into which the draw falls is divided
    // in the same way, until each lane of one warp has a group.
    uint64_t of_least = fixed(least);
    Draw draw = {0, equals < (uint64_t)vocab ? (unsigned)equals : (unsigned)vocab};
    int first = 0;
    for (bool all = true; all || end - first > WARP; all = false) {
        int each = (end - first + warps - 1) / warps;
        Part part = measure(row, weigh, least, first + warp * each + lane, WARP, min(first + (warp + 1) * each, end));
        part.mass = warp_scan(part.mass);
        part.equals = warp_scan(part.equals);
        if (lane == WARP - 1) parts[warp] = part;
        __syncthreads();
        if (warp == 0) {
            part = lane < warps ? parts[lane] : Part{0, 0};
            if (falls_into(part, of_least, all, choice.u, &draw)) {
                next = first + lane * each;
                next_draw = draw;
            }
        }
        __syncthreads();
        // Where nothing weighs anything it falls behind all.
        first = next;
        draw = next_draw;
        end = min(first + each, end);
    }
    if (warp == 0) {
        float logits[4 * AT_ONCE], weights[4];
        row.load(first + lane, WARP, end, logits);
        Part part = {0, 0};
        for (int i = 0; i < 4; i++) {
            weights[i] = weigh(logits[i]);
            if (weights[i] > least) part.mass += fixed(weights[i]);
            if (weights[i] == least) part.equals++;
        }
        if (falls_into(part, of_least, false, 0.0f, &draw)) {
            for (int i = 0; i < 4; i++) {
                bool equal = weights[i] == least && draw.equals > 0;
                uint64_t value = weights[i] > least || equal ? fixed(weights[i]) : 0;
                if (equal) draw.equals--;
                if (draw.target < value) {
                    found = row.token(first + lane) + i;
                    break;
                }
                draw.target -= value;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) answer(found < vocab ? found : -1, slots, tokens, last);
}
EXPORT(sample)

// Puts the tokens in their places that were chosen for rows: these say so by -1 less the place in `last`. Whatever follows on a row that had
// no choice is thrown away, so it may be any token.
KERNEL follow(int *tokens, const int *last, int rows) {
    begin_kernel();
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows || tokens[row] >= 0) return;
    int chosen = last[-1 - tokens[row]];
    tokens[row] = chosen < 0 ? 0 : chosen;
}
EXPORT(follow)
