use std::sync::Arc;

use llama_cpp_2::{
    context::{LlamaContext, params::LlamaContextParams},
    model::LlamaModel,
};
use tandem_core::{
    AdapterId, Backend, BackendLoader, BackendSpec, EmbeddingSpec, GenerationDefaults, KvLayout, LoadError,
    LoadProgress, Loaded, Matryoshka, Pooling, TokenId, Vocab,
};

use crate::{
    Assumptions, GpuLayers, LlamaCppSettings, Planner,
    adapter_file::AdapterFile,
    backend::{KvPools, LlamaCpp},
    embedder::LlamaEmbedder,
    model_file::ModelFile,
    params,
    ranking::{self, Head},
    runtime::{self, Llama},
    tokenizer::GgufTokenizer,
    vocab,
};

/// Loads a GGUF model with llama.cpp.
#[derive(Debug)]
pub struct LlamaCppLoader {
    settings: LlamaCppSettings,
    progress: LoadProgress,
}

impl LlamaCppLoader {
    /// A loader for what `settings` describe. Nothing is read before the load.
    #[must_use]
    pub fn new(settings: LlamaCppSettings) -> Self {
        Self { settings, progress: LoadProgress::default() }
    }

    /// Tells `progress` how far a load has come, as llama.cpp has it: of weights that are mapped, which take no time, rather than read.
    #[must_use]
    pub fn with_progress(self, progress: LoadProgress) -> Self {
        Self { progress, ..self }
    }

    /// Loads the weights.
    fn model(&self, llama: &Llama, file: &ModelFile) -> Result<LlamaModel, LoadError> {
        let total = file.bytes();
        self.progress.begin(total);
        let progress = self.progress.clone();
        let tell = move |part: f32| {
            progress.set((f64::from(part) * total as f64) as u64);
            true
        };
        let model = file.load(&params::model(&self.settings, llama)?.with_progress_callback(tell))?;
        self.progress.complete();
        Ok(model)
    }

    /// Whether a slot can be cut anywhere, rather than only be continued at its end or emptied.
    fn partial_reuse(&self, model: &LlamaModel, file: &ModelFile) -> bool {
        let keeps_a_state = model.is_recurrent() || model.is_hybrid();
        let keeps_a_window = file.has_sliding_window && !self.settings.swa_full;
        !keeps_a_state && !keeps_a_window
    }

    fn context<'model>(
        &self,
        llama: &Llama,
        model: &'model LlamaModel,
        params: LlamaContextParams,
    ) -> Result<LlamaContext<'model>, LoadError> {
        let Self { settings, .. } = self;
        let tokens = params.n_ctx().map_or(0, std::num::NonZero::get);
        model.new_context(&llama.backend, params).map_err(|error| LoadError::Other {
            context: format!(
                "{}: llama.cpp cannot make a context of {tokens} tokens with a {:?} cache; its log says why",
                settings.model.display(),
                settings.kv_type
            ),
            source: error.into(),
        })
    }

    /// The rest of a load, for a model that turns texts into vectors, or ranks documents by its head.
    fn with_embedder(
        &self,
        llama: &Llama,
        model: &LlamaModel,
        file: ModelFile,
        (pooling, head): (Pooling, Option<Head>),
        (vocab, tokenizer): (Arc<Vocab>, Arc<GgufTokenizer>),
        serve: &mut dyn FnMut(Loaded<'_>),
    ) -> Result<(), LoadError> {
        let Self { settings, .. } = self;
        let invalid = |reason| LoadError::Invalid { path: settings.model.display().to_string(), reason };
        let sizes = settings.embedder_sizes(model.n_ctx_train())?;
        if head.is_some() {
            ranking::check_pairs(&file, &vocab).map_err(invalid)?;
            ranking::warn_of_token_types(&file);
        }
        let dimensions = u32::try_from(model.n_embd_out()).ok().filter(|dimensions| *dimensions > 0);
        let dimensions = dimensions.ok_or_else(|| invalid("llama.cpp says that its vectors have no numbers".into()))?;
        let context = self.context(llama, model, params::embedding_context(settings, sizes, pooling))?;
        let spec = EmbeddingSpec {
            name: "llama-cpp",
            vocab_size: vocab.len() as u32,
            dimensions: if head.is_some() { 1 } else { dimensions },
            max_input_tokens: sizes.input,
            max_inputs: sizes.inputs,
            max_pass_tokens: sizes.pass,
            pooling,
        };
        tracing::info!(?spec, model = %settings.model.display(), "the embedding model is loaded");
        let mut backend = LlamaEmbedder::new(context, spec, head, sizes.batch);
        backend.warm_up(vocab.opening().unwrap_or(0)).map_err(invalid)?;
        serve(Loaded {
            backend: Backend::Embedder(&mut backend),
            vocab,
            tokenizer,
            chat_template: None,
            defaults: GenerationDefaults::default(),
            matryoshka: Matryoshka::No,
            pair_template: file.pair_template,
        });
        Ok(())
    }

    /// Runs the model once as it is and once with each adapter.
    fn warm_up(&self, backend: &mut LlamaCpp<'_>, token: TokenId) -> Result<(), LoadError> {
        let adapters = std::iter::zip(0.., &self.settings.adapters).map(|(at, one)| (Some(AdapterId(at)), &one.path));
        for (adapter, path) in std::iter::once((None, &self.settings.model)).chain(adapters) {
            let invalid = |reason| LoadError::Invalid { path: path.display().to_string(), reason };
            backend.warm_up(token, adapter).map_err(invalid)?;
        }
        Ok(())
    }
}

