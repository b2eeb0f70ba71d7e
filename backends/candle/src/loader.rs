use std::{path::Path, sync::Arc};

use serde_json::Value;
use tandem_core::{
    Backend, BackendLoader, BackendSpec, BlockId, Chunk, EmbeddingBackend, GenerationDefaults, InferenceBackend,
    KvLayout, LoadError, LoadProgress, Loaded, Matryoshka, SampleRow, SamplingParams, SlotId, Step, StepError, TokenId,
    free_ram,
};
use tandem_cuda::{Chooser, Device, Rank};
use tandem_kernels::KvShape;

use crate::{
    backend::CandleBackend,
    config::{BodyConfig, DecoderConfig, EmbedderConfig, ModelConfig},
    device::{self, DeviceBackend, DeviceDecoder, DeviceNeeds, ParallelDecoder, Shape, Split},
    directory::invalid,
    embedder::{Body, CandleEmbedder},
    model_files::ModelFiles,
    models::{Decoder, Encoder, Trunk},
    paged::KvCache,
    plan,
    settings::{CandleSettings, ComputeDevice},
    tokenizer::Text,
    weights::Weights,
};

/// Tokens of the pass that a model must survive before it is lent out.
const WARM_UP_TOKENS: u32 = 8;

/// Loads a Hugging Face model directory or a GGUF file.
#[derive(Clone, Debug)]
pub struct CandleLoader {
    settings: CandleSettings,
    progress: LoadProgress,
    /// Instead of those that the settings name.
    ranks: Option<Vec<Rank>>,
}

impl CandleLoader {
    /// Nothing is read before [`with_backend`](BackendLoader::with_backend).
    #[must_use]
    pub fn new(settings: CandleSettings) -> Self {
        Self { settings, progress: LoadProgress::default(), ranks: None }
    }

    /// Tells `progress` how far a load has come.
    #[must_use]
    pub fn with_progress(self, progress: LoadProgress) -> Self {
        Self { progress, ..self }
    }

    /// Computes on a device that is open already, whatever card the settings name; they must name one.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        self.on_ranks(vec![Rank::alone(device)])
    }

    /// The same on several, among which the model is divided.
    #[must_use]
    pub fn on_ranks(self, ranks: Vec<Rank>) -> Self {
        Self { ranks: Some(ranks), ..self }
    }
}

impl BackendLoader for CandleLoader {
    fn with_backend(self: Box<Self>, serve: &mut dyn FnMut(Loaded<'_>)) -> Result<(), LoadError> {
        self.settings.check()?;
        let files = ModelFiles::open(&self.settings.model, self.settings.sha256.as_ref())?;
        let (config, config_file) = files.config()?;
        match config {
            ModelConfig::Generator(config) => match self.settings.device {
                ComputeDevice::Cpu => {
                    let (mut backend, text) = self.open_generator(files, &config, &config_file)?;
                    serve(generator(&mut backend, text));
                    Ok(())
                }
                ComputeDevice::Cuda { ordinal, ranks, memory_fraction } => {
                    // Before cards are asked for, which takes long where there are many.
                    let part = Split::config(ranks, &config).map_err(LoadError::Unsupported)?;
                    let ranks =
                        self.ranks.clone().map_or_else(|| Rank::open(ordinal, ranks), Ok).map_err(device::refused)?;
                    let (mut backend, text) =
                        self.open_on_devices(files, (&config, &part), &config_file, &ranks, memory_fraction)?;
                    serve(generator(&mut backend, text));
                    Ok(())
                }
            },
            ModelConfig::Embedder(config) => {
                if self.settings.device != ComputeDevice::Cpu {
                    return Err(LoadError::Unsupported(device::EMBEDDERS_STAY.to_owned()));
                }
                self.with_embedder(files, &config, &config_file, serve)
            }
        }
    }
}

impl CandleLoader {
    /// Loads a model that continues prompts.
    pub(crate) fn generator(&self) -> Result<(CandleBackend, Text), LoadError> {
        self.settings.check()?;
        let files = ModelFiles::open(&self.settings.model, self.settings.sha256.as_ref())?;
        match files.config()? {
            (ModelConfig::Generator(config), config_file) => self.open_generator(files, &config, &config_file),
            (ModelConfig::Embedder(_), _) => {
                Err(invalid(&self.settings.model, "an embedding model, which does not generate"))
            }
        }
    }

