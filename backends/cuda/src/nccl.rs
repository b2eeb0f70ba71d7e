//! Ranks on cards, through NCCL.

use std::{
    ffi::c_int,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use crate::{
    CudaError,
    driver::Driver,
    executor::{Done, Executor as _},
    nccl_library::{Communicator, Config, FLOAT, Functions, IN_PROGRESS, INTEGER, SUCCESS, SUM, UniqueId},
    rank::Collective,
};

/// The communicators of all ranks, each of which works in the stream of its card. What is asked for there is recorded like all else.
///
/// None of them blocks: while NCCL connects ranks to each other a call is in progress, and whoever asked for it waits here, where it can be
/// told that another rank has failed. What a card waits for ends when its communicator is aborted.
#[derive(Debug)]
pub(crate) struct Nccl(Arc<Members>);

struct Members {
    functions: Functions,
    members: Vec<Member>,
}

struct Member {
    driver: Arc<Driver>,
    /// None once it was aborted. The lock is held for calls that do not wait.
    communicator: Mutex<Option<Communicator>>,
}

impl Nccl {
    /// Of cards in the order of their ranks.
    pub(crate) fn open(drivers: Vec<Arc<Driver>>) -> Result<Self, CudaError> {
        let functions = Functions::load()?;
        let ranks = c_int::try_from(drivers.len()).expect("a number of cards");
        let mut id = std::mem::MaybeUninit::<UniqueId>::uninit();
        // SAFETY: it writes an id where there is room for one, if it succeeds.
        let id = unsafe {
            match (functions.get_unique_id)(id.as_mut_ptr()) {
                SUCCESS => id.assume_init(),
                result => return Err(functions.error("ncclGetUniqueId", result)),
            }
        };
        let mut communicators = vec![Communicator::NONE; drivers.len()];
        let mut config = Config::not_blocking();
        // All are begun before any is waited for, or the first would wait for the others.
        // SAFETY: each writes a communicator where there is room for one, which belongs to the card that is bound to the thread.
        let begun = unsafe {
            let mut result = (functions.group_start)();
            for (rank, (driver, communicator)) in (0..).zip(drivers.iter().zip(&mut communicators)) {
                // What cannot be bound any more is found by NCCL: the group has to be ended in any case.
                let _ = driver.bind();
                let begun = (functions.init_rank)(communicator, ranks, id, rank, &raw mut config);
                result = if is_well(result) { begun } else { result };
            }
            let ended = (functions.group_end)();
            if is_well(result) { ended } else { result }
        };
        if !is_well(begun) {
            return Err(functions.error("ncclCommInitRankConfig", begun));
        }
        let members = drivers
            .into_iter()
            .zip(communicators)
            .map(|(driver, communicator)| Member { driver, communicator: Mutex::new(Some(communicator)) });
        let nccl = Self(Arc::new(Members { functions, members: members.collect() }));
        (0..nccl.0.members.len())
            .try_for_each(|rank| nccl.0.ask(rank, "ncclCommInitRankConfig", |_, _| IN_PROGRESS))?;
        Ok(nccl)
    }
}

fn is_well(result: c_int) -> bool {
    matches!(result, SUCCESS | IN_PROGRESS)
}

impl Members {
    /// Asks a rank's communicator for something, and waits until it was taken up.
    fn ask(&self, rank: usize, call: &'static str, work: impl FnOnce(&Functions, Communicator) -> c_int) -> Done {
        self.members[rank].driver.bind()?;
        let mut result = self.with(rank, |communicator| work(&self.functions, communicator))?;
        while result == IN_PROGRESS {
            thread::yield_now();
            result = self.with(rank, |communicator| self.state(communicator))?;
        }
        if result == SUCCESS { Ok(()) } else { Err(self.functions.error(call, result)) }
    }

    fn with(&self, rank: usize, work: impl FnOnce(Communicator) -> c_int) -> Result<c_int, CudaError> {
        let communicator = self.members[rank].communicator.lock().unwrap_or_else(PoisonError::into_inner);
        let aborted = || CudaError::Failed { call: "NCCL", reason: "another rank has failed".to_owned() };
        communicator.map(work).ok_or_else(aborted)
    }

    fn state(&self, communicator: Communicator) -> c_int {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives, and one number is written.
        let asked = unsafe { (self.functions.get_async_error)(communicator, &raw mut state) };
        if asked == SUCCESS { state } else { asked }
    }

    fn abort(&self) {
        for Member { driver, communicator } in &self.members {
            let taken = communicator.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(communicator) = taken else { continue };
            // A card that is lost has nothing to end.
            if driver.bind().is_ok() {
                // SAFETY: nobody has it any more.
                unsafe { (self.functions.abort)(communicator) };
            }
        }
    }
}

impl Collective for Nccl {
    unsafe fn all_reduce(&self, rank: usize, address: u64, count: usize) -> Done {
        let stream = self.0.members[rank].driver.stream().cast();
        self.0.ask(rank, "ncclAllReduce", |functions, communicator| {
            // SAFETY: the caller's; the stream is that of the communicator's card.
            unsafe { (functions.all_reduce)(address, address, count, FLOAT, SUM, communicator, stream) }
        })
    }

    unsafe fn gather(&self, rank: usize, from: u64, count: usize, to: u64) -> Done {
        let Member { driver, .. } = &self.0.members[rank];
        let (ranks, stream) = (self.0.members.len(), driver.stream().cast());
        if rank == 0 && from != to {
            // SAFETY: the caller's.
            unsafe { driver.copy(from, to, count * size_of::<f32>()) }?;
        }
        self.0.ask(rank, "ncclSend and ncclRecv", |functions, communicator| {
            // SAFETY: the caller's; the stream is that of the communicator's card.
            unsafe {
                let mut result = (functions.group_start)();
                if rank == 0 {
                    for other in 1..ranks {
                        let place = to + (other * count * size_of::<f32>()) as u64;
                        let received = (functions.receive)(place, count, FLOAT, other as c_int, communicator, stream);
                        result = if is_well(result) { received } else { result };
                    }
                } else if is_well(result) {
                    result = (functions.send)(from, count, FLOAT, 0, communicator, stream);
                }
                let ended = (functions.group_end)();
                if is_well(result) { ended } else { result }
            }
        })
    }

    unsafe fn broadcast(&self, rank: usize, address: u64, count: usize) -> Done {
        let stream = self.0.members[rank].driver.stream().cast();
        self.0.ask(rank, "ncclBroadcast", |functions, communicator| {
            // SAFETY: the caller's; the stream is that of the communicator's card.
            unsafe { (functions.broadcast)(address, address, count, INTEGER, 0, communicator, stream) }
        })
    }

    /// On a thread of its own: an abort returns when graphs that have the communicator's work in them are gone, and whoever says that a rank has
    /// failed may have one.
    fn abort(&self) {
        let members = Arc::clone(&self.0);
        let aborting = thread::Builder::new().name("nccl-abort".to_owned()).spawn(move || members.abort());
        if let Err(error) = aborting {
            tracing::error!(%error, "NCCL was not aborted: other GPUs may wait for the one that failed");
        }
    }

    fn check(&self, rank: usize) -> Done {
        match self.0.with(rank, |communicator| self.0.state(communicator))? {
            state if is_well(state) => Ok(()),
            state => Err(self.0.functions.error("ncclCommGetAsyncError", state)),
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.abort();
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("ranks", &self.members.len()).finish_non_exhaustive()
    }
}
