use tandem_core::{LoadError, MemoryNeeds, free_ram};
use tandem_kernels::KvShape;

use crate::{
    config::{DecoderConfig, MlpConfig, ModelConfig},
    model_files::ModelFiles,
    settings::CandleSettings,
};

/// What a model would take, and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Tokens of one sequence.
    pub context: u32,
    /// Sequences that run at the same time.
    pub parallel: u32,
    /// Tokens that the model was made for.
    pub trained: u32,
    /// What they take.
    pub needs: MemoryNeeds,
    /// Bytes that are free now.
    pub free: u64,
}

/// A model of which only headers and configuration were read.
#[derive(Debug)]
pub struct Planner {
    settings: CandleSettings,
    config: DecoderConfig,
    weights: u64,
}

impl Planner {
    /// Reads the model's files, but for its weights.
    ///
    /// # Errors
    /// As loading it has, but for want of memory; and for embedding models, which keep next to nothing but their weights.
    pub fn new(settings: CandleSettings) -> Result<Self, LoadError> {
        settings.check()?;
        let files = ModelFiles::open(&settings.model, settings.sha256.as_ref())?;
        let (config, file) = files.config()?;
        let ModelConfig::Generator(config) = config else {
            return Err(LoadError::Unsupported("the memory of embedding models is not planned on candle".to_owned()));
        };
        let weights = files.weights(&file, settings.kept())?.bytes();
        Ok(Self { settings, config, weights })
    }

    /// What the settings ask for.
    #[must_use]
    pub fn plan(&self) -> MemoryPlan {
        let trained = self.config.max_positions;
        let (context, parallel) = (self.settings.context.unwrap_or(trained), self.settings.parallel);
        let kv_tokens = self.settings.kv_tokens.map_or(u64::from(context) * u64::from(parallel), u64::from);
        MemoryPlan { context, parallel, trained, needs: self.needs(parallel, kv_tokens), free: free_ram() }
    }

    /// Tokens that each sequence could have with so many bytes, all others being as in the settings; `None` for not even a page.
    #[must_use]
    pub fn longest_context(&self, bytes: u64) -> Option<u32> {
        let parallel = self.settings.parallel;
        let fits = |context: u32| self.needs(parallel, u64::from(context) * u64::from(parallel)).total() <= bytes;
        largest(self.config.max_positions / self.settings.block_size, |pages| fits(pages * self.settings.block_size))
            .map(|pages| pages * self.settings.block_size)
    }

    /// Sequences that could run with so many bytes, the context being as in the settings.
    #[must_use]
    pub fn most_sequences(&self, bytes: u64) -> Option<u32> {
        let context = u64::from(self.plan().context);
        largest(self.settings.max_step_tokens, |parallel| {
            self.needs(parallel, context * u64::from(parallel)).total() <= bytes
        })
    }

    fn needs(&self, parallel: u32, kv_tokens: u64) -> MemoryNeeds {
        needs(&self.settings, &self.config, self.weights, parallel, kv_tokens)
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

/// Bytes of the activations of one step, and of its logits.
fn compute(config: &DecoderConfig, step_tokens: u32, parallel: u32) -> u64 {
    let mlp = config.layers.iter().map(|layer| match layer.mlp {
        MlpConfig::Dense { width } => width,
        MlpConfig::Experts { width, per_token, .. } => width * per_token,
    });
    let mlp = mlp.max().unwrap_or(0);
    let (hidden, q, kv) = (config.hidden_size, config.q_width(), config.kv_width());
    // Hidden state, normed, added; Q, K, V and what attention makes of them; gates, values and their product; and once more the widest of
    // them, laid out for a product.
    let row = 4 * hidden + 2 * q + 2 * kv + 3 * mlp + hidden.max(q).max(mlp);
    (u64::from(step_tokens) * row as u64 + u64::from(parallel) * config.vocab_size as u64) * size_of::<f32>() as u64
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
    use super::*;
    use crate::settings::{Dtype, Quantization};

    fn planner(change: impl FnOnce(&mut CandleSettings)) -> Planner {
        let mut settings = CandleSettings {
            model: concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny").into(),
            context: Some(512),
            parallel: 8,
            sha256: None,
            dtype: Dtype::Auto,
            quantization: Quantization::None,
            block_size: 16,
            max_step_tokens: 512,
            kv_tokens: None,
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
