// Attention of single rows over the paged cache, the K and V of a row split among blocks ("flash-decoding", Dao et al. 2023): each block
// makes a part with its own maximum and total, and a second kernel puts the parts of a row together.
#include "portable.cuh"

// What all kernels of attention know. A page of K or V holds, for each KV head, the vectors of `page_len` tokens.
struct Scene {
    // Q, K and V of each row, of which queries are read; biases, norms and positions are in them.
    const float *qkv;
    int row_width;
    // The pages of each sequence, `table_stride` apart.
    const int *tables;
    int table_stride;
    int page_len, heads, kv_heads, head_dim;
    // Products of queries and keys are multiplied with `scale`, then kept softly within `cap`, if that is not 0.
    float scale, cap;
    // Tokens that a token sees, itself among them; 0 is all before it.
    int window;
};

__device__ __forceinline__ float score_of(const Scene &scene, float product) {
    float score = product * scene.scale;
    return scene.cap > 0.0f ? scene.cap * tanhf(score / scene.cap) : score;
}

// Where the vectors of tokens are. Pages of a power of two are usual, and dividing by anything else takes twenty instructions.
struct Pages {
    const int *table;
    int len, shift;
    int64_t stride, of_head;
    __device__ __forceinline__ Pages(const Scene &scene, const int *table, int kv_head)
        : table(table), len(scene.page_len), stride((int64_t)scene.kv_heads * scene.page_len * scene.head_dim),
          of_head((int64_t)kv_head * scene.page_len * scene.head_dim) {
        int whole = (int)(__float_as_uint((float)len) >> 23) - 127;
        shift = len == 1 << whole ? whole : -1;
    }
    __device__ __forceinline__ int64_t place_of(int token, int head_dim) const {
        int page = shift >= 0 ? token >> shift : token / len;
        return table[page] * stride + of_head + (token - page * len) * head_dim;
    }
};

// Tokens that make a part of their own, at least: to put parts together takes time as well.
constexpr int LEAST_TOKENS = 32;

// The tokens that a block looks at: its share of those that the row sees. The number of parts that there are, which may be fewer than `splits`.
__device__ __forceinline__ int share(int window, int position, int split, int splits, int *begin, int *end) {
    int first = window && position >= window ? position - window + 1 : 0;
    int count = position + 1 - first, each = max((count + splits - 1) / splits, LEAST_TOKENS);
    *begin = first + min(split * each, count);
    *end = first + min((split + 1) * each, count);
    return (count + each - 1) / each;
}

// Two parts of a softmax as one: the factors that the numbers of each get, and the new maximum and total.
__device__ __forceinline__ void join(float *maximum, float *total, float other_maximum, float other_total, float *mine, float *other) {
    float both = fmaxf(*maximum, other_maximum);
    *mine = *maximum == NEGATIVE_INFINITY ? 0.0f : expf(*maximum - both);
    *other = other_maximum == NEGATIVE_INFINITY ? 0.0f : expf(other_maximum - both);
    *total = *total * *mine + other_total * *other;
    *maximum = both;
}

constexpr int ATTEND_WARPS = 4;

// Where attention goes: parts of it with their maxima and totals; or, where all of a row is one part, what is made of it.
struct Target {
    float *parts, *totals;
    // Of each row and head, in the numbers that `number` says: 0 is F32, 1 BF16, 2 F16.
    void *out;
    int number;
};

// One number of a part of a row's head, whose weights have this maximum and this total.
__device__ __forceinline__ void put(const Target &target, const Scene &scene, int row, int head, int split, int splits, int i, float number,
                                    float maximum, float total) {
    if (splits == 1) {
        int64_t at = ((int64_t)row * scene.heads + head) * scene.head_dim + i;
        float share = number / total;
        if (target.number == 0) static_cast<float *>(target.out)[at] = share;
        if (target.number == 1) static_cast<bf16 *>(target.out)[at] = from_float<bf16>(share);
        if (target.number == 2) static_cast<f16 *>(target.out)[at] = from_float<f16>(share);
        return;
    }
    int64_t part = ((int64_t)blockIdx.z * scene.heads + head) * splits + split;
    target.parts[part * scene.head_dim + i] = number;
    if (i == 0) {
        target.totals[2 * part] = maximum;
        target.totals[2 * part + 1] = total;
    }
}

