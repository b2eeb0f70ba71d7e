//! A request's generations, folded into one answer.

use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::to_raw_value;
use tandem_core::{TokenId, Vocab};
use tandem_engine::{Event, FinishReason, Generation, Logprobs, StoppedBy, Usage};

use super::asker::Spent;
use super::logprobs::Lists;
use super::started::total_usage;
use super::{Answer, Form, Settings, Started, ToldPrompt, engine_errors, logprobs};
use crate::openai::chat::{AssistantMessage, ChatChoice, ChatCompletion, ChatLogprobs};
use crate::openai::completions::{Completion, CompletionChoice};
use crate::openai::error::ApiError;
use crate::openai::{self, ChoiceExtras, PromptExtras, StopReason};

/// One generation, ended.
#[derive(Debug)]
struct Ended {
    text: String,
    /// Of the prompt's tokens but for the first.
    prompt: Vec<Logprobs>,
    logprobs: Option<Vec<Logprobs>>,
    token_ids: Option<Vec<TokenId>>,
    reason: FinishReason,
    stopped_by: Option<StoppedBy>,
    usage: Usage,
}

impl Started {
    /// Waits for the whole answer.
    ///
    /// # Errors
    /// When a generation fails, or the request's time is over.
    pub async fn collect(mut self) -> Result<Answer, ApiError> {
        let generations = std::mem::take(&mut self.generations);
        let all = gather(generations, &self.vocab(), &self.settings, &self.spent).await?;
        let usages: Vec<Usage> = all.iter().map(|ended| ended.usage).collect();
        let usage = total_usage(&usages, self.settings.n);
        let body = match self.label.form {
            Form::Chat => raw(&self.chat_completion(all, usage)),
            Form::Text => raw(&self.completion(all, usage)),
        }?;
        Ok(Answer { body, usage })
    }

    fn chat_completion(&self, all: Vec<Ended>, usage: openai::Usage) -> ChatCompletion<'_> {
        let Self { label, settings, .. } = self;
        let telling = &settings.telling;
        let prompt = settings.prompts.first();
        let echo = prompt.and_then(|prompt| prompt.echo.as_deref()).unwrap_or_default();
        let choice = |(index, ended): (usize, Ended)| ChatChoice {
            index,
            message: AssistantMessage { role: "assistant", content: format!("{echo}{}", ended.text), refusal: None },
            logprobs: ended.logprobs.map(|all| ChatLogprobs {
                content: all.iter().map(|one| logprobs::chat(one, telling)).collect(),
                refusal: None,
            }),
            finish_reason: reason(ended.reason),
            extras: extras(ended.reason, ended.stopped_by, ended.token_ids),
        };
        ChatCompletion {
            id: &label.id,
            object: "chat.completion",
            created: label.created,
            model: &label.model,
            choices: all.into_iter().enumerate().map(choice).collect(),
            usage,
            system_fingerprint: &label.fingerprint,
            service_tier: label.service_tier,
            prompt: prompt.map(ToldPrompt::extras).unwrap_or_default(),
        }
    }

    fn completion(&self, all: Vec<Ended>, usage: openai::Usage) -> Completion<'_> {
        let Self { label, settings, .. } = self;
        let vocab = self.vocab();
        let choice = |(index, ended): (usize, Ended)| {
            let prompt = settings.prompts.get(index / settings.n);
            let echo = prompt.and_then(|prompt| prompt.echo.as_deref()).unwrap_or_default();
            let first = prompt.and_then(|prompt| prompt.first);
            // The prompt's own tokens say where the answer begins.
            let begin = if first.is_some() { 0 } else { echo.chars().count() };
            let mut lists = Lists::new(&vocab, &settings.telling, begin);
            if let Some(first) = first {
                lists.push_prompt(first, &ended.prompt);
            }
            let has_logprobs = first.is_some() || ended.logprobs.is_some();
            ended.logprobs.iter().flatten().for_each(|one| lists.push(one));
            CompletionChoice {
                text: format!("{echo}{}", ended.text),
                index,
                logprobs: has_logprobs.then_some(lists.lists),
                finish_reason: Some(reason(ended.reason)),
                extras: extras(ended.reason, ended.stopped_by, ended.token_ids),
                prompt: prompt.map(ToldPrompt::extras).unwrap_or_default(),
            }
        };
        Completion {
            id: &label.id,
            object: "text_completion",
            created: label.created,
            model: &label.model,
            system_fingerprint: &label.fingerprint,
            service_tier: label.service_tier,
            choices: all.into_iter().enumerate().map(choice).collect(),
            usage: Some(Some(usage)),
        }
    }
}

