use std::{
    collections::VecDeque,
    fmt,
    ops::{Deref, DerefMut},
    slice,
};

use crate::{Buffer, CudaError, Device, executor::Pin};

/// Page-locked memory of the host. A device copies from it and to it by itself, while the host goes on.
pub struct Pinned {
    pin: Pin,
    bytes: usize,
    device: Device,
}

/// A copy under way, and the memory of the host that it is made from or to: nobody has that until it is over.
#[must_use = "a copy that nobody keeps is waited for at once"]
pub struct Copying(Option<Pinned>);

/// What a device is told again and again, through two pieces of pinned memory in turn: while one is copied, the other is written.
#[derive(Debug)]
pub struct Outbox {
    device: Device,
    bytes: usize,
    pieces: VecDeque<Copying>,
}

impl Device {
    /// Page-locked memory of the host, all zeros.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or when the device has failed.
    pub fn pin(&self, bytes: usize) -> Result<Pinned, CudaError> {
        // There is no memory of nothing.
        let pin = self.executor().pin(bytes.max(1))?;
        // SAFETY: so many bytes were just allocated, and nobody else has them.
        unsafe { pin.host().write_bytes(0, bytes) };
        Ok(Pinned { pin, bytes, device: self.clone() })
    }
}

impl Buffer {
    /// Replaces what lies from a byte on by the first `bytes` of the content, in the order of all that was asked for. Does not wait.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When that goes beyond an end.
    pub fn write_later(&self, offset: usize, content: Pinned, bytes: usize) -> Result<Copying, CudaError> {
        assert!(bytes <= content.bytes, "{bytes} of {} bytes", content.bytes);
        let address = self.at(offset).address_of(bytes);
        // SAFETY: both are so large, and what is returned keeps the host's until the copy is over.
        unsafe { self.device().executor().upload_later(address, content.pin, bytes)? };
        Ok(Copying(Some(content)))
    }

    /// Copies what lies from a byte on to the first `bytes` of `into`, in the order of all that was asked for. Does not wait.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When that goes beyond an end.
    pub fn read_later(&self, offset: usize, into: Pinned, bytes: usize) -> Result<Copying, CudaError> {
        assert!(bytes <= into.bytes, "{bytes} of {} bytes", into.bytes);
        let address = self.at(offset).address_of(bytes);
        // SAFETY: as for `write_later`.
        unsafe { self.device().executor().download_later(address, into.pin, bytes)? };
        Ok(Copying(Some(into)))
    }
}

impl Copying {
    /// Waits until it is over, not for what was asked for since.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn wait(mut self) -> Result<Pinned, CudaError> {
        let pinned = self.0.take().expect("it is there until it is waited for");
        // SAFETY: it was pinned, and is until it is dropped.
        unsafe { pinned.device.executor().wait(pinned.pin)? };
        Ok(pinned)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        let Some(pinned) = &self.0 else { return };
        // SAFETY: as for `wait`. A device that has failed copies nothing any more.
        if let Err(error) = unsafe { pinned.device.executor().wait(pinned.pin) } {
            tracing::warn!(%error, "a copy was not waited for");
        }
    }
}

impl Outbox {
    /// For content of up to so many bytes.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or when the device has failed.
    pub fn new(device: &Device, bytes: usize) -> Result<Self, CudaError> {
        let pieces = (0..2).map(|_| Ok(Copying(Some(device.pin(bytes)?))));
        Ok(Self { device: device.clone(), bytes, pieces: pieces.collect::<Result<_, CudaError>>()? })
    }

    /// Replaces the first `bytes` of a buffer, in the order of all that was asked for. Waits for the copy before the last one, if that is not
    /// over yet.
    ///
    /// # Errors
    /// When the device has failed.
    ///
    /// # Panics
    /// When that goes beyond an end.
    pub fn send(&mut self, to: &Buffer, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), CudaError> {
        assert!(bytes <= self.bytes, "{bytes} of {} bytes", self.bytes);
        let mut piece = match self.pieces.pop_front() {
            Some(copying) => copying.wait()?,
            // What an error has cost.
            None => self.device.pin(self.bytes)?,
        };
        fill(&mut piece[..bytes]);
        self.pieces.push_back(to.write_later(0, piece, bytes)?);
        Ok(())
    }
}

impl Pinned {
    /// Its content as numbers of F32, all that are whole.
    #[must_use]
    pub fn numbers(&self) -> &[f32] {
        // SAFETY: any four bytes are a number; page-locked memory begins where any type may.
        let (before, numbers, _) = unsafe { self.align_to() };
        assert!(before.is_empty(), "pinned memory begins where a page does");
        numbers
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are pinned, they were all written when they were, and no copy is under way while this is there.
        unsafe { slice::from_raw_parts(self.pin.host(), self.bytes) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and there is one of it.
        unsafe { slice::from_raw_parts_mut(self.pin.host(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it was pinned for this, which is the only one that has it; no copy is under way.
        unsafe { self.device.executor().unpin(self.pin) }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl fmt::Debug for Copying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Copying").field(&self.0).finish()
    }
}
