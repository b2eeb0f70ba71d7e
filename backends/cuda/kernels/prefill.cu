// Attention of the many rows of a prompt, on tensor cores: "FlashAttention-2" (Dao 2023) over a paged cache. A block computes 64 rows of one
// head, a warp 16 of them; scores and sums stay in registers, where what the first product leaves is what the second one takes.
#include "portable.cuh"

constexpr int TILE_ROWS = 64, TILE_WARPS = 4, PAD = 8;

// Grid: tiles, heads. X is what the tensor cores multiply; queries, keys and values are rounded to it.
template <typename X, typename KV, int D, int KEYS>
__device__ void prefill(const float *qkv, int row_width, const int *tables, int table_stride, int page_len, int heads, int kv_heads,
                        float scale, float cap, int window, const KV *keys, const KV *values, const int *tile_row, const int *tile_rows,
                        const int *tile_sequence, const int *tile_position, X *out) {
    constexpr int STEPS = D / 16, COLUMNS = D / 8, KEY_COLUMNS = KEYS / 8, K_STRIDE = D + PAD, V_STRIDE = KEYS + PAD;
    SHARED_BYTES(shared);
    X *q = reinterpret_cast<X *>(shared);
    X *k = q + TILE_ROWS * K_STRIDE;
    // Values lie with the tokens of each number behind each other, as the second product takes them.
    X *v = k + KEYS * K_STRIDE;
    int first_row = tile_row[blockIdx.x], rows = tile_rows[blockIdx.x], first_position = tile_position[blockIdx.x];
    int head = blockIdx.y, kv_head = head / (heads / kv_heads);
    const int *table = tables + (int64_t)tile_sequence[blockIdx.x] * table_stride;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;

    for (int at = threadIdx.x; at < TILE_ROWS * D; at += blockDim.x) {
        int row = at / D, i = at % D;
        float x = row < rows ? qkv[(int64_t)(first_row + row) * row_width + head * D + i] * scale : 0.0f;
        q[row * K_STRIDE + i] = from_float<X>(x);
    }
    float sum[COLUMNS][4], maximum[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sum[column][i] = 0.0f;
    }
    // What each of the lane's two rows sees. A row that is not there sees what the last one does.
    int position[2], sees_from[2];
    for (int r = 0; r < 2; r++) {
        position[r] = first_position + min(warp * 16 + g + r * 8, rows - 1);
        sees_from[r] = window ? max(position[r] - window + 1, 0) : 0;
    }
    int last = first_position + rows - 1, begin = window ? max(first_position - window + 1, 0) / KEYS * KEYS : 0;
    auto place_of = [=](int token) {
        int64_t page = table[token / page_len];
        return ((page * kv_heads + kv_head) * page_len + token % page_len) * D;
    };
    const X *my_q = q + (warp * 16 + g) * K_STRIDE + 2 * t;

    for (int base = begin; base <= last; base += KEYS) {
        __syncthreads();
        // Of a token that is not there the weight is nothing, and nothing times what a page held before might not be.
        constexpr int LEN = Vector<KV>::LEN, PER_TOKEN = D / LEN;
        static_assert(LEN % Vector<X>::LEN == 0, "whole vectors come out");
        // Keys go by threads as they lie in memory.
        for (int at = threadIdx.x; at < KEYS * PER_TOKEN; at += blockDim.x) {
            int key = at / PER_TOKEN, i = at % PER_TOKEN * LEN, token = base + key;
            float of_key[LEN] = {0.0f};
            if (token <= last) load_floats(keys + place_of(token) + i, of_key, 1);
#pragma unroll
            for (int part = 0; part < LEN / Vector<X>::LEN; part++) {
                Vector<X> rounded;
#pragma unroll
                for (int j = 0; j < Vector<X>::LEN; j++) rounded.at[j] = from_float<X>(of_key[part * Vector<X>::LEN + j]);
                reinterpret_cast<Vector<X> *>(k + key * K_STRIDE + i)[part] = rounded;
            }
        }
        // Values by token: neighbours write side by side, and not to one bank.
        for (int at = threadIdx.x; at < KEYS * PER_TOKEN; at += blockDim.x) {
            int key = at % KEYS, i = at / KEYS * LEN, token = base + key;
            float of_value[LEN] = {0.0f};
            if (token <= last) load_floats(values + place_of(token) + i, of_value, 1);
#pragma unroll
            for (int j = 0; j < LEN; j++) v[(i + j) * V_STRIDE + key] = from_float<X>(of_value[j]);
        }
        __syncthreads();

        float score[KEY_COLUMNS][4];
#pragma unroll
        for (int column = 0; column < KEY_COLUMNS; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) score[column][i] = 0.0f;
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint32_t a[4];
            a[0] = load_pair(my_q + step * 16);
            a[1] = load_pair(my_q + step * 16 + 8 * K_STRIDE);
            a[2] = load_pair(my_q + step * 16 + 8);
            a[3] = load_pair(my_q + step * 16 + 8 * K_STRIDE + 8);
#pragma unroll
            for (int column = 0; column < KEY_COLUMNS; column++) {
                const X *from = k + (column * 8 + g) * K_STRIDE + step * 16 + 2 * t;
                uint32_t b[2];
                b[0] = load_pair(from);
                b[1] = load_pair(from + 8);
                mma<X>(score[column], a, b);
            }
        }
        float highest[2] = {maximum[0], maximum[1]};
#pragma unroll
        for (int column = 0; column < KEY_COLUMNS; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int token = base + column * 8 + 2 * t + i % 2, r = i / 2;
                float s = score[column][i];
                if (cap > 0.0f) s = cap * tanhf(s / cap);
                if (token > position[r] || token < sees_from[r]) s = NEGATIVE_INFINITY;
                score[column][i] = s;
                highest[r] = fmaxf(highest[r], s);
            }
        }
        float factor[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL_LANES, highest[r], 1));
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL_LANES, highest[r], 2));
            // Whether a row has seen anything yet: with a window, its first keys may be beyond it.
            factor[r] = maximum[r] == NEGATIVE_INFINITY ? 0.0f : expf(maximum[r] - highest[r]);
            maximum[r] = highest[r];
            total[r] *= factor[r];
        }
