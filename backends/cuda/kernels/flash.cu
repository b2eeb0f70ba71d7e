// Attention of prompts by FlashAttention-2 itself (Dao 2023), for pages of a multiple of 32 tokens: its device code as the crate candle-flash-attn
// has it, with CUTLASS, asked for one tile of 64 rows of one head. Not for the emulator, which is why nothing depends on it: `prefill.cu` computes
// the same from the same arguments, and the tests of the one are those of the other. Compiled once for each type of numbers, TANDEM_NUMBER, and each size of heads, TANDEM_HEAD: the compiler takes
// gigabytes.
#include "portable.cuh"

#include "flash.h"
#include "flash_fwd_kernel.h"

constexpr int TILE_ROWS = 64, TILE_WARPS = 4;

template <typename X> struct CutlassNumber;
template <> struct CutlassNumber<bf16> {
    typedef cutlass::bfloat16_t type;
};
template <> struct CutlassNumber<f16> {
    typedef cutlass::half_t type;
};

// Grid: heads, and tiles from the last one on, which sees the most tokens. KEYS tokens are looked at at a time, all of which are in one page.
template <typename X, int D, int KEYS, bool WINDOW, bool CAP>
__device__ __forceinline__ void flash_tile(const float *qkv, int row_width, const int *table, int page_len, int heads, int kv_heads,
                                           float scale, float cap, int window, const X *keys, const X *values, int first_row, int rows,
                                           int position, X *out) {
    typedef typename CutlassNumber<X>::type Element;
    // It takes queries as it multiplies them. They are put where the output of the tile goes: it reads all of them before it writes that, and
    // nobody else looks there.
    int head = blockIdx.x;
    X *tile = out + ((int64_t)first_row * heads + head) * D;
    for (int at = threadIdx.x; at < rows * (D / 2); at += blockDim.x) {
        int row = at / (D / 2), i = at % (D / 2) * 2;
        const float *pair = qkv + (int64_t)(first_row + row) * row_width + head * D + i;
        store_pair(tile + (int64_t)row * heads * D + i, pack<X>(pair[0], pair[1]));
    }
    __syncthreads();
    // A batch of one sequence, whose queries are the last of its tokens. How far its sums go is asked for and not used.
    __shared__ float sums[TILE_ROWS];
    int query_starts[2] = {0, rows}, key_lengths[1] = {position + rows};
    Flash_fwd_params params = {};
    params.q_ptr = params.o_ptr = tile;
    params.q_row_stride = params.o_row_stride = (int64_t)heads * D;
    params.k_ptr = const_cast<X *>(keys);
    params.v_ptr = const_cast<X *>(values);
    params.k_row_stride = params.v_row_stride = D;
    params.k_head_stride = params.v_head_stride = (int64_t)page_len * D;
    params.k_batch_stride = params.v_batch_stride = (int64_t)kv_heads * page_len * D;
    params.block_table = const_cast<int *>(table);
    params.page_block_size = page_len;
    params.b = params.num_splits = 1;
    params.h = heads;
    params.h_k = kv_heads;
    params.h_h_k_ratio = heads / kv_heads;
    params.d = params.d_rounded = D;
    params.cu_seqlens_q = query_starts;
    params.cu_seqlens_k = key_lengths;
    params.seqlen_k = position + rows;
    params.softmax_lse_ptr = sums;
    // With a cap the scores are multiplied with the scale before it, and with the cap behind it.
    params.softcap = CAP ? scale / cap : 0.0f;
    params.scale_softmax = CAP ? cap : scale;
    params.scale_softmax_log2 = params.scale_softmax * 1.44269504f;
    params.window_size_left = WINDOW ? window - 1 : -1;
    typedef Flash_fwd_kernel_traits<D, TILE_ROWS, KEYS, TILE_WARPS, false, false, Element> Traits;
    constexpr bool CAUSAL = !WINDOW, ALIBI = false, EVEN_ROWS = false, EVEN_NUMBERS = true, SPLIT = false, APPEND = false;
    flash::compute_attn_1rowblock_splitkv<Traits, CAUSAL, WINDOW, ALIBI, EVEN_ROWS, EVEN_NUMBERS, CAP, SPLIT, APPEND>(params, 0, head, 0, 0,
                                                                                                                      1);
}

#define DEFINE_KIND(X, D, KEYS, KIND, WINDOW, CAP)                                                                                         \
    KERNEL __launch_bounds__(TILE_WARPS *WARP)                                                                                             \
        flash_##X##_##D##_##KEYS##_##KIND(const float *qkv, int row_width, const int *tables, int table_stride, int page_len, int heads,   \
                                          int kv_heads, float scale, float cap, int window, const X *keys, const X *values,                \
                                          const int *tile_row, const int *tile_rows, const int *tile_sequence, const int *tile_position,   \
                                          X *out) {                                                                                        \
        begin_kernel();                                                                                                                    \
        int tile = gridDim.y - 1 - blockIdx.y;                                                                                                             \
        const int *table = tables + (int64_t)tile_sequence[tile] * table_stride;                                                           \
        flash_tile<X, D, KEYS, WINDOW, CAP>(qkv, row_width, table, page_len, heads, kv_heads, scale, cap, window, keys, values,            \
                                            tile_row[tile], tile_rows[tile], tile_position[tile], out);                                    \
    }
#define DEFINE_KEYS(X, D, KEYS)                                                                                                            \
    DEFINE_KIND(X, D, KEYS, all, false, false)                                                                                             \
    DEFINE_KIND(X, D, KEYS, window, true, false)                                                                                           \
    DEFINE_KIND(X, D, KEYS, cap, false, true)                                                                                              \
    DEFINE_KIND(X, D, KEYS, window_cap, true, true)
#define DEFINE(X, D) DEFINE_KEYS(X, D, 32)
#define DEFINE_64(X, D) DEFINE_KEYS(X, D, 64)

DEFINE(TANDEM_NUMBER, TANDEM_HEAD)
#if TANDEM_HEAD <= 128
DEFINE_64(TANDEM_NUMBER, TANDEM_HEAD)
#endif
