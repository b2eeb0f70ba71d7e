//! How much memory a model would take, from llama.cpp's own books: the model and its context are made without their memory.

use std::{collections::BTreeMap, num::NonZero};

use llama_cpp_2::{
    LlamaBackendDeviceType, list_llama_ggml_backend_devices, llama_backend::LlamaBackend, model::LlamaModel,
};
use tandem_core::{LoadError, MemoryNeeds, Pooling, free_ram};
use tandem_gguf::ggml_type;

use crate::{
    GpuLayers, LlamaCppSettings,
    adapter_file::AdapterFile,
    embedder::EmbedderSizes,
    logged::logged,
    model_file::{ModelFile, Purpose},
    params, runtime,
    settings::Sizes,
};

/// Contexts are tried in steps of this many tokens, llama.cpp's own rounding.
const STEP: u32 = 256;

/// What a model would take, and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Tokens of one sequence.
    pub context: u32,
    /// Sequences decoded together. An embedding model, which keeps nothing of its inputs, has one.
    pub parallel: u32,
    /// Tokens that the model was trained on.
    pub trained: u32,
    /// What they take.
    pub needs: MemoryNeeds,
    /// Bytes of the weights of which a step reads but the rows of its tokens: the table of embeddings, where no head shares it.
    pub looked_up: u64,
    /// Where they would lie.
    pub place: MemoryPlace,
    /// Bytes that are free there now.
    pub free: u64,
}

/// Which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPlace {
    /// The machine's.
    Ram,
    /// That of its GPUs.
    Gpus,
}

/// A model without its memory, and what can be asked of it.
#[derive(Debug)]
pub struct Planner {
    settings: LlamaCppSettings,
    llama: &'static LlamaBackend,
    model: LlamaModel,
    purpose: Purpose,
    /// Bytes of weights that stay in RAM when all layers go to GPUs.
    kept_in_ram: u64,
    adapter_bytes: u64,
    /// Bytes of the file's tensors by their type.
    formats: BTreeMap<u32, u64>,
}

impl Planner {
    /// Reads the model's file, but for its weights.
    ///
    /// # Errors
    /// As loading it has, but for want of memory.
    pub fn new(settings: LlamaCppSettings) -> Result<Self, LoadError> {
        settings.check()?;
        let file = ModelFile::check(&settings.model, settings.sha256.as_ref())?;
        let adapters = AdapterFile::check_all(&settings, &file)?;
        Self::of(settings, &file, &adapters)
    }

    pub(crate) fn of(
        settings: LlamaCppSettings,
        file: &ModelFile,
        adapters: &[AdapterFile],
    ) -> Result<Self, LoadError> {
        let llama = runtime::init(settings.numa)?;
        let model = file.load(&params::model(&settings, llama)?.with_no_alloc(true))?;
        let adapter_bytes = adapters.iter().map(|adapter| adapter.bytes).sum();
        let mut formats = BTreeMap::new();
        for tensor in file.tensors() {
            *formats.entry(tensor.kind).or_default() += tensor.bytes;
        }
        let (purpose, kept_in_ram) = (file.purpose, file.kept_in_ram);
        Ok(Self { settings, llama, model, purpose, kept_in_ram, adapter_bytes, formats })
    }

    /// What the settings ask for.
    ///
    /// # Errors
    /// When llama.cpp cannot make such a context.
    pub fn plan(&self) -> Result<MemoryPlan, LoadError> {
        let trained = self.model.n_ctx_train();
        let sizes = self.sizes(&self.settings)?;
        let (context, parallel) = match sizes {
            ContextSizes::Generator(sizes) => (sizes.context, self.settings.parallel),
            ContextSizes::Embedder(sizes, _) => (sizes.input, 1),
        };
        let place = self.place();
        Ok(MemoryPlan {
            context,
            parallel,
            trained,
            needs: self.needs(&self.settings, sizes)?,
            // That of a model on GPUs is not among its weights there.
            looked_up: if place == MemoryPlace::Gpus { 0 } else { self.kept_in_ram },
            place,
            free: free(place),
        })
    }

    /// Bytes of the weights by ggml's name for their type, the largest share first. Nothing where they are not all in one place.
    #[must_use]
    pub fn formats(&self) -> Vec<(String, u64)> {
        if self.place() == MemoryPlace::Gpus {
            return Vec::new();
        }
        let name = |kind: u32| ggml_type::name(kind).map_or_else(|| format!("type {kind}"), str::to_owned);
        let mut formats: Vec<_> = self.formats.iter().map(|(&kind, &bytes)| (name(kind), bytes)).collect();
        formats.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        formats
    }

