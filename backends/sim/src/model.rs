use tandem_core::{
    AdapterId, FillInTheMiddle, SampleRow, Sampled, SamplingParams, TokenId, TokenKind, TokenMask, TokenizeError,
    Tokenizer, Vocab, VocabParts,
    sampling::{Sampler, uniform},
};

/// One token for each byte, and three control tokens.
pub const VOCAB_SIZE: u32 = 259;

const END_OF_TEXT: TokenId = 256;
const TURN_START: TokenId = 257;
const TURN_END: TokenId = 258;

/// `ChatML`, as many real models have it.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
     {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The vocabulary: bytes, and control tokens as `ChatML` has them.
#[must_use]
pub fn vocab() -> Vocab {
    Vocab::new(parts())
}

/// The same for a model that may fill in the middle.
pub(crate) fn vocab_with(fills_in_the_middle: bool) -> Vocab {
    let marks = FillInTheMiddle { prefix: 1, suffix: 2, middle: 3 };
    Vocab::new(VocabParts { fill_in_the_middle: fills_in_the_middle.then_some(marks), ..parts() })
}

/// The same for the embedding model, which wants a token in front of a text and one behind it, as BERT does; between two texts it may want
/// another one.
pub(crate) fn embedder_vocab(separated: bool) -> Vocab {
    let separator = separated.then_some(END_OF_TEXT);
    Vocab::new(VocabParts { bos: Some(TURN_START), adds_bos: true, closing: Some(TURN_END), separator, ..parts() })
}

fn parts() -> VocabParts {
    let bytes = (0..=255u8).map(|byte| (Box::from([byte]), Some(TokenKind::Text)));
    let control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        .map(|text| (Box::from(text.as_bytes()), Some(TokenKind::Control)));
    VocabParts {
        tokens: bytes.chain(control).collect(),
        eog: vec![END_OF_TEXT, TURN_END],
        bos: None,
        eos: Some(TURN_END),
        adds_bos: false,
        closing: None,
        separator: None,
        fill_in_the_middle: None,
    }
}

/// One token for each byte.
#[derive(Debug)]
pub(crate) struct ByteTokenizer;

impl Tokenizer for ByteTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizeError> {
        Ok(text.bytes().map(TokenId::from).collect())
    }
}

/// The KV cell of a token: it depends on the cells before it, so that a prefix in the wrong place is noticed, and on the adapter that
/// computed it, so that one that is shared with another adapter is.
pub(crate) fn cell(before: u64, token: TokenId, position: u32, adapter: Option<AdapterId>) -> u64 {
    let own = adapter.map_or(0, |adapter| mix(!u64::from(adapter.0)));
    mix(before ^ mix((u64::from(token) << 32) | u64::from(position)) ^ own)
}

/// What the next token is drawn from, given a digest of all visible cells.
pub(crate) fn digest(cells: impl Iterator<Item = u64>) -> u64 {
    cells.fold(0x5eed, |sum, cell| mix(sum.rotate_left(5) ^ cell))
}

/// Fills `logits` for a context: mostly letters and spaces, and now and then the end of the turn.
pub(crate) fn logits(digest: u64, logits: &mut [f32]) {
    for (token, logit) in std::iter::zip(0u32.., logits.iter_mut()) {
        let noise = mix(digest ^ mix(u64::from(token) + 1)) >> 40;
        let noise = noise as f32 / (1u32 << 24) as f32;
        *logit = 6.0 * noise + favour(token);
    }
    if digest.is_multiple_of(24) {
        logits[TURN_END as usize] = 24.0;
    }
}

/// The vector of an input: numbers from -4 to 4 that depend on every token and its place.
pub fn vector(input: &[TokenId], dimensions: u32) -> impl Iterator<Item = f32> + use<> {
    let cells = std::iter::zip(0.., input).scan(0, |before, (position, &token)| {
        *before = cell(*before, token, position, None);
        Some(*before)
    });
    let digest = digest(cells);
    (0..dimensions).map(move |dimension| {
        let noise = mix(digest ^ mix(u64::from(dimension) + 1)) >> 40;
        8.0 * (noise as f32 / (1u32 << 24) as f32) - 4.0
    })
}

/// How well a document answers a query, from 0 to 1: by the words of the query that stand behind it too, and a little by everything else. The
/// query ends with the first control token behind a text.
#[must_use]
pub fn score(input: &[TokenId]) -> f32 {
    let is_text = |token: &TokenId| *token < END_OF_TEXT;
    let begin = input.iter().position(is_text).unwrap_or(input.len());
    let end = input[begin..].iter().position(|token| !is_text(token)).map_or(input.len(), |len| begin + len);
    let (query, document) = (words(&input[begin..end]), words(&input[end..]));
    let found = query.iter().filter(|word| document.contains(word)).count();
    let noise = vector(input, 1).next().map_or(0.0, |number| (number + 4.0) / 8.0);
    0.99 * (found as f32 / query.len().max(1) as f32) + 0.01 * noise
}