// Parts of `HEADS` query heads that share a KV head. Grid: splits, KV heads times the groups of HEADS, rows.
//
// LANES lanes hold a key and its value together, each every LANES-th vector of it, so that a warp loads WARP / LANES tokens at a time in
// whole lines, and few shuffles add up a score.
template <typename KV, int D, int LANES, int HEADS>
__device__ void attend(Scene scene, const KV *keys, const KV *values, const int *row_list, const int *row_sequence, const int *row_position,
                       int splits, const Target &target) {
    constexpr int RUN = D / LANES, LEN = Vector<KV>::LEN, VECTORS = RUN / LEN, TOKENS = WARP / LANES;
    static_assert(RUN % LEN == 0, "whole vectors");
    SHARED_BYTES(shared);
    float *of_warps = reinterpret_cast<float *>(shared);
    int row = row_list[blockIdx.z], split = blockIdx.x;
    int group = scene.heads / scene.kv_heads, groups = (group + HEADS - 1) / HEADS;
    int kv_head = blockIdx.y / groups, first_head = kv_head * group + blockIdx.y % groups * HEADS;
    int heads = min(HEADS, kv_head * group + group - first_head);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, part = lane % LANES;
    // Which number of a vector the lane's i-th is.
    auto place_in_vector = [part](int i) { return (i / LEN * LANES + part) * LEN + i % LEN; };
    const int *table = scene.tables + (int64_t)row_sequence[row] * scene.table_stride;
    int begin, end;
    if (split >= share(scene.window, row_position[row], split, splits, &begin, &end)) return;
    Pages pages(scene, table, kv_head);

    float query[HEADS][RUN], sum[HEADS][RUN], maximum[HEADS], total[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        // A head too many is computed like the first and forgotten.
        const float *from = scene.qkv + (int64_t)row * scene.row_width + (first_head + (h < heads ? h : 0)) * D;
        maximum[h] = NEGATIVE_INFINITY;
        total[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            query[h][i] = from[place_in_vector(i)];
            sum[h][i] = 0.0f;
        }
    }
    // What is looked at next is on its way meanwhile: vectors as they lie in memory, which take few registers.
    Vector<KV> next_key[VECTORS], next_value[VECTORS];
    auto fetch = [&](int base) {
        int token = base + lane / LANES;
        int64_t place = pages.place_of(token < end ? token : base, D) + part * LEN;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            next_key[v] = *reinterpret_cast<const Vector<KV> *>(keys + place + v * LANES * LEN);
            next_value[v] = *reinterpret_cast<const Vector<KV> *>(values + place + v * LANES * LEN);
        }
    };
    int base = begin + warp * TOKENS;
    if (base < end) fetch(base);
    // All lanes of a warp go round as often: they add up scores together.
    for (; base < end; base += ATTEND_WARPS * TOKENS) {
        bool there = base + lane / LANES < end;
        float key[RUN], value[RUN];
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            key[i] = to_float(next_key[i / LEN].at[i % LEN]);
            value[i] = to_float(next_value[i / LEN].at[i % LEN]);
        }
        if (base + ATTEND_WARPS * TOKENS < end) fetch(base + ATTEND_WARPS * TOKENS);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float product = 0.0f;
#pragma unroll
            for (int i = 0; i < RUN; i++) product += query[h][i] * key[i];
#pragma unroll
            for (int apart = LANES / 2; apart > 0; apart /= 2) product += __shfl_xor_sync(ALL_LANES, product, apart);
            if (!there) continue;
            float score = score_of(scene, product);
            if (score > maximum[h]) {
                float factor = expf(maximum[h] - score);
                total[h] *= factor;
#pragma unroll
                for (int i = 0; i < RUN; i++) sum[h][i] *= factor;
                maximum[h] = score;
            }
            float weight = expf(score - maximum[h]);
            total[h] += weight;