    /// The longest context with which as many sequences as the settings ask for fit into `bytes`, up to what the model was trained on;
    /// `None` when not even a short one does.
    ///
    /// # Errors
    /// As for [`Self::plan`].
    pub fn longest_context(&self, bytes: u64) -> Result<Option<u32>, LoadError> {
        let trained = self.model.n_ctx_train();
        let most = largest(trained.div_ceil(STEP), |steps| {
            let settings = LlamaCppSettings { context: Some(steps * STEP), ..self.settings.clone() };
            self.fits(&settings, bytes)
        })?;
        Ok(most.map(|steps| (steps * STEP).min(trained)))
    }

    /// The most sequences that fit into `bytes` with the context that the settings ask for.
    ///
    /// # Errors
    /// As for [`Self::plan`].
    pub fn most_sequences(&self, bytes: u64) -> Result<Option<u32>, LoadError> {
        let most = match self.purpose {
            Purpose::Generate => self.settings.max_step_tokens.min(LlamaCppSettings::MAX_PARALLEL),
            Purpose::Embed(_) | Purpose::Rank(_) => 1,
        };
        largest(most, |parallel| self.fits(&LlamaCppSettings { parallel, ..self.settings.clone() }, bytes))
    }

    fn fits(&self, settings: &LlamaCppSettings, bytes: u64) -> Result<bool, LoadError> {
        match self.sizes(settings) {
            Ok(sizes) => Ok(self.needs(settings, sizes)?.total() <= bytes),
            // More than llama.cpp can count.
            Err(_) => Ok(false),
        }
    }

    fn sizes(&self, settings: &LlamaCppSettings) -> Result<ContextSizes, LoadError> {
        let trained = self.model.n_ctx_train();
        Ok(match self.purpose.embedder() {
            None => ContextSizes::Generator(settings.sizes(trained)?),
            Some((pooling, _)) => ContextSizes::Embedder(settings.embedder_sizes(trained)?, pooling),
        })
    }

    fn needs(&self, settings: &LlamaCppSettings, sizes: ContextSizes) -> Result<MemoryNeeds, LoadError> {
        let (params, tokens) = match sizes {
            ContextSizes::Generator(sizes) => (params::context(settings, sizes), sizes.cells),
            ContextSizes::Embedder(sizes, pooling) => {
                (params::embedding_context(settings, sizes, pooling), sizes.batch)
            }
        };
        let (context, lines) = logged(|| self.model.new_context(self.llama, params));
        context.map_err(|error| LoadError::Other {
            context: format!("llama.cpp cannot make a context of {tokens} tokens; its log says why"),
            source: error.into(),
        })?;
        let total = |of: fn(&str) -> Option<f64>| {
            let mebibytes: f64 = lines.iter().filter_map(|line| of(line)).sum();
            (mebibytes * f64::from(1 << 20)) as u64
        };
        let elsewhere = if self.place() == MemoryPlace::Gpus { self.kept_in_ram } else { 0 };
        let weights = self.model.size().saturating_sub(elsewhere) + self.adapter_bytes;
        let needs = MemoryNeeds { weights, kv: total(kv), compute: total(compute) + self.later(sizes) };
        // Every model has both, but for embedding models that look ahead; without them these lines are not what they were.
        let needs_kv = self.purpose == Purpose::Generate;
        if (needs_kv && needs.kv == 0) || total(compute) == 0 {
            let source = format!("{} lines without sizes", lines.len()).into();
            return Err(LoadError::Other { context: "reading llama.cpp's log for its memory".to_owned(), source });
        }
        Ok(needs)
    }

    /// What llama.cpp takes only when it computes a pass: room for the logits of all tokens of an embedder's, whether or not it has any.
    fn later(&self, sizes: ContextSizes) -> u64 {
        match sizes {
            ContextSizes::Generator(_) => 0,
            ContextSizes::Embedder(sizes, _) => {
                let vocabulary = u64::try_from(self.model.n_vocab()).unwrap_or(0);
                u64::from(sizes.batch.get()) * vocabulary * size_of::<f32>() as u64
            }
        }
    }

    fn place(&self) -> MemoryPlace {
        let offloads = self.llama.supports_gpu_offload();
        // With a part of the layers on the GPU most of the rest lies in RAM, and the whole is compared with that.
        if offloads && self.settings.gpu.layers == GpuLayers::All { MemoryPlace::Gpus } else { MemoryPlace::Ram }
    }
}

/// Sizes of a context of either kind.
#[derive(Clone, Copy, Debug)]
enum ContextSizes {
    Generator(Sizes),
    Embedder(EmbedderSizes, Pooling),
}

/// `size =   20.00 MiB (  8192 cells, …` is of KV, or of the states in its place.
fn kv(line: &str) -> Option<f64> {
    let (size, rest) = line.strip_prefix("size =")?.split_once(" MiB (")?;
    rest.contains("cells").then(|| size.trim().parse().ok())?
}

