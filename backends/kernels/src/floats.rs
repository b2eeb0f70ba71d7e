use crate::{
    activations::Activations,
    dense::{Dense, Sums, add_pairs, add_products},
    isa::Isa,
    line::Line,
};

/// How floats meet activations, a tile at a time.
pub(crate) trait Floats {
    /// Of one activation.
    const BYTES: usize;
    /// Up to so many rows the panels that come next are not asked for: those at hand are read too fast for it to pay.
    const FEW_ROWS: usize;

    fn add<I: Isa, const ROWS: usize, const PANELS: usize>(
        isa: I,
        panels: [&[Line]; PANELS],
        next: [&[Line]; PANELS],
        x: &Activations,
        tile: usize,
        sums: &mut Sums<I::Floats, ROWS, PANELS>,
    );
}

impl<D: Dense> Floats for D {
    const BYTES: usize = size_of::<f32>();
    const FEW_ROWS: usize = 0;

    #[inline(always)]
    fn add<I: Isa, const ROWS: usize, const PANELS: usize>(
        isa: I,
        panels: [&[Line]; PANELS],
        next: [&[Line]; PANELS],
        x: &Activations,
        tile: usize,
        sums: &mut Sums<I::Floats, ROWS, PANELS>,
    ) {
        add_products::<I, D, ROWS, PANELS>(isa, panels, next, x.floats(tile), sums);
    }
}

/// BF16, with activations that are rounded to it: what processors have instructions for.
pub(crate) struct Pairs;

impl Floats for Pairs {
    const BYTES: usize = size_of::<u32>() / 2;
    const FEW_ROWS: usize = 2;

    #[inline(always)]
    fn add<I: Isa, const ROWS: usize, const PANELS: usize>(
        isa: I,
        panels: [&[Line]; PANELS],
        next: [&[Line]; PANELS],
        x: &Activations,
        tile: usize,
        sums: &mut Sums<I::Floats, ROWS, PANELS>,
    ) {
        add_pairs::<I, ROWS, PANELS>(isa, panels, next, x.pairs(tile), sums);
    }
}
