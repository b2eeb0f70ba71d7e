//! What is computed row by row, against F64.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{assert_close, device, get, integers, put, random, room, rounded, tolerance};
use tandem_cuda::{
    Activation, HeadNorms, KvPages, LogitMap, MOST_WIDTH, Norm, Number, Rows, Turns, Weight, WeightFormat,
};

const NUMBERS: [Number; 3] = [Number::F32, Number::Bf16, Number::F16];
const EPS: f64 = 1e-5;

fn normalized(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + EPS).sqrt() * f64::from(*w)).collect()
}

#[test]
fn what_a_block_made_is_added_and_normalized() {
    // Fours and none, more threads than one each, and as many as there may be.
    for (rows, width) in [(5, 300), (3, 301), (4, 1), (2, 2048), (1, 8198), (1, MOST_WIDTH - 1), (1, MOST_WIDTH)] {
        check_rows(rows, width);
    }
}

fn check_rows(rows: usize, width: usize) {
    let device = device();
    let [hidden, delta] = [1, 2].map(|seed| random(seed, rows * width));
    let [bias, post, pre] = [3, 4, 5].map(|seed| random(seed, width));
    let [bias_there, post_there, pre_there] = [&bias, &post, &pre].map(|values| put(&device, Number::F32, values));
    for number in NUMBERS {
        for case in 0..16 {
            let [with_delta, with_bias, with_post, with_pre] = [1, 2, 4, 8].map(|bit| case & bit != 0);
            let what = format!("{number:?} {case} {width}");
            let state = put(&device, Number::F32, &hidden);
            let change = put(&device, Number::F32, &delta);
            let out = room(&device, number, rows * width);
            let mut work = Rows::new(state.all(), rows, width, EPS as f32);
            if with_delta {
                work = work.add(change.all(), with_bias.then_some(&bias_there), with_post.then_some(&post_there), 0.5);
            }
            work.enter(&device, with_pre.then_some(&pre_there), out.all(), number).unwrap();
            let (mut sums, mut entered) = (Vec::new(), Vec::new());
            for (hidden, delta) in hidden.chunks(width).zip(delta.chunks(width)) {
                let mut change: Vec<f64> = delta.iter().map(|x| f64::from(*x)).collect();
                if with_bias {
                    change.iter_mut().zip(&bias).for_each(|(x, bias)| *x += f64::from(*bias));
                }
                if with_post {
                    change = normalized(&change, &post);
                }
                let factor = if with_delta { 0.5 } else { 0.0 };
                let sum: Vec<f64> = hidden.iter().zip(change).map(|(x, d)| f64::from(*x) + factor * d).collect();
                entered.extend(if with_pre { normalized(&sum, &pre) } else { sum.clone() });
                sums.extend(sum);
            }
            assert_close(&get(&state, Number::F32), &sums, 1e-6, &what);
            assert_close(&get(&out, number), &entered, tolerance(number), &what);
        }
    }
}

#[test]
fn rows_that_are_picked_go_on() {
    let device = device();
    let width = 40;
    let hidden = random(1, 6 * width);
    let state = put(&device, Number::F32, &hidden);
    let picked = integers(&device, &[4, 1]);
    let out = room(&device, Number::F32, 2 * width);
    Rows::new(state.all(), 6, width, 0.0).pick(picked.all(), 2).enter(&device, None, out.all(), Number::F32).unwrap();
    let expected: Vec<f32> = [4, 1].iter().flat_map(|row| hidden[row * width..][..width].to_vec()).collect();
    assert_eq!(get(&out, Number::F32), expected);
}

#[test]
fn vectors_of_tokens_are_looked_up() {
    let device = device();
    let vocab = 50;
    for (number, width) in NUMBERS.into_iter().flat_map(|number| [24, 23, 1030].map(|width| (number, width))) {
        let values = random(1, vocab * width);
        let mut bytes = Vec::new();
        number.write(&values, &mut bytes);
        let table = Weight::new(&device, WeightFormat::Plain(number), vocab, width, &bytes).unwrap();
        let tokens = [7, 0, 49, 7];
        let hidden = room(&device, Number::F32, 4 * width);
        device.embed(&table, integers(&device, &tokens).all(), 4, hidden.all(), 2.0).unwrap();
        let kept = rounded(number, &values);
        let expected: Vec<f32> =
            tokens.iter().flat_map(|&token| kept[token as usize * width..][..width].iter().map(|x| 2.0 * x)).collect();
        assert_eq!(get(&hidden, Number::F32), expected);
    }
}