/// Runs of letters, digits and bytes above ASCII, in lower case.
fn words(tokens: &[TokenId]) -> Vec<Vec<u8>> {
    let byte = |token: &TokenId| u8::try_from(*token).map_or(b' ', |byte| byte.to_ascii_lowercase());
    let bytes: Vec<u8> = tokens.iter().map(byte).collect();
    let runs = bytes.split(|byte| byte.is_ascii() && !byte.is_ascii_alphanumeric());
    runs.filter(|run| !run.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Makes the text readable enough for a person to see that something is being generated.
fn favour(token: TokenId) -> f32 {
    match u8::try_from(token) {
        Ok(b' ') => 9.5,
        Ok(b'a'..=b'z') => 9.0,
        Ok(b'.' | b',') => 6.0,
        Ok(_) => 0.0,
        Err(_) if token == TURN_START => -8.0,
        Err(_) => 0.0,
    }
}

/// The finalizer of `SplitMix64` (Steele et al. 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The model run alone, without any cache: what an engine over [`SimLoader`](crate::SimLoader) must answer.
#[derive(Debug)]
pub struct Oracle {
    adapter: Option<AdapterId>,
    cells: Vec<u64>,
    sampler: Sampler,
    row: Vec<f32>,
}

impl Oracle {
    /// A run with this adapter that has seen `prompt`.
    #[must_use]
    pub fn new(prompt: &[TokenId], adapter: Option<AdapterId>) -> Self {
        let row = vec![0.0; VOCAB_SIZE as usize];
        let mut oracle = Self { adapter, cells: Vec::new(), sampler: Sampler::default(), row };
        prompt.iter().for_each(|&token| oracle.see(token));
        oracle
    }

    /// Up to `max_tokens` tokens after `prompt` without an adapter, ending with a token that ends generation if one comes.
    #[must_use]
    pub fn generate(prompt: &[TokenId], params: &SamplingParams, seed: u64, max_tokens: u32) -> Vec<TokenId> {
        Self::generate_within(prompt, None, params, seed, max_tokens, |_| Some(None))
    }

    /// The same with an adapter, choosing only from what `allowed` gives for the output so far; `Some(None)` is everything, and `None` the end.
    #[must_use]
    pub fn generate_within(
        prompt: &[TokenId],
        adapter: Option<AdapterId>,
        params: &SamplingParams,
        seed: u64,
        max_tokens: u32,
        mut allowed: impl FnMut(&[TokenId]) -> Option<Option<TokenMask>>,
    ) -> Vec<TokenId> {
        let vocab = vocab();
        let mut oracle = Self::new(prompt, adapter);
        let mut output = Vec::new();
        for position in 0..max_tokens {
            let Some(mask) = allowed(&output) else { break };
            let token = oracle.next(prompt, &output, params, uniform(seed, position), mask.as_ref());
            output.push(token);
            if vocab.is_eog(token) {
                break;
            }
            oracle.see(token);
        }
        output
    }

    /// The log-probabilities of the prompt's tokens but for the first.
    ///
    /// # Panics
    /// Never: the model's logits are finite.
    #[must_use]
    pub fn scores(prompt: &[TokenId], adapter: Option<AdapterId>) -> Vec<f32> {
        let mut oracle = Self::new(&[], adapter);
        let pairs = std::iter::zip(prompt, prompt.iter().skip(1));
        let score = |(&token, &next)| {
            oracle.see(token);
            logits(digest(oracle.cells.iter().copied()), &mut oracle.row);
            oracle.sampler.score(&oracle.row, next, 0, &[]).expect("the model's logits are finite").logprob
        };
        pairs.map(score).collect()
    }

    fn see(&mut self, token: TokenId) {
        let before = self.cells.last().copied().unwrap_or(0);
        self.cells.push(cell(before, token, self.cells.len() as u32, self.adapter));
    }

    fn next(
        &mut self,
        prompt: &[TokenId],
        output: &[TokenId],
        params: &SamplingParams,
        u: f32,
        allowed: Option<&TokenMask>,
    ) -> TokenId {
        logits(digest(self.cells.iter().copied()), &mut self.row);
        let slot = tandem_core::SlotId(0);
        let row = SampleRow { slot, params, u, prompt, output, banned: &[], allowed, logprobs: None };
        let sampled = self.sampler.sample(&self.row, &row);
        sampled.map(|Sampled { token, .. }| token).expect("the model's logits are finite and nothing is banned")
    }
}
