use super::{F32, F64, I32, ROW_THREADS, Weight, blocks, grid, optional, size};
use crate::{
    Buffer, CudaError, Device, Number, Place, WeightFormat,
    executor::{Arg, Extent},
};

/// Numbers that a row of the hidden state may have: those that a block of threads keeps in registers.
pub const MOST_WIDTH: usize = 1024 * KEPT;

/// As many of a row as a thread may keep. It has half of that if there are threads enough: more of them wait for less.
const KEPT: usize = 16;

/// Threads that a row of so many numbers is divided among.
fn threads(width: usize) -> u32 {
    assert!(width <= MOST_WIDTH, "a row of {width} numbers");
    grid(width.div_ceil(KEPT / 2).next_multiple_of(32).min(1024))
}

/// Of operands that kernels load by fours, where rows are as wide as some of them.
fn by_fours(place: Place<'_>, bytes: usize) -> Arg {
    let address = place.address_of(bytes);
    assert!(address.is_multiple_of(16), "an operand at {address:#x}");
    Arg::Address(address)
}

/// Weights of a norm, in F32, and what keeps its divisor from nothing.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub weight: &'a Buffer,
    pub eps: f32,
}

/// Numbers in F32 that are added to each row, if there are any.
pub type Bias<'a> = Option<&'a Buffer>;

/// What an MLP does to its gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU by its approximation with a hyperbolic tangent.
    GeluTanh,
}

/// What becomes of the head's products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogitMap {
    Plain,
    Divided(f32),
    /// Softly kept between the number and its negative.
    Capped(f32),
}

/// Angles per position, on the device.
#[derive(Debug)]
pub struct Turns {
    frequencies: Buffer,
    pairs: usize,
    magnitude: f64,
}

impl Turns {
    /// Radians per position for each pair of a head, and what turned points are stretched by.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Device, frequencies: &[f64], magnitude: f64) -> Result<Self, CudaError> {
        let bytes: Vec<u8> = frequencies.iter().flat_map(|frequency| frequency.to_le_bytes()).collect();
        Ok(Self { frequencies: device.allocate_with(&bytes)?, pairs: frequencies.len(), magnitude })
    }

    /// Pairs of a head that are turned.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs
    }
}

/// What a block of the model made, on its way to the hidden state.
#[derive(Clone, Copy, Debug)]
struct Delta<'a> {
    values: Place<'a>,
    bias: Bias<'a>,
    scale: f32,
    norm: Option<&'a Buffer>,
}

/// Rows of the hidden state, about to go into the next block of the model.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    hidden: Place<'a>,
    width: usize,
    rows: usize,
    eps: f32,
    delta: Option<Delta<'a>>,
    picked: Option<Place<'a>>,
}

impl<'a> Rows<'a> {
    /// `rows` rows of `width` F32 each.
    #[must_use]
    pub fn new(hidden: Place<'a>, rows: usize, width: usize, eps: f32) -> Self {
        Self { hidden, width, rows, eps, delta: None, picked: None }
    }

    /// Adds `values`, of the shape of the hidden state, with their bias, normalised by `norm` if there is one, times `scale`.
    #[must_use]
    pub fn add(self, values: Place<'a>, bias: Bias<'a>, norm: Option<&'a Buffer>, scale: f32) -> Self {
        Self { delta: Some(Delta { values, bias, scale, norm }), ..self }
    }

    /// Goes on with so many rows, whose numbers `rows` has in I32; others are left as they are.
    #[must_use]
    pub fn pick(self, rows: Place<'a>, count: usize) -> Self {
        Self { picked: Some(rows), rows: count, ..self }
    }

    /// Writes the sums, normalised by `norm` if there is one, to `out` as `number`, and to the hidden state as they are.
    ///
    /// # Errors
    /// Those of the device.
    pub fn enter(
        self,
        device: &Device,
        norm: Option<&Buffer>,
        out: Place<'_>,
        number: Number,
    ) -> Result<(), CudaError> {
        let Self { hidden, width, rows, eps, delta, picked } = self;
        // Which rows are picked only the device knows; the hidden state has at least one.
        let known = if picked.is_some() { width } else { rows * width } * F32;
        let nothing = Arg::Address(0);
        let arguments = [
            by_fours(hidden, known),
            delta.map_or(nothing, |delta| by_fours(delta.values, known)),
            delta.map_or(nothing, |delta| optional(delta.bias, width)),
            Arg::F32(delta.map_or(1.0, |delta| delta.scale)),
            delta.map_or(nothing, |delta| optional(delta.norm, width)),
            optional(norm, width),
            picked.map_or(nothing, |rows_of| rows_of.for_bytes(rows * I32)),
            by_fours(out, rows * width * number.bytes()),
            size(width),
            Arg::F32(eps),
        ];
        let extent = Extent { grid: [grid(rows), 1, 1], threads: threads(width), shared_bytes: 0 };
        device.launch(&format!("add_norm_{}", number.kernel()), extent, &arguments)
    }
}

