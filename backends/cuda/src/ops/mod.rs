//! The operations of a device: each looks at the sizes of its operands and launches kernels on them.

mod attention;
mod cache;
mod experts;
mod parts;
mod product;
mod rows;
mod sample;

pub use attention::{Attention, PROMPT_ROWS, Scene};
pub use cache::{HeadNorms, KvPages};
pub use experts::{MOST_EXPERTS, Routing};
pub use product::{Input, SKINNY_ROWS, Weight};
pub use rows::{Activation, Bias, LogitMap, MOST_WIDTH, Norm, Rows, Turns};
pub use sample::{Chooser, Choosing, MOST_TOKENS, SampleParams, waiting_for};

use crate::{Buffer, executor::Arg};

const F32: usize = 4;
const I32: usize = 4;
const I64: usize = 8;
const F64: usize = 8;

/// Threads of a block where each has a row of its own.
const ROW_THREADS: u32 = 256;

/// A size as kernels have it.
///
/// # Panics
/// When it is none that a model could have.
fn size(number: usize) -> Arg {
    Arg::I32(i32::try_from(number).expect("a size within 32 bits"))
}

fn grid(number: usize) -> u32 {
    u32::try_from(number).expect("a grid within 32 bits")
}

/// Blocks of so many threads for so many things.
fn blocks(things: usize, threads: u32) -> u32 {
    grid(things.div_ceil(threads as usize))
}

/// Numbers in F32 that may be there.
fn optional(buffer: Option<&Buffer>, count: usize) -> Arg {
    buffer.map_or(Arg::Address(0), |buffer| buffer.all().for_bytes(count * F32))
}
