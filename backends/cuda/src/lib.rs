//! What decoding on NVIDIA cards lives in: memory of a device, kernels, products and graphs.
//!
//! [`Device`] is a card with one stream: everything is done in the order in which it was asked for, and nothing is waited for but what is
//! read back. What goes to and fro in each step does so through [`Pinned`] memory, while the host goes on. Its operations say what shapes they take and refuse others; the kernels behind them are in `kernels/`, in CUDA C++.
//!
//! A model may be computed by several of them together: each is a [`Rank`].
//!
//! Two things execute them. The `driver` feature is for cards. It finds the driver and cuBLAS at run time, so a program that has it starts
//! without them. The `emulator` feature is for tests: the same kernels, compiled by a C++ compiler, launched with the same grids and
//! arguments by the same code, on memory with guards around every buffer.

#![cfg_attr(
    not(any(feature = "driver", feature = "emulator")),
    expect(dead_code, reason = "with nothing that executes, there is no device to ask")
)]

mod device;
#[cfg(feature = "driver")]
mod driver;
#[cfg(feature = "emulator")]
mod emulator;
mod error;
mod executor;
#[cfg(feature = "emulator")]
mod meeting;
#[cfg(feature = "driver")]
mod nccl;
#[cfg(feature = "driver")]
mod nccl_library;
mod number;
mod ops;
mod pinned;
mod rank;

pub use device::{Buffer, Device, Graph, Place};
#[cfg(feature = "emulator")]
pub use emulator::Fault;
pub use error::CudaError;
pub use number::{Number, WeightFormat};
pub use ops::{
    Activation, Attention, Bias, Chooser, Choosing, HeadNorms, Input, KvPages, LogitMap, MOST_EXPERTS, MOST_TOKENS,
    MOST_WIDTH, Norm, PROMPT_ROWS, Routing, Rows, SKINNY_ROWS, SampleParams, Scene, Turns, Weight, waiting_for,
};
pub use pinned::{Copying, Outbox, Pinned};
pub use rank::Rank;
