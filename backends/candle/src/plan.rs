use std::collections::BTreeMap;

use tandem_core::{LoadError, MemoryNeeds, free_ram};
use tandem_cuda::{CudaError, Device, Number};
use tandem_kernels::{Format, KvShape};

use crate::{
    config::{BodyConfig, DecoderConfig, EmbedderConfig, Head, MlpConfig, ModelConfig},
    device::{self, DeviceNeeds, Split},
    embedder::CandleEmbedder,
    model_files::ModelFiles,
    settings::{CandleSettings, ComputeDevice},
    weights::Weights,
    work::Work,
};

/// What a model would take, and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Tokens of one sequence, or of one input.
    pub context: u32,
    /// Sequences that run at the same time. An embedding model, which keeps nothing of its inputs, has one.
    pub parallel: u32,
    /// Tokens that the model was made for.
    pub trained: u32,
    /// What they take.
    pub needs: MemoryNeeds,
    /// Bytes of the weights of which a step reads but the rows of its tokens: the table of embeddings, where no head shares it.
    pub looked_up: u64,
    /// Bytes that are free now.
    pub free: u64,
}

/// A model of which only headers and configuration were read.
#[derive(Debug)]
pub struct Planner {
    settings: CandleSettings,
    config: ModelConfig,
    weights: BTreeMap<Format, u64>,
    looked_up: u64,
    card: Option<Card>,
}

/// The GPU that a model is to be loaded to, or each of those that it is to be divided among.
#[derive(Debug)]
struct Card {
    /// What it is, if it is there.
    name: Option<String>,
    ranks: usize,
    /// What one of them has of the model.
    part: DecoderConfig,
    /// What numbers that are not quantised would be there, and the bytes of all weights.
    number: Number,
    weights: u64,
    /// Of the card that there is, or one like those that the backend is made for.
    processors: u32,
    /// What may be used of it, or why there is none.
    room: Result<u64, String>,
}

/// As many as an A100 has: room to compute in depends on it a little.
const PROCESSORS: u32 = 108;

impl Planner {
    /// Reads the model's files, but for its weights.
    ///
    /// # Errors
    /// As loading it has, but for want of memory.
    pub fn new(settings: CandleSettings) -> Result<Self, LoadError> {
        settings.check()?;
        let files = ModelFiles::open(&settings.model, settings.sha256.as_ref())?;
        let (config, file) = files.config()?;
        let weights = files.weights(&file, settings.kept())?;
        let card = match (&config, settings.device) {
            (_, ComputeDevice::Cpu) => None,
            (ModelConfig::Generator(config), ComputeDevice::Cuda { ordinal, ranks, memory_fraction }) => {
                if let Some(reason) = device::unsupported(config) {
                    return Err(LoadError::Unsupported(reason));
                }
                let part = Split::config(ranks, config).map_err(LoadError::Unsupported)?;
                let cards = Device::open_all(ordinal, ranks);
                Some(Card::new(&cards, (ranks, part), memory_fraction, device::number(&settings, &weights), &weights)?)
            }
            (ModelConfig::Embedder(_), ComputeDevice::Cuda { .. }) => {
                return Err(LoadError::Unsupported(device::EMBEDDERS_STAY.to_owned()));
            }
        };
        let shares_table = matches!(&config, ModelConfig::Generator(config) if config.head == Head::Tied);
        let looked_up = if shares_table { 0 } else { weights.table_bytes() };
        let weights = weights.formats();
        Ok(Self { settings, config, weights, looked_up, card })
    }

    /// The card that the model would lie on, for people, where it is to lie on one and it is there; where there are several, of each of which
    /// the plan is, their number too.
    #[must_use]
    pub fn card(&self) -> Option<&str> {
        self.card.as_ref().and_then(|card| card.name.as_deref())
    }

