// What is computed number by number, or row by row: vectors of tokens, norms, activations, angles, and the map of logits.
#include "portable.cuh"

// Four neighbours, which are loaded and stored as one.
template <typename X> struct __align__(4 * sizeof(X)) Four {
    X at[4];
};

// Four numbers of a row that begin at a multiple of four; zeros beyond its end. `FOURS`: its width is a multiple of four as well.
template <bool FOURS, typename X> __device__ __forceinline__ void load_four(const X *row, int at, int width, float (&to)[4]) {
    Four<X> loaded;
#pragma unroll
    for (int i = 0; i < 4; i++) loaded.at[i] = from_float<X>(0.0f);
    if (FOURS) {
        if (at < width) loaded = *reinterpret_cast<const Four<X> *>(row + at);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < width) loaded.at[i] = row[at + i];
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = to_float(loaded.at[i]);
}

template <bool FOURS, typename X> __device__ __forceinline__ void store_four(X *row, int at, int width, const float (&from)[4]) {
    Four<X> stored;
#pragma unroll
    for (int i = 0; i < 4; i++) stored.at[i] = from_float<X>(from[i]);
    if (FOURS) {
        if (at < width) *reinterpret_cast<Four<X> *>(row + at) = stored;
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < width) row[at + i] = stored.at[i];
        }
    }
}

// What a thread has of a row: each `blockDim.x`th four of it. A block has as many threads as its rows are wide for.
constexpr int KEPT = 4;
typedef float Share[KEPT][4];

template <bool FOURS, typename X> __device__ __forceinline__ void load_share(const X *row, int width, Share &to) {
#pragma unroll
    for (int i = 0; i < KEPT; i++) load_four<FOURS>(row, 4 * (threadIdx.x + i * blockDim.x), width, to[i]);
}

template <bool FOURS, typename X> __device__ __forceinline__ void store_share(X *row, int width, const Share &from) {
#pragma unroll
    for (int i = 0; i < KEPT; i++) store_four<FOURS>(row, 4 * (threadIdx.x + i * blockDim.x), width, from[i]);
}

__device__ __forceinline__ float squares_of(const Share &share) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < KEPT * 4; i++) squares += share[i / 4][i % 4] * share[i / 4][i % 4];
    return squares;
}

// The vector of each token. A block for each row.
template <typename X, bool FOURS>
__device__ void embed(const X *__restrict__ table, const int *tokens, float *__restrict__ hidden, int width, float scale) {
    Share x;
    load_share<FOURS>(table + (int64_t)tokens[blockIdx.x] * width, width, x);
#pragma unroll
    for (int i = 0; i < KEPT * 4; i++) x[i / 4][i % 4] *= scale;
    store_share<FOURS>(hidden + (int64_t)blockIdx.x * width, width, x);
}

