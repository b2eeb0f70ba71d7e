use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::StdRng};
use rand_distr::{Distribution as _, Exp};
use tokio::{sync::Notify, task::JoinSet, time};

use super::{
    client::{Client, Prepared},
    sample::Sample,
};

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many at a time, each as soon as one before it is answered.
    Closed(u32),
    /// So many a second on the average, by chance (Poisson), however long answers take.
    Open(f64),
}

/// A set of requests that was sent, and how long all of it took.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) samples: Vec<Sample>,
    pub(super) wall: Duration,
    /// Why not everything was sent, if it was not.
    pub(super) broken: Option<String>,
}

/// Requests of which each waits for the answer to the one before.
pub(super) type PreparedConversation = Vec<Prepared>;

/// So many connections refused in a row, and the server is taken for gone.
const REFUSED_MAX: u64 = 16;

/// What the tasks of a round share.
struct Shared {
    client: Client,
    conversations: Vec<PreparedConversation>,
    next: AtomicUsize,
    done: Arc<AtomicU64>,
    refused_in_a_row: AtomicU64,
    gone: Notify,
    samples: Mutex<Vec<Sample>>,
}

/// Sends everything. `done` counts the answers meanwhile; `ended` comes to an end when the server has, and says how.
pub(super) async fn round(
    client: &Client,
    conversations: Vec<PreparedConversation>,
    load: Load,
    seed: u64,
    done: &Arc<AtomicU64>,
    ended: impl Future<Output = String>,
) -> Round {
    let shared = Arc::new(Shared {
        client: client.clone(),
        conversations,
        next: AtomicUsize::new(0),
        done: Arc::clone(done),
        refused_in_a_row: AtomicU64::new(0),
        gone: Notify::new(),
        samples: Mutex::default(),
    });
    let started = Instant::now();
    let mut ended = pin!(ended);
    // Dropped with all its tasks when the server is gone.
    let all = async {
        match load {
            Load::Closed(concurrency) => closed(&shared, concurrency).await,
            Load::Open(rate) => open(&shared, rate, seed).await,
        }
    };
    let broken = tokio::select! {
        () = all => None,
        reason = &mut ended => Some(reason),
        () = shared.gone.notified() => Some(format!("the server is gone: {REFUSED_MAX} connections in a row were refused")),
    };
    let wall = started.elapsed();
    let samples = std::mem::take(&mut *shared.samples.lock().unwrap_or_else(PoisonError::into_inner));
    Round { samples, wall, broken }
}

async fn closed(shared: &Arc<Shared>, concurrency: u32) {
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let shared = Arc::clone(shared);
        tasks.spawn(async move {
            while let Some(conversation) = shared.conversations.get(shared.next.fetch_add(1, Ordering::Relaxed)) {
                shared.hold(conversation, Instant::now()).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn open(shared: &Arc<Shared>, rate: f64, seed: u64) {
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for (index, offset) in arrivals(rate, seed).take(shared.conversations.len()).enumerate() {
        let due = started + offset;
        time::sleep_until(due.into()).await;
        let shared = Arc::clone(shared);
        tasks.spawn(async move {
            if let Some(conversation) = shared.conversations.get(index) {
                shared.hold(conversation, due).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// When requests come, from the start on.
fn arrivals(rate: f64, seed: u64) -> impl Iterator<Item = Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    // A rate that is no rate has been refused before; all at once is what is left of it.
    let between = Exp::new(rate).ok();
    let mut at = 0.0;
    std::iter::repeat_with(move || {
        let offset = Duration::from_secs_f64(at);
        at += between.map_or(0.0, |between| between.sample(&mut random));
        offset
    })
}

impl Shared {
    /// Asks one question after the other. The answers that stand between them were written before, so one that fails does not end it.
    async fn hold(&self, conversation: &[Prepared], due: Instant) {
        let mut due = due;
        for prepared in conversation {
            let sample = self.client.ask(prepared, due).await;
            let refused = sample.refused;
            self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            self.done.fetch_add(1, Ordering::Relaxed);
            if !refused {
                self.refused_in_a_row.store(0, Ordering::Relaxed);
            } else if self.refused_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= REFUSED_MAX {
                self.gone.notify_one();
                return;
            }
            due = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_as_many_as_the_rate_says_and_follow_from_the_seed() {
        let times = |seed| arrivals(50.0, seed).take(5001).collect::<Vec<_>>();
        let first = times(1);
        assert_eq!(first[0], Duration::ZERO);
        assert!((95.0..105.0).contains(&first[5000].as_secs_f64()), "{:?}", first[5000]);
        assert_eq!(first, times(1));
        assert_ne!(first, times(2));
        // Of a Poisson process about 63 % of the gaps are shorter than the mean.
        let short = first.windows(2).filter(|pair| (pair[1] - pair[0]).as_secs_f64() < 0.02).count();
        assert!((3000..3300).contains(&short), "{short}");
    }
}
