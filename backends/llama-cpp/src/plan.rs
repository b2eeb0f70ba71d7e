//! How much memory a model would take, from llama.cpp's own books: the model and its context are made without their memory.

use std::{collections::BTreeMap, num::NonZero};

use llama_cpp_2::model::LlamaModel;
use tandem_core::{LoadError, MemoryNeeds, Pooling, free_ram};
use tandem_gguf::ggml_type;

use crate::{
    GpuLayers, GpuSettings, LlamaCppSettings,
    adapter_file::AdapterFile,
    devices::Gpu,
    embedder::EmbedderSizes,
    logged::{logged, pass_on},
    model_file::{ModelFile, Purpose},
    params,
    placement::{self, Placement},
    runtime::{self, Llama},
    settings::Sizes,
};

/// Contexts are tried in steps of this many tokens, llama.cpp's own rounding.
const STEP: u32 = 256;
/// What is left free on each GPU by what is chosen to fit, for buffers that grow while it computes. As much as llama.cpp leaves.
pub const GPU_MARGIN: u64 = 1 << 30;

/// What a model would take, and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Tokens of one sequence.
    pub context: u32,
    /// Sequences decoded together. An embedding model, which keeps nothing of its inputs, has one.
    pub parallel: u32,
    /// Tokens that the model was trained on.
    pub trained: u32,
    /// Layers on GPUs, and all there are; the output is one.
    pub layers: (u32, u32),
    /// What lies where: in the machine's memory, and on each GPU.
    pub shares: Vec<Share>,
}

/// What a model takes in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Where.
    pub place: MemoryPlace,
    /// What it takes there.
    pub needs: MemoryNeeds,
    /// Bytes that are free there now, or are to be reckoned with.
    pub free: u64,
}

/// Which memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryPlace {
    /// The machine's.
    Ram,
    /// A GPU's.
    Gpu {
        /// As ggml calls it: `CUDA0`.
        name: String,
        /// As its makers call it.
        description: String,
    },
    /// That of a GPU that is not in this machine.
    AbsentGpu,
}

impl Share {
    /// Whether it fits, with what is to be left free of a GPU.
    #[must_use]
    pub fn fits(&self) -> bool {
        let margin = if self.place == MemoryPlace::Ram { 0 } else { GPU_MARGIN };
        self.needs.total() + margin <= self.free
    }
}

impl MemoryPlan {
    /// Of all places.
    #[must_use]
    pub fn needs(&self) -> MemoryNeeds {
        let sum = |of: fn(&MemoryNeeds) -> u64| self.shares.iter().map(|share| of(&share.needs)).sum();
        MemoryNeeds {
            weights: sum(|needs| needs.weights),
            kv: sum(|needs| needs.kv),
            compute: sum(|needs| needs.compute),
        }
    }

    /// Whether every share fits where it lies.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.shares.iter().all(Share::fits)
    }

    /// Refuses what cannot be loaded.
    ///
    /// # Errors
    /// With all numbers of the first place where there is too little.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        self.shares.iter().try_for_each(|share| {
            let place = match &share.place {
                MemoryPlace::Ram => String::new(),
                MemoryPlace::Gpu { name, .. } => format!(" on {name}"),
                MemoryPlace::AbsentGpu => " on the GPU".to_owned(),
            };
            share.needs.check(self.parallel, self.context, share.free, &place)
        })
    }
}

/// A model without its memory, and what can be asked of it.
#[derive(Debug)]
pub struct Planner {
    settings: LlamaCppSettings,
    llama: &'static Llama,
    model: LlamaModel,
    purpose: Purpose,
    /// Those that the settings want and that are there, or one that is not.
    gpus: Vec<PlannedGpu>,
    placement: Placement,
    adapter_bytes: u64,
    /// Bytes of the file's tensors by their name.
    tensors: Vec<(String, u64)>,
    /// The same by their type.
    formats: BTreeMap<u32, u64>,
    assumed: Assumptions,
}

/// What to reckon with instead of what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assumptions {
    /// Bytes that are free: on each GPU, or in the machine where no GPU is used.
    pub memory: Option<u64>,
    /// Bytes of a GPU, where the settings want one and there is none. Room to compute in is then what it would be on the processor.
    pub absent_gpu: Option<u64>,
}

/// A GPU to reckon with.
#[derive(Debug)]
struct PlannedGpu {
    /// `None` is none that is there.
    known: Option<Gpu>,
    free: u64,
}

