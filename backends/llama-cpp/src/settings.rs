use std::{num::NonZero, path::PathBuf, thread};

use llama_cpp_2::context::params::KvCacheType;
use tandem_core::LoadError;

use crate::embedder::EmbedderSizes;

/// What a sequence gets when nobody says: models of today are trained on far more than eight slots of a consumer card can hold.
const DEFAULT_CONTEXT: u32 = 8192;
/// Tokens that pass through the layers together when nobody says: on a GPU more brings little and costs scratch memory.
const MICRO_BATCH: u32 = 512;
/// llama.cpp's own bound (`GGML_MAX_N_THREADS`).
const MAX_THREADS: u32 = 512;

/// Which model to load, and how to run it.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaCppSettings {
    /// A GGUF file; of a model in several files the first.
    pub model: PathBuf,
    /// The SHA-256 hash that the model's one file must have; any will do when there is none.
    pub sha256: Option<[u8; 32]>,
    /// Tokens that one sequence may hold, at most: never more than the model was trained on. `None` is that too, up to 8,192.
    ///
    /// Memory for `parallel` times as many is taken at load.
    pub context: Option<u32>,
    /// Where memory for such a context is not free, it is shortened to the longest for which there is.
    pub fit_context: bool,
    /// Sequences decoded together.
    pub parallel: u32,
    /// Tokens in one step, over all sequences.
    pub max_step_tokens: u32,
    /// Tokens that pass through the layers together: llama.cpp cuts larger steps. `None` is 512, or a step if that is less.
    pub micro_batch_tokens: Option<u32>,
    /// Threads that compute steps of single tokens; `None` is one less than the machine has physical cores, and 1 at least.
    ///
    /// ggml's threads wait for each other by spinning. A process beside them that takes a core for a moment stalls all of them, and the
    /// server itself is such a process: with as many threads as cores a busy neighbour cost 98 % of the speed on two cores.
    pub threads: Option<u32>,
    /// Threads that compute steps of more than one token a sequence; `None` is as many as [`Self::threads`].
    pub threads_batch: Option<u32>,
    /// Whether attention runs over tiles rather than whole rows of scores.
    pub flash_attention: FlashAttention,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// One pool of KV cells for all sequences, in which a shared prefix is stored once, and every sequence's attention passes over the cells
    /// of all. Otherwise each sequence has a pool of its own, and a shared prefix is copied.
    pub kv_unified: bool,
    /// Layers with a sliding window keep all their cells, so that a prompt's prefix can be reused. Otherwise they keep a window's worth, which
    /// takes a fraction of the memory, and a slot is continued at its end or computed anew.
    pub swa_full: bool,
    /// What goes to GPUs.
    pub gpu: GpuSettings,
    /// Weights are mapped from the file rather than read into memory.
    pub mmap: bool,
    /// Weights are kept from being swapped out.
    pub mlock: bool,
    /// How threads and memory are laid over the nodes of a NUMA machine. The first model that a process loads decides it.
    pub numa: Numa,
    /// `LoRA` adapters that steps may be computed with, loaded with the model and kept as long.
    pub adapters: Vec<AdapterSettings>,
}

/// A `LoRA` adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// What it is called.
    pub name: String,
    /// A GGUF file, made for the model.
    pub path: PathBuf,
    /// How strongly it is applied: 1 is as it was trained, 0 not at all.
    pub scale: f32,
}

/// Which part of the model runs on which GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuSettings {
    /// Layers whose weights go to GPUs.
    pub layers: GpuLayers,
    /// How several GPUs share a model.
    pub split: GpuSplit,
    /// The GPU of the whole model without a split, and of what is not split otherwise.
    pub main: u32,
    /// The GPUs to use, counted from 0 in the order in which llama.cpp lists them; all of them when empty.
    pub devices: Vec<u32>,
}

/// How many layers go to the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as there are. Without a GPU the model runs on the CPU, and a warning says so.
    All,
    /// As many as fit into the memory that is free, and the rest on the CPU.
    Auto,
    /// This many, and the rest on the CPU.
    Count(u32),
}

/// How several GPUs share a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuSplit {
    /// They do not: one GPU has it all.
    None,
    /// Whole layers, each with its KV, by the memory that is free.
    Layer,
    /// Rows of each matrix.
    Row,
    /// Every matrix and all heads of attention, computed on all of them at once. llama.cpp calls it experimental, and has it for some
    /// architectures only.
    Tensor,
}

