//! How far what a model says is from what it says with its weights kept in another way: to choose a quantization by, and to test with.

use std::collections::HashMap;

use tandem_core::{BlockId, Chunk, InferenceBackend, LoadError, SlotId, Step, TokenId, Vocab};

use crate::{CandleLoader, CandleSettings, backend::CandleBackend};

/// What a model says, token by token: of texts, and of how it goes on with them by itself.
#[derive(Clone, Debug)]
pub struct Reference {
    sequences: Vec<Vec<TokenId>>,
    /// Log-probabilities of all tokens after each beginning of a sequence, by sequence and position.
    predictions: HashMap<(usize, usize), Vec<f32>>,
}

/// The distance from a [`Reference`], as means over its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Predictions compared.
    pub tokens: usize,
    /// The Kullback-Leibler divergence from the reference's distribution over all tokens, in nats.
    pub kl: f64,
    /// The difference of the log-probabilities of the token that did follow, in nats.
    pub logprob_error: f64,
    /// The share of predictions whose likeliest token is the reference's.
    pub agreement: f64,
}

impl Reference {
    /// Runs a model over some texts, in which control tokens may be spelled out, and over so many tokens that it goes on with after each.
    ///
    /// # Errors
    /// When it cannot be loaded or run, or does not generate; when a text cannot be encoded.
    pub fn new(settings: CandleSettings, texts: &[&str], continued: usize) -> Result<Self, LoadError> {
        let (mut backend, text) = CandleLoader::new(settings).generator()?;
        let mut sequences = Vec::new();
        for prompt in texts {
            let tokens = encode(prompt, &text.vocab, &text.tokenizer).map_err(|error| LoadError::Other {
                context: "a text cannot be encoded".to_owned(),
                source: error.into(),
            })?;
            sequences.push(tokens);
        }
        let lens: Vec<usize> = sequences.iter().map(|tokens| tokens.len() + continued).collect();
        let mut predictions = HashMap::new();
        run(&mut backend, &mut sequences, &lens, |sequence, position, logits| {
            predictions.insert((sequence, position), log_softmax(logits));
        })?;
        Ok(Self { sequences, predictions })
    }

    /// Compares with what a model says of the same tokens.
    ///
    /// # Errors
    /// As [`new`](Self::new) has.
    pub fn compare(&self, settings: CandleSettings) -> Result<Divergence, LoadError> {
        let (mut backend, _) = CandleLoader::new(settings).generator()?;
        let (mut tokens, mut kl, mut error, mut agreed) = (0, 0.0, 0.0, 0);
        let mut sequences = self.sequences.clone();
        let lens: Vec<usize> = sequences.iter().map(Vec::len).collect();
        run(&mut backend, &mut sequences, &lens, |sequence, position, logits| {
            let (expected, got) = (&self.predictions[&(sequence, position)], log_softmax(logits));
            tokens += 1;
            let parts = expected.iter().zip(&got).map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q)));
            kl += parts.sum::<f64>();
            agreed += usize::from(likeliest(expected) == likeliest(&got));
            if let Some(&next) = self.sequences[sequence].get(position + 1) {
                error += f64::from((expected[next as usize] - got[next as usize]).abs());
            }
        })?;
        let count = tokens.max(1) as f64;
        Ok(Divergence { tokens, kl: kl / count, logprob_error: error / count, agreement: agreed as f64 / count })
    }
}

/// The tokens of a text, with those control tokens that are spelled out in it.
fn encode(
    text: &str,
    vocab: &Vocab,
    tokenizer: &dyn tandem_core::Tokenizer,
) -> Result<Vec<TokenId>, tandem_core::TokenizeError> {
    let found = vocab.specials().iter().filter_map(|special| text.find(&special.text).map(|at| (at, special)));
    match found.min_by_key(|(at, _)| *at) {
        None => tokenizer.encode(text),
        Some((at, special)) => {
            let mut tokens = tokenizer.encode(&text[..at])?;
            tokens.push(special.id);
            tokens.extend(encode(&text[at + special.text.len()..], vocab, tokenizer)?);
            Ok(tokens)
        }
    }
}

/// Computes sequences side by side, a token of each in a step, and tells `see` the logits behind each of their tokens. A sequence that is
/// shorter than it is to be goes on with the likeliest token.
fn run(
    backend: &mut CandleBackend,
    sequences: &mut [Vec<TokenId>],
    lens: &[usize],
    mut see: impl FnMut(usize, usize, &[f32]),
) -> Result<(), LoadError> {
    let spec = backend.spec();
    let (context, vocab) = (spec.max_context as usize, spec.vocab_size as usize);
    let longest = lens.iter().copied().max().unwrap_or(0);
    if longest > context || sequences.len() > spec.max_sequences.min(spec.max_step_tokens) as usize {
        let reason = format!("{} sequences of up to {longest} tokens do not fit the settings", sequences.len());
        return Err(LoadError::Unsupported(reason));
    }
    let tandem_core::KvLayout::Blocks { block_size, .. } = spec.kv else {
        unreachable!("this backend pages its cache")
    };
    let pages = spec.max_context.div_ceil(block_size);
    let tables: Vec<Vec<BlockId>> =
        (0..sequences.len() as u32).map(|slot| (slot * pages..(slot + 1) * pages).map(BlockId).collect()).collect();
    for position in 0..longest {
        let alive: Vec<usize> = (0..sequences.len()).filter(|&at| position < lens[at]).collect();
        let chunk = |&at: &usize| Chunk {
            slot: SlotId(at as u32),
            start: position as u32,
            tokens: &sequences[at][position..=position],
            block_table: &tables[at],
            sample: true,
            score: false,
        };
        let chunks: Vec<_> = alive.iter().map(chunk).collect();
        backend
            .forward(&Step { kv_ops: &[], chunks: &chunks, adapter: None })
            .map_err(|error| LoadError::Other { context: "a step failed".to_owned(), source: error.into() })?;
        for (&at, logits) in alive.iter().zip(backend.logits().chunks_exact(vocab)) {
            see(at, position, logits);
            if sequences[at].len() == position + 1 && position + 1 < lens[at] {
                sequences[at].push(likeliest(logits));
            }
        }
    }
    Ok(())
}

fn likeliest(scores: &[f32]) -> TokenId {
    let best = (0u32..).zip(scores).max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map_or(0, |(token, _)| token)
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let total = total.ln() as f32;
    logits.iter().map(|&logit| logit - max - total).collect()
}
