// Between the product that makes queries, keys and values, and attention: biases, norms of heads, positions, and the KV cache.
#include "portable.cuh"

// Normalises `count` runs of `width` numbers, each by itself; a warp for each run.
__device__ void norm_runs(float *at, int count, int width, const float *weight, float eps) {
    int lane = threadIdx.x % WARP;
    for (int run = threadIdx.x / WARP; run < count; run += blockDim.x / WARP) {
        float *x = at + run * width;
        float squares = 0.0f;
        for (int i = lane; i < width; i += WARP) squares += x[i] * x[i];
        float factor = 1.0f / sqrtf(warp_sum(squares) / width + eps);
        for (int i = lane; i < width; i += WARP) x[i] *= factor * weight[i];
    }
}

// Finishes the queries of each row in place, and puts its key and value where its slot of the cache is. A block for each row, which lies in
// shared memory meanwhile.
//
// A page of the cache holds, for each of the K heads, the vectors of `page_len` tokens. A row without a slot (-1) stores nothing.
template <typename KV>
__device__ void rope_store(float *qkv, const float *bias, const float *q_norm, const float *k_norm, int norm_width, float eps,
                           const float *turns, int pairs, KV *keys, KV *values, const int64_t *slots, int heads, int kv_heads,
                           int head_dim, int page_len) {
    SHARED_BYTES(shared);
    float *row = reinterpret_cast<float *>(shared);
    int q_width = heads * head_dim, kv_width = kv_heads * head_dim, width = q_width + 2 * kv_width;
    qkv += (int64_t)blockIdx.x * width;
    for (int at = threadIdx.x; at < width; at += blockDim.x) row[at] = qkv[at] + (bias ? bias[at] : 0.0f);
    __syncthreads();
    if (norm_width) {
        norm_runs(row, q_width / norm_width, norm_width, q_norm, eps);
        // The runs of keys are as long as those of queries where each head is one, and one run otherwise.
        int k_run = norm_width == head_dim ? head_dim : kv_width;
        norm_runs(row + q_width, kv_width / k_run, k_run, k_norm, eps);
        __syncthreads();
    }
    if (turns) {
        turns += (int64_t)blockIdx.x * pairs * 2;
        for (int at = threadIdx.x; at < (heads + kv_heads) * pairs; at += blockDim.x) {
            int pair = at % pairs;
            float *head = row + at / pairs * head_dim;
            float x = head[pair], y = head[pair + pairs], cosine = turns[2 * pair], sine = turns[2 * pair + 1];
            head[pair] = x * cosine - y * sine;
            head[pair + pairs] = y * cosine + x * sine;
        }
        __syncthreads();
    }
    for (int at = threadIdx.x; at < q_width; at += blockDim.x) qkv[at] = row[at];
    int64_t slot = slots[blockIdx.x];
    if (slot < 0) return;
    int64_t page = slot / page_len, place = slot % page_len;
    for (int at = threadIdx.x; at < kv_width; at += blockDim.x) {
        int head = at / head_dim, i = at % head_dim;
        int64_t to = ((page * kv_heads + head) * page_len + place) * head_dim + i;
        keys[to] = from_float<KV>(row[q_width + at]);
        values[to] = from_float<KV>(row[q_width + kv_width + at]);
    }
}

#define DEFINE(KV)                                                                                                                         \
    KERNEL rope_store_##KV(float *qkv, const float *bias, const float *q_norm, const float *k_norm, int norm_width, float eps,             \
                           const float *turns, int pairs, KV *keys, KV *values, const int64_t *slots, int heads, int kv_heads,             \
                           int head_dim, int page_len) {                                                                                   \
        rope_store<KV>(qkv, bias, q_norm, k_norm, norm_width, eps, turns, pairs, keys, values, slots, heads, kv_heads, head_dim,           \
                       page_len);                                                                                                          \
    }                                                                                                                                      \
    EXPORT(rope_store_##KV)

DEFINE(float)
DEFINE(bf16)
DEFINE(f16)
DEFINE(fp8)
