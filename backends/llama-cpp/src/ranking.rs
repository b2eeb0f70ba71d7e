//! What makes a score of a model that ranks documents: the tensors behind its pooling, and what their numbers mean.

use tandem_core::Vocab;
use tandem_gguf::{Header, Tensor};

use crate::model_file::ModelFile;

/// Where a query and a document stand in the prompt of a model that has one.
const PLACES: [&str; 2] = ["{query}", "{document}"];

/// What the numbers of a model's labels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// One, a logit.
    Logit,
    /// One, the hyperbolic tangent of a logit: llama.cpp puts it on what it takes for a hidden layer, and with this architecture is the last.
    TanhOfLogit,
    /// Two probabilities, the first that of "yes".
    Probabilities,
}

impl Head {
    /// The head of a model of this architecture, of those for which llama.cpp has one. It reads as many numbers as there are labels,
    /// whatever there is: without the right tensors they would be others, or beyond the end.
    ///
    /// # Errors
    /// With what is missing or has another shape.
    pub(crate) fn check(header: &Header, tensors: &[Tensor], architecture: &str) -> Result<Self, String> {
        let key = format!("{architecture}.classifier.output_labels");
        let labels = header.array_len(&key).filter(|labels| *labels > 0).unwrap_or(1);
        let (head, last, expected) = match architecture {
            // With blocks that decide, the scores of a Modern BERT come of something else.
            "modern-bert" if header.get("modern-bert.decision.block_count").is_some() => {
                return Err("a model that decides among options, which is not served".into());
            }
            "bert" | "modern-bert" | "neo-bert" => (Self::Logit, "cls.output.weight", 1),
            "jina-bert-v2" => (Self::TanhOfLogit, "cls.weight", 1),
            "qwen3" => (Self::Probabilities, "cls.output.weight", 2),
            other => return Err(format!("a reranker of architecture `{other}`, for which llama.cpp has no scores")),
        };
        if labels != expected {
            return Err(format!(
                "a reranker with {labels} labels (`{key}`), where one of architecture `{architecture}` has {expected}"
            ));
        }
        let width = header.unsigned(&format!("{architecture}.embedding_length")).unwrap_or(0);
        if !has_tensor(tensors, last, [width, labels])? {
            return Err(format!("a reranker without `{last}`"));
        }
        if head != Self::TanhOfLogit {
            has_tensor(tensors, "cls.weight", [width, width])?;
        }
        Ok(head)
    }

    /// How many numbers there are.
    pub(crate) fn labels(self) -> usize {
        match self {
            Self::Logit | Self::TanhOfLogit => 1,
            Self::Probabilities => 2,
        }
    }

    /// From 0 to 1; not finite where the numbers are not.
    pub(crate) fn score(self, numbers: &[f32]) -> f32 {
        match (self, numbers) {
            (_, numbers) if !numbers.iter().all(|number| number.is_finite()) => f32::NAN,
            (Self::Logit, &[logit]) => sigmoid(logit),
            (Self::TanhOfLogit, &[tanh]) => of_tanh(tanh),
            (Self::Probabilities, &[yes, _]) => yes.clamp(0.0, 1.0),
            _ => f32::NAN,
        }
    }
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// The sigmoid of the logit whose hyperbolic tangent this is.
fn of_tanh(tanh: f32) -> f32 {
    let tanh = tanh.clamp(-1.0, 1.0);
    1.0 / (1.0 + ((1.0 - tanh) / (1.0 + tanh)).sqrt())
}

/// Whether the tensor is there. Of one with another shape llama.cpp would say no more than that it cannot load the file.
fn has_tensor(tensors: &[Tensor], name: &str, [width, rows]: [u64; 2]) -> Result<bool, String> {
    match tensors.iter().find(|tensor| tensor.name == name) {
        Some(tensor) if tensor.shape() != [width, rows, 1, 1] => {
            Err(format!("tensor `{name}`: shape {:?}, {:?} expected", tensor.dims, [width, rows]))
        }
        found => Ok(found.is_some()),
    }
}

/// Checks the prompt that a query and a document are put into.
///
/// # Errors
/// When one of them has no place in it.
pub(crate) fn check_template(template: &str) -> Result<(), String> {
    match PLACES.into_iter().find(|place| !template.contains(place)) {
        Some(place) => Err(format!("the template of a reranker has no {place}")),
        None => Ok(()),
    }
}

/// Checks that a query and a document can be told from each other in an input: in the prompt that the file has for them, or by tokens
/// between them.
///
/// # Errors
/// When there is neither.
pub(crate) fn check_pairs(file: &ModelFile, vocab: &Vocab) -> Result<(), String> {
    let is_divided = vocab.closing().or(vocab.separator()).is_some();
    if is_divided || file.pair_template.is_some() {
        return Ok(());
    }
    Err("a reranker that has neither a prompt for a query and a document (`tokenizer.chat_template.rerank`) nor a token between them".into())
}

/// Tells whoever starts the server of what llama.cpp does not do.
pub(crate) fn warn_of_token_types(file: &ModelFile) {
    let kinds = file.tensor("token_types.weight").and_then(|tensor| tensor.dims.get(1)).copied().unwrap_or(1);
    if kinds > 1 {
        tracing::warn!(
            model.token_types = kinds,
            "this reranker may have been trained to tell queries from documents by token types; llama.cpp takes all tokens to be of the first, so that its scores may be others than its makers'"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_what_the_logit_says() {
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-5, "{a} is not {b}");
        for logit in [-5.0_f32, -0.3, 0.0, 1.0, 4.0] {
            near(Head::Logit.score(&[logit]), 1.0 / (1.0 + (-logit).exp()));
            near(Head::TanhOfLogit.score(&[logit.tanh()]), 1.0 / (1.0 + (-logit).exp()));
        }
        assert_eq!([-1.0, 1.0].map(|tanh| Head::TanhOfLogit.score(&[tanh])), [0.0, 1.0]);
        assert_eq!([-1e30, 1e30].map(|logit| Head::Logit.score(&[logit])), [0.0, 1.0]);
        assert_eq!(Head::Probabilities.score(&[0.75, 0.25]), 0.75);
        for numbers in [[f32::NAN, 0.5], [0.5, f32::INFINITY]] {
            assert!(Head::Probabilities.score(&numbers).is_nan());
        }
        assert!(Head::Logit.score(&[f32::INFINITY]).is_nan());
    }
}