/// `CPU compute buffer size =    13.52 MiB`, or `CPU  output buffer size = …`.
fn compute(line: &str) -> Option<f64> {
    let (what, size) = line.split_once("buffer size =")?;
    let is_ours = what.trim_end().ends_with("compute") || what.trim_end().ends_with("output");
    is_ours.then(|| size.trim().strip_suffix("MiB")?.trim().parse().ok())?
}

/// The largest number from 1 to `most` that is good, where all below a good one are good too. Tries nothing above twice a good one: even
/// without its memory, a context's books take time and room.
fn largest(most: u32, good: impl Fn(u32) -> Result<bool, LoadError>) -> Result<Option<u32>, LoadError> {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = (low + (high - low).div_ceil(2)).min(2 * low.max(1));
        if good(middle)? {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok(NonZero::new(low).map(NonZero::get))
}

fn free(place: MemoryPlace) -> u64 {
    match place {
        MemoryPlace::Ram => free_ram(),
        MemoryPlace::Gpus => {
            let devices = list_llama_ggml_backend_devices().into_iter();
            devices
                .filter(|device| device.device_type == LlamaBackendDeviceType::Gpu)
                .map(|device| device.memory_free as u64)
                .sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planner(change: impl FnOnce(&mut LlamaCppSettings)) -> Planner {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny/tiny-f16.gguf");
        let mut settings = LlamaCppSettings { context: Some(512), ..LlamaCppSettings::new(shipped.into()) };
        change(&mut settings);
        Planner::new(settings).expect("the model is there")
    }

    /// Five layers of two heads of 64 numbers, each a key and a value of 2 bytes.
    const KV_BYTES: u64 = 5 * 2 * 64 * 2 * 2;

    #[test]
    fn memory_is_what_the_model_takes() {
        let plan = planner(|_| ()).plan().expect("a plan");
        assert_eq!((plan.context, plan.parallel, plan.trained), (512, 8, 1024));
        assert_eq!(plan.needs.kv, 8 * 512 * KV_BYTES);
        let file = fs_err::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny/tiny-f16.gguf"));
        let file = file.expect("the model").len();
        assert!((file * 9 / 10..file).contains(&plan.needs.weights), "{plan:?}");
        assert!(plan.needs.compute > 1 << 20 && plan.free > 0, "{plan:?}");
        let quantized = planner(|settings| settings.kv_type = crate::KvType::Q8_0).plan().expect("a plan");
        // A block of 32 numbers takes 34 bytes; the log rounds to a hundredth of a mebibyte.
        let exact = 8 * 512 * KV_BYTES / 64 * 34;
        assert!(quantized.needs.kv.abs_diff(exact) < (1 << 20) / 100, "{quantized:?}");
    }

    #[test]
    fn what_fits_is_found() {
        let planner = planner(|_| ());
        let needs = planner.plan().expect("a plan").needs;
        // Half as much again as for 512 tokens of each sequence, and a little for more room to compute in.
        let context = planner
            .longest_context(needs.total() + needs.kv / 2 + needs.compute / 8)
            .expect("contexts")
            .expect("one fits");
        assert_eq!(context, 768);
        let all = planner.longest_context(u64::MAX).expect("contexts");
        assert_eq!(all, Some(1024), "no more than the model was trained on");
        assert_eq!(planner.longest_context(needs.weights).expect("contexts"), None);
        let sequences = planner.most_sequences(needs.total() + needs.kv / 8 * 3).expect("sequences").expect("some");
        assert!((9..=11).contains(&sequences), "{sequences}");
    }

    #[test]
    fn the_largest_good_number_is_found_from_below() {
        for (most, limit) in [(1, 0), (1, 1), (40, 0), (40, 1), (40, 13), (40, 39), (40, 40), (40, 90)] {
            let found = largest(most, |number| {
                assert!(number <= 2 * limit.max(1), "{number} is far above {limit}");
                Ok(number <= limit)
            });
            assert_eq!(found.expect("no errors").unwrap_or(0), limit.min(most));
        }
    }

    #[test]
    fn lines_of_other_things_do_not_count() {
        assert_eq!(kv("size =   20.00 MiB (  8192 cells,   5 layers,  8/1 seqs), K (f16):   10.00 MiB"), Some(20.0));
        assert_eq!(kv("file size   = 2.39 MiB (5.36 BPW)"), None);
        assert_eq!(compute("CPU compute buffer size =    13.52 MiB"), Some(13.52));
        assert_eq!(compute("CPU  output buffer size =     0.09 MiB"), Some(0.09));
        assert_eq!(compute("CPU KV buffer size =     0.00 MiB"), None);
    }
}
