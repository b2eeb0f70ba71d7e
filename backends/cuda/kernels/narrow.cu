// Products of a few rows, the weight as it is in the file. Rows of y are `stride` apart.
#include "narrow.cuh"

#define DEFINE_TILES(W, NAME, X, TILES, ROW_TILES)                                                                                         \
    KERNEL __launch_bounds__(NARROW_WARPS *WARP, blocks_at_once<W>(ROW_TILES))                                                             \
        narrow_##NAME##_##X##_##ROW_TILES(const uint8_t *weight, const X *x, float *y, int rows, int inputs, int outputs, int stride,      \
                                          int beside) {                                                                                    \
        let_next_begin();                                                                                                                  \
        auto in = [=](int row) { return x + (int64_t)row * inputs; };                                                                      \
        auto out = [=](int row) { return y + (int64_t)row * stride; };                                                                     \
        narrow<W, X, TILES, ROW_TILES>(weight, in, out, rows, inputs, outputs, beside);                                                    \
    }                                                                                                                                      \
    EXPORT(narrow_##NAME##_##X##_##ROW_TILES)
#define DEFINE_BLOCKS(W)                                                                                                                   \
    DEFINE_TILES(W, W, bf16, 1, 1)                                                                                                         \
    DEFINE_TILES(W, W, bf16, 1, 2)                                                                                                         \
    DEFINE_TILES(W, W, bf16, 2, 4)
#define DEFINE_PLAIN(X)                                                                                                                    \
    DEFINE_TILES(plain<X>, X, X, 1, 1)                                                                                                     \
    DEFINE_TILES(plain<X>, X, X, 1, 2)

DEFINE_PLAIN(bf16)
DEFINE_PLAIN(f16)
DEFINE_BLOCKS(q8_0)
DEFINE_BLOCKS(q4_0)
DEFINE_BLOCKS(q5_0)
DEFINE_BLOCKS(q4_k)
DEFINE_BLOCKS(q5_k)
DEFINE_BLOCKS(q6_k)
