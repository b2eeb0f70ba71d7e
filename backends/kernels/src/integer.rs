use crate::{
    PANEL,
    activations::Block,
    format::{Quants, Scales, VECTORS},
    isa::Isa,
    line::Line,
};

/// One panel of integer weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel<'a> {
    pub(crate) scales: &'a [Line],
    pub(crate) quants: &'a [Line],
}

/// The products of a panel with the rows of one tile, added to `bias`; `x` is `[block][row]`, and what it gives is by row.
///
/// `next` are the quants of the panel that comes after this one, as long or empty: they are asked for meanwhile, since what guesses what
/// will be read is confused by tiles that read the same panel again, and too slow for few rows.
#[inline(always)]
pub(crate) fn products<I: Isa, Q: Quants, S: Scales, const ROWS: usize>(
    isa: I,
    panel: Panel<'_>,
    x: &[Block],
    bias: &[f32; PANEL],
    next: &[Line],
) -> [[f32; PANEL]; ROWS] {
    let mut sums = [isa.load(bias); ROWS];
    let blocks = x.as_chunks::<ROWS>().0.iter().zip(panel.quants.chunks_exact(Q::LINES));
    for (at, (x, quants)) in blocks.enumerate() {
        if let Some(next) = next.get(at * Q::LINES..(at + 1) * Q::LINES) {
            next.iter().for_each(|line| isa.prefetch(line));
        }
        let weights = Q::read(isa, quants);
        let scales = S::read(isa, panel.scales, at);
        for (sum, x) in sums.iter_mut().zip(x) {
            let vectors = VECTORS / S::PARTS;
            let parts = weights.chunks_exact(vectors).zip(x.quants.chunks_exact(vectors)).zip(scales).take(S::PARTS);
            for (part, ((weights, quants), (scale, minimum))) in parts.enumerate() {
                let ints = weights.iter().zip(quants).fold(isa.zero(), |ints, (&weights, &quants)| match Q::WIDE {
                    true => isa.dot_wide(ints, weights, quants),
                    false => isa.dot(ints, weights, quants),
                });
                let taken = if S::PARTS == 1 { x.sum } else { x.halves[part] };
                let scale = isa.mul(scale, isa.splat(x.scale));
                *sum = isa.mul_add(isa.to_floats(ints), scale, *sum);
                *sum = isa.mul_add(minimum, isa.splat(taken), *sum);
            }
        }
    }
    let mut products = [[0.0; PANEL]; ROWS];
    for (products, sum) in products.iter_mut().zip(sums) {
        *products = isa.store(sum);
    }
    products
}