/// Whether attention runs over tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlashAttention {
    /// Where the device can.
    Auto,
    /// Always.
    On,
    /// Never. Quantized KV cannot do without.
    Off,
}

/// What llama.cpp does about the nodes of a NUMA machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numa {
    /// Nothing.
    Off,
    /// Spread threads over all nodes.
    Distribute,
    /// Keep threads on the node that the process started on.
    Isolate,
    /// Follow the CPU map that `numactl` gave.
    Numactl,
}

/// The type of the KV cache's cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 16 bits.
    F16,
    /// 8.5 bits; needs flash attention.
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
    /// llama.cpp's own bound on sequences in one context (`LLAMA_MAX_SEQ`).
    pub const MAX_PARALLEL: u32 = 256;

    /// Eight sequences on the CPU, and otherwise what `None` means.
    #[must_use]
    pub fn new(model: PathBuf) -> Self {
        Self {
            model,
            sha256: None,
            context: None,
            fit_context: false,
            parallel: 8,
            max_step_tokens: 2048,
            micro_batch_tokens: None,
            threads: None,
            threads_batch: None,
            flash_attention: FlashAttention::Auto,
            kv_type: KvType::F16,
            kv_unified: false,
            swa_full: true,
            gpu: GpuSettings { layers: GpuLayers::Count(0), split: GpuSplit::Layer, main: 0, devices: Vec::new() },
            mmap: true,
            mlock: false,
            numa: Numa::Off,
            adapters: Vec::new(),
        }
    }

    /// What can be refused before a file is opened.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let &Self { parallel, context, max_step_tokens, micro_batch_tokens, threads, threads_batch, kv_type, .. } =
            self;
        let refuse = |reason: String| Err(LoadError::Unsupported(reason));
        if !(1..=Self::MAX_PARALLEL).contains(&parallel) {
            return refuse(format!("llama.cpp decodes 1 to {} sequences together, not {parallel}", Self::MAX_PARALLEL));
        }
        if max_step_tokens < parallel {
            return refuse(format!(
                "a step of {max_step_tokens} tokens cannot hold one for each of {parallel} sequences"
            ));
        }
        if micro_batch_tokens.is_some_and(|tokens| tokens == 0 || tokens > max_step_tokens) {
            return refuse(format!("a micro-batch has 1 to {max_step_tokens} tokens, as many as a step"));
        }
        if context == Some(0) {
            return refuse("a context of 0 tokens holds nothing".into());
        }
        if [threads, threads_batch].into_iter().flatten().any(|threads| !(1..=MAX_THREADS).contains(&threads)) {
            return refuse(format!("llama.cpp computes with 1 to {MAX_THREADS} threads"));
        }
        if kv_type != KvType::F16 && self.flash_attention == FlashAttention::Off {
            return refuse("quantized KV needs flash attention".into());
        }
        if self.gpu.split == GpuSplit::Tensor && self.flash_attention == FlashAttention::Off {
            return refuse("a split by tensors needs flash attention".into());
        }
        if self.fit_context && self.gpu.layers == GpuLayers::Auto {
            return refuse(
                "either layers on GPUs give way to the context, or the context to them: not both are chosen".into(),
            );
        }
        if let Some(adapter) = self.adapters.iter().find(|adapter| !adapter.scale.is_finite()) {
            return refuse(format!("the adapter `{}` cannot be scaled by {}", adapter.name, adapter.scale));
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
        let micro_batch = self.micro_batch_tokens.unwrap_or(MICRO_BATCH).min(batch);
        Ok(Sizes { context, cells, batch, micro_batch })
    }

    /// The context's sizes for a model that turns texts into vectors, of up to `trained` tokens. Inputs are packed into passes up to a step's
    /// size, however many they are: between passes nothing of them is kept, so there is nothing that could be divided among slots.
    pub(crate) fn embedder_sizes(&self, trained: u32) -> Result<EmbedderSizes, LoadError> {
        let input = self.context.unwrap_or(DEFAULT_CONTEXT).min(trained);
        let pass = self.max_step_tokens;
        let inputs = Self::MAX_PARALLEL.min(pass);
        // When llama.cpp reserves memory it rounds the tokens of a pass up to a multiple of its sequences, but not those of which it takes
        // the mean, and aborts where they differ.
        let batch = input.max(pass).checked_next_multiple_of(inputs).and_then(NonZero::new);
        let batch = batch.filter(|batch| input > 0 && i32::try_from(batch.get()).is_ok());
        let unsupported = || {
            LoadError::Unsupported(format!(
                "inputs of {input} tokens, {pass} in a pass, are more than llama.cpp can count, or none"
            ))
        };
        let batch = batch.ok_or_else(unsupported)?;
        Ok(EmbedderSizes { input, pass, batch, inputs })
    }

    /// Threads for steps of single tokens, and for others, as llama.cpp counts them.
    pub(crate) fn thread_counts(&self) -> (i32, i32) {
        let count = |threads: u32| i32::try_from(threads).unwrap_or(i32::MAX);
        let threads = self.threads.unwrap_or_else(default_threads);
        (count(threads), count(self.threads_batch.unwrap_or(threads)))
    }
}