    /// What the settings ask for where there are so many bytes, or what is free. On a GPU the KV cache takes what is left.
    ///
    /// # Errors
    /// When it is to be on a GPU, nothing is said of how much there is, and there is none.
    pub fn plan_within(&self, bytes: Option<u64>) -> Result<MemoryPlan, LoadError> {
        let plan = self.plan();
        let (Some(card), ModelConfig::Generator(config)) = (&self.card, &self.config) else { return Ok(plan) };
        let free = match (bytes, &card.room) {
            (Some(bytes), _) => bytes,
            (None, Ok(room)) => *room,
            (None, Err(reason)) => return Err(LoadError::Unsupported(reason.clone())),
        };
        let needs = card.needs(&self.settings);
        let kv_tokens = device::kv_tokens(&self.settings, config, &needs, free);
        Ok(MemoryPlan { needs: self.needs(plan.context, plan.parallel, kv_tokens.into()), free, ..plan })
    }

    /// What the settings ask for.
    #[must_use]
    pub fn plan(&self) -> MemoryPlan {
        let (trained, asked) = (self.trained(), self.settings.context);
        let (context, parallel, kv_tokens) = match &self.config {
            ModelConfig::Generator(_) => {
                let (context, parallel) = (asked.unwrap_or(trained), self.settings.parallel);
                (context, parallel, self.settings.kv_tokens.map_or(u64::from(context) * u64::from(parallel), u64::from))
            }
            ModelConfig::Embedder(_) => (asked.unwrap_or(trained).min(trained), 1, 0),
        };
        let needs = self.needs(context, parallel, kv_tokens);
        MemoryPlan { context, parallel, trained, needs, looked_up: self.looked_up, free: free_ram() }
    }

    /// What steps of the model take at least, where they are of its own text and it is not divided among cards.
    #[must_use]
    pub fn work(&self) -> Option<Work> {
        let ModelConfig::Generator(config) = &self.config else { return None };
        if self.card.as_ref().is_some_and(|card| card.ranks > 1) {
            return None;
        }
        let page = self.needs(self.settings.block_size, 1, self.settings.block_size.into());
        let kv_layer = page.kv / u64::from(self.settings.block_size) / config.layers.len().max(1) as u64;
        Some(Work::new(config, page.weights.saturating_sub(self.looked_up), kv_layer))
    }

    /// Bytes of the weights by the format that they are kept in, the largest share first.
    #[must_use]
    pub fn formats(&self) -> Vec<(Format, u64)> {
        let mut formats: Vec<_> = self.weights.iter().map(|(&format, &bytes)| (format, bytes)).collect();
        formats.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        formats
    }

    /// Tokens that each sequence could have with so many bytes, all others being as in the settings; `None` for not even a page.
    #[must_use]
    pub fn longest_context(&self, bytes: u64) -> Option<u32> {
        let (parallel, page, trained) = (self.plan().parallel, self.settings.block_size, self.trained());
        let needs = |context: u32| self.needs(context, parallel, u64::from(context) * u64::from(parallel));
        // What a model is trained on may be no whole pages.
        let tokens = |pages: u32| (pages * page).min(trained);
        largest(trained.div_ceil(page), |pages| needs(tokens(pages)).total() <= bytes).map(tokens)
    }

    /// Sequences that could run with so many bytes, the context being as in the settings.
    #[must_use]
    pub fn most_sequences(&self, bytes: u64) -> Option<u32> {
        let context = self.plan().context;
        let most = match &self.config {
            ModelConfig::Generator(_) => self.settings.max_step_tokens,
            ModelConfig::Embedder(_) => 1,
        };
        largest(most, |parallel| {
            self.needs(context, parallel, u64::from(context) * u64::from(parallel)).total() <= bytes
        })
    }

    fn trained(&self) -> u32 {
        match &self.config {
            ModelConfig::Generator(config) => config.max_positions,
            ModelConfig::Embedder(config) => config.body.max_positions(),
        }
    }

    fn needs(&self, context: u32, parallel: u32, kv_tokens: u64) -> MemoryNeeds {
        let weights = self.weights.values().sum();
        match &self.config {
            ModelConfig::Generator(config) => match &self.card {
                None => needs(&self.settings, config, weights, parallel, kv_tokens),
                Some(card) => {
                    let settings = CandleSettings { context: Some(context), parallel, ..self.settings.clone() };
                    card.needs(&settings).with_kv(kv_tokens.div_ceil(settings.block_size.into()))
                }
            },
            ModelConfig::Embedder(config) => {
                let settings = CandleSettings { context: Some(context), ..self.settings.clone() };
                embedder_needs(&settings, config, weights)
            }
        }
    }
}

