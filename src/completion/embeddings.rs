//! Texts to vectors, and those to an answer.

use std::sync::Arc;

use serde_json::{Map, Value};
use tandem_core::{Matryoshka, TokenId};
use tandem_engine::{EmbedError, EmbedRequest, EmbedderInfo, Embedding, Vectors};
use tokio::time::Instant;

use super::prepare::{check_length, check_token_ids};
use super::read::{self, EmbeddingOptions, EmbeddingRequest, Encoding, Prompt};
use super::respond::raw;
use super::{Answer, Answered, Asker, Completions, Measure, engine_errors, off_the_reactor, prompt};
use crate::models::Embedder;
use crate::openai::embeddings::{EmbeddingList, EmbeddingObject, EmbeddingUsage, Vector};
use crate::openai::error::ApiError;
use crate::openai::{self, AllowedModels, Endpoint};

/// Tokens of one request, as at OpenAI: what waits in the engine's queue is bounded by this.
const MAX_REQUEST_TOKENS: usize = 300_000;
/// Of a number's digits, to judge how long writing takes.
const NUMBER_BYTES: usize = 12;

impl Completions {
    /// Turns the inputs of a request into vectors. Dropping the future gives the request up.
    ///
    /// # Errors
    /// When the request is wrong, its model is not there or has no vectors, or computing them fails.
    pub async fn embed(&self, body: &[u8], asker: impl Into<Asker>) -> Result<Answered, ApiError> {
        let Asker { priority, models, .. } = asker.into();
        let limits = &self.shared.limits;
        let deadline = limits.deadline(priority);
        let object = read::body::object(body)?;
        let EmbeddingRequest { model, inputs, options, request_id, ignored } = read::embeddings(&object, limits)?;
        let (lease, inputs) = self.tokenized_inputs(&model, &models, inputs, options.clone()).await?;
        let prompt_tokens = inputs.iter().map(|input| input.len() as u64).sum();
        let (rank, dimensions) = (options.rank, options.dimensions);
        let asked = EmbedRequest { inputs, priority, rank, dimensions, normalize: options.normalize };
        let embedding = lease.embed(asked).map_err(|error| engine_errors::of_submit(error, "input"))?;
        let vectors = self.within(deadline, embedding).await?.map_err(engine_errors::of_embedding)?;
        let size = vectors.len() * lease.info().spec.dimensions as usize * NUMBER_BYTES;
        let usage = openai::Usage { prompt_tokens, total_tokens: prompt_tokens, ..openai::Usage::default() };
        let model = lease.name().to_owned();
        let body = off_the_reactor(size, move || raw(&list(vectors, &model, usage, options.encoding))).await??;
        Ok(Answered { answer: Answer { body, usage }, ignored, request_id })
    }

    /// Waits for what the engine computes, until `deadline`.
    pub(super) async fn within(
        &self,
        deadline: Option<Instant>,
        embedding: Embedding,
    ) -> Result<Result<Vectors, EmbedError>, ApiError> {
        match deadline {
            None => Ok(embedding.await),
            Some(deadline) => tokio::time::timeout_at(deadline, embedding)
                .await
                .map_err(|_| ApiError::generation_timeout(self.shared.limits.request_timeout.as_secs())),
        }
    }

    pub(super) async fn measure_inputs(&self, body: &Map<String, Value>) -> Result<Measure, ApiError> {
        let EmbeddingRequest { model, inputs, options, .. } = read::embeddings(body, &self.shared.limits)?;
        let (_, inputs) = self.tokenized_inputs(&model, &AllowedModels::default(), inputs, options).await?;
        let prompt_tokens = inputs.iter().map(|input| input.len() as u64).sum();
        Ok(Measure { prompt_tokens, max_output_tokens: 0 })
    }