#pragma unroll
            for (int i = 0; i < RUN; i++) sum[h][i] += weight * value[i];
        }
    }
    // The tokens of a warp, then the warps of the block.
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int apart = LANES; apart < WARP; apart *= 2) {
            float other_maximum = __shfl_xor_sync(ALL_LANES, maximum[h], apart);
            float other_total = __shfl_xor_sync(ALL_LANES, total[h], apart);
            float mine, other;
            join(&maximum[h], &total[h], other_maximum, other_total, &mine, &other);
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                sum[h][i] = sum[h][i] * mine + __shfl_xor_sync(ALL_LANES, sum[h][i], apart) * other;
            }
        }
        float *to = of_warps + (warp * HEADS + h) * (D + 2);
        if (lane < LANES) {
#pragma unroll
            for (int i = 0; i < RUN; i++) to[place_in_vector(i)] = sum[h][i];
            if (part == 0) {
                to[D] = maximum[h];
                to[D + 1] = total[h];
            }
        }
    }
    __syncthreads();
    for (int at = threadIdx.x; at < heads * D; at += blockDim.x) {
        int h = at / D, i = at % D;
        float top = NEGATIVE_INFINITY, all = 0.0f, number = 0.0f;
        for (int w = 0; w < ATTEND_WARPS; w++) {
            const float *from = of_warps + (w * HEADS + h) * (D + 2);
            float mine, other;
            join(&top, &all, from[D], from[D + 1], &mine, &other);
            number = number * mine + from[i] * other;
        }
        put(target, scene, row, first_head + h, split, splits, i, number, top, all);
    }
}

constexpr int ANY_RUN = 16;

// The same for heads of any size up to 512, a warp for each token; for models whose heads no kernel above is made for, and for what is
// compared with F64. Grid: splits, heads, rows.
template <typename KV>
__device__ void attend_any(Scene scene, const KV *keys, const KV *values, const int *row_list, const int *row_sequence,
                           const int *row_position, int splits, const Target &target) {
    SHARED_BYTES(shared);
    float *of_warps = reinterpret_cast<float *>(shared);
    int row = row_list[blockIdx.z], split = blockIdx.x, head = blockIdx.y, size = scene.head_dim;
    int kv_head = head / (scene.heads / scene.kv_heads);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int *table = scene.tables + (int64_t)row_sequence[row] * scene.table_stride;
    const float *query = scene.qkv + (int64_t)row * scene.row_width + head * size;
    int begin, end;
    if (split >= share(scene.window, row_position[row], split, splits, &begin, &end)) return;
    Pages pages(scene, table, kv_head);
    float sum[ANY_RUN] = {0.0f}, maximum = NEGATIVE_INFINITY, total = 0.0f;
    for (int token = begin + warp; token < end; token += ATTEND_WARPS) {
        int64_t place = pages.place_of(token, size);
        float product = 0.0f;
        for (int i = lane; i < size; i += WARP) product += query[i] * to_float(keys[place + i]);
        float score = score_of(scene, warp_sum(product)), mine, other;
        join(&maximum, &total, score, 1.0f, &mine, &other);
#pragma unroll
        for (int i = 0; i < ANY_RUN; i++) {
            int at = lane + i * WARP;
            if (at < size) sum[i] = sum[i] * mine + to_float(values[place + at]) * other;
        }
    }
    float *to = of_warps + warp * (size + 2);
    for (int i = 0; i < ANY_RUN; i++) {
        if (lane + i * WARP < size) to[lane + i * WARP] = sum[i];
    }
    if (lane == 0) {
        to[size] = maximum;
        to[size + 1] = total;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        float top = NEGATIVE_INFINITY, all = 0.0f, number = 0.0f;
        for (int w = 0; w < ATTEND_WARPS; w++) {
            const float *from = of_warps + w * (size + 2);
            float mine, other;
            join(&top, &all, from[size], from[size + 1], &mine, &other);
            number = number * mine + from[i] * other;
        }
        put(target, scene, row, head, split, splits, i, number, top, all);
    }
}

