use std::ops::Range;

use rayon::prelude::*;

use crate::{
    PANEL,
    dense::{Brain, Dense, Half, Single, add_products},
    exponential::exp,
    isa::{Isa, Work, dispatch},
    line::Line,
    pages::{KvFormat, Pages},
    rows::Rows,
};

/// Queries (tokens times heads) that one task takes through the keys together, so that a page is read from memory once for all of them.
const QUERIES_PER_TASK: usize = 64;
/// Keys whose scores are softmaxed at a time.
const KEYS: usize = 128;

/// Attention with grouped queries over a paged cache.
///
/// The softmax is taken online: each query keeps the largest of its scores so far, and the sums that it has are scaled down when some keys
/// raise it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads that share one K and V head.
    pub group: usize,
    /// What a product of query and key is multiplied with.
    pub scale: f32,
    /// What scores are bent towards, `cap * tanh(score / cap)`, when there is one.
    pub soft_cap: Option<f32>,
    pub sight: Sight,
}

/// The keys that a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Its own and those before it: as many as the window has, itself included, or all.
    Back { window: Option<usize> },
    /// All up to the end of its span, those behind it too.
    Whole,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// Position of the first.
    pub start: usize,
    pub len: usize,
    /// The sequence's pages in order, as numbers into the cache.
    pub pages: &'a [u32],
}

/// Some tokens of one span and the query heads that share one K and V head.
#[derive(Clone, Copy)]
struct Task<'a> {
    span: Span<'a>,
    /// Position of the first token.
    start: usize,
    tokens: usize,
    /// Of the first token in the matrix of queries.
    row: usize,
    kv_head: usize,
}

impl Attention {
    /// Replaces `y` by the attention of each row of `queries`, which has `stride` values of which the first are the queries, head behind
    /// head. Rows are the tokens of all spans behind each other.
    ///
    /// # Panics
    /// When the sizes do not fit, or a span has no page for one of its tokens.
    pub fn forward(&self, queries: &[f32], stride: usize, spans: &[Span<'_>], cache: &Pages, y: &mut Vec<f32>) {
        let shape = cache.shape();
        let width = self.group * shape.kv_heads * shape.head_dim;
        let rows = spans.iter().map(|span| span.len).sum::<usize>();
        assert!(width <= stride && queries.len() == rows * stride, "a row of queries for each token");
        y.resize(rows * width, 0.0);
        if rows == 0 {
            return;
        }
        let tokens_per_task = (QUERIES_PER_TASK / self.group).max(1);
        let mut tasks = Vec::new();
        let mut row = 0;
        for &span in spans {
            for first in (0..span.len).step_by(tokens_per_task) {
                let tokens = tokens_per_task.min(span.len - first);
                let task = |kv_head| Task { span, start: span.start + first, tokens, row: row + first, kv_head };
                tasks.extend((0..shape.kv_heads).map(task));
            }
            row += span.len;
        }
        let y = Rows::new(y, width);
        let run = |scratch: &mut Scratch, task: &Task<'_>| {
            dispatch(Run { attention: self, task: *task, queries, stride, cache, y: &y, scratch });
        };
        match rayon::current_num_threads() {
            1 => {
                let mut scratch = Scratch::default();
                tasks.iter().for_each(|task| run(&mut scratch, task));
            }
            _ => tasks.par_iter().for_each_init(Scratch::default, run),
        }
    }

    /// Positions that the query at `position` of a span sees.
    fn visible(&self, span: &Span<'_>, position: usize) -> Range<usize> {
        match self.sight {
            Sight::Back { window } => window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1,
            Sight::Whole => 0..span.start + span.len,
        }
    }
}

/// Buffers of one worker, which live from task to task.
#[derive(Debug, Default)]
struct Scratch {
    /// `[tile][dimension][row]`
    queries: Vec<f32>,
    /// `[tile][row][dimension]`, dimensions in whole panels.
    sums: Vec<[f32; PANEL]>,
    /// By row, over all tiles.
    softmax: Vec<OnlineSoftmax>,
    /// Of one tile, `[row][key]`.
    scores: Vec<[f32; PANEL]>,
    /// The same as `[key][row]`.
    weights: Vec<f32>,
}

