//! The one path from a request to tokens and back, for the online API and for batches alike.
//!
//! [`Completions::start`] reads a body, finds its model, renders and tokenizes the prompt and submits the generations; what it returns is
//! then either [collected](Started::collect) into one answer or [streamed](Started::into_chunks) in chunks. [`Completions::respond`] does
//! the first two in one, which is all that a line of a batch needs. Dropping any of these cancels the generations.
//! [`Completions::embed`] does the same for embeddings and [`Completions::rerank`] for documents to rank, which have nothing to stream.

mod answer;
mod asker;
mod embeddings;
mod engine_errors;
#[cfg(test)]
mod families;
mod guard;
mod logprobs;
mod pair;
mod prepare;
mod prompt;
mod read;
mod rerank;
mod respond;
mod started;
mod stream;
mod strftime;
mod template;
mod templates;
#[cfg(test)]
mod tests;
mod tokens;
mod told;

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tandem_core::TokenId;
use tandem_engine::{GenerateRequest, Priority};
use tokio::time::Instant;

use crate::models::{Generator, Lease, LeaseError, Models};
use crate::openai::error::ApiError;
use crate::openai::{self, AllowedModels, Endpoint};

pub use asker::{Asker, Meter};
pub use started::{Started, random_id};
pub use stream::{Chunks, Frame};
pub use template::ChatTemplate;
pub use tokens::{Detokenized, Tokenized};

use answer::AnswerForm;
#[cfg(test)]
pub(crate) use read::asked;
pub(crate) use read::body::object as json_object;
pub(crate) use read::integer as json_integer;
use read::{ChatRequest, CompletionRequest, Telling};
use templates::Templates;

/// What requests may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Choices for one prompt.
    pub max_n: u32,
    /// Tokens of one choice; `None` leaves it to the context.
    pub max_output_tokens: Option<u32>,
    /// Refuse fields that are not known, instead of naming them in the response.
    pub strict_params: bool,
    /// An online request is given up after this long. Lines of a batch have the batch's own window.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_n: 8, max_output_tokens: None, strict_params: false, request_timeout: Duration::from_secs(600) }
    }
}

impl Limits {
    /// When a request is given up that comes now.
    fn deadline(&self, priority: Priority) -> Option<Instant> {
        match priority {
            Priority::Interactive => Some(Instant::now() + self.request_timeout),
            Priority::Batch => None,
        }
    }
}

/// The form in which generated text is asked for and told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Chat,
    Text,
}

impl Form {
    fn endpoint(self) -> Endpoint {
        match self {
            Self::Chat => Endpoint::ChatCompletions,
            Self::Text => Endpoint::Completions,
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The response's body.
    pub body: Box<RawValue>,
    pub usage: openai::Usage,
}

/// A whole answer to a request that has no stream, and what of the request was passed over.
#[derive(Clone, Debug)]
pub struct Answered {
    pub answer: Answer,
    /// Fields of the request that nothing here knows.
    pub ignored: Vec<String>,
    /// The client's own name for the request.
    pub request_id: Option<String>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    pub prompt_tokens: u64,
    /// Of all choices together.
    pub max_output_tokens: u64,
}

/// Turns requests into tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Completions {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    models: Models,
    limits: Limits,
    templates: Templates,
}

impl Completions {
    #[must_use]
    pub fn new(models: Models, limits: Limits) -> Self {
        Self { shared: Arc::new(Shared { models, limits, templates: Templates::default() }) }
    }

    /// Answers a request that is not a stream, such as a line of a batch.
    ///
    /// # Errors
    /// What an online request would be answered with.
    pub async fn respond(&self, endpoint: Endpoint, body: &[u8], asker: impl Into<Asker>) -> Result<Answer, ApiError> {
        let asker = asker.into();
        let form = match endpoint {
            Endpoint::ChatCompletions => Form::Chat,
            Endpoint::Completions => Form::Text,
            Endpoint::Embeddings => return Ok(self.embed(body, asker).await?.answer),
            Endpoint::Rerank => return Ok(self.rerank(body, asker).await?.answer),
        };
        let started = self.start(form, body, asker).await?;
        if started.is_stream() {
            return Err(ApiError::unsupported_parameter("stream"));
        }
        started.collect().await
    }

    /// Checks a request and submits its generations.
    ///
    /// # Errors
    /// When the request is wrong, its model is not there or the engine does not take it.
    pub async fn start(&self, form: Form, body: &[u8], asker: impl Into<Asker>) -> Result<Started, ApiError> {
        let asker = asker.into();
        let deadline = self.shared.limits.deadline(asker.priority);
        let object = read::body::object(body)?;
        let (lease, mut plan) = match form {
            Form::Chat => self.plan_chat(read::chat(&object, &self.shared.limits)?, &asker).await?,
            Form::Text => self.plan_text(read::completions(&object, &self.shared.limits)?, &asker).await?,
        };
        plan.settings.deadline = deadline;
        plan.settings.timeout = self.shared.limits.request_timeout;
        for request in &mut plan.requests {
            request.cache_salt = asker.salted(request.cache_salt);
        }
        Started::submit(form, lease, plan, asker.meter)
    }