/// One less than there are physical cores, of those that this process may use: a second thread on a core has nothing left to compute with.
fn default_threads() -> u32 {
    let usable = thread::available_parallelism().map_or(1, NonZero::get);
    let cores = num_cpus::get_physical().min(usable);
    u32::try_from(cores.saturating_sub(1).max(1)).unwrap_or(MAX_THREADS).min(MAX_THREADS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LlamaCppSettings {
        LlamaCppSettings::new(PathBuf::from("model.gguf"))
    }

    fn gpu(layers: GpuLayers, split: GpuSplit) -> GpuSettings {
        GpuSettings { layers, split, main: 0, devices: Vec::new() }
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
    fn the_longest_input_may_be_longer_than_a_pass_over_several() {
        let sizes = |context, max_step_tokens, trained| {
            let settings = LlamaCppSettings { context: Some(context), max_step_tokens, ..settings() };
            let EmbedderSizes { input, pass, batch, inputs } =
                settings.embedder_sizes(trained).expect("sizes that fit");
            (input, pass, batch.get(), inputs)
        };
        assert_eq!(sizes(4096, 512, 8192), (4096, 512, 4096, 256));
        assert_eq!(sizes(4096, 2048, 512), (512, 2048, 2048, 256));
        assert_eq!(sizes(64, 100, 512), (64, 100, 100, 100));
        assert_eq!(sizes(64, 300, 512), (64, 300, 512, 256));
    }

    #[test]
    fn impossible_settings_are_refused() {
        for wrong in [
            LlamaCppSettings { parallel: 0, ..settings() },
            LlamaCppSettings { parallel: 257, ..settings() },
            LlamaCppSettings { max_step_tokens: 7, ..settings() },
            LlamaCppSettings { context: Some(0), ..settings() },
            LlamaCppSettings { threads: Some(0), ..settings() },
            LlamaCppSettings { threads_batch: Some(513), ..settings() },
            LlamaCppSettings { micro_batch_tokens: Some(0), ..settings() },
            LlamaCppSettings { micro_batch_tokens: Some(2049), ..settings() },
            LlamaCppSettings { kv_type: KvType::Q8_0, flash_attention: FlashAttention::Off, ..settings() },
            LlamaCppSettings {
                flash_attention: FlashAttention::Off,
                gpu: gpu(GpuLayers::All, GpuSplit::Tensor),
                ..settings()
            },
            LlamaCppSettings { fit_context: true, gpu: gpu(GpuLayers::Auto, GpuSplit::Layer), ..settings() },
            LlamaCppSettings {
                adapters: vec![AdapterSettings { name: "a".into(), path: "a.gguf".into(), scale: f32::NAN }],
                ..settings()
            },
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
        let (threads, threads_batch) = settings().thread_counts();
        assert!((1..=cores.saturating_sub(1).max(1)).contains(&(threads as usize)), "{threads} of {cores}");
        assert_eq!(threads_batch, threads);
        let asked = LlamaCppSettings { threads: Some(3), threads_batch: Some(5), ..settings() };
        assert_eq!(asked.thread_counts(), (3, 5));
    }

    #[test]
    fn a_micro_batch_is_no_larger_than_a_step() {
        let micro_batch = |asked| {
            let settings = LlamaCppSettings { micro_batch_tokens: asked, max_step_tokens: 256, ..settings() };
            settings.sizes(1024).expect("sizes that fit").micro_batch
        };
        assert_eq!((micro_batch(None), micro_batch(Some(64))), (256, 64));
    }
}