impl Card {
    fn new(
        cards: &Result<Vec<Device>, CudaError>,
        (ranks, part): (usize, DecoderConfig),
        memory_fraction: f64,
        number: Number,
        weights: &Weights,
    ) -> Result<Self, LoadError> {
        let room = |cards: &Vec<Device>| {
            let rooms = cards.iter().map(|card| Ok(device::room(card.memory()?, memory_fraction)));
            Ok(rooms.collect::<Result<Vec<_>, CudaError>>()?.into_iter().min().unwrap_or(0))
        };
        let name = |cards: &Vec<Device>| match &cards[..] {
            [card] => card.name(),
            all => format!("each of {} GPUs, the first {}", all.len(), all[0].name()),
        };
        let processors = |cards: &Vec<Device>| cards.iter().map(Device::processors).max().unwrap_or(PROCESSORS);
        Ok(Self {
            name: cards.as_ref().ok().map(name),
            ranks,
            number,
            weights: weights.device_bytes_of_all(number, |layer, shape| Split::shape(ranks, &part, layer, shape))?,
            processors: cards.as_ref().map_or(PROCESSORS, processors),
            room: cards.as_ref().map_err(Clone::clone).and_then(room).map_err(|error| error.to_string()),
            part,
        })
    }

    fn needs(&self, settings: &CandleSettings) -> DeviceNeeds {
        let Self { ranks, ref part, number, weights, processors, .. } = *self;
        DeviceNeeds::new(processors, settings, part, weights, number, ranks)
    }
}

/// What a model takes whose weights are so many bytes.
pub(crate) fn needs(
    settings: &CandleSettings,
    config: &DecoderConfig,
    weights: u64,
    parallel: u32,
    kv_tokens: u64,
) -> MemoryNeeds {
    let page_len = settings.block_size as usize;
    let shape = KvShape { pages: 1, page_len, kv_heads: config.kv_heads, head_dim: config.head_dim };
    let page = shape.page_bytes(settings.kv_format()) as u64 * config.layers.len() as u64;
    let kv = kv_tokens.div_ceil(page_len as u64).saturating_mul(page);
    MemoryNeeds { weights, kv, compute: compute(config, settings.max_step_tokens, parallel) }
}

/// What an embedding model takes whose weights are so many bytes: beside them what the largest pass does, which is of many inputs or of one
/// long one.
pub(crate) fn embedder_needs(settings: &CandleSettings, config: &EmbedderConfig, weights: u64) -> MemoryNeeds {
    let (spec, shape) = (CandleEmbedder::spec_of(settings, config), CandleEmbedder::shape(settings, config));
    let row = match &config.body {
        BodyConfig::Decoder(config) => row(config),
        BodyConfig::Encoder(config) => {
            let (hidden, inner) = (config.hidden_size, config.inner_size);
            // Hidden state, Q, K, V, what attention makes of them, added, and the inside of the MLP; and once more the wider, laid out for a
            // product.
            6 * hidden + inner + hidden.max(inner)
        }
    };
    let tokens = u64::from(spec.max_pass_tokens.max(spec.max_input_tokens));
    let kv = (shape.pages * shape.page_bytes(CandleEmbedder::KV)) as u64;
    MemoryNeeds { weights, kv, compute: tokens * (row * size_of::<f32>()) as u64 }
}

/// Bytes of the activations of one step, and of its logits.
fn compute(config: &DecoderConfig, step_tokens: u32, parallel: u32) -> u64 {
    let logits = u64::from(parallel) * config.vocab_size as u64;
    (u64::from(step_tokens) * row(config) as u64 + logits) * size_of::<f32>() as u64
}

