//! Rows that go through a few of many MLPs, against F64.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{assert_close, device, get, put, random, room, rounded, weight};
use tandem_cuda::{Device, Input, Number, Routing, WeightFormat};

struct Case {
    rows: usize,
    experts: usize,
    per_token: usize,
    inputs: usize,
    outputs: usize,
    format: WeightFormat,
    number: Number,
    among_chosen: bool,
}

impl Case {
    fn check(&self, device: &Device) {
        let &Self { rows, experts, per_token, inputs, outputs, format, number, among_chosen } = self;
        let what = format!("{rows} rows, {per_token} of {experts}, {inputs} inputs, {format:?} {number:?}");
        let pairs = rows * per_token;
        let mut scores: Vec<f32> = random(1, rows * experts).iter().map(|x| 3.0 * x).collect();
        // Of equals the first ones.
        scores[..experts].fill(0.5);
        let x = random(2, rows * inputs);
        let (weight, weights) = weight(device, format, experts * outputs, inputs);
        let [chosen, shares] = [(); 2].map(|()| room(device, Number::F32, pairs));
        let groups = device.allocate(Routing::group_bytes(rows, experts, per_token)).unwrap();
        let routing = Routing {
            rows,
            experts,
            per_token,
            chosen: chosen.all(),
            shares: shares.all(),
            group: Routing::group(rows, experts, per_token, number, [inputs; 2]),
            groups: groups.all(),
        };
        device.route(put(device, Number::F32, &scores).all(), among_chosen, &routing).unwrap();
        let (x_there, made) = (put(device, number, &x), room(device, Number::F32, pairs * outputs));
        let input = Input { x: x_there.all(), number, rows };
        device.multiply_experts(&weight, input, &routing, made.all()).unwrap();
        let joined = room(device, Number::F32, rows * outputs);
        device.join_experts(made.all(), &routing, outputs, joined.all()).unwrap();

        let x = rounded(number, &x);
        let mut expected = vec![0.0; rows * outputs];
        for row in 0..rows {
            let scores = &scores[row * experts..][..experts];
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            let weigh = |&expert: &usize| f64::from(scores[expert]).exp();
            let counted = if among_chosen { &order[..per_token] } else { &order[..] };
            let total: f64 = counted.iter().map(weigh).sum();
            for expert in &order[..per_token] {
                for output in 0..outputs {
                    let weight = &weights[(expert * outputs + output) * inputs..][..inputs];
                    let products = weight.iter().zip(&x[row * inputs..]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    expected[row * outputs + output] += weigh(expert) / total * products.sum::<f64>();
                }
            }
        }
        assert_close(&get(&joined, Number::F32), &expected, 1e-5, &what);
        // With a row for each pair: the same rows once more.
        let of_pairs: Vec<f32> =
            (0..pairs).flat_map(|pair| x[pair / per_token * inputs..][..inputs].to_vec()).collect();
        let (of_pairs, again) = (put(device, number, &of_pairs), room(device, Number::F32, pairs * outputs));
        let input = Input { x: of_pairs.all(), number, rows: pairs };
        device.multiply_experts(&weight, input, &routing, again.all()).unwrap();
        assert_eq!(get(&again, Number::F32), get(&made, Number::F32), "{what}");
    }
}

#[test]
fn rows_go_through_the_likeliest_experts() {
    let device = device();
    for number in [Number::F32, Number::Bf16, Number::F16] {
        for (rows, experts, per_token, inputs, outputs) in
            [(1, 128, 8, 64, 24), (70, 5, 2, 40, 9), (3, 7, 3, 12, 10), (9, 2, 2, 16, 8), (40, 60, 1, 8, 3)]
        {
            for among_chosen in [false, true] {
                let format = WeightFormat::Plain(number);
                Case { rows, experts, per_token, inputs, outputs, format, number, among_chosen }.check(&device);
            }
        }
    }
}

/// Experts with few rows, and with more of them than are multiplied together.
#[test]
fn rows_of_whole_chunks_are_multiplied_on_tensor_cores() {
    let device = device();
    let [bf16, f16] = [Number::Bf16, Number::F16];
    let formats = [WeightFormat::Plain(bf16), WeightFormat::Q8_0, WeightFormat::Q4K, WeightFormat::Q6K];
    let cases = formats.map(|format| (format, bf16)).into_iter().chain([(WeightFormat::Plain(f16), f16)]);
    for (format, number) in cases {
        for (rows, experts, per_token, outputs) in [(5, 6, 2, 70), (90, 4, 2, 20)] {
            let group = Routing::group(rows, experts, per_token, number, [256; 2]);
            assert_eq!(group, if rows > 50 { 32 } else { 8 });
            let case = Case { rows, experts, per_token, inputs: 256, outputs, format, number, among_chosen: true };
            case.check(&device);
        }
    }
}
