use crate::{isa::Isa, line::Line};

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

/// By row and panel, sums by output.
pub(crate) type Sums<F, const ROWS: usize, const PANELS: usize> = [[F; PANELS]; ROWS];

/// Adds the products of `PANELS` panels with the rows of one tile to `sums`; `x` is `[input][row]`.
#[inline(always)]
pub(crate) fn add_products<I: Isa, D: Dense, const ROWS: usize, const PANELS: usize>(
    isa: I,
    panels: [&[Line]; PANELS],
    x: &[f32],
    sums: &mut Sums<I::Floats, ROWS, PANELS>,
) {
    let (x, _) = x.as_chunks::<ROWS>();
    let panels = panels.map(|panel| &panel[..x.len().div_ceil(D::PER_LINE)]);
    let (pairs, rest) = x.as_chunks::<2>();
    // Few sums would wait for themselves: they are added up in two chains.
    let mut others = [[isa.splat(0.0); PANELS]; ROWS];
    for (pair, [first, second]) in pairs.iter().enumerate() {
        let line = |input: usize| if D::PER_LINE == 1 { 2 * pair + input } else { pair };
        step::<I, D, ROWS, PANELS>(isa, panels, line(0), 0, first, sums);
        let chain = if ROWS * PANELS <= FEW_SUMS { &mut others } else { &mut *sums };
        step::<I, D, ROWS, PANELS>(isa, panels, line(1), 1, second, chain);
    }
    if let [x] = rest {
        step::<I, D, ROWS, PANELS>(isa, panels, panels[0].len() - 1, 0, x, sums);
    }
    if ROWS * PANELS <= FEW_SUMS {
        for (sums, others) in sums.iter_mut().zip(others) {
            for (sum, other) in sums.iter_mut().zip(others) {
                *sum = isa.add(*sum, other);
            }
        }
    }
}

/// More sums than this hide each other's latency, and need the registers.
const FEW_SUMS: usize = 4;

#[inline(always)]
fn step<I: Isa, D: Dense, const ROWS: usize, const PANELS: usize>(
    isa: I,
    panels: [&[Line]; PANELS],
    line: usize,
    input: usize,
    x: &[f32; ROWS],
    sums: &mut Sums<I::Floats, ROWS, PANELS>,
) {
    let weights = panels.map(|panel| D::read(isa, &panel[line], input));
    for (sums, x) in sums.iter_mut().zip(x) {
        let x = isa.splat(*x);
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum = isa.mul_add(weight, x, *sum);
        }
    }
}
