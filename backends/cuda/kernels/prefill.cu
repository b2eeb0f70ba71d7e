// Attention of the many rows of a prompt, on tensor cores: "FlashAttention-2" (Dao 2023) over a paged cache. A block computes 64 rows of
// one head, or of two that share their keys and values, a warp 16 of them; scores and sums stay in registers, where what the first product
// leaves is what the second one takes. Keys come to shared memory during the second product of the tile before, values during the first of
// their own.
#include "portable.cuh"

#include <type_traits>

constexpr int TILE_ROWS = 64, WARP_ROWS = 16, THREADS = TILE_ROWS / WARP_ROWS * WARP;
constexpr float LOG2_E = 1.4426950408889634f;
// How much larger a weight may become than 1, as a power of two, before sums are made smaller.
constexpr float SLACK = 8.0f;

// What all blocks of a launch are told.
template <typename X, typename KV> struct Scene {
    const float *qkv;
    int row_width;
    const int *tables;
    int table_stride, page_len, heads, kv_heads;
    float scale, cap;
    int window;
    const KV *keys, *values;
    const int *tile_row, *tile_rows, *tile_sequence, *tile_position;
    X *out;
};

// Rows of D numbers of 16 bits in shared memory, in pieces of 16 bytes. They have no gaps; their pieces change places such that those at
// the same place of eight rows below each other, which are what tensor cores are given at once, lie in different banks.
template <int D> struct Layout {
    static constexpr int ROW = 2 * D, SPAN = D % 64 == 0 ? 8 : 4;
    static_assert(D % 32 == 0, "pieces change places within fours or eights");
    // The byte that a piece begins at.
    static __device__ __forceinline__ int at(int row, int piece) { return row * ROW + (piece ^ row / (8 / SPAN) % SPAN) * 16; }
    // The one that a piece begins at that is `pieces`, known to the compiler, behind one whose number has no bits in common with that.
    static __device__ __forceinline__ int behind(int at, int pieces) { return (at ^ pieces % SPAN * 16) + pieces / SPAN * SPAN * 16; }
};

