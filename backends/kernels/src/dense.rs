use crate::{isa::Isa, line::Line};

/// How floats are laid out in a panel: by input, and for each input by output.
pub(crate) trait Dense {
    /// Inputs in one line.
    const PER_LINE: usize;

    fn read<I: Isa>(isa: I, line: &Line, input: usize) -> I::Floats;
}

/// 32 bits.
pub(crate) struct Single;
/// 16 bits, those of an F32 without its lower half, which are multiplied as F32.
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

/// By row and panel, sums by output.
pub(crate) type Sums<F, const ROWS: usize, const PANELS: usize> = [[F; PANELS]; ROWS];

/// Up to so many rows the processor waits for weights rather than for sums: they are asked for ahead of time, even where there is nothing
/// next.
const FEW_ROWS: usize = 4;
/// Pairs of inputs ahead, then.
const AHEAD: usize = 16;

/// Adds the products of `PANELS` panels with the rows of one tile to `sums`; `x` is `[input][row]`. `next` are the panels that come after
/// these, as long or empty: they are asked for meanwhile.
///
/// Each sum is added up in the order of inputs, whatever rows and panels it is computed beside: a row's results do not depend on the others.
#[inline(always)]
pub(crate) fn add_products<I: Isa, D: Dense, const ROWS: usize, const PANELS: usize>(
    isa: I,
    mut panels: [&[Line]; PANELS],
    next: [&[Line]; PANELS],
    x: &[f32],
    sums: &mut Sums<I::Floats, ROWS, PANELS>,
) {
    let (x, _) = x.as_chunks::<ROWS>();
    let lines = x.len().div_ceil(D::PER_LINE);
    for panel in &mut panels {
        *panel = &panel[..lines];
    }
    let (pairs, rest) = x.as_chunks::<2>();
    for (pair, [first, second]) in pairs.iter().enumerate() {
        if D::PER_LINE == 1 {
            ask_for::<I, ROWS, PANELS>(isa, panels, next, 2 * pair + 1, 2 * AHEAD);
            ask_for::<I, ROWS, PANELS>(isa, panels, next, 2 * pair, 2 * AHEAD);
        } else {
            ask_for::<I, ROWS, PANELS>(isa, panels, next, pair, AHEAD);
        }
        let line = |input: usize| if D::PER_LINE == 1 { 2 * pair + input } else { pair };
        step::<I, D, ROWS, PANELS>(isa, panels, line(0), 0, first, sums);
        step::<I, D, ROWS, PANELS>(isa, panels, line(1), 1, second, sums);
    }
    if let [x] = rest {
        step::<I, D, ROWS, PANELS>(isa, panels, lines - 1, 0, x, sums);
    }
}

/// The same with weights in BF16 that lie in pairs: a line has two inputs of each output behind each other. `x` is `[pair][row]`.
///
/// Each sum is added up in the order of pairs.
#[inline(always)]
pub(crate) fn add_pairs<I: Isa, const ROWS: usize, const PANELS: usize>(
    isa: I,
    mut panels: [&[Line]; PANELS],
    next: [&[Line]; PANELS],
    x: &[u32],
    sums: &mut Sums<I::Floats, ROWS, PANELS>,
) {
    let (x, _) = x.as_chunks::<ROWS>();
    for panel in &mut panels {
        *panel = &panel[..x.len()];
    }
    for (pair, x) in x.iter().enumerate() {
        ask_for::<I, ROWS, PANELS>(isa, panels, next, pair, AHEAD);
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sum, panel) in sums.iter_mut().zip(panels) {
                *sum = isa.dot_bf16(*sum, &panel[pair], *x);
            }
        }
    }
}

/// Has the same line of the next panels brought near, or else one that lies `ahead` lines behind that of these.
#[inline(always)]
fn ask_for<I: Isa, const ROWS: usize, const PANELS: usize>(
    isa: I,
    panels: [&[Line]; PANELS],
    next: [&[Line]; PANELS],
    line: usize,
    ahead: usize,
) {
    for (panel, next) in panels.into_iter().zip(next) {
        if let Some(line) = next.get(line) {
            isa.prefetch(line);
        } else if ROWS <= FEW_ROWS
            && let Some(line) = panel.get(line + ahead)
        {
            isa.prefetch(line);
        }
    }
}

#[inline(always)]
fn step<I: Isa, D: Dense, const ROWS: usize, const PANELS: usize>(
    isa: I,
    panels: [&[Line]; PANELS],
    line: usize,
    input: usize,
    x: &[f32; ROWS],
    sums: &mut Sums<I::Floats, ROWS, PANELS>,
) {
    let mut weights = [isa.splat(0.0); PANELS];
    for (weight, panel) in weights.iter_mut().zip(panels) {
        *weight = D::read(isa, &panel[line], input);
    }
    for (sums, x) in sums.iter_mut().zip(x) {
        let x = isa.splat(*x);
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum = isa.mul_add(weight, x, *sum);
        }
    }
}
