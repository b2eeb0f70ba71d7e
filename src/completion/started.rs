use std::sync::Arc;

use rand::Rng;
use rand::distr::Alphanumeric;
use sha2::{Digest, Sha256};
use tandem_core::{AdapterId, Vocab};
use tandem_engine::{Generation, Usage};
use time::OffsetDateTime;

use super::asker::{Meter, Spent};
use super::{Form, Plan, Settings, engine_errors};
use crate::models::Generator;
use crate::openai;
use crate::openai::error::ApiError;

/// A request whose generations run. Dropping it cancels them.
#[derive(Debug)]
pub struct Started {
    /// One for each choice, in the order of their indices.
    pub(super) generations: Vec<Generation>,
    pub(super) settings: Settings,
    pub(super) label: Label,
    pub(super) spent: Spent,
    /// Keeps the model from being swapped for another until the answer is whole.
    pub(super) lease: Generator,
}

/// What every part of an answer is marked with.
#[derive(Debug)]
pub(super) struct Label {
    pub(super) form: Form,
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) fingerprint: String,
    pub(super) service_tier: Option<&'static str>,
}

impl Started {
    pub(super) fn submit(
        form: Form,
        lease: Generator,
        plan: Plan,
        meter: Option<Arc<dyn Meter>>,
    ) -> Result<Self, ApiError> {
        let Plan { requests, settings } = plan;
        let (prefix, param) = match form {
            Form::Chat => ("chatcmpl-", "messages"),
            Form::Text => ("cmpl-", "prompt"),
        };
        let adapter = requests.first().and_then(|request| request.adapter);
        let fingerprint = fingerprint(&lease, adapter);
        // Choices for one prompt share its tokens.
        let prompt_tokens = requests.iter().step_by(settings.n).map(|request| request.prompt.len() as u64).sum();
        let generations = requests
            .into_iter()
            .map(|request| lease.submit(request).map_err(|error| engine_errors::of_submit(error, param)))
            .collect::<Result<_, _>>()?;
        let spent = Spent::new(meter);
        spent.add(prompt_tokens);
        let label = Label {
            form,
            id: match &settings.telling.request_id {
                Some(name) => format!("{prefix}{name}"),
                None => random_id(prefix),
            },
            created: OffsetDateTime::now_utc().unix_timestamp(),
            model: lease.name().to_owned(),
            fingerprint,
            service_tier: settings.telling.service_tier,
        };
        Ok(Self { generations, settings, label, spent, lease })
    }

    /// Whether the request asked for a stream.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.settings.stream
    }

    /// The client's own name for the request.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.settings.telling.request_id.as_deref()
    }

    /// Fields of the request that nothing here knows.
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.settings.ignored
    }

    pub(super) fn vocab(&self) -> Arc<Vocab> {
        Arc::clone(&self.lease.info().vocab)
    }
}

/// Adds up the tokens of a request's choices, of which each `n` share a prompt.
pub(super) fn total_usage(choices: &[Usage], n: usize) -> openai::Usage {
    let sum = |count: fn(&Usage) -> u32, usages: &mut dyn Iterator<Item = &Usage>| -> u64 {
        usages.map(|usage| u64::from(count(usage))).sum()
    };
    let prompt_tokens = sum(|usage| usage.prompt_tokens, &mut choices.iter().step_by(n));
    let completion_tokens = sum(|usage| usage.completion_tokens, &mut choices.iter());
    let cached_tokens = sum(|usage| usage.cached_tokens, &mut choices.iter().step_by(n));
    openai::Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens + completion_tokens,
        prompt_tokens_details: openai::PromptTokensDetails { cached_tokens },
        completion_tokens_details: openai::CompletionTokensDetails::default(),
    }
}

/// An id that nobody can guess and that sorts nowhere.
#[must_use]
pub fn random_id(prefix: &str) -> String {
    const RANDOM_CHARS: usize = 24;
    let random = rand::rng().sample_iter(Alphanumeric).take(RANDOM_CHARS).map(char::from);
    prefix.chars().chain(random).collect()
}

/// Changes when answers to a seeded request may change: with the version, the backend, the model or the adapter.
fn fingerprint(lease: &Generator, adapter: Option<AdapterId>) -> String {
    let spec = &lease.info().spec;
    let mut subject = format!("{} {} {} {}", env!("CARGO_PKG_VERSION"), spec.name, lease.name(), spec.vocab_size);
    if let Some(name) = adapter.and_then(|adapter| spec.adapters.get(adapter.index())) {
        subject = format!("{subject} with {name}");
    }
    let digest = Sha256::digest(subject.as_bytes());
    digest.iter().take(5).fold("fp_".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