impl Planner {
    /// Reads the model's file, but for its weights. Where the number of layers on GPUs is to be chosen, it is chosen.
    ///
    /// # Errors
    /// As loading it has, but for want of memory.
    pub fn new(settings: &LlamaCppSettings, assumed: Assumptions) -> Result<Self, LoadError> {
        settings.check()?;
        let file = ModelFile::check(&settings.model, settings.sha256.as_ref())?;
        let adapters = AdapterFile::check_all(settings, &file)?;
        Self::of(settings, &file, &adapters, assumed)
    }

    pub(crate) fn of(
        settings: &LlamaCppSettings,
        file: &ModelFile,
        adapters: &[AdapterFile],
        assumed: Assumptions,
    ) -> Result<Self, LoadError> {
        let with = |layers| {
            let gpu = GpuSettings { layers, ..settings.gpu.clone() };
            Self::with_layers(LlamaCppSettings { gpu, ..settings.clone() }, file, adapters, assumed)
        };
        if settings.gpu.layers != GpuLayers::Auto {
            return with(settings.gpu.layers);
        }
        let all = with(GpuLayers::All)?;
        if all.gpus.is_empty() || all.plan()?.fits() {
            return Ok(all);
        }
        let some = largest(all.placement.layers().saturating_sub(1), |layers| {
            Ok(with(GpuLayers::Count(layers))?.plan()?.fits())
        })?;
        with(GpuLayers::Count(some.unwrap_or(0)))
    }

