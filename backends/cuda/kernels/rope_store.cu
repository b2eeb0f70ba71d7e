// Between the product that makes queries, keys and values, and attention: biases, norms of heads, positions, and the KV cache.
#include "portable.cuh"

struct __align__(8) Turn {
    float cosine, sine;
};

// What the `width` numbers from `first` on are multiplied with to be normalised together, biases added. Known to all threads of the block.
__device__ float norm_of_run(const float *qkv, const float *bias, int first, int width, float eps, float *scratch) {
    float squares = 0.0f;
#pragma unroll 4
    for (int at = first + threadIdx.x; at < first + width; at += blockDim.x) {
        float x = qkv[at] + (bias ? bias[at] : 0.0f);
        squares += x * x;
    }
    return 1.0f / sqrtf(block_sum(squares, scratch) / width + eps);
}

// A vector of a head, by pairs: those that are turned together, and two halves of what is not turned. Each lane has every WARPth pair, and so
// many of them at a time: all of a head of up to 128 numbers.
constexpr int PAIRS = 2;

struct Head {
    int width, turned, pairs;
    __device__ Head(int width, int turned) : width(width), turned(turned), pairs(turned + (width - 2 * turned + 1) / 2) {}
};

// Some of them, each WARPth from one on.
struct Pairs {
    // Where they lie; below zero where there is none, and where half a pair is left over.
    int first[PAIRS], second[PAIRS];

    __device__ __forceinline__ Pairs(const Head &head, int pair) {
#pragma unroll
        for (int i = 0; i < PAIRS; i++, pair += WARP) {
            bool is_turned = pair < head.turned;
            int at = is_turned ? pair : pair + head.turned, other = at + (is_turned ? head.turned : head.pairs - head.turned);
            first[i] = pair < head.pairs ? at : -1;
            second[i] = pair < head.pairs && other < head.width ? other : -1;
        }
    }

    __device__ __forceinline__ void load(const float *from, float (&x)[PAIRS], float (&y)[PAIRS], float otherwise) const {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) x[i] = y[i] = otherwise;
        if (!from) return;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            if (first[i] >= 0) x[i] = from[first[i]];
            if (second[i] >= 0) y[i] = from[second[i]];
        }
    }

    template <typename T> __device__ __forceinline__ void store(T *to, const float (&x)[PAIRS], const float (&y)[PAIRS]) const {
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            if (first[i] >= 0) to[first[i]] = from_float<T>(x[i]);
            if (second[i] >= 0) to[second[i]] = from_float<T>(y[i]);
        }
    }
};

// Finishes the queries of each row in place, and puts its key and value where its slot of the cache is. A warp for each vector of a head; so
// many warps in a row's blocks, of which there is one alone where all heads of a row are normalised together.
//
// A page of the cache holds, for each of the K heads, the vectors of `page_len` tokens. A row without a slot (-1) stores nothing.
template <typename KV>
__device__ void rope_store(float *qkv, const float *bias, const float *q_norm, const float *k_norm, int norm_width, float eps,
                           const float *turns, int pairs, KV *keys, KV *values, const int64_t *slots, int heads, int kv_heads,
                           int head_dim, int page_len) {
    __shared__ float scratch[WARP];
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP, vectors = heads + 2 * kv_heads;
    qkv += (int64_t)blockIdx.x * vectors * head_dim;
    int64_t slot = slots[blockIdx.x];
    bool each_by_itself = norm_width == head_dim;
    float of_queries = 1.0f, of_keys = 1.0f;
    if (norm_width && !each_by_itself) {
        of_queries = norm_of_run(qkv, bias, 0, heads * head_dim, eps, scratch);
        of_keys = norm_of_run(qkv, bias, heads * head_dim, kv_heads * head_dim, eps, scratch);
        // Before anybody writes what others have read.
        __syncthreads();
    }
    // There are fewer slots than 2^32, whose pages would not fit into a card, and short divisions are much quicker.
    unsigned page = (unsigned)slot / page_len, place = (unsigned)slot % page_len;
    for (int vector = blockIdx.y * warps + threadIdx.x / WARP; vector < vectors; vector += gridDim.y * warps) {
        bool is_query = vector < heads, is_value = vector >= heads + kv_heads;
        if (!is_query && slot < 0) break;
        const float *biases = bias ? bias + vector * head_dim : nullptr, *weights = nullptr;
        float *x_of = qkv + vector * head_dim, factor = 1.0f;
        Head head(head_dim, turns && !is_value ? pairs : 0);
        float x[PAIRS], y[PAIRS], bx[PAIRS], by[PAIRS];
        if (norm_width && !is_value) {
            weights = is_query ? q_norm : k_norm;
            if (each_by_itself) {
                float squares = 0.0f;
                for (int pair = lane; pair < head.pairs; pair += PAIRS * WARP) {
                    Pairs some(head, pair);
                    some.load(x_of, x, y, 0.0f);
                    some.load(biases, bx, by, 0.0f);
#pragma unroll
                    for (int i = 0; i < PAIRS; i++) squares += (x[i] + bx[i]) * (x[i] + bx[i]) + (y[i] + by[i]) * (y[i] + by[i]);
                }
                factor = 1.0f / sqrtf(warp_sum(squares) / head_dim + eps);
            } else {
                weights += (is_query ? vector : vector - heads) * head_dim;
                factor = is_query ? of_queries : of_keys;
            }
        }
        for (int pair = lane; pair < head.pairs; pair += PAIRS * WARP) {
            float wx[PAIRS], wy[PAIRS];
            Turn turn[PAIRS];
            Pairs some(head, pair);
            // All are on their way before the first is looked at.
            some.load(x_of, x, y, 0.0f);
            some.load(biases, bx, by, 0.0f);
            some.load(weights, wx, wy, 1.0f);
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                int at = pair + i * WARP;
                if (at < head.turned) turn[i] = reinterpret_cast<const Turn *>(turns)[(int64_t)blockIdx.x * pairs + at];
            }
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                float a = (x[i] + bx[i]) * (factor * wx[i]), b = (y[i] + by[i]) * (factor * wy[i]);
                bool is_turned = pair + i * WARP < head.turned;
                x[i] = is_turned ? a * turn[i].cosine - b * turn[i].sine : a;
                y[i] = is_turned ? b * turn[i].cosine + a * turn[i].sine : b;
            }
            if (is_query) {
                some.store(x_of, x, y);
            } else {
                int64_t kv_head = (int64_t)page * kv_heads + (vector - heads) % kv_heads;
                some.store((is_value ? values : keys) + (kv_head * page_len + place) * head_dim, x, y);
            }
        }
    }
}

#define DEFINE(KV)                                                                                                                         \
    KERNEL rope_store_##KV(float *qkv, const float *bias, const float *q_norm, const float *k_norm, int norm_width, float eps,             \
                           const float *turns, int pairs, KV *keys, KV *values, const int64_t *slots, int heads, int kv_heads,             \
                           int head_dim, int page_len) {                                                                                   \
        begin_kernel();                                                                                                                    \
        rope_store<KV>(qkv, bias, q_norm, k_norm, norm_width, eps, turns, pairs, keys, values, slots, heads, kv_heads, head_dim,           \
                       page_len);                                                                                                          \
    }                                                                                                                                      \
    EXPORT(rope_store_##KV)

DEFINE(float)
DEFINE(bf16)
DEFINE(f16)
DEFINE(fp8)