impl ToldPrompt {
    pub(super) fn extras(&self) -> PromptExtras {
        PromptExtras { prompt_token_ids: self.ids.clone(), prompt_text: self.text.clone() }
    }
}

/// The generations run side by side in the engine; their events wait here in turn.
async fn gather(
    generations: Vec<Generation>,
    vocab: &Vocab,
    settings: &Settings,
    spent: &Spent,
) -> Result<Vec<Ended>, ApiError> {
    let all = async {
        let mut ended = Vec::with_capacity(generations.len());
        for generation in generations {
            ended.push(end(generation, vocab, settings, spent).await?);
        }
        Ok(ended)
    };
    match settings.deadline {
        None => all.await,
        Some(deadline) => tokio::time::timeout_at(deadline, all)
            .await
            .unwrap_or_else(|_| Err(ApiError::generation_timeout(settings.timeout.as_secs()))),
    }
}

async fn end(mut generation: Generation, vocab: &Vocab, settings: &Settings, spent: &Spent) -> Result<Ended, ApiError> {
    let mut text = String::new();
    let (mut prompt, mut logprobs) = (Vec::new(), None::<Vec<Logprobs>>);
    let mut token_ids = settings.telling.token_ids.then(Vec::new);
    while let Some(event) = generation.next().await {
        match event {
            Event::Prompt(scores) => prompt = scores,
            Event::Token { id, text: piece, logprobs: of_token } => {
                spent.add(1);
                text.push_str(&piece);
                token_ids.iter_mut().for_each(|ids| ids.push(id));
                if let Some(of_token) = of_token {
                    let told = logprobs.get_or_insert_default();
                    if settings.is_told(vocab, id) {
                        told.push(of_token);
                    }
                }
            }
            Event::Finished { reason, stopped_by, text: rest, usage, timing: _ } => {
                text.push_str(&rest);
                return Ok(Ended { text, prompt, logprobs, token_ids, reason, stopped_by, usage });
            }
            Event::Failed(error) => return Err(engine_errors::of_generation(error)),
        }
    }
    Err(ApiError::engine_gone())
}

impl Settings {
    /// Whether a token is part of the answer. The one that ends it is not, unless it was asked for.
    pub(super) fn is_told(&self, vocab: &Vocab, id: tandem_core::TokenId) -> bool {
        let shows_end = self.telling.include_end && self.telling.special_tokens;
        self.ignore_eos || shows_end || !vocab.is_eog(id)
    }
}

pub(super) fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Repetition => "repetition",
    }
}

/// What vLLM tells of a choice beside.
pub(super) fn extras(
    reason: FinishReason,
    stopped_by: Option<StoppedBy>,
    token_ids: Option<Vec<TokenId>>,
) -> ChoiceExtras {
    let stop_reason = match (reason, stopped_by) {
        (_, Some(StoppedBy::Token(id))) => Some(StopReason::Token(id)),
        (_, Some(StoppedBy::Text(text))) => Some(StopReason::Text(text)),
        (FinishReason::Repetition, None) => Some(StopReason::Text("repetition_detected".to_owned())),
        (FinishReason::Stop | FinishReason::Length, None) => None,
    };
    ChoiceExtras { stop_reason, token_ids }
}

pub(super) fn raw<T: Serialize>(body: &T) -> Result<Box<serde_json::value::RawValue>, ApiError> {
    to_raw_value(body).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        ApiError::internal()
    })
}