    fn with_layers(
        settings: LlamaCppSettings,
        file: &ModelFile,
        adapters: &[AdapterFile],
        assumed: Assumptions,
    ) -> Result<Self, LoadError> {
        let llama = runtime::init(settings.numa)?;
        let there = params::gpus(&settings)?;
        let layers = match settings.gpu.layers {
            GpuLayers::Count(layers) => layers,
            GpuLayers::All | GpuLayers::Auto => u32::MAX,
        };
        let absent = assumed.absent_gpu.filter(|_| layers > 0 && there.is_empty());
        // llama.cpp has to be asked for what it can do.
        let on_processor = GpuSettings { layers: GpuLayers::Count(0), ..settings.gpu.clone() };
        let asked = match absent {
            Some(_) => LlamaCppSettings { gpu: on_processor, ..settings.clone() },
            None => settings.clone(),
        };
        let params = params::model(&asked, llama)?.with_no_alloc(true);
        let (model, lines) = logged(|| file.load(&params));
        let model = model.inspect_err(|_| pass_on(&lines))?;
        let names: Vec<_> = there.iter().map(|gpu| gpu.name.as_str()).collect();
        let mut placement = Placement::read(&lines, &names);
        if absent.is_some() {
            placement = placement.with_gpu(layers);
        }
        let known =
            there.into_iter().map(|gpu| PlannedGpu { free: assumed.memory.unwrap_or(gpu.free), known: Some(gpu) });
        let absent = absent.map(|bytes| PlannedGpu { known: None, free: assumed.memory.unwrap_or(bytes) });
        let mut formats = BTreeMap::new();
        for tensor in file.tensors() {
            *formats.entry(tensor.kind).or_default() += tensor.bytes;
        }
        Ok(Self {
            gpus: known.chain(absent).collect(),
            settings,
            llama,
            model,
            purpose: file.purpose,
            placement,
            adapter_bytes: adapters.iter().map(|adapter| adapter.bytes).sum(),
            tensors: file.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.bytes)).collect(),
            formats,
            assumed,
        })
    }

    /// What the settings ask for.
    ///
    /// # Errors
    /// When llama.cpp cannot make such a context.
    pub fn plan(&self) -> Result<MemoryPlan, LoadError> {
        self.plan_of(&self.settings)
    }

    /// What settings come to that differ in what the context is.
    pub(crate) fn plan_of(&self, settings: &LlamaCppSettings) -> Result<MemoryPlan, LoadError> {
        self.plan_for(settings, self.sizes(settings)?)
    }

    /// Bytes of the weights by ggml's name for their type, the largest share first.
    #[must_use]
    pub fn formats(&self) -> Vec<(String, u64)> {
        let name = |kind: u32| ggml_type::name(kind).map_or_else(|| format!("type {kind}"), str::to_owned);
        let mut formats: Vec<_> = self.formats.iter().map(|(&kind, &bytes)| (name(kind), bytes)).collect();
        formats.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        formats
    }

    /// Bytes of the weights of which a step reads but the rows of its tokens: the table of embeddings, where no head shares it.
    #[must_use]
    pub fn looked_up(&self) -> u64 {
        let bytes = |wanted: &str| self.tensors.iter().find(|(name, _)| name == wanted).map(|(_, bytes)| *bytes);
        bytes("output.weight").and_then(|_| bytes("token_embd.weight")).unwrap_or(0)
    }

    /// The longest context with which as many sequences as the settings ask for fit, up to what the model was trained on; `None` when not
    /// even a short one does.
    ///
    /// # Errors
    /// As for [`Self::plan`].
    pub fn longest_context(&self) -> Result<Option<u32>, LoadError> {
        self.longest_context_up_to(self.model.n_ctx_train())
    }

    fn longest_context_up_to(&self, tokens: u32) -> Result<Option<u32>, LoadError> {
        let most = largest(tokens.div_ceil(STEP), |steps| {
            self.fits(&LlamaCppSettings { context: Some(steps * STEP), ..self.settings.clone() })
        })?;
        Ok(most.map(|steps| (steps * STEP).min(tokens)))
    }

    /// The most sequences that fit with the context that the settings ask for.
    ///
    /// # Errors
    /// As for [`Self::plan`].
    pub fn most_sequences(&self) -> Result<Option<u32>, LoadError> {
        let most = match self.purpose {
            Purpose::Generate => self.settings.max_step_tokens.min(LlamaCppSettings::MAX_PARALLEL),
            Purpose::Embed(_) | Purpose::Rank(_) => 1,
        };
        largest(most, |parallel| self.fits(&LlamaCppSettings { parallel, ..self.settings.clone() }))
    }

    /// The settings with a shorter context, where they allow it and the one they ask for does not fit.
    ///
    /// # Errors
    /// As for [`Self::plan`], and with all numbers where not even the shortest fits.
    pub(crate) fn fitted(&self) -> Result<LlamaCppSettings, LoadError> {
        let settings = self.settings.clone();
        let plan = self.plan()?;
        if !settings.fit_context || plan.fits() {
            return Ok(settings);
        }
        match self.longest_context_up_to(plan.context)? {
            Some(context) => Ok(LlamaCppSettings { context: Some(context), ..settings }),
            None => {
                let shortest = LlamaCppSettings { context: Some(STEP), ..settings };
                self.plan_of(&shortest)?.check()?;
                // It could be loaded, but for the margin.
                Ok(shortest)
            }
        }
    }

    /// What those come to.
    ///
    /// # Errors
    /// As for [`Self::plan`]. Whether it fits the plan says.
    pub fn fitted_plan(&self) -> Result<MemoryPlan, LoadError> {
        match self.fitted() {
            Ok(settings) => self.plan_of(&settings),
            // With the context as it is asked for: it says better what is missing.
            Err(LoadError::Unsupported(_)) => self.plan(),
            Err(error) => Err(error),
        }
    }

    fn fits(&self, settings: &LlamaCppSettings) -> Result<bool, LoadError> {
        match self.sizes(settings) {
            Ok(sizes) => Ok(self.plan_for(settings, sizes)?.fits()),
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

    fn plan_for(&self, settings: &LlamaCppSettings, sizes: ContextSizes) -> Result<MemoryPlan, LoadError> {
        let (context, parallel) = match sizes {
            ContextSizes::Generator(sizes) => (sizes.context, settings.parallel),
            ContextSizes::Embedder(sizes, _) => (sizes.input, 1),
        };
        let needs = self.needs(settings, sizes)?;
        let mut needs = needs.into_iter();
        let ram = Share {
            place: MemoryPlace::Ram,
            needs: needs.next().unwrap_or_default(),
            free: self.assumed.memory.filter(|_| self.gpus.is_empty()).unwrap_or_else(free_ram),
        };
        let on_gpus = self.gpus.iter().zip(needs).map(|(gpu, needs)| Share {
            place: gpu.known.as_ref().map_or(MemoryPlace::AbsentGpu, |gpu| MemoryPlace::Gpu {
                name: gpu.name.clone(),
                description: gpu.description.clone(),
            }),
            needs,
            free: gpu.free,
        });
        Ok(MemoryPlan {
            context,
            parallel,
            trained: self.model.n_ctx_train(),
            layers: (self.placement.on_gpus(), self.placement.layers()),
            shares: std::iter::once(ram).chain(on_gpus).collect(),
        })
    }

    /// What the machine's memory has to hold, and then each GPU.
    fn needs(&self, settings: &LlamaCppSettings, sizes: ContextSizes) -> Result<Vec<MemoryNeeds>, LoadError> {
        let (params, tokens) = match sizes {
            ContextSizes::Generator(sizes) => (params::context(settings, sizes), sizes.cells),
            ContextSizes::Embedder(sizes, pooling) => {
                (params::embedding_context(settings, sizes, pooling), sizes.batch)
            }
        };
        let (context, lines) = logged(|| self.model.new_context(&self.llama.backend, params));
        context.inspect_err(|_| pass_on(&lines)).map_err(|error| LoadError::Other {
            context: format!("llama.cpp cannot make a context of {tokens} tokens; its log says why"),
            source: error.into(),
        })?;
        let kv = self.placement.kv(&lines, self.gpus.len());
        let mut compute = self.compute(&lines);
        // Every model has both, but for embedding models that look ahead; without them these lines are not what they were.
        let needs_kv = self.purpose == Purpose::Generate;
        if (needs_kv && kv.iter().sum::<u64>() == 0) || compute.iter().sum::<u64>() == 0 {
            let source = format!("{} lines without sizes", lines.len()).into();
            return Err(LoadError::Other { context: "reading llama.cpp's log for its memory".to_owned(), source });
        }
        compute[0] += self.later(sizes);
        let places = self.weights().into_iter().zip(kv).zip(compute);
        Ok(places.map(|((weights, kv), compute)| MemoryNeeds { weights, kv, compute }).collect())
    }

    /// Bytes of weights in the machine's memory and on each GPU. Adapters lie where the weights are that they change.
    fn weights(&self) -> Vec<u64> {
        let (on_gpus, twice) = self.placement.weights(&self.tensors, self.gpus.len());
        let in_ram = (self.model.size() + twice).saturating_sub(on_gpus.iter().sum());
        let mut places: Vec<_> = std::iter::once(in_ram).chain(on_gpus).collect();
        let total = places.iter().sum::<u64>().max(1);
        for place in &mut places {
            *place += (self.adapter_bytes as f64 * (*place as f64 / total as f64)) as u64;
        }
        places
    }

    fn compute(&self, lines: &[String]) -> Vec<u64> {
        let known: Vec<_> =
            self.gpus.iter().filter_map(|gpu| gpu.known.as_ref()).map(|gpu| gpu.name.as_str()).collect();
        let mut places = placement::compute(lines, &known);
        for (bytes, gpu) in places[1..].iter_mut().zip(&self.gpus) {
            *bytes *= gpu.known.as_ref().map_or(1, |gpu| gpu.count);
        }
        // Of one that is not there nothing is logged. What the processor would take is taken to be its need, and the processor's too.
        places.resize(1 + self.gpus.len(), places[0]);
        places
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
}

/// Sizes of a context of either kind.
#[derive(Clone, Copy, Debug)]
enum ContextSizes {
    Generator(Sizes),
    Embedder(EmbedderSizes, Pooling),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn planner_with(assumed: Assumptions, change: impl FnOnce(&mut LlamaCppSettings)) -> Planner {
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny/tiny-f16.gguf");
        let mut settings = LlamaCppSettings { context: Some(512), ..LlamaCppSettings::new(shipped.into()) };
        change(&mut settings);
        Planner::new(&settings, assumed).expect("the model is there")
    }

    fn planner(change: impl FnOnce(&mut LlamaCppSettings)) -> Planner {
        planner_with(Assumptions::default(), change)
    }

    fn planner_of(bytes: u64, change: impl FnOnce(&mut LlamaCppSettings)) -> Planner {
        planner_with(Assumptions { memory: Some(bytes), absent_gpu: None }, change)
    }

    /// Five layers of two heads of 64 numbers, each a key and a value of 2 bytes.
    const KV_BYTES: u64 = 5 * 2 * 64 * 2 * 2;

    #[test]
    fn memory_is_what_the_model_takes() {
        let plan = planner(|_| ()).plan().expect("a plan");
        assert_eq!((plan.context, plan.parallel, plan.trained), (512, 8, 1024));
        assert_eq!((plan.layers, plan.shares.len(), &plan.shares[0].place), ((0, 6), 1, &MemoryPlace::Ram));
        assert_eq!(plan.needs().kv, 8 * 512 * KV_BYTES);
        let file = fs_err::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny/tiny-f16.gguf"));
        let file = file.expect("the model").len();
        assert!((file * 9 / 10..file).contains(&plan.needs().weights), "{plan:?}");
        assert!(plan.needs().compute > 1 << 20 && plan.shares[0].free > 0, "{plan:?}");
        let quantized = planner(|settings| settings.kv_type = crate::KvType::Q8_0).plan().expect("a plan");
        // A block of 32 numbers takes 34 bytes; the log rounds to a hundredth of a mebibyte.
        let exact = 8 * 512 * KV_BYTES / 64 * 34;
        assert!(quantized.needs().kv.abs_diff(exact) < (1 << 20) / 100, "{quantized:?}");
    }

    #[test]
    fn what_fits_is_found() {
        let needs = planner(|_| ()).plan().expect("a plan").needs();
        // Half as much again as for 512 tokens of each sequence, and a little for more room to compute in.
        let some = planner_of(needs.total() + needs.kv / 2 + needs.compute / 8, |_| ());
        assert_eq!(some.longest_context().expect("contexts"), Some(768));
        let all = planner_of(u64::MAX, |_| ()).longest_context().expect("contexts");
        assert_eq!(all, Some(1024), "no more than the model was trained on");
        assert_eq!(planner_of(needs.weights, |_| ()).longest_context().expect("contexts"), None);
        let more = planner_of(needs.total() + needs.kv / 8 * 3, |_| ());
        let sequences = more.most_sequences().expect("sequences").expect("some");
        assert!((9..=11).contains(&sequences), "{sequences}");
    }

    #[test]
    fn a_context_that_does_not_fit_is_shortened_where_that_is_allowed() {
        let needs = planner(|_| ()).plan().expect("a plan").needs();
        let (enough, too_little) = (needs.total(), needs.total() - needs.kv / 4);
        let fitted = |bytes, fit_context| {
            planner_of(bytes, |settings| settings.fit_context = fit_context).fitted().map(|settings| settings.context)
        };
        assert_eq!(fitted(enough, true).expect("it fits"), Some(512));
        assert_eq!(fitted(too_little, false).expect("whoever loads refuses"), Some(512));
        assert_eq!(fitted(too_little, true).expect("a shorter one fits"), Some(256));
        let error = fitted(needs.weights, true).expect_err("no context fits");
        assert!(error.to_string().contains("KV of 8 sequences of 256 tokens"), "{error}");
    }

    #[test]
    fn a_gpu_that_is_not_there_is_planned_for() {
        let assumed = Assumptions { memory: None, absent_gpu: Some(16 << 30) };
        let on_gpu = |layers| planner_with(assumed, |settings| settings.gpu.layers = layers).plan().expect("a plan");
        let (processor, all) = (planner(|_| ()).plan().expect("a plan"), on_gpu(GpuLayers::All));
        assert_eq!((all.layers, all.shares.len()), ((6, 6), 2));
        let (ram, gpu) = (&all.shares[0], &all.shares[1]);
        assert_eq!((&gpu.place, gpu.free), (&MemoryPlace::AbsentGpu, 16 << 30));
        assert_eq!((ram.needs.kv, gpu.needs.kv), (0, processor.needs().kv));
        // The table of embeddings is both the first layer's and the output's.
        assert!(ram.needs.weights > 0 && gpu.needs.weights > ram.needs.weights, "{all:?}");
        assert!(all.fits() && gpu.needs.compute >= processor.needs().compute);
        // The output and one of five layers.
        let some = on_gpu(GpuLayers::Count(2));
        assert_eq!((some.layers, some.shares[1].needs.kv), ((2, 6), processor.needs().kv / 5));
        let none = on_gpu(GpuLayers::Count(0));
        assert_eq!((none.shares.len(), none.needs()), (1, processor.needs()));
    }

    #[test]
    fn as_many_layers_as_fit_go_to_the_gpu() {
        let with = |bytes| {
            let assumed = Assumptions { memory: None, absent_gpu: Some(bytes) };
            planner_with(assumed, |settings| settings.gpu.layers = GpuLayers::Auto).plan().expect("a plan")
        };
        let all = with(1 << 40);
        assert_eq!(all.layers, (6, 6));
        let needs = all.shares[1].needs;
        assert_eq!(with(GPU_MARGIN + needs.total()).layers, (6, 6));
        let some = with(GPU_MARGIN + needs.total() - needs.kv / 5 - 1);
        assert!((1..6).contains(&some.layers.0) && some.fits(), "{some:?}");
        assert_eq!(with(GPU_MARGIN).layers, (0, 6));
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
}
