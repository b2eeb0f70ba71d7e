//! What turning tokens into text costs: the figures are of 1,000 tokens, so that microseconds here are nanoseconds a token.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tandem_engine::internals::Output;

const TOKENS: usize = 1_000;
const TOKEN_BYTES: usize = 4;

fn benches(criterion: &mut Criterion) {
    let prose = "When the rain stopped, the user: asked about the end. Nobody answered; the house was quiet. ";
    let prose: String = prose.chars().cycle().take(TOKENS * TOKEN_BYTES).collect();
    let letters = "a".repeat(TOKENS * TOKEN_BYTES);
    let stops = ["\n\nUser:", "<|im_end|>", "the end of the story", "When the rain stopped, nobody came in."];
    let overlapping = format!("{}b", "a".repeat(255));
    let mut group = criterion.benchmark_group("1000 tokens");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(30);
    for (name, text, stops) in [
        ("no stop string", &prose, &[][..]),
        ("1 stop string", &prose, &stops[3..]),
        ("4 stop strings", &prose, &stops[..]),
        ("long partial overlap", &letters, &[overlapping.as_str()][..]),
    ] {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || Output::new(stops.clone()),
                |output| text.as_bytes().chunks(TOKEN_BYTES).for_each(|token| drop(black_box(output.push(token)))),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(output, benches);
criterion_main!(output);