/// Numbers that a decoder has of each token of a step.
fn row(config: &DecoderConfig) -> usize {
    let mlp = config.layers.iter().map(|layer| match layer.mlp {
        MlpConfig::Dense { width } => width,
        MlpConfig::Experts { width, per_token, .. } => width * per_token,
    });
    let mlp = mlp.max().unwrap_or(0);
    let (hidden, q, kv) = (config.hidden_size, config.q_width(), config.kv_width());
    // Hidden state, normed, added; Q, K, V and what attention makes of them; gates, values and their product; and once more the widest of
    // them, laid out for a product.
    4 * hidden + 2 * q + 2 * kv + 3 * mlp + hidden.max(q).max(mlp)
}

/// The largest number from 1 to `most` that is good, where all below a good one are good too.
fn largest(most: u32, good: impl Fn(u32) -> bool) -> Option<u32> {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if good(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    (low > 0).then_some(low)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::settings::{Dtype, Quantization};

    fn planner(change: impl FnOnce(&mut CandleSettings)) -> Planner {
        planner_of("../../models/tiny", change)
    }

    fn planner_of(model: &str, change: impl FnOnce(&mut CandleSettings)) -> Planner {
        let mut settings = CandleSettings {
            model: Path::new(env!("CARGO_MANIFEST_DIR")).join(model),
            context: Some(512),
            parallel: 8,
            sha256: None,
            dtype: Dtype::Auto,
            quantization: Quantization::None,
            block_size: 16,
            max_step_tokens: 512,
            kv_tokens: None,
            kv_type: crate::settings::KvType::Auto,
            device: crate::settings::ComputeDevice::Cpu,
            threads: None,
        };
        change(&mut settings);
        Planner::new(settings).expect("the model is there")
    }

    #[test]
    fn memory_is_what_the_model_takes() {
        let plan = planner(|_| ()).plan();
        assert_eq!((plan.context, plan.parallel, plan.trained), (512, 8, 1024));
        // Five layers of two heads of 64 numbers, each a key and a value of 2 bytes.
        assert_eq!(plan.needs.kv, 8 * 512 * 5 * 2 * 64 * 2 * 2);
        let file = fs_err::metadata(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny/model.safetensors"));
        let file = file.expect("the model").len();
        assert!((file * 9 / 10..file * 11 / 10).contains(&plan.needs.weights), "{plan:?}, {file}");
        let wide = planner(|settings| settings.dtype = Dtype::F32).plan().needs;
        assert_eq!(wide.kv, 2 * plan.needs.kv);
        assert!(wide.weights > plan.needs.weights * 19 / 10);
        let few = planner(|settings| settings.quantization = Quantization::Q4_0).plan().needs;
        assert!(few.weights < plan.needs.weights / 2, "{few:?}");
    }

    /// The numbers of the small model: see the memory that it takes above.
    #[test]
    fn a_step_reads_what_the_plan_has() {
        let work = planner(|_| ()).work().expect("a decoder");
        let plan = planner(|_| ()).plan();
        assert_eq!(work.weights, plan.needs.weights - plan.looked_up);
        assert_eq!((work.kv_layer, work.windows), (2 * 64 * 2 * 2, vec![None; 5]));
        // The vectors of 3,072 tokens are the head as well.
        assert_eq!(work.head_flop, 2 * 3072 * 256);
        let matrices = (work.layers_flop + work.head_flop) / 2;
        assert!((plan.needs.weights * 9 / 20..=plan.needs.weights / 2).contains(&matrices), "{matrices}, {plan:?}");
        let embedder = planner_of("tests/embedding_fixtures/bert", |_| ());
        assert_eq!(embedder.work(), None);
    }

    #[test]
    fn weights_are_told_by_format() {
        let mixed = planner(|settings| settings.quantization = Quantization::Q4_0);
        let formats = mixed.formats();
        assert_eq!(formats.iter().map(|(_, bytes)| bytes).sum::<u64>(), mixed.plan().needs.weights);
        let names: Vec<String> = formats.iter().map(|(format, _)| format.to_string()).collect();
        assert_eq!(names, ["Q4_0", "Q6_K", "F32"], "layers, the vocabulary and norms");
    }

    /// An embedder keeps nothing between passes: what a pass takes is of the longest input, or of as many as a step has tokens.
    #[test]
    fn an_embedder_is_planned_by_its_passes() {
        let fixture = "tests/embedding_fixtures/bert";
        let planner = planner_of(fixture, |settings| settings.max_step_tokens = 32);
        let plan = planner.plan();
        assert_eq!(plan.parallel, 1);
        assert_eq!(plan.context, plan.trained, "no input is longer than the model was trained on");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture).join("model.safetensors");
        let file = fs_err::metadata(file).expect("the model").len();
        assert!(plan.needs.weights > file / 2 && plan.needs.kv > 0 && plan.needs.compute > 0, "{plan:?}, {file}");
        let short =
            planner_of(fixture, |settings| (settings.context, settings.max_step_tokens) = (Some(16), 32)).plan();
        assert!(short.needs.compute < plan.needs.compute, "{short:?}, {plan:?}");
        assert_eq!(planner.longest_context(plan.needs.total()), Some(plan.trained));
        assert_eq!(planner.longest_context(plan.needs.weights), None);
        assert_eq!(planner.most_sequences(plan.needs.total()), Some(1));
        assert_eq!(planner.most_sequences(plan.needs.total() - 1), None);
    }

    /// On a card that is not there, of so much memory.
    #[test]
    fn the_cache_of_a_gpu_is_what_is_left() {
        let on_gpu = |settings: &mut CandleSettings| {
            settings.device = ComputeDevice::Cuda { ordinal: 0, ranks: 1, memory_fraction: 0.9 };
        };
        let planner = planner(on_gpu);
        let all = planner.plan_within(Some(64 << 30)).expect("a plan").needs;
        // As on the CPU, in the numbers of the weights.
        assert_eq!(all.kv, 8 * 512 * 5 * 2 * 64 * 2 * 2);
        let eight_bits = planner_of("../../models/tiny", |settings| {
            on_gpu(settings);
            settings.kv_type = crate::settings::KvType::Fp8;
        });
        assert_eq!(eight_bits.plan_within(Some(64 << 30)).expect("a plan").needs.kv, all.kv / 2);
        let half = planner.plan_within(Some(all.total() - all.kv / 2)).expect("a plan").needs;
        assert!((all.kv / 2 - (1 << 16)..=all.kv / 2).contains(&half.kv), "{half:?} of {all:?}");
        let least = planner.plan_within(Some(1)).expect("a plan").needs;
        assert_eq!(least.kv, all.kv / 8, "one sequence at its longest");
        let asked = planner_of("../../models/tiny", |settings| {
            on_gpu(settings);
            settings.kv_tokens = Some(1024);
        });
        assert_eq!(asked.plan_within(Some(64 << 30)).expect("a plan").needs.kv, all.kv / 4);
    }

    /// Each of two cards has a head of keys and values of two, half of each layer, and all vectors of tokens.
    #[test]
    fn what_is_divided_is_planned_for_each_gpu() {
        let needs = |ranks| {
            let planner = planner(|settings| {
                settings.device = ComputeDevice::Cuda { ordinal: 0, ranks, memory_fraction: 0.9 };
            });
            planner.plan_within(Some(64 << 30)).expect("a plan").needs
        };
        let (one, two) = (needs(1), needs(2));
        assert_eq!(two.kv, one.kv / 2);
        let table = 3072 * 256 * 2;
        // The norms, which are kept whole, are few.
        let divided = table + (one.weights - table) / 2;
        assert!((divided..divided + one.weights / 100).contains(&two.weights), "{two:?}, {one:?}, a table of {table}");
    }

    #[test]
    fn what_fits_is_found() {
        let planner = planner(|_| ());
        let needs = planner.plan().needs;
        assert_eq!(planner.longest_context(needs.total()), Some(512));
        assert_eq!(planner.longest_context(needs.total() + needs.kv / 2), Some(768));
        assert_eq!(planner.longest_context(u64::MAX), Some(1024), "no more than the model was made for");
        assert_eq!(planner.longest_context(needs.weights), None);
        assert_eq!(planner.most_sequences(needs.total()), Some(8));
        assert_eq!(planner.most_sequences(needs.total() - 1), Some(7));
    }
}
