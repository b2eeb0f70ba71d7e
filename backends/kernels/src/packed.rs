use std::ops::Range;

use rayon::prelude::*;

use crate::{
    BLOCK, PANEL,
    activations::{Activations, Block, Forms},
    dense::{Half, Single},
    floats::{Floats, Pairs},
    format::{Eight, Five, Four, Halved, Plain, Quants, Scales, Six, WithMinimums},
    integer::{self, Panel},
    isa::{Isa, Work, dispatch},
    line::Line,
    lines::Lines,
    matrix::{Format, Matrix, PackError, Unread},
    pack::{lines, pack_row, unpack_row},
    rows::Rows,
};

/// Activations that are multiplied with a panel before the next one is taken: as many bytes as the nearest large cache surely has.
const ACTIVATION_BYTES: usize = 256 << 10;
/// Pieces of a product for each thread, so that one that is held up does not hold up all of them.
const TASKS_PER_THREAD: usize = 3;

/// A weight in panels: `y = x Wᵀ + b`.
#[derive(Debug)]
pub struct Packed {
    inputs: usize,
    outputs: usize,
    /// Behind each other by output.
    parts: Vec<Part>,
}

/// Outputs whose weights have one format.
#[derive(Debug)]
struct Part {
    format: Format,
    outputs: usize,
    /// Lines of a panel: scales, then quants.
    scale_lines: usize,
    panel_lines: usize,
    lines: Lines,
    /// By panel.
    bias: Vec<[f32; PANEL]>,
}

impl Packed {
    /// Packs matrices of the same inputs, whose outputs are to lie behind each other. All of `bias` is zero when there is none.
    ///
    /// # Errors
    /// When a matrix has other inputs than the first, or as many bytes as its format does not make of its sizes.
    ///
    /// # Panics
    /// When there is no matrix, or `bias` has not one value for each output.
    pub fn new(matrices: &[Matrix<'_>], bias: Option<&[f32]>) -> Result<Self, PackError> {
        let inputs = matrices[0].inputs;
        let mut unread = Vec::new();
        for matrix in matrices {
            if matrix.inputs != inputs {
                return Err(PackError::Inputs { expected: inputs, got: matrix.inputs });
            }
            matrix.row_bytes()?;
            unread.push(Unread { format: matrix.format, outputs: matrix.outputs, at_a_time: PANEL });
        }
        Self::from_rows(inputs, &unread, bias, |part, rows| {
            let Matrix { format, bytes, .. } = matrices[part];
            let row_bytes = format.row_bytes(inputs)?;
            Ok(&bytes[rows.start * row_bytes..rows.end * row_bytes])
        })
    }

    /// The same of rows that are only had when they are asked for, some at a time and by all threads of the current pool, so that a weight
    /// need not be in memory twice: `read` gives the rows of one of the `parts`, in its format.
    ///
    /// # Errors
    /// The first that `read` has. When rows are no whole blocks of their format, or `read` gives other bytes than it was asked for.
    ///
    /// # Panics
    /// When there is no part, or `bias` has not one value for each output.
    pub fn from_rows<B: AsRef<[u8]>, E: From<PackError> + Send>(
        inputs: usize,
        parts: &[Unread],
        bias: Option<&[f32]>,
        read: impl Fn(usize, Range<usize>) -> Result<B, E> + Sync,
    ) -> Result<Self, E> {
        assert!(!parts.is_empty(), "a weight has outputs");
        let outputs = parts.iter().map(|part| part.outputs).sum();
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "a bias is by output");
        let mut bias = bias.unwrap_or_default();
        let mut packed = Vec::new();
        for (at, unread) in parts.iter().enumerate() {
            let (own, others) = bias.split_at(unread.outputs.min(bias.len()));
            packed.push(Part::new(inputs, unread, own, |rows| read(at, rows))?);
            bias = others;
        }
        Ok(Self { inputs, outputs, parts: packed })
    }

    /// Bytes that a weight takes once it is packed.
    #[must_use]
    pub fn size(format: Format, outputs: usize, inputs: usize) -> usize {
        let (scales, quants) = lines(format, inputs);
        outputs.div_ceil(PANEL) * (scales + quants) * Line::BYTES
    }

