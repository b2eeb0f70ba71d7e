//! Documents to what a model makes of them beside a query, and that to an answer.

use std::sync::Arc;

use serde_json::{Map, Value};
use tandem_core::TokenId;
use tandem_engine::{EmbedRequest, Vectors};

use super::embeddings::check_total;
use super::read::{self, Document, PairLimits, RerankRequest};
use super::respond::raw;
use super::{Answer, Answered, Asker, Completions, Measure, engine_errors, off_the_reactor, pair, random_id};
use crate::models::Reranker;
use crate::openai::embeddings::EmbeddingUsage;
use crate::openai::error::ApiError;
use crate::openai::rerank::{DocumentText, RankedDocument, Ranking};
use crate::openai::{self, AllowedModels, Endpoint};

/// Of a result without its document, to judge how long writing takes.
const RESULT_BYTES: usize = 50;
const ID_PREFIX: &str = "rerank-";

/// What is to be put together.
struct Texts {
    query: String,
    documents: Vec<Document>,
    limits: PairLimits,
}

impl Completions {
    /// Ranks the documents of a request by how well they answer its query. Dropping the future gives the request up.
    ///
    /// # Errors
    /// When the request is wrong, its model is not there or does not rank, or computing fails.
    pub async fn rerank(&self, body: &[u8], asker: impl Into<Asker>) -> Result<Answered, ApiError> {
        let Asker { priority, models, .. } = asker.into();
        let limits = &self.shared.limits;
        let deadline = limits.deadline(priority);
        let object = read::body::object(body)?;
        let request = read::rerank(&object, limits)?;
        let RerankRequest { model, query, documents, limits, top_n, return_documents, rank, request_id, ignored } =
            request;
        let texts = Texts { query, documents, limits };
        let (lease, inputs, Texts { documents, .. }) = self.tokenized_pairs(&model, &models, texts).await?;
        let prompt_tokens = inputs.iter().map(|input| input.len() as u64).sum();
        let asked = EmbedRequest { inputs, priority, rank, dimensions: None, normalize: false };
        let embedding = lease.embed(asked).map_err(|error| engine_errors::of_submit(error, "documents"))?;
        let scores = self.within(deadline, embedding).await?.map_err(engine_errors::of_ranking)?;
        let documents = return_documents.then_some(documents);
        let texts = documents.iter().flatten().map(|document| document.text.len()).sum::<usize>();
        let size = texts + scores.len() * RESULT_BYTES;
        let usage = openai::Usage { prompt_tokens, total_tokens: prompt_tokens, ..openai::Usage::default() };
        let model = lease.name().to_owned();
        let id = match &request_id {
            Some(name) => format!("{ID_PREFIX}{name}"),
            None => random_id(ID_PREFIX),
        };
        let most = top_n.map_or(usize::MAX, |most| most.get() as usize);
        let body = off_the_reactor(size, move || {
            raw(&Ranking {
                id: &id,
                model: &model,
                usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens },
                results: ranked(&scores, documents, most),
            })
        })
        .await??;
        Ok(Answered { answer: Answer { body, usage }, ignored, request_id })
    }

    pub(super) async fn measure_pairs(&self, body: &Map<String, Value>) -> Result<Measure, ApiError> {
        let RerankRequest { model, query, documents, limits, .. } = read::rerank(body, &self.shared.limits)?;
        let (_, inputs, _) =
            self.tokenized_pairs(&model, &AllowedModels::default(), Texts { query, documents, limits }).await?;
        let prompt_tokens = inputs.iter().map(|input| input.len() as u64).sum();
        Ok(Measure { prompt_tokens, max_output_tokens: 0 })
    }

    async fn tokenized_pairs(
        &self,
        model: &str,
        models: &AllowedModels,
        texts: Texts,
    ) -> Result<(Reranker, Vec<Vec<TokenId>>, Texts), ApiError> {
        let lease = self.lease(model, models).await?.reranker();
        let lease = lease.ok_or_else(|| ApiError::endpoint_not_supported(Endpoint::Rerank.what()))?;
        let info = Arc::clone(lease.info());
        let template = info.pair_template.as_ref().map_or(0, |template| template.len() + texts.query.len());
        let size = texts.query.len() + texts.documents.iter().map(|one| one.text.len() + template).sum::<usize>();
        let (inputs, texts) = off_the_reactor(size, move || {
            let inputs = pair::inputs(&texts.query, &texts.documents, texts.limits, &info)?;
            check_total(&inputs, "documents")?;
            Ok::<_, ApiError>((inputs, texts))
        })
        .await??;
        Ok((lease, inputs, texts))
    }
}

/// The best `most` of the documents; of equal ones those that come first in the request.
fn ranked(scores: &Vectors, documents: Option<Vec<Document>>, most: usize) -> Vec<RankedDocument> {
    let texts = documents.into_iter().flatten().map(|Document { text, .. }| Some(DocumentText { text }));
    let score = |vector: &Vec<f32>| vector.first().copied().unwrap_or_default();
    let all = scores.iter().map(score).zip(texts.chain(std::iter::repeat_with(|| None))).enumerate();
    let mut results: Vec<_> =
        all.map(|(index, (relevance_score, document))| RankedDocument { index, document, relevance_score }).collect();
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(most);
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_equal_ones_as_they_were() {
        let scores = vec![vec![0.5], vec![0.9], vec![0.5], vec![1.0], vec![0.0]];
        let order = |most| ranked(&scores, None, most).iter().map(|result| result.index).collect::<Vec<_>>();
        assert_eq!(order(usize::MAX), [3, 1, 0, 2, 4]);
        assert_eq!(order(3), [3, 1, 0]);
    }
}
