// What is computed number by number, or row by row: vectors of tokens, norms, activations, angles, and the map of logits.
#include "portable.cuh"

// The vector of each token. A block for each row.
template <typename X>
__device__ void embed(const X *table, const int *tokens, float *hidden, int width, float scale) {
    const X *from = table + (int64_t)tokens[blockIdx.x] * width;
    float *to = hidden + (int64_t)blockIdx.x * width;
    for (int at = threadIdx.x; at < width; at += blockDim.x) to[at] = to_float(from[at]) * scale;
}

// Adds what a block of the model made to the hidden state, and normalises the sum for the next block. A block of threads for each row.
//
// `rows`, where there is one, says which row of `hidden` and `delta` each row of `out` is made of. Without `delta` nothing is added; with
// `post` it is normalised first. Without `pre` the sum goes on as it is.
template <typename X>
__device__ void add_norm(float *hidden, const float *delta, const float *bias, float scale, const float *post, const float *pre,
                         const int *rows, X *out, int width, float eps) {
    __shared__ float scratch[WARP];
    int64_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    hidden += row * width;
    float squares = 0.0f;
    if (delta) {
        delta += row * width;
        float factor = scale;
        if (post) {
            float of_delta = 0.0f;
            for (int at = threadIdx.x; at < width; at += blockDim.x) {
                float d = delta[at] + (bias ? bias[at] : 0.0f);
                of_delta += d * d;
            }
            factor = scale / sqrtf(block_sum(of_delta, scratch) / width + eps);
        }
        for (int at = threadIdx.x; at < width; at += blockDim.x) {
            float d = (delta[at] + (bias ? bias[at] : 0.0f)) * factor * (post ? post[at] : 1.0f);
            float h = hidden[at] + d;
            hidden[at] = h;
            squares += h * h;
        }
    } else {
        for (int at = threadIdx.x; at < width; at += blockDim.x) squares += hidden[at] * hidden[at];
    }
    float factor = pre ? 1.0f / sqrtf(block_sum(squares, scratch) / width + eps) : 1.0f;
    out += (int64_t)blockIdx.x * width;
    // Each thread reads what it wrote.
    for (int at = threadIdx.x; at < width; at += blockDim.x) {
        out[at] = from_float<X>(hidden[at] * factor * (pre ? pre[at] : 1.0f));
    }
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// x / 2 * (1 + tanh(z)) with z = sqrt(2 / pi) * (x + 0.044715 x^3), by (1 + tanh(z)) / 2 = 1 / (1 + exp(-2 z)).
__device__ __forceinline__ float gelu_tanh(float x) {
    return x / (1.0f + expf(-2.0f * 0.7978846f * (x + 0.044715f * x * x * x)));
}

// The first half of each row of `gate_up`, activated, times the second half. A thread for each product.
template <typename X>
__device__ void gated(const float *gate_up, const float *bias, X *out, int width, int rows, int gelu) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (int64_t)rows * width) return;
    int64_t row = at / width;
    int column = at % width;
    float gate = gate_up[row * 2 * width + column], up = gate_up[row * 2 * width + width + column];
    if (bias) {
        gate += bias[column];
        up += bias[width + column];
    }
    out[at] = from_float<X>((gelu ? gelu_tanh(gate) : silu(gate)) * up);
}

// Cosine and sine of each token and pair, in F64: at a far position an F32 angle is off visibly. A thread for each pair.
KERNEL angles(const int *positions, const double *frequencies, double magnitude, float *turns, int pairs, int rows) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= rows * pairs) return;
    double angle = positions[at / pairs] * frequencies[at % pairs];
    turns[2 * at] = (float)(magnitude * cos(angle));
    turns[2 * at + 1] = (float)(magnitude * sin(angle));
}
EXPORT(angles)

// What becomes of the head's products: divided by a number, or kept softly between `cap` and its negative. A thread for each.
KERNEL map_logits(float *logits, float factor, float cap, int64_t count) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    float logit = logits[at] * factor;
    logits[at] = cap > 0.0f ? cap * tanhf(logit / cap) : logit;
}
EXPORT(map_logits)

// Rows of which each rank made some columns, which lie behind each other by rank, as they are. A thread for each number.
KERNEL join_parts(const float *parts, float *out, int ranks, int rows, int width, int longest, int64_t count) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    int64_t row = at / width, column = at % width;
    // Rank r has the columns from r * width / ranks on: this is the last one that begins no later.
    int64_t rank = ((column + 1) * ranks - 1) / width, first = rank * width / ranks;
    out[at] = parts[(rank * rows + row) * longest + column - first];
}
EXPORT(join_parts)

#define DEFINE(X)                                                                                                                          \
    KERNEL embed_##X(const X *table, const int *tokens, float *hidden, int width, float scale) {                                           \
        embed<X>(table, tokens, hidden, width, scale);                                                                                     \
    }                                                                                                                                      \
    EXPORT(embed_##X)                                                                                                                      \
    KERNEL add_norm_##X(float *hidden, const float *delta, const float *bias, float scale, const float *post, const float *pre,            \
                        const int *rows, X *out, int width, float eps) {                                                                   \
        add_norm<X>(hidden, delta, bias, scale, post, pre, rows, out, width, eps);                                                         \
    }                                                                                                                                      \
    EXPORT(add_norm_##X)                                                                                                                   \
    KERNEL gated_##X(const float *gate_up, const float *bias, X *out, int width, int rows, int gelu) {                                     \
        gated<X>(gate_up, bias, out, width, rows, gelu);                                                                                   \
    }                                                                                                                                      \
    EXPORT(gated_##X)

DEFINE(float)
DEFINE(bf16)
DEFINE(f16)