    /// Values in a row of `x`.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Values in a row of `y`.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes that the weights take in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.lines.len() * Line::BYTES).sum()
    }

    /// Replaces `y` by the products of all rows of `x`, on the threads of the current pool.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn forward(&self, x: &[f32], y: &mut Vec<f32>) {
        assert!(x.len().is_multiple_of(self.inputs), "{} values are no rows of {}", x.len(), self.inputs);
        y.resize(x.len() / self.inputs * self.outputs, 0.0);
        if y.is_empty() {
            return;
        }
        let forms = self.parts.iter().fold(Forms::default(), |forms, part| part.add_form(forms));
        Activations::with(x, self.inputs, forms, |x| {
            let y = Rows::new(y, self.outputs);
            let panels = self.parts.iter().map(Part::panels).sum::<usize>();
            let threads = rayon::current_num_threads();
            let tasks = if threads == 1 { 1 } else { panels.min(threads * TASKS_PER_THREAD) };
            let run = |task: usize| self.run(panels * task / tasks..panels * (task + 1) / tasks, x, &y);
            match tasks {
                1 => run(0),
                _ => (0..tasks).into_par_iter().with_max_len(1).for_each(run),
            }
        });
    }

    /// Replaces `values` by the weights of one output.
    ///
    /// # Panics
    /// When there are fewer outputs, or `values` is no row.
    pub fn row(&self, mut output: usize, values: &mut [f32]) {
        assert!(values.len() == self.inputs, "{} values are no row of {}", values.len(), self.inputs);
        for part in &self.parts {
            if output < part.outputs {
                let Panel { scales, quants } = part.panel(output / PANEL);
                return unpack_row(part.format, scales, quants, output % PANEL, values);
            }
            output -= part.outputs;
        }
        panic!("there is no such output");
    }

    /// Computes some panels, counted over all parts.
    fn run(&self, panels: Range<usize>, x: &Activations, y: &Rows<'_>) {
        let (mut first, mut column) = (0, 0);
        for part in &self.parts {
            let end = first + part.panels();
            let own = panels.start.max(first)..panels.end.min(end);
            if !own.is_empty() {
                dispatch(Products { part, panels: own.start - first..own.end - first, x, y, column });
            }
            (first, column) = (end, column + part.outputs);
        }
    }
}

impl Part {
    fn new<B: AsRef<[u8]>, E: From<PackError> + Send>(
        inputs: usize,
        unread: &Unread,
        bias: &[f32],
        read: impl Fn(Range<usize>) -> Result<B, E> + Sync,
    ) -> Result<Self, E> {
        let &Unread { format, outputs, at_a_time } = unread;
        let row_bytes = format.row_bytes(inputs)?;
        let (scale_lines, quant_lines) = lines(format, inputs);
        let panel_lines = scale_lines + quant_lines;
        let packed = outputs.div_ceil(PANEL).checked_mul(panel_lines).and_then(Lines::zeros);
        let mut packed = packed.ok_or(PackError::Memory { bytes: outputs.saturating_mul(row_bytes) })?;
        let panels = at_a_time.div_ceil(PANEL).max(1);
        packed.par_chunks_mut(panels * panel_lines).enumerate().try_for_each(
            |(at, panels_of_lines)| -> Result<(), E> {
                let first = at * panels * PANEL;
                let rows = first..outputs.min(first + panels * PANEL);
                let expected = rows.len() * row_bytes;
                let bytes = read(rows)?;
                let bytes = bytes.as_ref();
                if bytes.len() != expected {
                    return Err(PackError::Bytes { expected, got: bytes.len() }.into());
                }
                for (panel, rows) in panels_of_lines.chunks_exact_mut(panel_lines).zip(bytes.chunks(PANEL * row_bytes))
                {
                    let (scales, quants) = panel.split_at_mut(scale_lines);
                    for (output, row) in rows.chunks_exact(row_bytes).enumerate() {
                        pack_row(format, row, output, scales, quants);
                    }
                }
                Ok(())
            },
        )?;
        let mut by_panel = vec![[0.0; PANEL]; outputs.div_ceil(PANEL)];
        by_panel.as_flattened_mut()[..bias.len()].copy_from_slice(bias);
        Ok(Self { format, outputs, scale_lines, panel_lines, lines: packed, bias: by_panel })
    }

    /// What it wants of activations, and what others do.
    fn add_form(&self, forms: Forms) -> Forms {
        match self.format {
            Format::F32 | Format::F16 => Forms { floats: true, ..forms },
            Format::Bf16 => Forms { pairs: true, ..forms },
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::Q4K | Format::Q5K | Format::Q6K => {
                Forms { blocks: true, ..forms }
            }
        }
    }

    fn panels(&self) -> usize {
        self.bias.len()
    }