    /// Checks a request as [`respond`](Self::respond) does and counts its tokens, without submitting it. A long one is prepared on a
    /// thread for such work, a short one here.
    ///
    /// # Errors
    /// What is wrong with the request, or that its model is not there.
    pub async fn measure(&self, endpoint: Endpoint, body: &[u8]) -> Result<Measure, ApiError> {
        let object = read::body::object(body)?;
        let limits = &self.shared.limits;
        // Which models a line may name was looked at before.
        let asker = Asker::from(Priority::Batch);
        let (_, plan) = match endpoint {
            Endpoint::ChatCompletions => self.plan_chat(read::chat(&object, limits)?, &asker).await?,
            Endpoint::Completions => self.plan_text(read::completions(&object, limits)?, &asker).await?,
            Endpoint::Embeddings => return self.measure_inputs(&object).await,
            Endpoint::Rerank => return self.measure_pairs(&object).await,
        };
        // The choices for a prompt share its tokens.
        let prompts = plan.requests.chunks(plan.settings.n.max(1)).filter_map(|choices| choices.first());
        let prompt_tokens = prompts.map(|request| request.prompt.len() as u64).sum();
        let max_output_tokens = plan.requests.iter().map(|request| u64::from(request.stop.max_tokens)).sum();
        Ok(Measure { prompt_tokens, max_output_tokens })
    }

    async fn plan_chat(&self, request: ChatRequest, asker: &Asker) -> Result<(Generator, Plan), ApiError> {
        let lease = self.generator(&request.model, Form::Chat, &asker.models).await?;
        let priority = asker.priority;
        let template = self.shared.templates.of(&lease)?;
        let (info, limits) = (Arc::clone(lease.info()), self.shared.limits.clone());
        let size = request.work();
        let plan = off_the_reactor(size, move || prepare::chat(request, &info, &template, &limits, priority)).await??;
        // The choices for its one prompt.
        check_capacity(&plan, &lease, "n")?;
        Ok((lease, plan))
    }

    async fn plan_text(&self, request: CompletionRequest, asker: &Asker) -> Result<(Generator, Plan), ApiError> {
        let lease = self.generator(&request.model, Form::Text, &asker.models).await?;
        let priority = asker.priority;
        let (info, limits) = (Arc::clone(lease.info()), self.shared.limits.clone());
        let size = request.options.work(request.prompts.iter().map(read::Prompt::size).sum());
        let param = if request.prompts.len() > 1 { "prompt" } else { "n" };
        let plan = off_the_reactor(size, move || prepare::text(request, &info, &limits, priority)).await??;
        check_capacity(&plan, &lease, param)?;
        Ok((lease, plan))
    }

    async fn generator(&self, model: &str, form: Form, allowed: &AllowedModels) -> Result<Generator, ApiError> {
        let lease = self.lease(model, allowed).await?.generator();
        lease.ok_or_else(|| ApiError::endpoint_not_supported(form.endpoint().what()))
    }

    /// The one way to a model: whoever may not use it is told that it does not exist.
    async fn lease(&self, model: &str, allowed: &AllowedModels) -> Result<Lease, ApiError> {
        if !allowed.contain(model) {
            return Err(ApiError::model_not_found(model));
        }
        self.shared.models.lease(model).await.map_err(|error| match error {
            LeaseError::Unknown => ApiError::model_not_found(model),
            LeaseError::Unavailable => ApiError::model_unavailable(model),
        })
    }
}

/// A checked request with its prompts tokenized: what is left is to submit it and to tell of it.
#[derive(Debug)]
struct Plan {
    /// One for each choice, in the order of their indices.
    requests: Vec<GenerateRequest>,
    settings: Settings,
}

/// How the answer to a request is told.
#[derive(Debug)]
struct Settings {
    /// Choices for each prompt, which share its tokens in the count.
    n: usize,
    stream: bool,
    /// Whether end-of-generation tokens are tokens like others.
    ignore_eos: bool,
    telling: Telling,
    /// One for each prompt.
    prompts: Vec<ToldPrompt>,
    /// What parts the answer has.
    answer: AnswerForm,
    /// Fields of the request that nothing here knows.
    ignored: Vec<String>,
    deadline: Option<Instant>,
    timeout: Duration,
}

/// What is told of a prompt, as far as the request wants it.
#[derive(Debug)]
struct ToldPrompt {
    /// How many it has.
    tokens: u32,
    /// Text that is put in front of the choices.
    echo: Option<String>,
    /// Its first token, which log-probabilities of the prompt begin with.
    first: Option<TokenId>,
    ids: Option<Vec<TokenId>>,
    text: Option<String>,
}

/// What the engine could not even hold when it has nothing else to do is no matter of trying again. `param` is what to shorten.
fn check_capacity(plan: &Plan, lease: &Generator, param: &str) -> Result<(), ApiError> {
    match plan.requests.len() {
        asked if asked > lease.capacity() => Err(ApiError::too_many_generations(param, lease.capacity(), asked)),
        _ => Ok(()),
    }
}

/// Runs work that grows with the request: here when it is small, on a thread for such work when it is not.
async fn off_the_reactor<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    const SMALL_BYTES: usize = 4096;
    if bytes <= SMALL_BYTES {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "preparing a request failed");
        ApiError::internal()
    })
}
