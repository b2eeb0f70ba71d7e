//! What carries out what a device is asked for: a card, or the emulator.

use std::fmt::Debug;

use crate::{CudaError, Number};

pub(crate) type Done = Result<(), CudaError>;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    /// Of memory of the device; 0 is none.
    Address(u64),
    I32(i32),
    I64(i64),
    F32(f32),
    F64(f64),
}

impl Arg {
    /// As it lies in memory, from the first byte on.
    pub(crate) fn bits(self) -> u64 {
        match self {
            Self::Address(address) => address,
            Self::I32(number) => u64::from(number.cast_unsigned()),
            Self::I64(number) => number.cast_unsigned(),
            Self::F32(number) => u64::from(number.to_bits()),
            Self::F64(number) => number.to_bits(),
        }
    }
}

/// How many blocks of how many threads, and their shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

/// `y = x Wᵀ`, row-major: `x` is `rows` × `inputs`, `W` `outputs` × `inputs`, and `y` in F32 with rows `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    pub(crate) number: Number,
    pub(crate) weight: u64,
    pub(crate) x: u64,
    pub(crate) y: u64,
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) stride: usize,
}

/// Page-locked memory of the host, with what says when the last copy from it or to it is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pin {
    /// Where it begins.
    pub(crate) host: u64,
    /// What it is known by, to whoever made it.
    pub(crate) event: u64,
}

impl Pin {
    pub(crate) fn host(self) -> *mut u8 {
        self.host as *mut u8
    }
}

/// Everything happens in the order of the calls. Addresses are those that [`allocate`](Self::allocate) gave, or lie behind them within what
/// was asked for; that is the caller's to see to, and why most of it is unsafe.
pub(crate) trait Executor: Debug + Send + Sync {
    /// What it is, for the log.
    fn name(&self) -> String;
    /// Bytes that are free, and all there are.
    fn memory(&self) -> Result<(u64, u64), CudaError>;
    /// How many blocks of threads run at the same time, at least.
    fn processors(&self) -> u32;
    /// Whether it has the kernels of `kernels/flash.cu`.
    fn has_flash_attention(&self) -> bool {
        false
    }
    /// Memory whose content is anything.
    fn allocate(&self, bytes: usize) -> Result<u64, CudaError>;
    /// # Safety
    /// The address is one that was allocated and not freed.
    unsafe fn free(&self, address: u64);
    /// # Safety
    /// There are so many bytes allocated at the address.
    unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Done;
    /// Waits for all that was asked for before.
    ///
    /// # Safety
    /// There are so many bytes allocated at the address.
    unsafe fn download(&self, address: u64, bytes: &mut [u8]) -> Done;
    /// Page-locked memory of the host, whose content is anything.
    fn pin(&self, bytes: usize) -> Result<Pin, CudaError>;
    /// # Safety
    /// It was pinned here and not unpinned, and no copy from it or to it is under way.
    unsafe fn unpin(&self, pin: Pin);
    /// As [`upload`](Self::upload), from pinned memory and without waiting for anything.
    ///
    /// # Safety
    /// There are so many bytes at both. Until [`wait`](Self::wait) has returned nobody writes to the host's, nor unpins them.
    unsafe fn upload_later(&self, address: u64, pin: Pin, bytes: usize) -> Done;
    /// As [`download`](Self::download), to pinned memory and without waiting for anything.
    ///
    /// # Safety
    /// There are so many bytes at both. Until [`wait`](Self::wait) has returned nobody looks at the host's, nor unpins them.
    unsafe fn download_later(&self, address: u64, pin: Pin, bytes: usize) -> Done;
    /// Waits for the last copy from this memory or to it, if there was one, and not for what was asked for since.
    ///
    /// # Safety
    /// It was pinned here and not unpinned.
    unsafe fn wait(&self, pin: Pin) -> Done;
    /// # Safety
    /// There are so many bytes allocated at the address.
    unsafe fn zero(&self, address: u64, bytes: usize) -> Done;
    /// # Safety
    /// There are so many bytes allocated at both addresses, and none of them is the other's.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Done;
    /// Waits for all that was asked for.
    fn synchronize(&self) -> Done;
    /// # Safety
    /// The arguments are those of the kernel, and it stays within what is allocated.
    unsafe fn launch(&self, kernel: &str, extent: Extent, arguments: &[Arg]) -> Done;
    /// # Safety
    /// The matrices are allocated.
    unsafe fn gemm(&self, gemm: &Gemm) -> Done;
    /// From here on launches and products are written down and not carried out.
    fn begin_capture(&self) -> Done;
    /// What was written down since, by its number.
    fn end_capture(&self) -> Result<u64, CudaError>;
    /// Carries out what was written down.
    ///
    /// # Safety
    /// What it works on is still allocated.
    unsafe fn replay(&self, graph: u64) -> Done;
    fn drop_graph(&self, graph: u64);
}
