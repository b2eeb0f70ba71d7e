use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use tandem_core::{AheadStep, LoadError};
use tandem_cuda::{Buffer, CudaError, Device, Pinned, Rank};

use super::{
    DeviceDecoder,
    decoder::{DeviceStepError, Planned},
};
use crate::weights::Weights;

/// Steps that a rank may be told of before it has asked its device for the first of them: one more than is computed.
const AHEAD: usize = 2;

/// A decoder on one device, or divided among several.
///
/// The first rank lives on the thread that calls, every other one on its own, and all are told the same. They meet on their devices, where they
/// add up what they made; nobody waits for a thread. A rank that fails ends the group, so that none waits for it: not on a device, where the
/// collective operations are aborted, and not here.
#[derive(Debug)]
pub(crate) struct ParallelDecoder {
    first: DeviceDecoder,
    others: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    /// Dropped to end it.
    orders: Option<SyncSender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What a rank does next.
#[derive(Clone, Debug)]
enum Order {
    Forward(Arc<Planned>),
    /// Logits of the rows that are scored, in the same pieces on all.
    Score,
}

impl ParallelDecoder {
    /// Of ranks that take their weights side by side.
    pub(crate) fn load(
        ranks: &[Rank],
        weights: Weights,
        load: impl Fn(&Rank, Weights) -> Result<DeviceDecoder, LoadError> + Sync,
    ) -> Result<Self, LoadError> {
        let [first, others @ ..] = ranks else { unreachable!("a model has a rank") };
        let (first, others) = thread::scope(|scope| {
            let load = &load;
            let others = others.iter().map(|rank| {
                let weights = weights.again();
                scope.spawn(move || load(rank, weights))
            });
            let others: Vec<_> = others.collect();
            let first = load(first, weights);
            let others = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
            (first, others.collect::<Result<Vec<_>, _>>())
        });
        let mut all = Self { first: first?, others: Vec::new() };
        for decoder in others? {
            all.others.push(Worker::start(decoder)?);
        }
        Ok(all)
    }

    /// Asks for one pass on all ranks. Returns while they compute.
    pub(crate) fn forward(&mut self, step: &AheadStep<'_>) -> Result<(), DeviceStepError> {
        let planned = Arc::new(self.first.plan(step)?);
        self.tell(&Order::Forward(Arc::clone(&planned)))?;
        let done = self.first.forward(&planned);
        Ok(self.or_end(done)?)
    }

    /// The logits on the device, of the rows that tokens are sampled after, and where the next step looks for what is chosen from them.
    pub(crate) fn sampled_logits(&self) -> (&Device, &Buffer, &Buffer) {
        self.first.sampled_logits()
    }

    /// Those of some of these rows. To be given back.
    pub(crate) fn rows(&mut self, rows: &[usize]) -> Result<Vec<Pinned>, CudaError> {
        self.first.rows(rows)
    }

    /// Takes back what rows came to.
    pub(crate) fn give_back(&mut self, rows: Vec<Pinned>) {
        self.first.give_back(rows);
    }

    /// Those of rows that are scored, all of the last step, a few at a time.
    pub(crate) fn scored(&self, each: impl FnMut(usize, &[f32])) -> Result<(), CudaError> {
        self.tell(&Order::Score)?;
        let done = self.first.scored(each).and_then(|()| self.check());
        self.or_end(done)
    }

    /// Whether all ranks are well; if they are not, what has been read is nothing.
    pub(crate) fn check(&self) -> Result<(), CudaError> {
        self.first.rank().check()
    }

    fn tell(&self, order: &Order) -> Result<(), CudaError> {
        let told = self.others.iter().all(|worker| {
            let orders = worker.orders.as_ref().expect("workers are told until they are dropped");
            orders.send(order.clone()).is_ok()
        });
        let ended = || CudaError::Failed { call: "a step", reason: "a rank has ended".to_owned() };
        if told { Ok(()) } else { self.or_end(Err(ended())) }
    }

    /// Ends the group where something failed. Why it ended is what failed first.
    fn or_end(&self, done: Result<(), CudaError>) -> Result<(), CudaError> {
        done.or_else(|error| {
            self.first.rank().fail(error.clone());
            self.check().and(Err(error))
        })
    }
}

impl Drop for ParallelDecoder {
    fn drop(&mut self) {
        if self.others.is_empty() {
            return;
        }
        // Whatever a rank still waits for, nobody wants it.
        let reason = "the model is being unloaded".to_owned();
        self.first.rank().fail(CudaError::Failed { call: "a step", reason });
        for Worker { orders, thread } in &mut self.others {
            drop(orders.take());
            // One that panicked has ended the group when it did.
            let _ = thread.take().map(thread::JoinHandle::join);
        }
    }
}

impl Worker {
    fn start(decoder: DeviceDecoder) -> Result<Self, LoadError> {
        let (orders, receiver) = sync_channel(AHEAD);
        let thread = thread::Builder::new().name(format!("rank-{}", decoder.rank().rank()));
        let thread = thread.spawn(move || work(decoder, &receiver)).map_err(|error| LoadError::Other {
            context: "cannot start the thread of a rank".to_owned(),
            source: error.into(),
        })?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }
}

/// A rank's life, but for the first one's.
fn work(mut decoder: DeviceDecoder, orders: &Receiver<Order>) {
    let rank = decoder.rank().clone();
    let _ending = EndsWithPanic(&rank);
    for order in orders {
        let done = match order {
            Order::Forward(planned) => decoder.forward(&planned),
            Order::Score => decoder.scored(|_, _| ()),
        };
        if let Err(error) = done {
            rank.fail(of_rank(&rank, error));
            return;
        }
    }
}

fn of_rank(rank: &Rank, error: CudaError) -> CudaError {
    match error {
        CudaError::Failed { call, reason } => {
            CudaError::Failed { call, reason: format!("{reason} (rank {})", rank.rank()) }
        }
        CudaError::Unavailable(_) | CudaError::OutOfMemory { .. } => error,
    }
}

/// A thread that panics has to tell the others as well.
struct EndsWithPanic<'a>(&'a Rank);

impl Drop for EndsWithPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason = format!("rank {} panicked", self.0.rank());
            self.0.fail(CudaError::Failed { call: "a step", reason });
        }
    }
}