// Adds what a block of the model made to the hidden state, and normalises the sum for the next block. A block of threads for each row, which
// lies in their registers meanwhile.
//
// `rows`, where there is one, says which row of `hidden` and `delta` each row of `out` is made of. Without `delta` nothing is added; with
// `post` it is normalised first. Without `pre` the sum goes on as it is.
template <typename X, bool FOURS>
__device__ void add_norm(float *__restrict__ hidden, const float *delta, const float *__restrict__ bias, float scale,
                         const float *__restrict__ post, const float *__restrict__ pre, const int *rows, X *__restrict__ out, int width,
                         float eps) {
    __shared__ float scratch[WARP];
    int64_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    hidden += row * width;
    Share h, d, weights;
    // Whatever is needed first is on its way before threads wait for any of it.
    load_share<FOURS>(hidden, width, h);
    if (delta) load_share<FOURS>(delta + row * width, width, d);
    bool with_post = delta && post;
    if (with_post || pre) load_share<FOURS>(with_post ? post : pre, width, weights);
    if (delta) {
        if (bias) {
#pragma unroll
            for (int i = 0; i < KEPT; i++) {
                float b[4];
                load_four<FOURS>(bias, 4 * (threadIdx.x + i * blockDim.x), width, b);
                for (int j = 0; j < 4; j++) d[i][j] += b[j];
            }
        }
        float factor = scale;
        if (post) factor = scale / sqrtf(block_sum(squares_of(d), scratch) / width + eps);
#pragma unroll
        for (int i = 0; i < KEPT * 4; i++) h[i / 4][i % 4] += d[i / 4][i % 4] * factor * (post ? weights[i / 4][i % 4] : 1.0f);
        store_share<FOURS>(hidden, width, h);
        if (post && pre) load_share<FOURS>(pre, width, weights);
    }
    if (pre) {
        float factor = 1.0f / sqrtf(block_sum(squares_of(h), scratch) / width + eps);
#pragma unroll
        for (int i = 0; i < KEPT * 4; i++) h[i / 4][i % 4] = h[i / 4][i % 4] * factor * weights[i / 4][i % 4];
    }
    store_share<FOURS>(out + (int64_t)blockIdx.x * width, width, h);
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// x / 2 * (1 + tanh(z)) with z = sqrt(2 / pi) * (x + 0.044715 x^3), by (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)).
__device__ __forceinline__ float gelu_tanh(float x) {
    return x / (1.0f + expf(-2.0f * 0.7978846f * (x + 0.044715f * x * x * x)));
}

// The first half of each row of `gate_up`, activated, times the second half. Blocks for each row, a thread for four products.
template <typename X, bool FOURS>
__device__ void gated(const float *gate_up, const float *__restrict__ bias, X *__restrict__ out, int width, int gelu) {
    int at = 4 * (blockIdx.y * blockDim.x + threadIdx.x);
    gate_up += (int64_t)blockIdx.x * 2 * width;
    float gate[4], up[4], of_gate[4] = {0.0f, 0.0f, 0.0f, 0.0f}, of_up[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load_four<FOURS>(gate_up, at, width, gate);
    load_four<FOURS>(gate_up + width, at, width, up);
    if (bias) {
        load_four<FOURS>(bias, at, width, of_gate);
        load_four<FOURS>(bias + width, at, width, of_up);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x = gate[i] + of_gate[i];
        gate[i] = (gelu ? gelu_tanh(x) : silu(x)) * (up[i] + of_up[i]);
    }
    store_four<FOURS>(out + (int64_t)blockIdx.x * width, at, width, gate);
}

// Cosine and sine of each token and pair, in F64: at a far position an F32 angle is off visibly. A thread for each pair.
KERNEL angles(const int *positions, const double *frequencies, double magnitude, float *turns, int pairs, int rows) {
    begin_kernel();
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= rows * pairs) return;
    double angle = positions[at / pairs] * frequencies[at % pairs];
    turns[2 * at] = (float)(magnitude * cos(angle));
    turns[2 * at + 1] = (float)(magnitude * sin(angle));
}
EXPORT(angles)

// What becomes of the head's products: divided by a number, or kept softly between `cap` and its negative. A thread for each.
KERNEL map_logits(float *logits, float factor, float cap, int64_t count) {
    begin_kernel();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    float logit = logits[at] * factor;
    logits[at] = cap > 0.0f ? cap * tanhf(logit / cap) : logit;
}
EXPORT(map_logits)

// Rows of which each rank made some columns, which lie behind each other by rank, as they are. A thread for each number.
KERNEL join_parts(const float *parts, float *out, int ranks, int rows, int width, int longest, int64_t count) {
    begin_kernel();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    int64_t row = at / width, column = at % width;
    // Rank r has the columns from r * width / ranks on: this is the last one that begins no later.
    int64_t rank = ((column + 1) * ranks - 1) / width, first = rank * width / ranks;
    out[at] = parts[(rank * rows + row) * longest + column - first];
}
EXPORT(join_parts)

#define DEFINE(X)                                                                                                                          \
    KERNEL __launch_bounds__(1024) embed_##X(const X *table, const int *tokens, float *hidden, int width, float scale) {                   \
        begin_kernel();                                                                                                                    \
        if (width % 4 == 0) embed<X, true>(table, tokens, hidden, width, scale);                                                           \
        else embed<X, false>(table, tokens, hidden, width, scale);                                                                         \
    }                                                                                                                                      \
    EXPORT(embed_##X)                                                                                                                      \
    KERNEL __launch_bounds__(1024) add_norm_##X(float *hidden, const float *delta, const float *bias, float scale, const float *post,      \
                                                const float *pre, const int *rows, X *out, int width, float eps) {                         \
        begin_kernel();                                                                                                                    \
        if (width % 4 == 0) add_norm<X, true>(hidden, delta, bias, scale, post, pre, rows, out, width, eps);                               \
        else add_norm<X, false>(hidden, delta, bias, scale, post, pre, rows, out, width, eps);                                             \
    }                                                                                                                                      \
    EXPORT(add_norm_##X)                                                                                                                   \
    KERNEL gated_##X(const float *gate_up, const float *bias, X *out, int width, int gelu) {                                               \
        begin_kernel();                                                                                                                    \
        if (width % 4 == 0) gated<X, true>(gate_up, bias, out, width, gelu);                                                               \
        else gated<X, false>(gate_up, bias, out, width, gelu);                                                                             \
    }                                                                                                                                      \
    EXPORT(gated_##X)

DEFINE(float)
DEFINE(bf16)
DEFINE(f16)
