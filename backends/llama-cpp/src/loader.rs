use std::sync::Arc;

use llama_cpp_2::{
    context::params::LlamaContextParams,
    llama_backend::LlamaBackend,
    model::{LlamaModel, params::LlamaModelParams},
};
use tandem_core::{BackendLoader, BackendSpec, KvLayout, LoadError, Loaded};

use crate::{
    GpuLayers, LlamaCppSettings, backend::LlamaCpp, model_file::ModelFile, runtime, settings::Sizes,
    tokenizer::GgufTokenizer, vocab,
};

/// Loads a GGUF model with llama.cpp.
#[derive(Debug)]
pub struct LlamaCppLoader {
    settings: LlamaCppSettings,
}

impl LlamaCppLoader {
    /// A loader for what `settings` describe. Nothing is read before the load.
    #[must_use]
    pub fn new(settings: LlamaCppSettings) -> Self {
        Self { settings }
    }

    fn load_model(&self, llama: &LlamaBackend, file: &ModelFile) -> Result<LlamaModel, LoadError> {
        // A callback of our own, since llama.cpp's default one prints dots.
        let params = LlamaModelParams::default().with_progress_callback(|_| true);
        let params = match self.settings.gpu_layers {
            GpuLayers::Count(layers) if layers > 0 && !llama.supports_gpu_offload() => {
                return Err(LoadError::Unsupported(format!(
                    "{layers} layers shall go to a GPU, but llama.cpp sees none: set gpu_layers to 0, or build with the feature `cuda`"
                )));
            }
            GpuLayers::Count(layers) => params.with_n_gpu_layers(layers),
            GpuLayers::All => {
                if !llama.supports_gpu_offload() {
                    tracing::warn!("llama.cpp sees no GPU: all layers run on the CPU");
                }
                // More than any model has.
                params.with_n_gpu_layers(i32::MAX.unsigned_abs())
            }
        };
        file.load(&params)
    }

    fn context_params(&self, sizes: Sizes) -> LlamaContextParams {
        let threads = self.settings.thread_count();
        let kv_type = self.settings.kv_type.into();
        // Flash attention is left on "auto", llama.cpp's default.
        LlamaContextParams::default()
            .with_n_seq_max(self.settings.parallel)
            .with_n_ctx(Some(sizes.cells))
            .with_n_batch(sizes.batch)
            .with_n_ubatch(sizes.micro_batch)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_type_k(kv_type)
            .with_type_v(kv_type)
            // One pool of cells for all sequences: a prefix can then be shared without copying it, and a long sequence may use what short
            // ones leave.
            .with_kv_unified(true)
            // Sliding-window layers keep every cell as well, so that a slot can be cut anywhere.
            .with_swa_full(true)
    }
}

impl BackendLoader for LlamaCppLoader {
    fn with_backend(self: Box<Self>, serve: &mut dyn FnMut(Loaded<'_>)) -> Result<(), LoadError> {
        let path = &self.settings.model;
        self.settings.check()?;
        let file = ModelFile::check(path)?;
        let llama = runtime::llama()?;
        let tokenizer = Arc::new(GgufTokenizer::load(&file)?);
        let model = self.load_model(llama, &file)?;
        let vocab = Arc::new(vocab::build(&model));
        let sizes = self.settings.sizes(model.n_ctx_train())?;
        if self.settings.context.is_some_and(|asked| asked > sizes.context) {
            tracing::warn!(context = sizes.context, "the model was trained on fewer tokens than the context asked for");
        }
        let context = model.new_context(llama, self.context_params(sizes)).map_err(|error| LoadError::Other {
            context: format!(
                "{}: llama.cpp cannot make a context of {} tokens with a {:?} cache; its log says why",
                path.display(),
                sizes.cells,
                self.settings.kv_type
            ),
            source: error.into(),
        })?;
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
                partial_reuse: !(model.is_recurrent() || model.is_hybrid()),
            },
            mixes_phases: true,
            // llama.cpp hands a pass over to a GPU and waits when logits are asked for; on the CPU it computes at once.
            overlaps: llama.supports_gpu_offload() && self.settings.gpu_layers != GpuLayers::Count(0),
        };
        tracing::info!(?spec, threads = self.settings.thread_count(), model = %path.display(), "the model is loaded");
        let mut backend = LlamaCpp::new(context, spec);
        backend
            .warm_up(vocab.bos().unwrap_or(0))
            .map_err(|reason| LoadError::Invalid { path: path.display().to_string(), reason })?;
        serve(Loaded { backend: &mut backend, vocab, tokenizer, chat_template: file.chat_template });
        Ok(())
    }
}
