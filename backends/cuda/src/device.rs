use std::{fmt, sync::Arc};

use crate::{
    CudaError,
    executor::{Arg, Done, Executor, Extent, Gemm},
};

/// A card, or what stands for one. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Device(Arc<dyn Executor>);

impl Device {
    /// The card of that number, in the order of `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// [`CudaError::Unavailable`], with what is missing in words.
    #[cfg(feature = "driver")]
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        Ok(Self(Arc::new(crate::driver::Driver::open(ordinal)?)))
    }

    /// There is none: the program was built without support for cards.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "driver"))]
    pub fn open(_: usize) -> Result<Self, CudaError> {
        Err(CudaError::Unavailable("this program was built without the feature cuda".to_owned()))
    }

    /// One that computes on the CPU, slowly and with every write looked at.
    #[cfg(feature = "emulator")]
    #[must_use]
    pub fn emulated() -> Self {
        Self(Arc::new(crate::emulator::Emulator::default()))
    }

    #[cfg(any(feature = "driver", feature = "emulator"))]
    pub(crate) fn from_executor(executor: Arc<dyn Executor>) -> Self {
        Self(executor)
    }

    /// Cards that follow each other, the first of that number, which compute one model together.
    ///
    /// # Errors
    /// As [`open`](Self::open) has it, and when there are fewer.
    #[cfg(feature = "driver")]
    pub fn open_all(first: usize, count: usize) -> Result<Vec<Self>, CudaError> {
        let drivers = crate::driver::Driver::open_all(first, count)?;
        Ok(drivers.into_iter().map(|driver| Self(Arc::new(driver))).collect())
    }

    /// There are none: the program was built without support for cards.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "driver"))]
    pub fn open_all(first: usize, _: usize) -> Result<Vec<Self>, CudaError> {
        Self::open(first).map(|device| vec![device])
    }

    /// What it is, for people.
    #[must_use]
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// Bytes that are free now, and all there are.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.0.memory()
    }

    /// Blocks of threads that run at the same time, at least.
    #[must_use]
    pub fn processors(&self) -> u32 {
        self.0.processors()
    }

    /// Whether it was built with FlashAttention-2's kernels, which are for prompts.
    #[must_use]
    pub fn has_flash_attention(&self) -> bool {
        self.0.has_flash_attention()
    }

    /// Memory whose content is anything.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or when the device has failed.
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, CudaError> {
        // A device gives nothing for nothing.
        let address = self.0.allocate(bytes.max(1))?;
        Ok(Buffer { address, bytes, device: self.clone() })
    }

    /// Memory with this in it.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate) has it.
    pub fn allocate_with(&self, content: &[u8]) -> Result<Buffer, CudaError> {
        let buffer = self.allocate(content.len())?;
        buffer.write(0, content)?;
        Ok(buffer)
    }

    /// Waits for all that was asked for.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.0.synchronize()
    }

    /// Replaces the beginning of a buffer by another one.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When that goes beyond the end.
    pub fn copy(&self, from: &Buffer, to: &Buffer) -> Result<(), CudaError> {
        assert!(from.bytes <= to.bytes && from.address != to.address, "{} bytes into {}", from.bytes, to.bytes);
        // SAFETY: both are buffers, and not the same.
        unsafe { self.0.copy(from.address, to.address, from.bytes) }
    }

    /// Writes down what `work` asks for, to be carried out again and again at once. It must allocate, write and read nothing.
    ///
    /// # Errors
    /// Those of `work`, and of the device.
    pub fn record(&self, work: impl FnOnce() -> Result<(), CudaError>) -> Result<Graph, CudaError> {
        self.0.begin_capture()?;
        let worked = work();
        // Ended in any case, or nothing would be carried out any more.
        let graph = self.0.end_capture();
        worked?;
        Ok(Graph { number: graph?, device: self.clone() })
    }

    pub(crate) fn executor(&self) -> &dyn Executor {
        &*self.0
    }

    /// The shapes and the places of all operands have been looked at.
    pub(crate) fn launch(&self, kernel: &str, extent: Extent, arguments: &[Arg]) -> Done {
        if extent.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: operations derive their extents and arguments from buffers of this device, and look at their sizes first.
        unsafe { self.0.launch(kernel, extent, arguments) }
    }

    pub(crate) fn gemm(&self, gemm: &Gemm) -> Done {
        // SAFETY: as for `launch`.
        unsafe { self.0.gemm(gemm) }
    }
}

/// Memory of a device, given back when it is dropped.
pub struct Buffer {
    address: u64,
    bytes: usize,
    device: Device,
}

impl Buffer {
    /// How much it is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Where it begins.
    #[must_use]
    pub fn all(&self) -> Place<'_> {
        self.at(0)
    }

    /// What lies from a byte on.
    ///
    /// # Panics
    /// When that is beyond the end.
    #[must_use]
    pub fn at(&self, offset: usize) -> Place<'_> {
        assert!(offset <= self.bytes, "byte {offset} of {}", self.bytes);
        Place { address: self.address + offset as u64, bytes: self.bytes - offset, buffer: std::marker::PhantomData }
    }

    /// Replaces what lies from a byte on.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When that goes beyond the end.
    pub fn write(&self, offset: usize, content: &[u8]) -> Result<(), CudaError> {
        let place = self.at(offset);
        assert!(content.len() <= place.bytes, "{} bytes into {}", content.len(), place.bytes);
        // SAFETY: the place is within this buffer.
        unsafe { self.device.0.upload(place.address, content) }
    }

    /// Waits for the device, and reads what lies from a byte on.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When that goes beyond the end.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), CudaError> {
        let place = self.at(offset);
        assert!(into.len() <= place.bytes, "{} bytes of {}", into.len(), place.bytes);
        // SAFETY: the place is within this buffer.
        unsafe { self.device.0.download(place.address, into) }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Makes all of it zeros.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn clear(&self) -> Result<(), CudaError> {
        // SAFETY: it is this buffer.
        unsafe { self.device.0.zero(self.address, self.bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the address was allocated for this buffer, which is the only one that has it.
        unsafe { self.device.0.free(self.address) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// What lies from somewhere in a buffer to its end.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    address: u64,
    bytes: usize,
    buffer: std::marker::PhantomData<&'a Buffer>,
}

impl Place<'_> {
    /// What lies so many bytes further on.
    ///
    /// # Panics
    /// When that is beyond the end.
    #[must_use]
    pub fn skip(self, bytes: usize) -> Self {
        assert!(bytes <= self.bytes, "byte {bytes} of {}", self.bytes);
        Self { address: self.address + bytes as u64, bytes: self.bytes - bytes, ..self }
    }

    /// As an argument of a kernel that works on so many bytes of it.
    ///
    /// # Panics
    /// When there are fewer.
    pub(crate) fn for_bytes(self, bytes: usize) -> Arg {
        Arg::Address(self.address_of(bytes))
    }

    pub(crate) fn address_of(self, bytes: usize) -> u64 {
        assert!(bytes <= self.bytes, "an operand of {bytes} bytes in {}", self.bytes);
        self.address
    }
}

/// Work that was written down, to be carried out at once. Once a buffer that it works on is dropped, it is of no use: a card answers that the
/// address is illegal.
pub struct Graph {
    number: u64,
    device: Device,
}

impl Graph {
    /// Carries it out.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn replay(&self) -> Result<(), CudaError> {
        // SAFETY: what was dropped since is refused, by the card or by the emulator.
        unsafe { self.device.0.replay(self.number) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.0.drop_graph(self.number);
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("number", &self.number).finish_non_exhaustive()
    }
}
