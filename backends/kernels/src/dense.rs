use crate::{PANEL, isa::Isa, line::Line};

/// How floats are laid out in a panel: by input, and for each input by output.
pub(crate) trait Dense {
    /// Inputs in one line.
    const PER_LINE: usize;

    fn read<I: Isa>(isa: I, line: &Line, input: usize) -> I::Floats;
}

/// 32 bits.
pub(crate) struct Single;
/// 16 bits, those of an F32 without its lower half.
pub(crate) struct Brain;
/// 16 bits as IEEE has them.
pub(crate) struct Half;

impl Dense for Single {
    const PER_LINE: usize = 1;

    #[inline(always)]
    fn read<I: Isa>(isa: I, line: &Line, _: usize) -> I::Floats {
        isa.floats(line)
    }
}

impl Dense for Brain {
    const PER_LINE: usize = 2;

    #[inline(always)]
    fn read<I: Isa>(isa: I, line: &Line, input: usize) -> I::Floats {
        isa.of_bf16(line.half(input))
    }
}

impl Dense for Half {
    const PER_LINE: usize = 2;

    #[inline(always)]
    fn read<I: Isa>(isa: I, line: &Line, input: usize) -> I::Floats {
        isa.of_f16(line.half(input))
    }
}

/// The products of `PANELS` panels with the rows of one tile, added to `bias`; `x` is `[input][row]`, and what it gives is by row and panel.
#[inline(always)]
pub(crate) fn products<I: Isa, D: Dense, const ROWS: usize, const PANELS: usize>(
    isa: I,
    panels: [&[Line]; PANELS],
    x: &[f32],
    bias: [&[f32; PANEL]; PANELS],
) -> [[[f32; PANEL]; PANELS]; ROWS] {
    let (x, _) = x.as_chunks::<ROWS>();
    let lines = x.len().div_ceil(D::PER_LINE);
    let panels = panels.map(|panel| &panel[..lines]);
    // One chain of additions for each input of a line: a single one would wait for itself.
    let mut sums = [[[isa.splat(0.0); PANELS]; ROWS]; 2];
    sums[0] = [bias.map(|bias| isa.load(bias)); ROWS];
    let whole = x.chunks_exact(2);
    let rest = whole.remainder();
    for (pair, x) in whole.enumerate() {
        for (input, x) in x.iter().enumerate() {
            let line = match D::PER_LINE {
                1 => 2 * pair + input,
                _ => pair,
            };
            step::<I, D, ROWS, PANELS>(isa, panels, line, input, x, chain(&mut sums, input));
        }
    }
    if let [x] = rest {
        step::<I, D, ROWS, PANELS>(isa, panels, lines - 1, 0, x, &mut sums[0]);
    }
    let [first, second] = sums;
    std::array::from_fn(|row| {
        std::array::from_fn(|panel| {
            let (first, second) = (isa.store(first[row][panel]), isa.store(second[row][panel]));
            match ROWS * PANELS {
                ..=FEW_SUMS => std::array::from_fn(|at| first[at] + second[at]),
                _ => first,
            }
        })
    })
}

/// More sums than this hide each other's latency, and need the registers.
const FEW_SUMS: usize = 4;

#[inline(always)]
fn chain<T, const ROWS: usize, const PANELS: usize>(
    sums: &mut [[[T; PANELS]; ROWS]; 2],
    input: usize,
) -> &mut [[T; PANELS]; ROWS] {
    &mut sums[if ROWS * PANELS <= FEW_SUMS { input } else { 0 }]
}

#[inline(always)]
fn step<I: Isa, D: Dense, const ROWS: usize, const PANELS: usize>(
    isa: I,
    panels: [&[Line]; PANELS],
    line: usize,
    input: usize,
    x: &[f32; ROWS],
    sums: &mut [[I::Floats; PANELS]; ROWS],
) {
    let weights = panels.map(|panel| D::read(isa, &panel[line], input));
    for (sums, x) in sums.iter_mut().zip(x) {
        let x = isa.splat(*x);
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum = isa.mul_add(weight, x, *sum);
        }
    }
}