// Tokens of keys or values on their way from the cache to shared memory: copied past the registers where the numbers are the same, and
// otherwise loaded into them, to be written once there is room.
template <typename X, typename KV, int D, int KEYS, int HEADS> struct Carrier {
    static constexpr bool COPIES = std::is_same<X, KV>::value;
    // Whether there are registers for numbers that are under way during a product. Otherwise they are loaded when they are to be there, and
    // other blocks compute meanwhile.
    static constexpr bool HOLDS = !COPIES && HEADS * D <= 128;
    // Whether the next tokens may be looked up while these are under way.
    static constexpr bool AHEAD = COPIES || HOLDS;
    static constexpr int LEN = Vector<KV>::LEN, VECTORS = D / LEN, PIECES = LEN / 8;
    // Neighbours take what lies side by side, as many of them as divide a row. So a thread has few tokens to look up.
    static constexpr int LANES = VECTORS % 8 == 0 ? 8 : VECTORS % 4 == 0 ? 4 : 2;
    static constexpr int STRIDE = THREADS / LANES, TOKENS = KEYS / STRIDE, EACH = VECTORS / LANES;
    static_assert(KEYS % STRIDE == 0 && STRIDE % 8 == 0 && LANES * PIECES % Layout<D>::SPAN == 0, "pieces lie as those of the first");

    const int *table;
    int page_len, kv_heads, kv_head, last;
    unsigned inverse;
    // Where the first of the thread's pieces lies.
    int first_key, first_piece;
    // The page that each of the thread's tokens is on, and the token's number there.
    int page[TOKENS], place[TOKENS];
    const Vector<KV> *cache;
    int base;
    Vector<KV> taken[HOLDS ? TOKENS : 1][HOLDS ? EACH : 1];

    __device__ __forceinline__ Carrier(const int *table, int page_len, int kv_heads, int kv_head, int last)
        : table(table), page_len(page_len), kv_heads(kv_heads), kv_head(kv_head), last(last), inverse(~0u / page_len),
          first_key(threadIdx.x / LANES), first_piece(Layout<D>::at(first_key, threadIdx.x % LANES * PIECES)) {}

    // Finds the tokens from `base` on, and the last one for those behind it: the table may end there.
    __device__ __forceinline__ void look_up(int base) {
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            int token = min(base + first_key + i * STRIDE, last);
            // The quotient, or one less.
            int at = (int)__umulhi((unsigned)token, inverse);
            place[i] = token - at * page_len;
            if (place[i] >= page_len) {
                at++;
                place[i] -= page_len;
            }
            page[i] = table[at];
        }
    }

    // The first vector that the thread takes of a token. The host sees to it that 32 bits are enough for the number of one. It is found
    // when it is needed, so that nothing waits for the number of a page before.
    __device__ __forceinline__ const Vector<KV> *first_of(int i) const {
        return cache + ((unsigned)((page[i] * kv_heads + kv_head) * page_len + place[i]) * VECTORS + threadIdx.x % LANES);
    }

    // A vector of a token; zeros for one that is not there.
    __device__ __forceinline__ Vector<KV> load(int i, int j) const {
        return base + first_key + i * STRIDE <= last ? first_of(i)[j * LANES] : Vector<KV>{};
    }

    // Begins to bring the tokens from `from` on, which were looked up, to `to`.
    __device__ __forceinline__ void fetch(const KV *keys_or_values, unsigned char *to, int from) {
        cache = reinterpret_cast<const Vector<KV> *>(keys_or_values), base = from;
        if constexpr (COPIES) {
#pragma unroll
            for (int i = 0; i < TOKENS; i++) {
                const Vector<KV> *source = first_of(i);
#pragma unroll
                for (int j = 0; j < EACH; j++) {
                    int piece = Layout<D>::behind(first_piece, j * LANES) + i * STRIDE * Layout<D>::ROW;
                    copy_async(to + piece, source + j * LANES, base + first_key + i * STRIDE <= last);
                }
            }
            commit_copies();
        }
        if constexpr (HOLDS) {
#pragma unroll
            for (int i = 0; i < TOKENS; i++) {
#pragma unroll
                for (int j = 0; j < EACH; j++) taken[i][j] = load(i, j);
            }
        }
    }

    // Ends it. What the thread has fetched is there, and what all have behind the next barrier.
    __device__ __forceinline__ void land(unsigned char *to) {
        if constexpr (COPIES) {
            wait_copies<0>();
        } else {
#pragma unroll
            for (int i = 0; i < TOKENS; i++) {
#pragma unroll
                for (int j = 0; j < EACH; j++) {
                    Vector<KV> now = HOLDS ? taken[i][j] : load(i, j);
#pragma unroll
                    for (int part = 0; part < PIECES; part++) {
                        Vector<X> rounded;
#pragma unroll
                        for (int n = 0; n < 8; n++) rounded.at[n] = from_float<X>(to_float(now.at[part * 8 + n]));
                        int piece = Layout<D>::behind(first_piece, part + j * LANES * PIECES) + i * STRIDE * Layout<D>::ROW;
                        *reinterpret_cast<Vector<X> *>(to + piece) = rounded;
                    }
                }
            }
        }
    }
};

