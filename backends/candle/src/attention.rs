use rayon::prelude::*;

use crate::{
    kernels::{add_weighted, dots, exp},
    layers::soft_cap,
    paged::{LayerKv, Span},
};

/// Queries (tokens times heads) that one task takes through the keys together, so that a page is read from memory once for all of them.
const QUERIES_PER_TASK: usize = 64;
/// Keys that are scored, and values that are added up, at a time.
const KEYS: usize = 4;

/// Causal attention of one layer, over K and V where they lie in their pages.
///
/// The softmax is taken online, page by page: each query keeps the maximum of its scores so far, and the sums that it has are scaled
/// down when a page raises it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    /// Query heads that share one K and V head.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    /// What the products of queries and keys are multiplied with.
    pub(crate) scale: f32,
    /// Softly keeps the scores between the number and its negative.
    pub(crate) cap: Option<f32>,
    /// Tokens that a token attends to, itself among them; `None` is all before it.
    pub(crate) window: Option<usize>,
}

/// Some consecutive tokens of one span, and the query heads that share one K and V head.
struct Task<'a> {
    /// Position of the first token.
    start: usize,
    kv_head: usize,
    span: Span<'a>,
    /// The queries of each token, head behind head, and where their results go.
    queries: Vec<&'a [f32]>,
    results: Vec<&'a mut [f32]>,
}

/// Buffers of one worker, which live from task to task.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    /// Of each query, over the pages seen so far.
    softmax: Vec<OnlineSoftmax>,
}

/// Of one query: the largest score so far, and the sum of all exponentials relative to it.
#[derive(Clone, Copy)]
struct OnlineSoftmax {
    max: f32,
    total: f32,
}