impl BackendLoader for LlamaCppLoader {
    fn with_backend(self: Box<Self>, serve: &mut dyn FnMut(Loaded<'_>)) -> Result<(), LoadError> {
        self.settings.check()?;
        let file = ModelFile::check(&self.settings.model, self.settings.sha256.as_ref())?;
        let adapter_files = AdapterFile::check_all(&self.settings, &file)?;
        let settings = fit(&self.settings, &file, &adapter_files)?;
        let loader = Self { settings, progress: self.progress };
        loader.load(file, &adapter_files, serve)
    }
}

/// The settings as they fit into the memory that is free.
///
/// # Errors
/// When the model can be laid out, but not into this memory.
fn fit(settings: &LlamaCppSettings, file: &ModelFile, adapters: &[AdapterFile]) -> Result<LlamaCppSettings, LoadError> {
    let asked = settings.gpu.layers;
    let planner = Planner::of(settings, file, adapters, Assumptions::default())?;
    let settings = planner.fitted()?;
    let plan = planner.plan_of(&settings)?;
    plan.check()?;
    let no_gpu = runtime::init(settings.numa)?.no_gpu.as_deref();
    if let Some(reason) = no_gpu.filter(|_| asked != GpuLayers::Count(0)) {
        tracing::warn!("all layers run on the processor: {reason}");
    }
    let (on_gpus, layers) = plan.layers;
    let needs = plan.needs();
    let bytes = (needs.weights, needs.kv, needs.compute);
    tracing::info!(on_gpus, layers, context = plan.context, ?bytes, "weights, KV and work space fit");
    Ok(settings)
}

impl LlamaCppLoader {
    fn load(
        &self,
        file: ModelFile,
        adapter_files: &[AdapterFile],
        serve: &mut dyn FnMut(Loaded<'_>),
    ) -> Result<(), LoadError> {
        let path = &self.settings.model;
        let llama = runtime::init(self.settings.numa)?;
        let tokenizer = Arc::new(GgufTokenizer::load(&file)?);
        let mut model = self.model(llama, &file)?;
        let vocab = Arc::new(vocab::build(&model, file.vocab_kind, file.fill_in_the_middle));
        if let Some(kind) = file.purpose.embedder() {
            if !adapter_files.is_empty() {
                return Err(LoadError::Unsupported(
                    "adapters are for models that generate, and this one does not".into(),
                ));
            }
            return self.with_embedder(llama, &model, file, kind, (vocab, tokenizer), serve);
        }
        // Before there is a context: it takes room for the largest graph that there may be.
        let adapters = adapter_files.iter().map(|file| file.load(&mut model)).collect::<Result<_, _>>()?;
        let sizes = self.settings.sizes(model.n_ctx_train())?;
        if self.settings.context.is_some_and(|asked| asked > sizes.context) {
            tracing::warn!(context = sizes.context, "the model was trained on fewer tokens than the context asked for");
        }
        let context = self.context(llama, &model, params::context(&self.settings, sizes))?;
        let spec = BackendSpec {
            name: "llama-cpp",
            // llama.cpp has one logit for each token of the vocabulary, and no padding.
            vocab_size: vocab.len() as u32,
            max_context: sizes.context,
            max_sequences: self.settings.parallel,
            max_step_tokens: context.n_batch(),
            kv: KvLayout::Slots {
                // What llama.cpp made of it: it rounds up to whole blocks of 256.
                cells: context.n_ctx(),
                partial_reuse: self.partial_reuse(&model, &file),
            },
            mixes_phases: true,
            // llama.cpp hands a pass over to a GPU and waits when logits are asked for; on the CPU it computes at once.
            overlaps: llama.no_gpu.is_none() && self.settings.gpu.layers != GpuLayers::Count(0),
            adapters: self.settings.adapters.iter().map(|adapter| adapter.name.clone()).collect(),
        };
        let (threads, threads_batch) = self.settings.thread_counts();
        tracing::info!(?spec, threads, threads_batch, model = %path.display(), "the model is loaded");
        let kv_pools = if self.settings.kv_unified { KvPools::One } else { KvPools::PerSlot };
        let mut backend = LlamaCpp::new(context, spec, kv_pools, adapters).map_err(|error| LoadError::Other {
            context: "starting threads that sample".to_owned(),
            source: error.into(),
        })?;
        self.warm_up(&mut backend, vocab.bos().unwrap_or(0))?;
        let backend = Backend::Generator(&mut backend);
        let (chat_template, defaults) = (file.chat_template, file.defaults);
        let matryoshka = Matryoshka::No;
        serve(Loaded { backend, vocab, tokenizer, chat_template, defaults, matryoshka, pair_template: None });
        Ok(())
    }
}
