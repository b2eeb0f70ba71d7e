use std::{num::NonZero, path::PathBuf, thread};

use llama_cpp_2::context::params::KvCacheType;
use tandem_core::LoadError;

/// llama.cpp's own bound on sequences in one context (`LLAMA_MAX_SEQ`).
const MAX_PARALLEL: u32 = 256;
/// What a sequence gets when nobody says: models of today are trained on far more than eight slots of a consumer card can hold.
const DEFAULT_CONTEXT: u32 = 8192;
/// Tokens that pass through the layers together. llama.cpp cuts larger steps; on a GPU more brings little and costs scratch memory.
const MAX_MICRO_BATCH: u32 = 512;

/// Which model to load, and how to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LlamaCppSettings {
    /// A GGUF file; of a model in several files the first.
    pub model: PathBuf,
    /// Tokens that one sequence may hold, at most: never more than the model was trained on. `None` is that too, up to 8,192.
    ///
    /// Memory for `parallel` times as many is taken at load.
    pub context: Option<u32>,
    /// Sequences decoded together.
    pub parallel: u32,
    /// Layers whose weights go to the GPU.
    pub gpu_layers: GpuLayers,
    /// Threads that compute; `None` is one less than the machine has cores, and 1 at least.
    ///
    /// ggml's threads wait for each other by spinning. A process beside them that takes a core for a moment stalls all of them, and the
    /// server itself is such a process: with as many threads as cores a busy neighbour cost 98 % of the speed on two cores.
    pub threads: Option<u32>,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// Tokens in one step, over all sequences.
    pub max_step_tokens: u32,
}

/// How many layers go to the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as there are. Without a GPU the model runs on the CPU, and a warning says so.
    All,
    /// This many, and the rest on the CPU.
    Count(u32),
}

/// The type of the KV cache's cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 16 bits.
    F16,
    /// 8.5 bits; flash attention is then required, and switched on.
    Q8_0,
    /// 4.5 bits; as above.
    Q4_0,
}

impl From<KvType> for KvCacheType {
    fn from(kv_type: KvType) -> Self {
        match kv_type {
            KvType::F16 => Self::F16,
            KvType::Q8_0 => Self::Q8_0,
            KvType::Q4_0 => Self::Q4_0,
        }
    }
}

/// Sizes of the context, in tokens. All are positive and fit llama.cpp's signed numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) context: u32,
    pub(crate) cells: NonZero<u32>,
    pub(crate) batch: u32,
    pub(crate) micro_batch: u32,
}

impl LlamaCppSettings {
    /// What can be refused before a file is opened.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let Self { model: _, context, parallel, gpu_layers: _, threads, kv_type: _, max_step_tokens } = self;
        let refuse = |reason: String| Err(LoadError::Unsupported(reason));
        if !(1..=MAX_PARALLEL).contains(parallel) {
            return refuse(format!("llama.cpp decodes 1 to {MAX_PARALLEL} sequences together, not {parallel}"));
        }
        if max_step_tokens < parallel {
            return refuse(format!(
                "a step of {max_step_tokens} tokens cannot hold one for each of {parallel} sequences"
            ));
        }
        if *context == Some(0) {
            return refuse("a context of 0 tokens holds nothing".into());
        }
        if *threads == Some(0) || threads.is_some_and(|threads| threads > 512) {
            return refuse("llama.cpp computes with 1 to 512 threads".into());
        }
        Ok(())
    }

    /// The context's sizes for a model that was trained on `trained` tokens.
    pub(crate) fn sizes(&self, trained: u32) -> Result<Sizes, LoadError> {
        let context = self.context.unwrap_or(DEFAULT_CONTEXT).min(trained);
        let cells = context.checked_mul(self.parallel).filter(|&cells| i32::try_from(cells).is_ok());
        let Some(cells) = cells.and_then(NonZero::new) else {
            return Err(LoadError::Unsupported(format!(
                "{} sequences of {context} tokens are more than llama.cpp can count, or none",
                self.parallel
            )));
        };
        let batch = self.max_step_tokens.min(cells.get());
        Ok(Sizes { context, cells, batch, micro_batch: batch.min(MAX_MICRO_BATCH) })
    }

    /// Threads to compute with, as llama.cpp counts them.
    pub(crate) fn thread_count(&self) -> i32 {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = self.threads.map_or(cores.saturating_sub(1).max(1), |threads| threads as usize);
        i32::try_from(threads).unwrap_or(i32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LlamaCppSettings {
        LlamaCppSettings {
            model: PathBuf::from("model.gguf"),
            context: None,
            parallel: 8,
            gpu_layers: GpuLayers::All,
            threads: None,
            kv_type: KvType::F16,
            max_step_tokens: 2048,
        }
    }

    #[test]
    fn the_context_is_bounded_by_training_and_by_the_default() {
        let context = |context, trained| {
            LlamaCppSettings { context, ..settings() }.sizes(trained).expect("sizes that fit").context
        };
        assert_eq!(context(None, 1024), 1024);
        assert_eq!(context(None, 131_072), 8192);
        assert_eq!(context(Some(32_768), 131_072), 32_768);
        assert_eq!(context(Some(32_768), 4096), 4096);
    }

    #[test]
    fn a_step_is_no_larger_than_memory_and_cut_into_micro_batches() {
        let sizes = settings().sizes(1024).expect("sizes that fit");
        assert_eq!((sizes.cells.get(), sizes.batch, sizes.micro_batch), (8192, 2048, 512));
        let sizes = settings().sizes(16).expect("sizes that fit");
        assert_eq!((sizes.cells.get(), sizes.batch, sizes.micro_batch), (128, 128, 128));
    }

    #[test]
    fn impossible_settings_are_refused() {
        for wrong in [
            LlamaCppSettings { parallel: 0, ..settings() },
            LlamaCppSettings { parallel: 257, ..settings() },
            LlamaCppSettings { max_step_tokens: 7, ..settings() },
            LlamaCppSettings { context: Some(0), ..settings() },
            LlamaCppSettings { threads: Some(0), ..settings() },
        ] {
            assert!(matches!(wrong.check(), Err(LoadError::Unsupported(_))), "{wrong:?}");
        }
        let huge = LlamaCppSettings { context: Some(u32::MAX), ..settings() };
        assert!(matches!(huge.sizes(u32::MAX), Err(LoadError::Unsupported(_))));
        assert!(settings().check().is_ok());
    }

    #[test]
    fn one_core_is_left_to_the_server() {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        assert_eq!(settings().thread_count() as usize, cores.saturating_sub(1).max(1));
        assert_eq!(LlamaCppSettings { threads: Some(3), ..settings() }.thread_count(), 3);
    }
}