impl Device {
    /// Replaces the rows of `hidden` by the vectors of `tokens` (I32), times `scale`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn embed(
        &self,
        table: &Weight,
        tokens: Place<'_>,
        rows: usize,
        hidden: Place<'_>,
        scale: f32,
    ) -> Result<(), CudaError> {
        let arguments = [
            table.place(),
            tokens.for_bytes(rows * I32),
            by_fours(hidden, rows * table.inputs() * F32),
            size(table.inputs()),
            Arg::F32(scale),
        ];
        let extent = Extent { grid: [grid(rows), 1, 1], threads: threads(table.inputs()), shared_bytes: 0 };
        self.launch(&format!("embed_{}", table.format().kernel()), extent, &arguments)
    }

    /// Writes to `out`, `width` numbers for each row, the first half of each row of `gate_up` (F32), activated, times the second half.
    ///
    /// # Errors
    /// Those of the device.
    #[expect(clippy::too_many_arguments, reason = "operands and their shape")]
    pub fn gated(
        &self,
        activation: Activation,
        gate_up: Place<'_>,
        bias: Bias<'_>,
        rows: usize,
        width: usize,
        out: Place<'_>,
        number: Number,
    ) -> Result<(), CudaError> {
        let arguments = [
            by_fours(gate_up, rows * 2 * width * F32),
            optional(bias, 2 * width),
            by_fours(out, rows * width * number.bytes()),
            size(width),
            Arg::I32((activation == Activation::GeluTanh).into()),
        ];
        // A thread makes four products. Rows first: of them there may be more than the other dimensions have room for.
        let blocks = blocks(width.div_ceil(4), ROW_THREADS);
        let extent = Extent { grid: [grid(rows), blocks, 1], threads: ROW_THREADS, shared_bytes: 0 };
        self.launch(&format!("gated_{}", number.kernel()), extent, &arguments)
    }

    /// Writes the cosine and the sine of each position (I32) and pair to `out`, in F32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn angles(&self, turns: &Turns, positions: Place<'_>, rows: usize, out: Place<'_>) -> Result<(), CudaError> {
        let Turns { frequencies, pairs, magnitude } = turns;
        let arguments = [
            positions.for_bytes(rows * I32),
            frequencies.all().for_bytes(pairs * F64),
            Arg::F64(*magnitude),
            out.for_bytes(rows * pairs * 2 * F32),
            size(*pairs),
            size(rows),
        ];
        let extent = Extent { grid: [blocks(rows * pairs, ROW_THREADS), 1, 1], threads: ROW_THREADS, shared_bytes: 0 };
        self.launch("angles", extent, &arguments)
    }

    /// Makes logits of `count` products, in place.
    ///
    /// # Errors
    /// Those of the device.
    pub fn map_logits(&self, map: LogitMap, logits: Place<'_>, count: usize) -> Result<(), CudaError> {
        let (factor, cap) = match map {
            LogitMap::Plain => return Ok(()),
            LogitMap::Divided(divisor) => (1.0 / divisor, 0.0),
            LogitMap::Capped(cap) => (1.0, cap),
        };
        let count_argument = Arg::I64(i64::try_from(count).expect("a number of logits"));
        let arguments = [logits.for_bytes(count * F32), Arg::F32(factor), Arg::F32(cap), count_argument];
        let extent = Extent { grid: [blocks(count, ROW_THREADS), 1, 1], threads: ROW_THREADS, shared_bytes: 0 };
        self.launch("map_logits", extent, &arguments)
    }
}

impl WeightFormat {
    /// Whether rows of so many values can be kept in it.
    #[must_use]
    pub fn divides(self, values: usize) -> bool {
        values.is_multiple_of(self.block().0)
    }
}
