//! Tells a URL of the operator's that batches have ended.
//!
//! What is to be told is noted in the database by the transaction that ends the batch, so neither a crash nor a receiver that is down
//! loses it: an event is sent until it is taken or the schedule is through, and may come more than once under the same id. Requests are
//! signed as [Standard Webhooks](https://www.standardwebhooks.com) has it, which is what OpenAI's libraries verify.

mod sign;

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Client, StatusCode};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::settings::WebhookSettings;
use crate::store::{Event, Store, StoreError};

use sign::Signer;

/// Seconds between the attempts at an event, the first of which comes at once.
const SCHEDULE_S: [i64; 6] = [5, 300, 1800, 7200, 28_800, 86_400];
/// A receiver has this long to answer, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Events on the way at a time.
const TOGETHER: i64 = 8;
/// Looks again at least this often; what has just ended is told of by a notice.
const POLL: Duration = Duration::from_secs(60);
/// After the database could not be read or written.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// The task that sends events.
#[derive(Debug)]
pub struct Webhooks {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Webhooks {
    /// Begins to send what is noted. `ends` changes when a batch has ended.
    ///
    /// # Errors
    /// When there can be no TLS.
    pub fn start(
        store: Store,
        receiver: WebhookSettings,
        clock: Clock,
        ends: watch::Receiver<()>,
    ) -> Result<Self, reqwest::Error> {
        let client =
            crate::http::client().no_proxy().timeout(TIMEOUT).user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")));
        let signer = Signer::new(receiver.secret.bytes());
        let sender = Sender { store, receiver, signer, clock, client: client.build()? };
        let (stop, stopped) = watch::channel(false);
        Ok(Self { stop, task: tokio::spawn(sender.run(ends, stopped)) })
    }

    /// Ends the task. An event that is on its way is given up, and sent again by the next process.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the task that sends webhooks did not end in order");
        }
    }
}

struct Sender {
    store: Store,
    receiver: WebhookSettings,
    signer: Signer,
    clock: Clock,
    client: Client,
}

/// The body of a webhook, as OpenAI's.
#[derive(Serialize)]
struct Payload<'a> {
    id: &'a str,
    object: &'static str,
    created_at: i64,
    #[serde(rename = "type")]
    kind: &'a str,
    data: PayloadData<'a>,
}

#[derive(Serialize)]
struct PayloadData<'a> {
    id: &'a str,
}

/// What a receiver made of an event.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    /// It wants no such event, ever.
    Unwanted,
    Failed,
}

impl Sender {
    async fn run(self, mut ends: watch::Receiver<()>, mut stopped: watch::Receiver<bool>) {
        loop {
            ends.mark_unchanged();
            let round = async {
                let wait = self.round().await.unwrap_or_else(|error| {
                    tracing::error!(error = ?error, "could not look after the webhooks; trying again");
                    STORE_RETRY
                });
                let changed = async {
                    if ends.changed().await.is_err() {
                        // Without batches there is nothing to hear of, and what is noted is still sent.
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = changed => {}
                }
            };
            tokio::select! {
                () = round => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    /// Sends what is due. Answers how long there is nothing to do.
    async fn round(&self) -> Result<Duration, StoreError> {
        loop {
            let due = self.store.due_events(self.clock.millis(), TOGETHER).await?;
            if due.is_empty() {
                let next = self.store.next_event_at().await?;
                let wait = next
                    .map_or(POLL, |next| Duration::from_millis(u64::try_from(next - self.clock.millis()).unwrap_or(0)));
                return Ok(wait.clamp(Duration::from_millis(10), POLL));
            }
            for outcome in join_all(due.iter().map(|event| self.tell(event))).await {
                outcome?;
            }
        }
    }

    async fn tell(&self, event: &Event) -> Result<(), StoreError> {
        let (event_id, kind) = (event.id.as_str(), event.kind.as_str());
        let verdict = self.post(event).await;
        let wait_s = usize::try_from(event.attempts).ok().and_then(|attempts| SCHEDULE_S.get(attempts));
        match (verdict, wait_s) {
            (Verdict::Taken, _) => tracing::info!(event.id = event_id, kind, "told of the end of a batch"),
            (Verdict::Unwanted, _) => {
                tracing::warn!(event.id = event_id, kind, "the receiver of webhooks wants no more of them (410)");
            }
            (Verdict::Failed, Some(wait_s)) => {
                tracing::warn!(event.id = event_id, kind, again_in_s = wait_s, "a webhook was not taken");
                return self.store.put_event_off(event.seq, self.clock.millis() + wait_s * 1000).await;
            }
            (Verdict::Failed, None) => tracing::error!(event.id = event_id, kind, "a webhook is given up"),
        }
        self.store.forget_event(event.seq).await
    }

    async fn post(&self, event: &Event) -> Verdict {
        let Event { seq: _, id, kind, batch_id, created_at, attempts: _ } = event;
        let payload =
            Payload { id, object: "event", created_at: *created_at, kind, data: PayloadData { id: batch_id } };
        let Ok(body) = serde_json::to_string(&payload) else { return Verdict::Unwanted };
        let timestamp = self.clock.seconds();
        let signature = self.signer.sign(id, timestamp, &body);
        let request = self.client.post(self.receiver.url.clone()).header("content-type", "application/json");
        let request = request
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", signature)
            .body(body);
        match request.send().await {
            // What else the answer says is not read: it may be as long as it likes.
            Ok(response) if response.status().is_success() => Verdict::Taken,
            Ok(response) if response.status() == StatusCode::GONE => Verdict::Unwanted,
            Ok(response) => {
                tracing::debug!(status = response.status().as_u16(), "a webhook was refused");
                Verdict::Failed
            }
            Err(error) => {
                // The URL may hold a secret of the receiver's.
                tracing::debug!(error = %error.without_url(), "a webhook was not delivered");
                Verdict::Failed
            }
        }
    }
}