#[test]
fn gates_are_activated() {
    [172, 173, 2050, 3000].into_iter().for_each(check_gates);
}

fn check_gates(width: usize) {
    let device = device();
    let rows = 3;
    let gate_up: Vec<f32> = random(1, rows * 2 * width).iter().map(|x| 6.0 * x).collect();
    let bias = random(2, 2 * width);
    let [gate_up_there, bias_there] = [&gate_up, &bias].map(|values| put(&device, Number::F32, values));
    for number in NUMBERS {
        for (activation, with_bias) in
            [(Activation::Silu, true), (Activation::GeluTanh, false), (Activation::GeluTanh, true)]
        {
            let out = room(&device, number, rows * width);
            let bias_there = with_bias.then_some(&bias_there);
            device.gated(activation, gate_up_there.all(), bias_there, rows, width, out.all(), number).unwrap();
            let of_bias = |at: usize| if with_bias { f64::from(bias[at]) } else { 0.0 };
            let expected: Vec<f64> = gate_up
                .chunks(2 * width)
                .flat_map(|row| {
                    (0..width).map(|at| {
                        let gate = f64::from(row[at]) + of_bias(at);
                        let up = f64::from(row[width + at]) + of_bias(width + at);
                        let activated = match activation {
                            Activation::Silu => gate / (1.0 + (-gate).exp()),
                            Activation::GeluTanh => {
                                let z = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
                                gate / 2.0 * (1.0 + z.tanh())
                            }
                        };
                        activated * up
                    })
                })
                .collect();
            assert_close(&get(&out, number), &expected, tolerance(number), &format!("{number:?} {activation:?}"));
        }
    }
}

#[test]
fn logits_are_mapped() {
    let device = device();
    let logits: Vec<f32> = random(1, 1000).iter().map(|x| 50.0 * x).collect();
    let expected = |map: LogitMap, x: f64| match map {
        LogitMap::Plain => x,
        LogitMap::Divided(divisor) => x / f64::from(divisor),
        LogitMap::Capped(cap) => f64::from(cap) * (x / f64::from(cap)).tanh(),
    };
    for map in [LogitMap::Plain, LogitMap::Divided(8.0), LogitMap::Capped(30.0)] {
        let there = put(&device, Number::F32, &logits);
        device.map_logits(map, there.all(), 1000).unwrap();
        let expected: Vec<f64> = logits.iter().map(|x| expected(map, f64::from(*x))).collect();
        assert_close(&get(&there, Number::F32), &expected, 1e-6, &format!("{map:?}"));
    }
}

/// What heads are normalised over.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    Nothing,
    Each,
    All,
}

#[test]
fn queries_and_keys_get_their_positions_and_a_place_in_the_cache() {
    // Parts of heads that are turned, an odd rest of one, all of it; more than a warp has at a time.
    for (heads, kv_heads, head_dim, pairs) in
        [(6, 2, 20, 8), (3, 1, 21, 8), (7, 7, 64, 32), (9, 1, 128, 64), (2, 1, 330, 150)]
    {
        check_heads(heads, kv_heads, head_dim, pairs);
    }
}