    async fn tokenized_inputs(
        &self,
        model: &str,
        allowed: &AllowedModels,
        inputs: Vec<Prompt>,
        options: EmbeddingOptions,
    ) -> Result<(Embedder, Vec<Vec<TokenId>>), ApiError> {
        let lease = self.lease(model, allowed).await?.embedder();
        let lease = lease.ok_or_else(|| ApiError::endpoint_not_supported(Endpoint::Embeddings.what()))?;
        let info = Arc::clone(lease.info());
        let size = inputs.iter().map(Prompt::size).sum();
        let inputs = off_the_reactor(size, move || tokens(inputs, &options, &info)).await??;
        Ok((lease, inputs))
    }
}

fn list(vectors: Vectors, model: &str, usage: openai::Usage, encoding: Encoding) -> EmbeddingList<'_> {
    let object = |(index, vector): (usize, Vec<f32>)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: match encoding {
            Encoding::Float => Vector::Numbers(vector),
            Encoding::Base64 => Vector::base64(&vector),
        },
    };
    EmbeddingList {
        object: "list",
        data: vectors.into_iter().enumerate().map(object).collect(),
        model,
        usage: EmbeddingUsage { prompt_tokens: usage.prompt_tokens, total_tokens: usage.total_tokens },
    }
}

/// The tokens of each input, after what the request asks of the model was checked.
fn tokens(inputs: Vec<Prompt>, options: &EmbeddingOptions, info: &EmbedderInfo) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let spec = &info.spec;
    if options.dimensions.is_some_and(|asked| !info.matryoshka.allows(asked, spec.dimensions)) {
        return Err(no_such_dimensions(&info.matryoshka, spec.dimensions));
    }
    let inputs: Vec<Vec<TokenId>> =
        inputs.into_iter().map(|input| input_tokens(input, options, info)).collect::<Result<_, _>>()?;
    check_total(&inputs, "input")?;
    Ok(inputs)
}

/// `param` is what there may be less of.
pub(super) fn check_total(inputs: &[Vec<TokenId>], param: &str) -> Result<(), ApiError> {
    let all = inputs.iter().map(Vec::len).sum();
    if all > MAX_REQUEST_TOKENS { Err(ApiError::too_many_tokens(param, MAX_REQUEST_TOKENS, all)) } else { Ok(()) }
}

fn no_such_dimensions(matryoshka: &Matryoshka, dimensions: u32) -> ApiError {
    let sizes = match matryoshka {
        Matryoshka::No => return ApiError::dimensions_not_supported(),
        Matryoshka::Any => format!("1 to {dimensions}"),
        Matryoshka::Sizes(sizes) => {
            let shorter = sizes.iter().filter(|size| **size < dimensions).map(u32::to_string);
            format!("{} or {dimensions}", shorter.collect::<Vec<_>>().join(", "))
        }
    };
    let text = format!("Invalid 'dimensions': this model has vectors of {sizes} numbers.");
    ApiError::invalid_value("dimensions", text)
}

fn input_tokens(input: Prompt, options: &EmbeddingOptions, info: &EmbedderInfo) -> Result<Vec<TokenId>, ApiError> {
    let max = info.spec.max_input_tokens;
    let cut = |ids: &mut Vec<TokenId>, more| match options.truncation {
        Some(truncation) => truncation.cut(ids, max, max, more),
        None => Ok(()),
    };
    let (path, ids) = match input {
        Prompt::Tokens { path, mut ids } => {
            check_token_ids(&path, &ids, info.spec.vocab_size, &info.vocab)?;
            cut(&mut ids, 0)?;
            (path, ids)
        }
        Prompt::Text { path, text } => {
            // What is going to be cut may be long.
            if options.truncation.is_none() {
                check_length(&path, text.chars().count(), max)?;
            }
            let mut ids = info.tokenizer.encode(&text).map_err(|_| ApiError::not_encodable(&path))?;
            if options.add_special_tokens {
                cut(&mut ids, prompt::frame_tokens(&info.vocab))?;
                ids = prompt::framed(ids, &info.vocab);
            } else {
                cut(&mut ids, 0)?;
            }
            (path, ids)
        }
    };
    match ids.len() {
        0 => Err(ApiError::invalid_value(&path, format!("Invalid '{path}': it has no tokens."))),
        len if len > max as usize => Err(ApiError::context_length_exceeded(&path, max.into(), len as u64)),
        _ => Ok(ids),
    }
}