    /// The rest of a load, for a model that continues prompts.
    fn open_generator(
        &self,
        files: ModelFiles,
        config: &DecoderConfig,
        config_file: &Value,
    ) -> Result<(CandleBackend, Text), LoadError> {
        let Self { settings, progress, .. } = self;
        let spec = spec(settings, config)?;
        let text = files.text(config_file, spec.vocab_size)?;
        let threads = thread_pool(settings.threads())?;
        let KvLayout::Blocks { count, block_size } = spec.kv else { unreachable!("this backend pages its cache") };
        let shards = files.shards();
        let mut weights = files.weights(config_file, settings.kept())?;
        let kv_tokens = u64::from(count) * u64::from(block_size);
        let needs = plan::needs(settings, config, weights.bytes(), settings.parallel, kv_tokens);
        needs.check(settings.parallel, spec.max_context, free_ram(), "")?;
        let shape = KvShape {
            pages: count as usize,
            page_len: block_size as usize,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let cache = KvCache::new(shape, settings.kv_format(), config.layers.len())?;
        weights.tell(progress);
        let model = threads.install(|| Decoder::load(config, spec.max_context, weights));
        // Asked for first: a file that was written to is why its tensors may be wrong, and they need not look it.
        if let Some(shard) = shards.iter().find(|shard| shard.has_changed()) {
            return Err(invalid(&shard.path, "the file changed while it was being loaded"));
        }
        let model = model?;
        progress.complete();
        tracing::info!(
            model.path = %settings.model.display(),
            backend.threads = threads.current_num_threads(),
            backend.instructions = tandem_kernels::instructions(),
            kv.blocks = count,
            "model loaded"
        );
        let mut backend = CandleBackend::new(spec, model, cache, threads);
        warm_up(&mut backend, &settings.model)?;
        Ok((backend, text))
    }

    /// The same on devices, each of which has the part of the model that the second configuration describes.
    fn open_on_devices(
        &self,
        files: ModelFiles,
        (config, part): (&DecoderConfig, &DecoderConfig),
        config_file: &Value,
        ranks: &[Rank],
        memory_fraction: f64,
    ) -> Result<(DeviceBackend, Text), LoadError> {
        let Self { settings, progress, .. } = self;
        if let Some(reason) = device::unsupported(config) {
            return Err(LoadError::Unsupported(reason));
        }
        let text = files.text(config_file, config.vocab_size as u32)?;
        let shards = files.shards();
        let mut weights = files.weights(config_file, settings.kept())?;
        let number = device::number(settings, &weights);
        let bytes =
            weights.device_bytes_of_all(number, |layer, shape| Split::shape(ranks.len(), part, layer, shape))?;
        let processors = ranks.iter().map(|rank| rank.device().processors()).max().unwrap_or(1);
        let needs = DeviceNeeds::new(processors, settings, part, bytes, number, ranks.len());
        // All have as many pages as the one that has room for the fewest.
        let rooms = ranks.iter().map(|rank| Ok(device::room(rank.device().memory()?, memory_fraction)));
        let rooms = rooms.collect::<Result<Vec<_>, _>>().map_err(device::refused)?;
        let room = rooms.into_iter().min().unwrap_or(0);
        let kv_tokens = device::kv_tokens(settings, config, &needs, room);
        let pages = u64::from(kv_tokens / settings.block_size);
        needs.with_kv(pages).check(
            settings.parallel,
            settings.context.unwrap_or(config.max_positions),
            room,
            if ranks.len() == 1 { " on the GPU" } else { " on each GPU" },
        )?;
        let mut spec = spec(&CandleSettings { kv_tokens: Some(kv_tokens), ..settings.clone() }, config)?;
        spec.overlaps = true;
        let KvLayout::Blocks { count, block_size } = spec.kv else { unreachable!("this backend pages its cache") };
        let threads = thread_pool(settings.threads())?;
        weights.tell_of(progress, bytes);
        let shape = Shape {
            context: spec.max_context,
            parallel: settings.parallel as usize,
            max_step_tokens: settings.max_step_tokens as usize,
            pages: count as usize,
            page_len: block_size as usize,
            kv: device::kv_number(settings, number),
        };
        let load = |rank: &Rank, weights: Weights| {
            threads.install(|| DeviceDecoder::load(rank, number, (config, part), shape, weights))
        };
        let model = ParallelDecoder::load(ranks, weights, load);
        if let Some(shard) = shards.iter().find(|shard| shard.has_changed()) {
            return Err(invalid(&shard.path, "the file changed while it was being loaded"));
        }
        let model = model?;
        let device = ranks[0].device();
        progress.complete();
        tracing::info!(
            model.path = %settings.model.display(),
            backend.device = device.name(),
            backend.ranks = ranks.len(),
            backend.numbers = ?number,
            kv.blocks = count,
            "model loaded"
        );
        let chooser = Chooser::new(device, settings.parallel as usize).map_err(device::refused)?;
        let mut backend = DeviceBackend::new(spec, model, threads, chooser);
        warm_up(&mut backend, &settings.model)?;
        Ok((backend, text))
    }

    /// The same for a model that turns texts into vectors.
    fn with_embedder(
        &self,
        files: ModelFiles,
        config: &EmbedderConfig,
        config_file: &Value,
        serve: &mut dyn FnMut(Loaded<'_>),
    ) -> Result<(), LoadError> {
        let Self { settings, progress, .. } = self;
        let spec = CandleEmbedder::spec_of(settings, config);
        let Text { tokenizer, vocab, .. } = files.embedder_text(config_file, config)?;
        let threads = thread_pool(settings.threads())?;
        let mut weights = files.weights(config_file, settings.kept())?;
        let needs = plan::embedder_needs(settings, config, weights.bytes());
        needs.check(1, spec.max_input_tokens, free_ram(), "")?;
        let cache = KvCache::new(CandleEmbedder::shape(settings, config), CandleEmbedder::KV, 1)?;
        weights.tell(progress);
        let body = threads.install(|| {
            Ok(match &config.body {
                BodyConfig::Encoder(config) => {
                    let (encoder, head) = Encoder::load(config, weights, vocab.closing())?;
                    (Body::Encoder(encoder), head)
                }
                BodyConfig::Decoder(config) => {
                    (Body::Decoder(Trunk::load_alone(config, spec.max_input_tokens, weights)?), None)
                }
            })
        })?;
        progress.complete();
        tracing::info!(
            model.path = %settings.model.display(),
            backend.threads = threads.current_num_threads(),
            backend.instructions = tandem_kernels::instructions(),
            ?spec,
            "embedding model loaded"
        );
        let mut backend = CandleEmbedder::new(spec, body, cache, threads);
        warm_up_embedder(&mut backend, &settings.model)?;
        serve(Loaded {
            backend: Backend::Embedder(&mut backend),
            vocab: Arc::new(vocab),
            tokenizer: Arc::new(tokenizer),
            chat_template: None,
            defaults: GenerationDefaults::default(),
            matryoshka: matryoshka(config_file),
            pair_template: None,
        });
        Ok(())
    }
}

/// How vectors may be cut, by the keys that vLLM reads.
fn matryoshka(config: &Value) -> Matryoshka {
    let sizes = config["matryoshka_dimensions"].as_array().map(|sizes| {
        let size = |size: &Value| size.as_u64().and_then(|size| u32::try_from(size).ok()).filter(|size| *size > 0);
        sizes.iter().filter_map(size).collect::<Vec<_>>()
    });
    match sizes {
        Some(sizes) if !sizes.is_empty() => Matryoshka::Sizes(sizes),
        _ if config["is_matryoshka"].as_bool() == Some(true) => Matryoshka::Any,
        _ => Matryoshka::No,
    }
}

/// A model that continues prompts, to be lent.
fn generator(backend: &mut dyn InferenceBackend, text: Text) -> Loaded<'_> {
    let Text { tokenizer, vocab, chat_template, defaults } = text;
    Loaded {
        backend: Backend::Generator(backend),
        vocab: Arc::new(vocab),
        tokenizer: Arc::new(tokenizer),
        chat_template,
        defaults,
        matryoshka: Matryoshka::No,
        pair_template: None,
    }
}

/// What the settings and the model allow together.
fn spec(settings: &CandleSettings, config: &DecoderConfig) -> Result<BackendSpec, LoadError> {
    let &CandleSettings {
        model: _,
        sha256: _,
        context,
        parallel,
        dtype: _,
        quantization: _,
        block_size,
        max_step_tokens,
        kv_tokens,
        kv_type: _,
        device: _,
        threads: _,
    } = settings;
    let max_context = context.unwrap_or(config.max_positions);
    if max_context > config.max_positions {
        let reason = format!(
            "context {max_context} is more than the {} tokens that the model was made for",
            config.max_positions
        );
        return Err(LoadError::Unsupported(reason));
    }
    let tokens = kv_tokens.map_or(u64::from(parallel) * u64::from(max_context), u64::from);
    if tokens < u64::from(max_context) {
        return Err(LoadError::Unsupported(format!(
            "a KV cache of {tokens} tokens cannot hold one context of {max_context}"
        )));
    }
    let count = u32::try_from(tokens.div_ceil(u64::from(block_size))).map_err(|_| {
        LoadError::Unsupported(format!("a KV cache of {tokens} tokens has too many blocks of {block_size}"))
    })?;
    Ok(BackendSpec {
        name: "candle",
        vocab_size: config.vocab_size as u32,
        max_context,
        max_sequences: parallel,
        max_step_tokens,
        kv: KvLayout::Blocks { count, block_size },
        mixes_phases: true,
        overlaps: false,
        adapters: Vec::new(),
    })
}

fn thread_pool(threads: usize) -> Result<rayon::ThreadPool, LoadError> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|at| format!("candle-{at}"));
    builder
        .build()
        .map_err(|error| LoadError::Other { context: format!("cannot start {threads} threads"), source: error.into() })
}