#pragma unroll
        for (int column = 0; column < KEY_COLUMNS; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float s = score[column][i];
                float weight = s == NEGATIVE_INFINITY ? 0.0f : expf(s - maximum[i / 2]);
                score[column][i] = weight;
                total[i / 2] += weight;
            }
        }
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[column][i] *= factor[i / 2];
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            uint32_t a[4] = {pack<X>(score[2 * step][0], score[2 * step][1]), pack<X>(score[2 * step][2], score[2 * step][3]),
                             pack<X>(score[2 * step + 1][0], score[2 * step + 1][1]), pack<X>(score[2 * step + 1][2], score[2 * step + 1][3])};
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                const X *from = v + (column * 8 + g) * V_STRIDE + step * 16 + 2 * t;
                uint32_t b[2];
                b[0] = load_pair(from);
                b[1] = load_pair(from + 8);
                mma<X>(sum[column], a, b);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(ALL_LANES, total[r], 1);
        total[r] += __shfl_xor_sync(ALL_LANES, total[r], 2);
        int row = warp * 16 + g + r * 8;
        if (row >= rows) continue;
        X *to = out + ((int64_t)(first_row + row) * heads + head) * D + 2 * t;
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
            uint32_t pair = pack<X>(sum[column][2 * r] / total[r], sum[column][2 * r + 1] / total[r]);
            store_pair(to + column * 8, pair);
        }
    }
}

#define DEFINE_SIZE(X, KV, D, KEYS)                                                                                                        \
    KERNEL __launch_bounds__(TILE_WARPS *WARP)                                                                                             \
        prefill_##X##_##KV##_##D(const float *qkv, int row_width, const int *tables, int table_stride, int page_len, int heads,            \
                                 int kv_heads, float scale, float cap, int window, const KV *keys, const KV *values, const int *tile_row,  \
                                 const int *tile_rows, const int *tile_sequence, const int *tile_position, X *out) {                       \
        prefill<X, KV, D, KEYS>(qkv, row_width, tables, table_stride, page_len, heads, kv_heads, scale, cap, window, keys, values,         \
                                tile_row, tile_rows, tile_sequence, tile_position, out);                                                   \
    }                                                                                                                                      \
    EXPORT(prefill_##X##_##KV##_##D)
#define DEFINE(X, KV)                                                                                                                      \
    DEFINE_SIZE(X, KV, 64, 64)                                                                                                             \
    DEFINE_SIZE(X, KV, 96, 64)                                                                                                             \
    DEFINE_SIZE(X, KV, 128, 64)                                                                                                            \
    DEFINE_SIZE(X, KV, 256, 32)

DEFINE(bf16, bf16)
DEFINE(bf16, f16)
DEFINE(f16, f16)
DEFINE(bf16, fp8)
DEFINE(f16, fp8)