// X is what the tensor cores multiply; queries, keys and values are rounded to it.
template <typename X, typename KV, int D, int KEYS, int HEADS>
__device__ __forceinline__ void prefill(const Scene<X, KV> &scene, int tile, int kv_head, int first_head) {
    constexpr int STEPS = D / 16, COLUMNS = D / 8, KEY_COLUMNS = KEYS / 8;
    // Whether a warp has registers for its queries.
    constexpr bool KEPT = HEADS == 1 && D <= 128;
    SHARED_BYTES(shared);
    unsigned char *q = shared, *k = q + HEADS * TILE_ROWS * Layout<D>::ROW, *v = k + KEYS * Layout<D>::ROW;
    int first_row = scene.tile_row[tile], rows = scene.tile_rows[tile], first_position = scene.tile_position[tile];
    int last = first_position + rows - 1, window = scene.window;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    // What each of the lane's two rows sees. A row that is not there sees what the last one does.
    auto position_of = [=](int row) { return first_position + min(warp * WARP_ROWS + row, rows - 1); };
    auto sees_from = [=](int position) { return window ? max(position - window + 1, 0) : 0; };
    int position[2] = {position_of(g), position_of(g + 8)};
    // What any row of the warp sees, and what all do.
    int lowest = position_of(0), highest = position_of(WARP_ROWS - 1), any_from = sees_from(lowest), all_from = sees_from(highest);
    int begin = sees_from(first_position) / KEYS * KEYS;

    const int *table = scene.tables + (int64_t)scene.tile_sequence[tile] * scene.table_stride;
    typedef Carrier<X, KV, D, KEYS, HEADS> Carries;
    Carries carrier(table, scene.page_len, scene.kv_heads, kv_head, last);
    carrier.look_up(begin);
    carrier.fetch(scene.keys, k, begin);
    // Scores are powers of two.
    float scale = scene.scale * LOG2_E;
    for (int at = threadIdx.x; at < HEADS * TILE_ROWS * COLUMNS; at += THREADS) {
        int row = at / COLUMNS, piece = at % COLUMNS, head = first_head + row / TILE_ROWS;
        float numbers[8] = {0.0f};
        const float *from = scene.qkv + (int64_t)(first_row + row % TILE_ROWS) * scene.row_width + head * D + piece * 8;
        if (row % TILE_ROWS < rows) load_floats(from, numbers, 2);
        Vector<X> rounded;
#pragma unroll
        for (int i = 0; i < 8; i++) rounded.at[i] = from_float<X>(numbers[i] * scale);
        *reinterpret_cast<Vector<X> *>(q + Layout<D>::at(row, piece)) = rounded;
    }
    // Where the lane's rows of matrices begin. Of queries and values the second matrix is below the first, of keys beside it.
    int q_at = Layout<D>::at(warp * WARP_ROWS + lane % 16, lane / 16), v_at = Layout<D>::at(lane % 16, lane / 16);
    int k_at = Layout<D>::at(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    auto load_queries = [=](uint32_t(&a)[4], int head, int step) {
        load_matrices<false>(a, q + Layout<D>::behind(q_at, 2 * step) + head * TILE_ROWS * Layout<D>::ROW);
    };
    uint32_t kept[KEPT ? STEPS : 1][4];
    if constexpr (KEPT) {
        __syncthreads();
#pragma unroll
        for (int step = 0; step < STEPS; step++) load_queries(kept[step], 0, step);
    }
    float sum[HEADS][COLUMNS][4], maximum[HEADS][2], total[HEADS][2];
#pragma unroll
    for (int head = 0; head < HEADS; head++) {
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[head][column][i] = 0.0f;
        }
        for (int r = 0; r < 2; r++) maximum[head][r] = NEGATIVE_INFINITY, total[head][r] = 0.0f;
    }

    for (int base = begin; base <= last; base += KEYS) {
        bool any = base <= highest && base + KEYS > any_from, all = base + KEYS - 1 <= lowest && base >= all_from;
        carrier.land(k);
        // Behind it keys are there, and the values of the tile before have been used.
        __syncthreads();
        carrier.fetch(scene.values, v, base);
        if constexpr (Carries::AHEAD) carrier.look_up(base + KEYS);
        float score[HEADS][KEY_COLUMNS][4];
        if (any) {
#pragma unroll
            for (int head = 0; head < HEADS; head++) {
#pragma unroll
                for (int column = 0; column < KEY_COLUMNS; column++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) score[head][column][i] = 0.0f;
                }
            }
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                uint32_t a[HEADS][4];
#pragma unroll
                for (int head = 0; head < HEADS; head++) {
                    if constexpr (KEPT) {
                        for (int i = 0; i < 4; i++) a[head][i] = kept[step][i];
                    } else {
                        load_queries(a[head], head, step);
                    }
                }
#pragma unroll
                for (int column = 0; column < KEY_COLUMNS; column += 2) {
                    uint32_t b[4];
                    load_matrices<false>(b, k + Layout<D>::behind(k_at, 2 * step) + column * 8 * Layout<D>::ROW);
#pragma unroll
                    for (int head = 0; head < HEADS; head++) {
                        mma<X>(score[head][column], a[head], b[0], b[1]);
                        mma<X>(score[head][column + 1], a[head], b[2], b[3]);
                    }
                }
            }
        }
        carrier.land(v);
        if constexpr (!Carries::AHEAD) carrier.look_up(base + KEYS);
        // Behind it values are there, and the keys have been used.
        __syncthreads();
        if (base + KEYS <= last) carrier.fetch(scene.keys, k, base + KEYS);
        if (!any) continue;

        if (scene.cap > 0.0f) {
            // tanh(x) = 1 - 2 / (1 + exp(2x)), of scores that are powers of two before and after.
            float cap = scene.cap * LOG2_E, doubled = 2.0f / scene.cap;
#pragma unroll
            for (int head = 0; head < HEADS; head++) {
#pragma unroll
                for (int column = 0; column < KEY_COLUMNS; column++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float &s = score[head][column][i];
                        s = cap - __fdividef(2.0f * cap, 1.0f + exp2_fast(s * doubled));
                    }
                }
            }
        }
        if (!all) {
#pragma unroll
            for (int column = 0; column < KEY_COLUMNS; column++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int token = base + column * 8 + 2 * t + i % 2, at = position[i / 2];
                    if (token <= at && token >= sees_from(at)) continue;
#pragma unroll
                    for (int head = 0; head < HEADS; head++) score[head][column][i] = NEGATIVE_INFINITY;
                }
            }
        }
        // Sums are relative to a score that was the highest, and follow it only when weights would become too large for their numbers.
        float factor[HEADS][2];
        bool moves = false;
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float most = NEGATIVE_INFINITY;
#pragma unroll
                for (int column = 0; column < KEY_COLUMNS; column++) {
                    most = fmaxf(most, fmaxf(score[head][column][2 * r], score[head][column][2 * r + 1]));
                }
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
                factor[head][r] = 1.0f;
                if (most > maximum[head][r] + SLACK) {
                    factor[head][r] = exp2_fast(maximum[head][r] - most);
                    maximum[head][r] = most;
                    moves = true;
                }
            }
        }
        if (__any_sync(ALL_LANES, moves)) {
#pragma unroll
            for (int head = 0; head < HEADS; head++) {
                for (int r = 0; r < 2; r++) total[head][r] *= factor[head][r];
#pragma unroll
                for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) sum[head][column][i] *= factor[head][i / 2];
                }
            }
        }
