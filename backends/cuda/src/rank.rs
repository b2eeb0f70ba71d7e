//! Devices that compute one model together.

use std::{
    fmt::Debug,
    ops::Range,
    sync::{Arc, OnceLock},
};

use crate::{CudaError, Device, Place, executor::Done};

const F32: usize = 4;

/// What carries out what ranks do with each other, in the order in which each of them asks its device for things.
///
/// All ranks ask for the same in the same order, each from a thread of its own.
pub(crate) trait Collective: Debug + Send + Sync {
    /// Replaces F32s of each rank by their sums over all ranks.
    ///
    /// # Safety
    /// There are so many numbers allocated at the address, on the device of the rank.
    unsafe fn all_reduce(&self, rank: usize, address: u64, count: usize) -> Done;
    /// Brings F32s of all ranks to the first one, in the order of ranks; to others `to` is nothing.
    ///
    /// # Safety
    /// There are `count` numbers allocated at `from`, and as many for each rank at `to` on the first. Its own may be where they belong.
    unsafe fn gather(&self, rank: usize, from: u64, count: usize, to: u64) -> Done;
    /// Replaces words of 32 bits of each rank by those of the first.
    ///
    /// # Safety
    /// There are so many words allocated at the address, on the device of the rank.
    unsafe fn broadcast(&self, rank: usize, address: u64, count: usize) -> Done;
    /// Ends what any rank waits for, and lets none begin anything again.
    fn abort(&self);
    /// Whether what the rank asked for has been carried out so far without an error that nobody was told of yet.
    fn check(&self, rank: usize) -> Done;
}

/// A device, and its place among those that compute one model. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Rank {
    device: Device,
    rank: usize,
    ranks: usize,
    /// None where there is but one.
    group: Option<Group>,
}

#[derive(Clone, Debug)]
struct Group {
    collective: Arc<dyn Collective>,
    /// Why it is over; known to all ranks.
    failure: Arc<OnceLock<CudaError>>,
}

impl Rank {
    /// The one rank of a model that one device computes.
    #[must_use]
    pub fn alone(device: Device) -> Self {
        Self { device, rank: 0, ranks: 1, group: None }
    }

    /// Cards that follow each other, in the order of `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// [`CudaError::Unavailable`], with what is missing in words: cards, or NCCL where there is to be more than one.
    #[cfg(feature = "driver")]
    pub fn open(first: usize, ranks: usize) -> Result<Vec<Self>, CudaError> {
        let drivers = crate::driver::Driver::open_all(first, ranks)?;
        let drivers: Vec<_> = drivers.into_iter().map(Arc::new).collect();
        let devices = drivers.iter().map(|driver| Device::from_executor(Arc::<crate::driver::Driver>::clone(driver)));
        let devices = devices.collect();
        if ranks == 1 {
            return Ok(Self::group(devices, None));
        }
        let nccl = crate::nccl::Nccl::open(drivers.clone())?;
        Ok(Self::group(devices, Some(Arc::new(nccl))))
    }

    /// There are none: the program was built without support for cards.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "driver"))]
    pub fn open(first: usize, _: usize) -> Result<Vec<Self>, CudaError> {
        Device::open(first).map(|device| vec![Self::alone(device)])
    }

    /// So many that compute on the CPU.
    #[cfg(feature = "emulator")]
    #[must_use]
    pub fn emulated(ranks: usize) -> Vec<Self> {
        Self::of_emulators((0..ranks).map(|_| crate::emulator::Emulator::default()))
    }

    /// The same, one of which fails after so many kernels.
    #[cfg(feature = "emulator")]
    #[must_use]
    pub fn emulated_with_fault(ranks: usize, failing: usize, kernels: usize, fault: crate::Fault) -> Vec<Self> {
        Self::of_emulators((0..ranks).map(|rank| {
            if rank == failing {
                crate::emulator::Emulator::failing_after(kernels, fault)
            } else {
                crate::emulator::Emulator::default()
            }
        }))
    }

    #[cfg(feature = "emulator")]
    fn of_emulators(emulators: impl Iterator<Item = crate::emulator::Emulator>) -> Vec<Self> {
        let emulators: Vec<_> = emulators.map(Arc::new).collect();
        let devices = emulators
            .iter()
            .map(|emulator| Device::from_executor(Arc::<crate::emulator::Emulator>::clone(emulator)))
            .collect();
        let meeting = Arc::new(crate::meeting::Meeting::new(emulators.len()));
        let collective: Option<Arc<dyn Collective>> = match emulators.len() {
            1 => None,
            _ => Some(Arc::new(Emulated { emulators, meeting })),
        };
        Self::group(devices, collective)
    }