// Puts the parts of each row and head together. Grid: heads, rows.
template <typename X>
__device__ void attend_join(const float *parts, const float *totals, const int *row_list, const int *row_position, int window, X *out,
                            int head_dim, int splits) {
    int begin, end, used = share(window, row_position[row_list[blockIdx.y]], 0, splits, &begin, &end);
    int64_t first = ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * splits;
    out += ((int64_t)row_list[blockIdx.y] * gridDim.x + blockIdx.x) * head_dim;
    for (int i = threadIdx.x; i < head_dim; i += blockDim.x) {
        float top = NEGATIVE_INFINITY, all = 0.0f, number = 0.0f;
#pragma unroll 8
        for (int split = 0; split < used; split++) {
            float mine, other;
            join(&top, &all, totals[2 * (first + split)], totals[2 * (first + split) + 1], &mine, &other);
            number = number * mine + parts[(first + split) * head_dim + i] * other;
        }
        out[i] = from_float<X>(number / all);
    }
}

#define SCENE                                                                                                                              \
    const float *qkv, int row_width, const int *tables, int table_stride, int page_len, int heads, int kv_heads, int head_dim,             \
        float scale, float cap, int window
#define THE_SCENE Scene{qkv, row_width, tables, table_stride, page_len, heads, kv_heads, head_dim, scale, cap, window}
#define ROWS                                                                                                                               \
    const int *row_list, const int *row_sequence, const int *row_position, int splits, float *parts, float *totals, void *out, int number
#define THE_ROWS row_list, row_sequence, row_position, splits, Target{parts, totals, out, number}

#define DEFINE_HEADS(KV, D, LANES, HEADS)                                                                                                  \
    KERNEL __launch_bounds__(ATTEND_WARPS *WARP) attend_##KV##_##D##_##HEADS(SCENE, const KV *keys, const KV *values, ROWS) {              \
        begin_kernel();                                                                                                                    \
        attend<KV, D, LANES, HEADS>(THE_SCENE, keys, values, THE_ROWS);                                                                    \
    }                                                                                                                                      \
    EXPORT(attend_##KV##_##D##_##HEADS)
#define DEFINE_SIZE(KV, D, LANES)                                                                                                          \
    DEFINE_FEW_HEADS(KV, D, LANES)                                                                                                         \
    DEFINE_HEADS(KV, D, LANES, 4)
#define DEFINE_FEW_HEADS(KV, D, LANES)                                                                                                     \
    DEFINE_HEADS(KV, D, LANES, 1)                                                                                                          \
    DEFINE_HEADS(KV, D, LANES, 2)
#define DEFINE(KV)                                                                                                                         \
    DEFINE_SIZE(KV, 64, 8)                                                                                                                 \
    DEFINE_FEW_HEADS(KV, 96, 4)                                                                                                            \
    DEFINE_SIZE(KV, 128, 16)                                                                                                               \
    DEFINE_SIZE(KV, 256, 32)                                                                                                               \
    DEFINE_ANY(KV)
#define DEFINE_ANY(KV)                                                                                                                     \
    KERNEL __launch_bounds__(ATTEND_WARPS *WARP) attend_##KV##_any(SCENE, const KV *keys, const KV *values, ROWS) {                        \
        begin_kernel();                                                                                                                    \
        attend_any<KV>(THE_SCENE, keys, values, THE_ROWS);                                                                                 \
    }                                                                                                                                      \
    EXPORT(attend_##KV##_any)
#define DEFINE_JOIN(X)                                                                                                                     \
    KERNEL attend_join_##X(const float *parts, const float *totals, const int *row_list, const int *row_position, int window, X *out,      \
                           int head_dim, int splits) {                                                                                     \
        begin_kernel();                                                                                                                    \
        attend_join<X>(parts, totals, row_list, row_position, window, out, head_dim, splits);                                              \
    }                                                                                                                                      \
    EXPORT(attend_join_##X)

DEFINE(float)
DEFINE(bf16)
DEFINE(f16)
// A vector has 16 of these, which fits a head of 96 no way.
DEFINE_SIZE(fp8, 64, 4)
DEFINE_SIZE(fp8, 128, 8)
DEFINE_SIZE(fp8, 256, 16)
DEFINE_ANY(fp8)
DEFINE_JOIN(float)
DEFINE_JOIN(bf16)
DEFINE_JOIN(f16)