#pragma unroll
        for (int head = 0; head < HEADS; head++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // A row may have seen nothing yet: with a window, its first keys may be beyond it.
                float from = maximum[head][r] == NEGATIVE_INFINITY ? 0.0f : maximum[head][r];
#pragma unroll
                for (int column = 0; column < KEY_COLUMNS; column++) {
#pragma unroll
                    for (int i = 2 * r; i < 2 * r + 2; i++) {
                        score[head][column][i] = exp2_fast(score[head][column][i] - from);
                        total[head][r] += score[head][column][i];
                    }
                }
            }
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            uint32_t a[HEADS][4];
#pragma unroll
            for (int head = 0; head < HEADS; head++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float *pair = &score[head][2 * step + i / 2][i % 2 * 2];
                    a[head][i] = pack_small<X>(pair[0], pair[1]);
                }
            }
#pragma unroll
            for (int column = 0; column < COLUMNS; column += 2) {
                uint32_t b[4];
                load_matrices<true>(b, v + Layout<D>::behind(v_at, column) + step * 16 * Layout<D>::ROW);
#pragma unroll
                for (int head = 0; head < HEADS; head++) {
                    mma<X>(sum[head][column], a[head], b[0], b[1]);
                    mma<X>(sum[head][column + 1], a[head], b[2], b[3]);
                }
            }
        }
    }