    #[cfg_attr(not(any(feature = "driver", feature = "emulator")), expect(dead_code, reason = "there is no device"))]
    fn group(devices: Vec<Device>, collective: Option<Arc<dyn Collective>>) -> Vec<Self> {
        let ranks = devices.len();
        let group = collective.map(|collective| Group { collective, failure: Arc::default() });
        let rank = |(rank, device)| Self { device, rank, ranks, group: group.clone() };
        devices.into_iter().enumerate().map(rank).collect()
    }

    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its number, counted from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// What is this rank's of so many things, all shares being as equal as they can.
    #[must_use]
    pub fn share(&self, things: usize) -> Range<usize> {
        self.rank * things / self.ranks..(self.rank + 1) * things / self.ranks
    }

    /// Replaces the first `count` F32s there by their sums over all ranks.
    ///
    /// # Errors
    /// Those of the device; what another rank failed of.
    pub fn all_reduce(&self, place: Place<'_>, count: usize) -> Result<(), CudaError> {
        let address = place.address_of(count * F32);
        // SAFETY: so many numbers are at the place, which is on this device.
        self.together(|collective| unsafe { collective.all_reduce(self.rank, address, count) })
    }

    /// Brings the first `count` F32s at `from` of all ranks to `to` on the first rank, behind each other.
    ///
    /// # Errors
    /// Those of the device; what another rank failed of.
    ///
    /// # Panics
    /// When the first rank has no room for them.
    pub fn gather(&self, from: Place<'_>, count: usize, to: Place<'_>) -> Result<(), CudaError> {
        let room = if self.rank == 0 { self.ranks * count * F32 } else { 0 };
        let (from, to) = (from.address_of(count * F32), to.address_of(room));
        // SAFETY: so many numbers are at the places, which are on this device.
        self.together(|collective| unsafe { collective.gather(self.rank, from, count, to) })
    }

    /// Replaces the first `count` words of 32 bits there by those of the first rank.
    ///
    /// # Errors
    /// Those of the device; what another rank failed of.
    pub fn broadcast(&self, place: Place<'_>, count: usize) -> Result<(), CudaError> {
        let address = place.address_of(count * F32);
        // SAFETY: so many words are at the place, which is on this device.
        self.together(|collective| unsafe { collective.broadcast(self.rank, address, count) })
    }

    /// Ends the group: all ranks, wherever they wait for another, go on with this error. The first one counts.
    pub fn fail(&self, error: CudaError) {
        if let Some(Group { collective, failure }) = &self.group
            && failure.set(error).is_ok()
        {
            collective.abort();
        }
    }

    /// Whether all ranks are well. What was read from a device after one has failed is nothing.
    ///
    /// # Errors
    /// What a rank has failed of.
    pub fn check(&self) -> Result<(), CudaError> {
        self.together(|collective| collective.check(self.rank))
    }

    fn together(&self, work: impl FnOnce(&dyn Collective) -> Done) -> Done {
        let Some(Group { collective, failure }) = &self.group else { return Ok(()) };
        let failed = || failure.get().map_or(Ok(()), |error| Err(error.clone()));
        failed()?;
        // One that failed in the meantime is the reason why this did.
        work(&**collective).or_else(|error| failed().and(Err(error)))
    }
}

/// Ranks on the CPU.
#[cfg(feature = "emulator")]
#[derive(Debug)]
struct Emulated {
    emulators: Vec<Arc<crate::emulator::Emulator>>,
    meeting: Arc<crate::meeting::Meeting>,
}

#[cfg(feature = "emulator")]
impl Collective for Emulated {
    unsafe fn all_reduce(&self, rank: usize, address: u64, count: usize) -> Done {
        let collective = crate::emulator::Collective::AllReduce { address, count };
        // SAFETY: the caller's.
        unsafe { self.emulators[rank].together(&self.meeting, rank, collective) }
    }

    unsafe fn gather(&self, rank: usize, from: u64, count: usize, to: u64) -> Done {
        let collective = crate::emulator::Collective::Gather { from, count, to };
        // SAFETY: the caller's.
        unsafe { self.emulators[rank].together(&self.meeting, rank, collective) }
    }

    unsafe fn broadcast(&self, rank: usize, address: u64, count: usize) -> Done {
        let collective = crate::emulator::Collective::Broadcast { address, count };
        // SAFETY: the caller's.
        unsafe { self.emulators[rank].together(&self.meeting, rank, collective) }
    }

    fn abort(&self) {
        self.meeting.break_up();
    }

    fn check(&self, _: usize) -> Done {
        Ok(())
    }
}