/// Runs one pass, so that a model with broken weights is refused now and not by its first request. What it leaves in the cache is
/// overwritten by whoever gets the pages.
fn warm_up(backend: &mut dyn InferenceBackend, model: &Path) -> Result<(), LoadError> {
    let spec = backend.spec();
    let KvLayout::Blocks { count, block_size } = spec.kv else { unreachable!("this backend pages its cache") };
    let len = WARM_UP_TOKENS.min(spec.max_step_tokens).min(spec.max_context).min(spec.vocab_size);
    let tokens: Vec<TokenId> = (0..len).collect();
    let block_table: Vec<_> = (0..len.div_ceil(block_size).min(count)).map(BlockId).collect();
    let chunk =
        Chunk { slot: SlotId(0), start: 0, tokens: &tokens, block_table: &block_table, sample: true, score: false };
    let pass = backend.forward(&Step { kv_ops: &[], chunks: &[chunk], adapter: None });
    pass.map_err(first_pass_failed)?;
    // With its log-probability, so that all logits are looked at.
    let params = SamplingParams::greedy();
    let row = SampleRow {
        slot: SlotId(0),
        params: &params,
        u: 0.0,
        prompt: &[],
        output: &[],
        banned: &[],
        allowed: None,
        logprobs: Some(0),
    };
    let mut out = Vec::new();
    let sampled = backend.sample(&[row], &mut out);
    sampled.map_err(first_pass_failed)?;
    match out.pop() {
        Some(Ok(sampled)) if sampled.logprobs.as_ref().is_some_and(|logprobs| logprobs.logprob.is_finite()) => Ok(()),
        _ => Err(invalid(model, "model produces non-finite logits")),
    }
}

fn first_pass_failed(error: StepError) -> LoadError {
    match error {
        StepError::Lost(source) => LoadError::DeviceLost(source),
        StepError::KvFull | StepError::Device(_) => {
            LoadError::Other { context: "the first pass failed".to_owned(), source: error.into() }
        }
    }
}

/// The same for an embedding model, by one pass over one input.
fn warm_up_embedder(backend: &mut CandleEmbedder, model: &Path) -> Result<(), LoadError> {
    let spec = backend.spec();
    let len = WARM_UP_TOKENS.min(spec.max_pass_tokens).min(spec.max_input_tokens).min(spec.vocab_size);
    let tokens: Vec<TokenId> = (0..len).collect();
    let mut vector = Vec::new();
    let pass = backend.embed(&[&tokens], &mut vector);
    pass.map_err(|error| LoadError::Other { context: "the first pass failed".to_owned(), source: error.into() })?;
    if vector.iter().all(|number| number.is_finite()) {
        Ok(())
    } else {
        Err(invalid(model, "model produces a vector that is not finite"))
    }
}