    #[inline(always)]
    fn panel(&self, panel: usize) -> Panel<'_> {
        let (scales, quants) = self.lines[panel * self.panel_lines..][..self.panel_lines].split_at(self.scale_lines);
        Panel { scales, quants }
    }
}

/// The products of some panels of one part with all rows.
struct Products<'a> {
    part: &'a Part,
    panels: Range<usize>,
    x: &'a Activations,
    y: &'a Rows<'a>,
    /// Of `y`, where the part's outputs begin.
    column: usize,
}

impl Work for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.part.format {
            Format::F32 => self.dense::<I, Single>(isa),
            Format::F16 => self.dense::<I, Half>(isa),
            Format::Bf16 => self.dense::<I, Pairs>(isa),
            Format::Q4_0 => self.integer::<I, Four, Plain<8>>(isa),
            Format::Q5_0 => self.integer::<I, Five, Plain<16>>(isa),
            Format::Q8_0 => self.integer::<I, Eight, Plain<128>>(isa),
            Format::Q4K => self.integer::<I, Four, WithMinimums>(isa),
            Format::Q5K => self.integer::<I, Five, WithMinimums>(isa),
            Format::Q6K => self.integer::<I, Six, Halved>(isa),
        }
    }
}

impl Products<'_> {
    #[inline(always)]
    fn integer<I: Isa, Q: Quants, S: Scales>(&self, isa: I) {
        for tiles in self.chunks(size_of::<Block>() / BLOCK) {
            for panel in self.panels.clone() {
                for tile in tiles.clone() {
                    match self.x.tile_rows(tile) {
                        1 => self.integer_tile::<I, Q, S, 1>(isa, panel, tile),
                        2 => self.integer_tile::<I, Q, S, 2>(isa, panel, tile),
                        3 => self.integer_tile::<I, Q, S, 3>(isa, panel, tile),
                        4 => self.integer_tile::<I, Q, S, 4>(isa, panel, tile),
                        5 => self.integer_tile::<I, Q, S, 5>(isa, panel, tile),
                        6 => self.integer_tile::<I, Q, S, 6>(isa, panel, tile),
                        7 => self.integer_tile::<I, Q, S, 7>(isa, panel, tile),
                        _ => self.integer_tile::<I, Q, S, 8>(isa, panel, tile),
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn integer_tile<I: Isa, Q: Quants, S: Scales, const ROWS: usize>(&self, isa: I, panel: usize, tile: usize) {
        let (weights, bias) = (self.part.panel(panel), &self.part.bias[panel]);
        let next = if panel + 1 < self.panels.end { self.part.panel(panel + 1).quants } else { &[] };
        let products = integer::products::<I, Q, S, ROWS>(isa, weights, self.x.blocks(tile), bias, next);
        for (row, products) in products.iter().enumerate() {
            self.put(tile * self.x.tile + row, panel, products);
        }
    }

    #[inline(always)]
    fn dense<I: Isa, D: Floats>(&self, isa: I) {
        for tiles in self.chunks(D::BYTES) {
            for first in self.panels.clone().step_by(4) {
                let panels = (self.panels.end - first).min(4);
                for tile in tiles.clone() {
                    // The first tile brings the panels near, for the others too.
                    let fetch = tile == tiles.start;
                    match self.x.tile_rows(tile) {
                        1 => self.dense_tile::<I, D, 1>(isa, first, panels, tile, fetch),
                        2 => self.dense_tile::<I, D, 2>(isa, first, panels, tile, fetch),
                        3 => self.dense_tile::<I, D, 3>(isa, first, panels, tile, fetch),
                        4 => self.dense_tile::<I, D, 4>(isa, first, panels, tile, fetch),
                        5 => self.dense_tile::<I, D, 5>(isa, first, panels, tile, fetch),
                        6 => self.dense_tile::<I, D, 6>(isa, first, panels, tile, fetch),
                        7 => self.dense_tile::<I, D, 7>(isa, first, panels, tile, fetch),
                        _ => self.dense_tile::<I, D, 8>(isa, first, panels, tile, fetch),
                    }
                }
            }
        }
    }

    /// Few rows take four panels at a time, so that there are enough sums to hide the latency of adding; more take two, which fill the
    /// registers.
    #[inline(always)]
    fn dense_tile<I: Isa, D: Floats, const ROWS: usize>(
        &self,
        isa: I,
        first: usize,
        panels: usize,
        tile: usize,
        fetch: bool,
    ) {
        if ROWS <= 2 && panels == 4 {
            return self.dense_panels::<I, D, ROWS, 4>(isa, first, tile, fetch);
        }
        for first in (first..first + panels).step_by(2) {
            match first + 1 < self.panels.end {
                true => self.dense_panels::<I, D, ROWS, 2>(isa, first, tile, fetch),
                false => self.dense_panels::<I, D, ROWS, 1>(isa, first, tile, fetch),
            }
        }
    }

    #[inline(always)]
    fn dense_panels<I: Isa, D: Floats, const ROWS: usize, const PANELS: usize>(
        &self,
        isa: I,
        first: usize,
        tile: usize,
        fetch: bool,
    ) {
        let panels: [usize; PANELS] = std::array::from_fn(|at| first + at);
        let weights = panels.map(|panel| self.part.panel(panel).quants);
        let next = panels.map(|panel| match fetch && ROWS > D::FEW_ROWS && panel + PANELS < self.panels.end {
            true => self.part.panel(panel + PANELS).quants,
            false => &[],
        });
        let mut bias = [isa.splat(0.0); PANELS];
        for (bias, panel) in bias.iter_mut().zip(panels) {
            *bias = isa.load(&self.part.bias[panel]);
        }
        let mut sums = [bias; ROWS];
        D::add::<I, ROWS, PANELS>(isa, weights, next, self.x, tile, &mut sums);
        for (row, sums) in sums.into_iter().enumerate() {
            for (panel, sum) in panels.into_iter().zip(sums) {
                self.put(tile * self.x.tile + row, panel, &isa.store(sum));
            }
        }
    }

    /// The tiles, as many at a time as stay in a cache while all panels pass by.
    fn chunks(&self, bytes_per_input: usize) -> impl Iterator<Item = Range<usize>> + use<'_> {
        let tiles = self.x.tiles();
        let at_a_time = (ACTIVATION_BYTES / (self.x.tile * self.x.inputs * bytes_per_input)).max(1);
        (0..tiles).step_by(at_a_time).map(move |first| first..tiles.min(first + at_a_time))
    }

    #[inline(always)]
    fn put(&self, row: usize, panel: usize, products: &[f32; PANEL]) {
        let outputs = PANEL.min(self.part.outputs - panel * PANEL);
        // SAFETY: each panel is computed by one thread, and panels have no outputs in common.
        unsafe { self.y.put(row, self.column + panel * PANEL, &products[..outputs]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;

    /// Products with all panels of a part.
    #[derive(Clone, Copy)]
    struct Collected<'a> {
        part: &'a Part,
        x: &'a Activations,
    }

    impl Work for Collected<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> Vec<f32> {
            let Self { part, x } = self;
            let mut y = vec![f32::NAN; x.rows * part.outputs];
            Products { part, panels: 0..part.panels(), x, y: &Rows::new(&mut y, part.outputs), column: 0 }.run(isa);
            y
        }
    }

    /// Any bytes are a weight, as long as no scale is infinite.
    fn weight(format: Format, outputs: usize, inputs: usize) -> Vec<u8> {
        let (values, bytes) = format.block();
        (0..outputs * inputs / values * bytes).map(|at| ((at * 2_654_435_761) >> 7) as u8 & 0xbf).collect()
    }

    #[test]
    fn all_kinds_of_processors_compute_the_same() {
        let (outputs, inputs) = (40, 512);
        for format in [
            Format::F32,
            Format::F16,
            Format::Bf16,
            Format::Q4_0,
            Format::Q5_0,
            Format::Q8_0,
            Format::Q4K,
            Format::Q5K,
            Format::Q6K,
        ] {
            let bytes = weight(format, outputs, inputs);
            let packed = Packed::new(&[Matrix { format, outputs, inputs, bytes: &bytes }], None).unwrap();
            let part = &packed.parts[0];
            for rows in [1, 3, 8, 13] {
                let x: Vec<f32> = (0..rows * inputs).map(|at| (at * 7919 % 1009) as f32 / 504.0 - 1.0).collect();
                Activations::with(&x, inputs, part.add_form(Forms::default()), |x| {
                    let results = on_each(Collected { part, x });
                    let size = results[0].iter().fold(0f32, |a, b| a.max(b.abs()));
                    assert!(size.is_finite(), "{format:?}");
                    for other in &results[1..] {
                        for (a, b) in results[0].iter().zip(other) {
                            assert!((a - b).abs() <= 1e-5 * size, "{format:?}, {rows} rows: {a} and {b}");
                        }
                    }
                });
            }
        }
    }
}