/// Of one query: the largest score so far, and the sum of all exponentials relative to it.
#[derive(Clone, Copy, Debug)]
struct OnlineSoftmax {
    max: f32,
    total: f32,
}

struct Run<'a> {
    attention: &'a Attention,
    task: Task<'a>,
    queries: &'a [f32],
    stride: usize,
    cache: &'a Pages,
    y: &'a Rows<'a>,
    scratch: &'a mut Scratch,
}

impl Work for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        match self.cache.format() {
            KvFormat::F32 => self.run_over::<I, Single>(isa),
            KvFormat::F16 => self.run_over::<I, Half>(isa),
            KvFormat::Bf16 => self.run_over::<I, Brain>(isa),
        }
    }
}

impl Run<'_> {
    #[inline(always)]
    fn run_over<I: Isa, D: Dense>(&mut self, isa: I) {
        let rows = self.task.tokens * self.attention.group;
        self.begin::<I>(rows);
        let Task { span, start, tokens, .. } = self.task;
        // Positions rise with the rows: the first sees the earliest key, the last the latest.
        let first = self.attention.visible(&span, start).start / KEYS * KEYS;
        let end = self.attention.visible(&span, start + tokens - 1).end;
        for keys in (first..end).step_by(KEYS) {
            let keys = keys..end.min(keys + KEYS);
            for tile in (0..rows).step_by(I::ROWS) {
                match I::ROWS.min(rows - tile) {
                    1 => self.tile::<I, D, 1>(isa, tile, &keys),
                    2 => self.tile::<I, D, 2>(isa, tile, &keys),
                    3 => self.tile::<I, D, 3>(isa, tile, &keys),
                    4 => self.tile::<I, D, 4>(isa, tile, &keys),
                    5 => self.tile::<I, D, 5>(isa, tile, &keys),
                    6 => self.tile::<I, D, 6>(isa, tile, &keys),
                    7 => self.tile::<I, D, 7>(isa, tile, &keys),
                    _ => self.tile::<I, D, 8>(isa, tile, &keys),
                }
            }
        }
        self.finish(rows);
    }

    /// Lays out the queries, scaled, and clears what is added up.
    #[inline(always)]
    fn begin<I: Isa>(&mut self, rows: usize) {
        let head_dim = self.cache.shape().head_dim;
        let &mut Scratch { ref mut queries, ref mut sums, ref mut softmax, .. } = self.scratch;
        queries.resize(rows * head_dim, 0.0);
        sums.clear();
        sums.resize(rows * head_dim.div_ceil(PANEL), [0.0; PANEL]);
        softmax.clear();
        softmax.resize(rows, OnlineSoftmax { max: f32::NEG_INFINITY, total: 0.0 });
        let group = self.attention.group;
        for (row, tile) in (0..rows).step_by(I::ROWS).zip(queries.chunks_mut(I::ROWS * head_dim)) {
            let tile_rows = tile.len() / head_dim;
            for at in 0..tile_rows {
                let (token, head) = ((row + at) / group, (row + at) % group);
                let head = self.task.kv_head * group + head;
                let query = &self.queries[(self.task.row + token) * self.stride + head * head_dim..][..head_dim];
                for (place, value) in tile[at..].iter_mut().step_by(tile_rows).zip(query) {
                    *place = value * self.attention.scale;
                }
            }
        }
    }

    /// Takes one tile of queries past some keys.
    #[inline(always)]
    fn tile<I: Isa, D: Dense, const ROWS: usize>(&mut self, isa: I, tile: usize, keys: &Range<usize>) {
        let (earliest, latest) = (self.visible(tile).start, self.visible(tile + ROWS - 1).end);
        let keys = keys.start.max(earliest / PANEL * PANEL)..keys.end.min(latest);
        if keys.is_empty() {
            return;
        }
        self.score::<I, D, ROWS>(isa, tile, &keys);
        self.soften::<I, ROWS>(isa, tile, &keys);
        self.add_values::<I, D, ROWS>(isa, tile, &keys);
    }

    /// Positions that a row sees.
    #[inline(always)]
    fn visible(&self, row: usize) -> Range<usize> {
        self.attention.visible(&self.task.span, self.task.start + row / self.attention.group)
    }

    /// Of some keys, how many before those that a row sees, and how many up to their end.
    #[inline(always)]
    fn seen(&self, row: usize, keys: &Range<usize>) -> (usize, usize) {
        let visible = self.visible(row);
        let within = |position: usize| position.clamp(keys.start, keys.end) - keys.start;
        (within(visible.start), within(visible.end))
    }

    /// Fills `scores`; what a query does not see is minus infinity there.
    #[inline(always)]
    fn score<I: Isa, D: Dense, const ROWS: usize>(&mut self, isa: I, tile: usize, keys: &Range<usize>) {
        let head_dim = self.cache.shape().head_dim;
        let panels = keys.len().div_ceil(PANEL);
        self.scratch.scores.resize(ROWS * panels, [0.0; PANEL]);
        let queries = &self.scratch.queries[tile * head_dim..][..ROWS * head_dim];
        let scores = &mut self.scratch.scores;
        let panel = |at: usize| key_panel(self.cache, &self.task, keys.start + at * PANEL);
        for first in (0..panels).step_by(2) {
            if first + 1 < panels {
                let mut sums = [[isa.splat(0.0); 2]; ROWS];
                add_products::<I, D, ROWS, 2>(isa, [panel(first), panel(first + 1)], [&[]; 2], queries, &mut sums);
                for (row, [one, two]) in sums.into_iter().enumerate() {
                    scores[row * panels + first] = isa.store(one);
                    scores[row * panels + first + 1] = isa.store(two);
                }
            } else {
                let mut sums = [[isa.splat(0.0)]; ROWS];
                add_products::<I, D, ROWS, 1>(isa, [panel(first)], [&[]], queries, &mut sums);
                for (row, [one]) in sums.into_iter().enumerate() {
                    scores[row * panels + first] = isa.store(one);
                }
            }
        }
        if let Some(cap) = self.attention.soft_cap {
            for scores in scores.iter_mut() {
                *scores = bend(isa, scores, cap);
            }
        }
        for row in 0..ROWS {
            let (hidden, seen) = self.seen(tile + row, keys);
            let scores = self.scratch.scores[row * panels..][..panels].as_flattened_mut();
            scores[..hidden].fill(f32::NEG_INFINITY);
            scores[seen..].fill(f32::NEG_INFINITY);
        }
    }

    /// Turns `scores` into `weights`: exponentials relative to the largest score so far, scaling down the sums when that rises.
    #[inline(always)]
    fn soften<I: Isa, const ROWS: usize>(&mut self, isa: I, tile: usize, keys: &Range<usize>) {
        let panels = keys.len().div_ceil(PANEL);
        let per_row = self.cache.shape().head_dim.div_ceil(PANEL);
        for row in 0..ROWS {
            let (hidden, seen) = self.seen(tile + row, keys);
            let Scratch { scores, weights, sums, softmax, .. } = &mut *self.scratch;
            weights.resize(panels * PANEL * ROWS, 0.0);
            let scores = &mut scores[row * panels..][..panels];
            let softmax = &mut softmax[tile + row];
            let max = scores.iter().fold(isa.splat(softmax.max), |max, scores| isa.max(max, isa.load(scores)));
            let max = isa.largest(max);
            // A row that sees none of these keys stays as it is.
            if max == f32::NEG_INFINITY {
                weights[row..].iter_mut().step_by(ROWS).for_each(|weight| *weight = 0.0);
                continue;
            }
            if max > softmax.max {
                let [scale, ..] = isa.store(exp(isa, isa.splat(softmax.max - max)));
                let scale = if softmax.max == f32::NEG_INFINITY { 0.0 } else { scale };
                for sum in &mut sums[(tile + row) * per_row..][..per_row] {
                    *sum = isa.store(isa.mul(isa.load(sum), isa.splat(scale)));
                }
                softmax.total *= scale;
                softmax.max = max;
            }
            let mut total = isa.splat(0.0);
            for (panel, scores) in scores.iter().enumerate() {
                let power = exp(isa, isa.add(isa.load(scores), isa.splat(-max)));
                total = isa.add(total, power);
                let powers = isa.store(power);
                for (weight, power) in weights[panel * PANEL * ROWS + row..].iter_mut().step_by(ROWS).zip(powers) {
                    *weight = power;
                }
            }
            // What is not seen got the smallest power instead of none: too little to change a total, but not nothing.
            let weights = weights.as_chunks_mut::<ROWS>().0;
            weights[..hidden].iter_mut().for_each(|weights| weights[row] = 0.0);
            weights[seen..].iter_mut().for_each(|weights| weights[row] = 0.0);
            softmax.total += isa.sum(total);
        }
    }

    /// Adds the values, times their weights, to the sums.
    #[inline(always)]
    fn add_values<I: Isa, D: Dense, const ROWS: usize>(&mut self, isa: I, tile: usize, keys: &Range<usize>) {
        let panels = self.cache.shape().head_dim.div_ceil(PANEL);
        for first in (0..panels).step_by(2) {
            if first + 1 < panels {
                self.add_panels::<I, D, ROWS, 2>(isa, tile, keys, first);
            } else {
                self.add_panels::<I, D, ROWS, 1>(isa, tile, keys, first);
            }
        }
    }

    #[inline(always)]
    fn add_panels<I: Isa, D: Dense, const ROWS: usize, const PANELS: usize>(
        &mut self,
        isa: I,
        tile: usize,
        keys: &Range<usize>,
        first: usize,
    ) {
        let page_len = self.cache.shape().page_len;
        let per_row = self.cache.shape().head_dim.div_ceil(PANEL);
        let place = |row: usize, panel: usize| (tile + row) * per_row + first + panel;
        let mut sums = [[isa.splat(0.0); PANELS]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            for (panel, sum) in sums.iter_mut().enumerate() {
                *sum = isa.load(&self.scratch.sums[place(row, panel)]);
            }
        }
        let mut key = keys.start;
        while key < keys.end {
            let (page, token) = (key / page_len, key % page_len);
            let until = keys.end.min((page + 1) * page_len);
            let page = self.task.span.pages[page] as usize;
            let values: [&[Line]; PANELS] = std::array::from_fn(|panel| {
                &self.cache.values(page, self.task.kv_head, first + panel)[token / D::PER_LINE..]
            });
            let weights = &self.scratch.weights[(key - keys.start) * ROWS..(until - keys.start) * ROWS];
            add_products::<I, D, ROWS, PANELS>(isa, values, [&[]; PANELS], weights, &mut sums);
            key = until;
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (panel, sum) in sums.into_iter().enumerate() {
                self.scratch.sums[place(row, panel)] = isa.store(sum);
            }
        }
    }

    /// Divides by the totals and writes the rows.
    #[inline(always)]
    fn finish(&mut self, rows: usize) {
        let head_dim = self.cache.shape().head_dim;
        let per_row = head_dim.div_ceil(PANEL);
        let group = self.attention.group;
        for row in 0..rows {
            let sums = self.scratch.sums[row * per_row..][..per_row].as_flattened_mut();
            let total = self.scratch.softmax[row].total;
            sums.iter_mut().for_each(|sum| *sum /= total);
            let head = self.task.kv_head * group + row % group;
            // SAFETY: each token's head is computed by one task.
            unsafe { self.y.put(self.task.row + row / group, head * head_dim, &sums[..head_dim]) };
        }
    }
}

/// The keys of the 16 tokens from `key` on, which begin a panel of a page.
#[inline(always)]
fn key_panel<'a>(cache: &'a Pages, task: &Task<'_>, key: usize) -> &'a [Line] {
    let page_len = cache.shape().page_len;
    let page = task.span.pages[key / page_len] as usize;
    cache.keys(page, task.kv_head, key % page_len / PANEL)
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
fn bend<I: Isa>(isa: I, x: &[f32; PANEL], cap: f32) -> [f32; PANEL] {
    // tanh(x) = 1 - 2 / (exp(2 x) + 1)
    let powers = isa.store(exp(isa, isa.mul(isa.load(x), isa.splat(2.0 / cap))));
    powers.map(|power| cap * (1.0 - 2.0 / (power + 1.0)))
}
