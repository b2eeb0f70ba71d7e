//! Products of few or many rows with weights that are packed for it, on the CPU.
//!
//! Decoding lives in *skinny* products, `y = x Wᵀ` with 1 to 64 rows of `x`: each weight is read from memory once for all of them, so one
//! row should run at the speed of memory and many at the speed of the multipliers. For that a weight is stored in *panels* of
//! [`PANEL`] outputs: what one vector instruction wants lies side by side, whatever the order in the file was.
//!
//! - [`Matrix`] is a weight as it lies in a file: dense, or quantised in one of GGUF's block formats.
//! - [`Packed`] is one or several of them in panels, ready to be multiplied with; nothing is rounded on the way there.
//! - Quantised weights meet activations that are quantised too, to 8 bits with a scale for each 32 of them, so that integer
//!   instructions do the work. Dense weights meet activations in F32; those in BF16 activations that are rounded to BF16.
//!
//! [`Attention`] is made of the same products: in [`Pages`], keys lie in panels of 16 tokens, values in panels of 16 dimensions.
//!
//! [`exp`] and the sums are for what lies between products, such as norms and activations.
//!
//! The loops are written once, over the trait `Isa`, and compiled for AVX-512 (with VNNI, with and without BF16), for AVX2, and without any particular
//! instructions for everything else; which of them runs is decided when the program starts.

mod activations;
mod attention;
mod dense;
mod elementwise;
mod exponential;
mod floats;
mod format;
mod integer;
mod isa;
mod line;
mod lines;
mod matrix;
mod pack;
mod packed;
mod pages;
mod rows;

pub use attention::{Attention, Sight, Span};
pub use elementwise::{exp, sum, sum_of_squares};
pub use isa::name as instructions;
pub use matrix::{Format, Matrix, PackError, Unread};
pub use packed::Packed;
pub use pages::{KvFormat, KvShape, Pages};

/// Outputs that are computed side by side.
pub const PANEL: usize = 16;
/// Activations that share a scale, and inputs of a block of integer weights.
const BLOCK: usize = 32;