fn check_heads(heads: usize, kv_heads: usize, head_dim: usize, pairs: usize) {
    let device = device();
    let (rows, page_len) = (4, 16);
    let width = (heads + 2 * kv_heads) * head_dim;
    let qkv = random(1, rows * width);
    let bias = random(2, width);
    let positions = [0, 3, 100_000, 7];
    let slots = [17i64, -1, 40, 63];
    let slots_there =
        device.allocate_with(&slots.iter().flat_map(|slot| slot.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let frequencies: Vec<f64> = (0..pairs).map(|pair| 1000f64.powf(-f64::from(pair as u32) / pairs as f64)).collect();
    let turns = Turns::new(&device, &frequencies, 1.25).unwrap();
    let angles = room(&device, Number::F32, rows * pairs * 2);
    device.angles(&turns, integers(&device, &positions).all(), rows, angles.all()).unwrap();
    for number in [Number::F32, Number::Bf16, Number::F16, Number::F8] {
        for (over, with_bias, turned) in [
            (Over::Nothing, false, true),
            (Over::Each, true, true),
            (Over::All, true, true),
            (Over::Each, false, false),
        ] {
            let what = format!("{number:?} {over:?} {heads} {head_dim}");
            let (q_norm, k_norm) = match over {
                Over::All => (heads * head_dim, kv_heads * head_dim),
                Over::Nothing | Over::Each => (head_dim, head_dim),
            };
            let [of_q, of_k] = [(3, q_norm), (4, k_norm)].map(|(seed, count)| random(seed, count));
            let [q_there, k_there] = [&of_q, &of_k].map(|values| put(&device, Number::F32, values));
            let qkv_there = put(&device, Number::F32, &qkv);
            let bias_there = put(&device, Number::F32, &bias);
            let pages = KvPages::new(&device, number, 4, page_len, kv_heads, head_dim).unwrap();
            let norms = HeadNorms {
                queries: Norm { weight: &q_there, eps: EPS as f32 },
                keys: &k_there,
                per_head: over == Over::Each,
            };
            device
                .rope_store(
                    qkv_there.all(),
                    rows,
                    heads,
                    with_bias.then_some(&bias_there),
                    (over != Over::Nothing).then_some(norms),
                    turned.then_some((angles.all(), pairs)),
                    &pages,
                    slots_there.all(),
                )
                .unwrap();
            let got = get(&qkv_there, Number::F32);
            let (mut queries, mut expected_queries) = (Vec::new(), Vec::new());
            for row in 0..rows {
                let mut x: Vec<f64> = qkv[row * width..][..width].iter().map(|x| f64::from(*x)).collect();
                if with_bias {
                    x.iter_mut().zip(&bias).for_each(|(x, bias)| *x += f64::from(*bias));
                }
                let (q, rest) = x.split_at_mut(heads * head_dim);
                let (k, v) = rest.split_at_mut(kv_heads * head_dim);
                if over != Over::Nothing {
                    q.chunks_mut(q_norm).for_each(|run| run.copy_from_slice(&normalized(run, &of_q)));
                    k.chunks_mut(k_norm).for_each(|run| run.copy_from_slice(&normalized(run, &of_k)));
                }
                if turned {
                    for head in q.chunks_mut(head_dim).chain(k.chunks_mut(head_dim)) {
                        for (pair, frequency) in frequencies.iter().enumerate() {
                            let (sin, cos) = (f64::from(positions[row]) * frequency).sin_cos();
                            let (a, b) = (head[pair], head[pair + pairs]);
                            head[pair] = 1.25 * (a * cos - b * sin);
                            head[pair + pairs] = 1.25 * (b * cos + a * sin);
                        }
                    }
                }
                queries.extend_from_slice(&got[row * width..][..heads * head_dim]);
                expected_queries.extend_from_slice(q);
                if slots[row] >= 0 {
                    let (keys, values) = pages.token(slots[row] as usize).unwrap();
                    // Of many numbers of eight bits some lie in the middle between two.
                    let tolerance = tolerance(number) * if number == Number::F8 { 1.5 } else { 1.0 };
                    assert_close(&keys, k, tolerance, &what);
                    assert_close(&values, v, tolerance, &what);
                }
            }
            assert_close(&queries, &expected_queries, 1e-5, &what);
            // The row without a slot has written nothing: of 64 places, three are not zeros.
            let written = (0..pages.slots()).filter(|&slot| pages.token(slot).unwrap().0.iter().any(|x| *x != 0.0));
            assert_eq!(written.collect::<Vec<_>>(), [17, 40, 63], "{what}");
        }
    }
}
