use std::{sync::Arc, time::Duration};

use tandem_core::{
    Backend, BackendLoader, DeviceError, EmbeddingBackend, EmbeddingSpec, GenerationDefaults, LoadError, Loaded,
    Matryoshka, Pooling, TokenId,
};

use crate::{
    backend::Faults,
    model::{self, ByteTokenizer, VOCAB_SIZE},
};

/// How the simulated embedding model behaves.
#[derive(Clone, Debug)]
pub struct SimEmbedderSettings {
    /// Numbers in one vector.
    pub dimensions: u32,
    /// Tokens of one input.
    pub max_input_tokens: u32,
    /// Inputs of one pass.
    pub max_inputs: u32,
    /// Tokens of one pass.
    pub max_pass_tokens: u32,
    /// Time that each pass takes at least.
    pub pass_delay: Duration,
    /// How vectors may be cut.
    pub matryoshka: Matryoshka,
    /// What it ranks documents by, if it does that instead of having vectors.
    pub pairs: Option<SimPairs>,
    /// What goes wrong. It has no KV memory that could be full.
    pub faults: Faults,
}

/// How a query and a document stand in an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SimPairs {
    /// Each before the token that ends a text, as with BERT; or with another one between them, as with XLM-R.
    Framed { separated: bool },
    /// In this prompt.
    Template(String),
}

impl Default for SimEmbedderSettings {
    fn default() -> Self {
        Self {
            dimensions: 16,
            max_input_tokens: 512,
            max_inputs: 8,
            max_pass_tokens: 512,
            pass_delay: Duration::ZERO,
            matryoshka: Matryoshka::No,
            pairs: None,
            faults: Faults::default(),
        }
    }
}

/// "Loads" the simulated embedding model.
#[derive(Debug)]
pub struct SimEmbedderLoader {
    settings: SimEmbedderSettings,
}

impl SimEmbedderLoader {
    /// A loader with these settings.
    #[must_use]
    pub fn new(settings: SimEmbedderSettings) -> Self {
        Self { settings }
    }
}

impl BackendLoader for SimEmbedderLoader {
    fn with_backend(self: Box<Self>, serve: &mut dyn FnMut(Loaded<'_>)) -> Result<(), LoadError> {
        let SimEmbedderSettings { matryoshka, pairs, .. } = self.settings.clone();
        let mut backend = SimEmbedder::new(self.settings);
        serve(Loaded {
            backend: Backend::Embedder(&mut backend),
            vocab: Arc::new(model::embedder_vocab(pairs == Some(SimPairs::Framed { separated: true }))),
            tokenizer: Arc::new(ByteTokenizer),
            chat_template: None,
            defaults: GenerationDefaults::default(),
            matryoshka,
            pair_template: match pairs {
                Some(SimPairs::Template(template)) => Some(template),
                Some(SimPairs::Framed { .. }) | None => None,
            },
        });
        Ok(())
    }
}

struct SimEmbedder {
    spec: EmbeddingSpec,
    settings: SimEmbedderSettings,
    passes: u64,
    vectors: u64,
}

impl SimEmbedder {
    fn new(settings: SimEmbedderSettings) -> Self {
        let SimEmbedderSettings { dimensions, max_input_tokens, max_inputs, max_pass_tokens, .. } = settings;
        let (dimensions, pooling) = match settings.pairs {
            Some(_) => (1, Pooling::Rank),
            None => (dimensions, Pooling::Last),
        };
        let spec = EmbeddingSpec {
            name: "sim",
            vocab_size: VOCAB_SIZE,
            dimensions,
            max_input_tokens,
            max_inputs,
            max_pass_tokens,
            pooling,
        };
        Self { spec, settings, passes: 0, vectors: 0 }
    }
}

impl EmbeddingBackend for SimEmbedder {
    fn spec(&self) -> &EmbeddingSpec {
        &self.spec
    }

    fn embed(&mut self, inputs: &[&[TokenId]], out: &mut Vec<f32>) -> Result<(), DeviceError> {
        self.passes += 1;
        let &SimEmbedderSettings { faults, pass_delay, .. } = &self.settings;
        faults.strike(self.passes).map_err(|error| DeviceError(error.into()))?;
        let spec = &self.spec;
        assert!((1..=spec.max_inputs as usize).contains(&inputs.len()), "a pass of {} inputs", inputs.len());
        let lens = inputs.iter().map(|input| input.len());
        let fits = inputs.len() == 1 || lens.clone().sum::<usize>() <= spec.max_pass_tokens as usize;
        assert!(fits, "a pass over several inputs keeps to its budget");
        assert!(lens.clone().all(|len| (1..=spec.max_input_tokens as usize).contains(&len)), "an input that fits");
        for input in inputs {
            self.vectors += 1;
            let start = out.len();
            match spec.pooling {
                Pooling::Rank => out.push(model::score(input)),
                Pooling::Mean | Pooling::Cls | Pooling::Last => out.extend(model::vector(input, spec.dimensions)),
            }
            if self.vectors.checked_rem(faults.nan_every) == Some(0) {
                out[start] = f32::NAN;
            }
        }
        if !pass_delay.is_zero() {
            std::thread::sleep(pass_delay);
        }
        Ok(())
    }
}