#pragma unroll
    for (int head = 0; head < HEADS; head++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float weights = total[head][r];
            weights += __shfl_xor_sync(ALL_LANES, weights, 1);
            weights += __shfl_xor_sync(ALL_LANES, weights, 2);
            int row = warp * WARP_ROWS + g + r * 8;
            if (row >= rows) continue;
            X *to = scene.out + ((int64_t)(first_row + row) * scene.heads + first_head + head) * D + 2 * t;
            float share = __fdividef(1.0f, weights);
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                store_pair(to + column * 8, pack<X>(sum[head][column][2 * r] * share, sum[head][column][2 * r + 1] * share));
            }
        }
    }
}

// Grid: heads, HEADS at a time of those that share keys and values, and tiles. Blocks that run side by side read the same; the tiles of a
// sequence that see the most tokens, its last ones, come first.
template <typename X, typename KV, int D, int KEYS, int HEADS> __device__ __forceinline__ void prefill_block(const Scene<X, KV> &scene) {
    int group = scene.heads / scene.kv_heads, blocks = (group + HEADS - 1) / HEADS;
    int kv_head = blockIdx.x / blocks, in_group = blockIdx.x % blocks * HEADS, tile = gridDim.y - 1 - blockIdx.y;
    if constexpr (HEADS > 1) {
        if (in_group + HEADS > group) return prefill<X, KV, D, KEYS, 1>(scene, tile, kv_head, kv_head * group + in_group);
    }
    prefill<X, KV, D, KEYS, HEADS>(scene, tile, kv_head, kv_head * group + in_group);
}

// How many blocks a processor is to have registers for.
template <typename X, typename KV, int D, int HEADS> constexpr int blocks_at_once() {
    return std::is_same<X, KV>::value && HEADS == 1 && D <= 128 ? 3 : 2;
}

#define DEFINE_SIZE(X, KV, D, KEYS, HEADS)                                                                                                 \
    KERNEL __launch_bounds__(THREADS, blocks_at_once<X, KV, D, HEADS>())                                                                   \
        prefill_##X##_##KV##_##D##_##HEADS(const float *qkv, int row_width, const int *tables, int table_stride, int page_len, int heads,  \
                                           int kv_heads, float scale, float cap, int window, const KV *keys, const KV *values,             \
                                           const int *tile_row, const int *tile_rows, const int *tile_sequence,                            \
                                           const int *tile_position, X *out) {                                                             \
        begin_kernel();                                                                                                                    \
        prefill_block<X, KV, D, KEYS, HEADS>(Scene<X, KV>{qkv, row_width, tables, table_stride, page_len, heads, kv_heads, scale, cap,     \
                                                          window, keys, values, tile_row, tile_rows, tile_sequence, tile_position, out});  \
    }                                                                                                                                      \
    EXPORT(prefill_##X##_##KV##_##D##_##HEADS)
// Tiles of keys are such that a processor with 100 KiB of shared memory has room for two blocks, or one of the largest heads.
#define DEFINE(X, KV)                                                                                                                      \
    DEFINE_SIZE(X, KV, 64, 64, 1)                                                                                                          \
    DEFINE_SIZE(X, KV, 64, 64, 2)                                                                                                          \
    DEFINE_SIZE(X, KV, 96, 64, 1)                                                                                                          \
    DEFINE_SIZE(X, KV, 96, 64, 2)                                                                                                          \
    DEFINE_SIZE(X, KV, 128, 32, 1)                                                                                                         \
    DEFINE_SIZE(X, KV, 128, 32, 2)                                                                                                         \
    DEFINE_SIZE(X, KV, 256, 32, 1)

DEFINE(bf16, bf16)
DEFINE(bf16, f16)
DEFINE(f16, f16)
DEFINE(bf16, fp8)
DEFINE(f16, fp8)