impl Attention {
    /// Replaces `y` by the attention of each row. The rows of `qkv` begin with the queries.
    pub(crate) fn forward(&self, qkv: &[f32], spans: &[Span<'_>], cache: &LayerKv, y: &mut Vec<f32>) {
        let width = self.group * self.head_dim * cache.shape().kv_heads;
        let rows = spans.iter().map(|span| span.len).sum::<usize>();
        y.resize(rows * width, 0.0);
        y.fill(0.0);
        let mut rows = qkv.chunks_exact(qkv.len() / rows).map(|row| &row[..width]).zip(y.chunks_exact_mut(width));
        let mut tasks = Vec::new();
        let tokens_per_task = (QUERIES_PER_TASK / self.group).max(1);
        for &span in spans {
            for start in (span.start..span.start + span.len).step_by(tokens_per_task) {
                let len = tokens_per_task.min(span.start + span.len - start);
                let first = tasks.len();
                tasks.extend((0..cache.shape().kv_heads).map(|kv_head| Task::new(start, kv_head, span, len)));
                for (queries, results) in rows.by_ref().take(len) {
                    let heads = queries.chunks_exact(width / cache.shape().kv_heads);
                    let results = results.chunks_exact_mut(width / cache.shape().kv_heads);
                    for (task, (queries, results)) in tasks[first..].iter_mut().zip(heads.zip(results)) {
                        task.queries.push(queries);
                        task.results.push(results);
                    }
                }
            }
        }
        tasks.into_par_iter().for_each_init(Scratch::default, |scratch, task| self.run(task, cache, scratch));
    }

    fn run(&self, mut task: Task<'_>, cache: &LayerKv, scratch: &mut Scratch) {
        let block_size = cache.shape().block_size;
        let tokens = task.queries.len();
        scratch.scores.resize(block_size, 0.0);
        scratch.softmax.clear();
        scratch.softmax.resize(tokens * self.group, OnlineSoftmax { max: f32::NEG_INFINITY, total: 0.0 });
        let end = (task.start + tokens).div_ceil(block_size);
        let first = self.first_seen(task.start) / block_size;
        for (page, &block) in task.span.block_table[..end].iter().enumerate().skip(first) {
            let first_key = page * block_size;
            let (keys, values) = cache.page(block, task.kv_head);
            // A token sees the keys from the first in its window up to itself: of a page between them none, part of it or all.
            for token in first_key.saturating_sub(task.start)..tokens {
                let position = task.start + token;
                let visible =
                    self.first_seen(position).saturating_sub(first_key)..block_size.min(position + 1 - first_key);
                if visible.is_empty() {
                    // So it is for the tokens after this one, whose windows begin later still.
                    break;
                }
                let skipped = visible.start * cache.stride();
                let (keys, values) = (&keys[skipped..], &values[skipped..]);
                let heads = task.queries[token].chunks_exact(self.head_dim);
                let results = task.results[token].chunks_exact_mut(self.head_dim);
                let softmax = scratch.softmax[token * self.group..].iter_mut();
                for ((query, result), softmax) in heads.zip(results).zip(softmax) {
                    let scores = &mut scratch.scores[..visible.len()];
                    score(query, keys, cache.stride(), scores);
                    self.finish(scores);
                    softmax.update(scores, result);
                    add_values(scores, values, cache.stride(), result);
                }
            }
        }
        let results = task.results.iter_mut().flat_map(|results| results.chunks_exact_mut(self.head_dim));
        for (result, softmax) in results.zip(&scratch.softmax) {
            result.iter_mut().for_each(|value| *value /= softmax.total);
        }
    }

    /// The first key that the token at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Makes scores of the products of a query and some keys.
    fn finish(&self, products: &mut [f32]) {
        products.iter_mut().for_each(|product| *product *= self.scale);
        if let Some(cap) = self.cap {
            soft_cap(products, cap);
        }
    }
}

impl<'a> Task<'a> {
    fn new(start: usize, kv_head: usize, span: Span<'a>, tokens: usize) -> Self {
        Self { start, kv_head, span, queries: Vec::with_capacity(tokens), results: Vec::with_capacity(tokens) }
    }
}

impl OnlineSoftmax {
    /// Turns a page's scores into their exponentials relative to the largest so far, scaling down what `result` has when that rises.
    fn update(&mut self, scores: &mut [f32], result: &mut [f32]) {
        let max = scores.iter().copied().fold(self.max, f32::max);
        if max > self.max {
            let scale = exp(self.max - max);
            result.iter_mut().for_each(|value| *value *= scale);
            self.total *= scale;
            self.max = max;
        }
        for score in &mut *scores {
            *score = exp(*score - self.max);
        }
        self.total += scores.iter().sum::<f32>();
    }
}

/// Inner products of the query with each key.
fn score(query: &[f32], keys: &[f32], stride: usize, scores: &mut [f32]) {
    let key = |at: usize| &keys[at * stride..][..query.len()];
    let whole = scores.len() - scores.len() % KEYS;
    let (tiles, rest) = scores.as_chunks_mut::<KEYS>();
    for (tile, scores) in tiles.iter_mut().enumerate() {
        let products = dots(std::array::from_fn::<_, KEYS, _>(|at| key(tile * KEYS + at)), [query]);
        *scores = products.map(|[product]| product);
    }
    for (at, score) in rest.iter_mut().enumerate() {
        let [[product]] = dots([key(whole + at)], [query]);
        *score = product;
    }
}

/// Adds each value, times its weight, to `result`.
fn add_values(weights: &[f32], values: &[f32], stride: usize, result: &mut [f32]) {
    let len = result.len();
    let value = |at: usize| &values[at * stride..][..len];
    let (tiles, rest) = weights.as_chunks::<KEYS>();
    for (tile, &weights) in tiles.iter().enumerate() {
        add_weighted(result, weights, std::array::from_fn(|at| value(tile * KEYS + at)));
    }
    for (at, &weight) in rest.iter().enumerate() {
        add_weighted(result, [weight], [value(tiles.len() * KEYS + at)]);
    }
}
