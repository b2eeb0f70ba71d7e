//! The shapes of true models, family by family.

use crate::gguf::Family;

/// How large a model is, and the numbers that its family leaves open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) size: &'static str,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) mlp: usize,
    pub(crate) vocab: usize,
    pub(crate) tied: bool,
    pub(crate) context: usize,
    pub(crate) theta: f64,
    /// By how much positions are stretched, in the way of the family; 1 is not at all.
    pub(crate) stretch: f64,
    /// Tokens that the layers with a window see; `None` where the family has no such layers.
    pub(crate) window: Option<usize>,
    pub(crate) granite: Option<Multipliers>,
}

/// What Granite multiplies with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Multipliers {
    pub(crate) embedding: f64,
    pub(crate) attention: f64,
    pub(crate) residual: f64,
    /// This one divides.
    pub(crate) logits: f64,
}

/// A family under the name by which it is asked for.
#[derive(Debug)]
pub(crate) struct Arch {
    pub(crate) name: &'static str,
    pub(crate) family: Family,
    /// What `config.json` calls it: its class and its `model_type`.
    pub(crate) class: &'static str,
    pub(crate) model_type: &'static str,
    pub(crate) norm_eps: f64,
    pub(crate) shapes: &'static [Shape],
}

/// What most sizes have in common; the tables below say what differs.
const BASE: Shape = Shape {
    size: "tiny",
    // A multiple of 256, the block of the K quantisations.
    hidden: 256,
    layers: 3,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    mlp: 512,
    vocab: 1024,
    tied: false,
    context: 512,
    theta: 10_000.0,
    stretch: 1.0,
    window: None,
    granite: None,
};

/// Not of any true model: for machines that are too small for those.
const FIFTH: Shape = Shape {
    size: "0.2b",
    hidden: 768,
    layers: 24,
    heads: 12,
    kv_heads: 4,
    mlp: 2048,
    vocab: 32_000,
    context: 4096,
    ..BASE
};
const HALF: Shape = Shape {
    size: "0.5b",
    hidden: 1024,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    mlp: 3072,
    vocab: 32_000,
    context: 4096,
    ..BASE
};

/// Llama 3.2 1B, `SmolLM2` 1.7B (a Llama), Minitron 4B and Llama 3.1 8B.
const LLAMA: &[Shape] = &[
    BASE,
    FIFTH,
    HALF,
    Shape { size: "1b", hidden: 2048, layers: 16, heads: 32, mlp: 8192, tied: true, stretch: 32.0, ..LLAMA_3 },
    Shape {
        size: "1.7b",
        hidden: 2048,
        layers: 24,
        heads: 32,
        kv_heads: 32,
        mlp: 8192,
        vocab: 49_152,
        tied: true,
        context: 8192,
        theta: 130_000.0,
        ..BASE
    },
    Shape { size: "4b", hidden: 3072, layers: 32, heads: 32, head_dim: 128, mlp: 9216, ..LLAMA_3 },
    Shape { size: "8b", hidden: 4096, layers: 32, heads: 32, head_dim: 128, mlp: 14_336, ..LLAMA_3 },
];
const LLAMA_3: Shape = Shape { kv_heads: 8, vocab: 128_256, context: 131_072, theta: 500_000.0, stretch: 8.0, ..BASE };

/// Ministral 8B, without its windows, and Nemo 12B.
const MISTRAL: &[Shape] =
    &[BASE, Shape { size: "8b", hidden: 4096, layers: 36, mlp: 12_288, theta: 1e8, ..NEMO }, NEMO];
const NEMO: Shape = Shape {
    size: "12b",
    hidden: 5120,
    layers: 40,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    mlp: 14_336,
    vocab: 131_072,
    context: 131_072,
    theta: 1e6,
    ..BASE
};

/// Qwen 2.5.
const QWEN_2: &[Shape] = &[
    BASE,
    Shape { size: "0.5b", hidden: 896, layers: 24, heads: 14, head_dim: 64, mlp: 4864, tied: true, ..QWEN_25 },
    Shape { size: "1.5b", hidden: 1536, layers: 28, heads: 12, mlp: 8960, tied: true, ..QWEN_25 },
    Shape { size: "7b", hidden: 3584, layers: 28, heads: 28, kv_heads: 4, mlp: 18_944, vocab: 152_064, ..QWEN_25 },
];
const QWEN_25: Shape = Shape { kv_heads: 2, head_dim: 128, vocab: 151_936, context: 32_768, theta: 1e6, ..BASE };

const QWEN_3: &[Shape] = &[
    BASE,
    FIFTH,
    Shape { size: "0.6b", hidden: 1024, layers: 28, heads: 16, mlp: 3072, tied: true, ..QWEN_3_DENSE },
    Shape { size: "1.7b", hidden: 2048, layers: 28, heads: 16, mlp: 6144, tied: true, ..QWEN_3_DENSE },
    Shape { size: "4b", hidden: 2560, layers: 36, heads: 32, mlp: 9728, tied: true, ..QWEN_3_DENSE },
    Shape { size: "8b", hidden: 4096, layers: 36, heads: 32, mlp: 12_288, ..QWEN_3_DENSE },
];
const QWEN_3_DENSE: Shape = Shape { kv_heads: 8, head_dim: 128, vocab: 151_936, context: 40_960, theta: 1e6, ..BASE };

/// Gemma 2 2B and 9B.
const GEMMA_2: &[Shape] = &[
    Shape { tied: true, window: Some(64), ..BASE },
    Shape { size: "2b", hidden: 2304, layers: 26, heads: 8, kv_heads: 4, mlp: 9216, ..GEMMA_2_ALL },
    Shape { size: "9b", hidden: 3584, layers: 42, heads: 16, kv_heads: 8, mlp: 14_336, ..GEMMA_2_ALL },
];
const GEMMA_2_ALL: Shape =
    Shape { head_dim: 256, vocab: 256_000, tied: true, context: 8192, window: Some(4096), ..BASE };

/// Gemma 3 1B, 4B and 12B.
const GEMMA_3: &[Shape] = &[
    // As many layers as it takes for one to see the whole text.
    Shape { layers: 6, tied: true, theta: 1e6, window: Some(64), ..BASE },
    Shape {
        size: "1b",
        hidden: 1152,
        layers: 26,
        kv_heads: 1,
        mlp: 6912,
        vocab: 262_144,
        context: 32_768,
        stretch: 1.0,
        window: Some(512),
        ..GEMMA_3_LONG
    },
    Shape { size: "4b", hidden: 2560, layers: 34, heads: 8, kv_heads: 4, mlp: 10_240, ..GEMMA_3_LONG },
    Shape { size: "12b", hidden: 3840, layers: 48, heads: 16, kv_heads: 8, mlp: 15_360, ..GEMMA_3_LONG },
];
const GEMMA_3_LONG: Shape = Shape {
    head_dim: 256,
    vocab: 262_208,
    tied: true,
    context: 131_072,
    theta: 1e6,
    stretch: 8.0,
    window: Some(1024),
    ..BASE
};

/// Phi 3 mini, with the shorter of its contexts.
const PHI_3: &[Shape] = &[
    Shape { window: Some(128), ..BASE },
    Shape {
        size: "4b",
        hidden: 3072,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_dim: 96,
        mlp: 8192,
        vocab: 32_064,
        context: 4096,
        window: Some(2047),
        ..BASE
    },
];

/// Granite 3.1.
const GRANITE: &[Shape] = &[
    Shape { granite: Some(MULTIPLIERS), ..BASE },
    Shape { size: "2b", hidden: 2048, layers: 40, mlp: 8192, theta: 5e6, granite: Some(MULTIPLIERS), ..GRANITE_ALL },
    Shape {
        size: "8b",
        hidden: 4096,
        layers: 40,
        head_dim: 128,
        mlp: 12_800,
        theta: 1e7,
        granite: Some(Multipliers { attention: 0.007_812_5, logits: 16.0, ..MULTIPLIERS }),
        ..GRANITE_ALL
    },
];
const GRANITE_ALL: Shape = Shape { heads: 32, kv_heads: 8, vocab: 49_155, tied: true, context: 131_072, ..BASE };
const MULTIPLIERS: Multipliers = Multipliers { embedding: 12.0, attention: 0.015_625, residual: 0.22, logits: 8.0 };

/// OLMo 2 1B and 7B.
const OLMO_2: &[Shape] = &[
    Shape { kv_heads: 4, ..BASE },
    Shape { size: "1b", hidden: 2048, layers: 16, heads: 16, kv_heads: 16, mlp: 8192, ..OLMO_2_ALL },
    Shape { size: "7b", hidden: 4096, layers: 32, heads: 32, kv_heads: 32, mlp: 11_008, ..OLMO_2_ALL },
];
const OLMO_2_ALL: Shape = Shape { head_dim: 128, vocab: 100_352, context: 4096, theta: 500_000.0, ..BASE };

pub(crate) const ARCHS: [Arch; 9] = [
    arch("llama", Family::Llama, "LlamaForCausalLM", "llama", 1e-5, LLAMA),
    // llama.cpp has no name of its own for it.
    arch("mistral", Family::Llama, "MistralForCausalLM", "mistral", 1e-5, MISTRAL),
    arch("qwen2", Family::Qwen2, "Qwen2ForCausalLM", "qwen2", 1e-6, QWEN_2),
    arch("qwen3", Family::Qwen3, "Qwen3ForCausalLM", "qwen3", 1e-6, QWEN_3),
    arch("gemma2", Family::Gemma2, "Gemma2ForCausalLM", "gemma2", 1e-6, GEMMA_2),
    arch("gemma3", Family::Gemma3, "Gemma3ForCausalLM", "gemma3_text", 1e-6, GEMMA_3),
    arch("phi3", Family::Phi3, "Phi3ForCausalLM", "phi3", 1e-5, PHI_3),
    arch("granite", Family::Granite, "GraniteForCausalLM", "granite", 1e-5, GRANITE),
    arch("olmo2", Family::Olmo2, "Olmo2ForCausalLM", "olmo2", 1e-6, OLMO_2),
];

const fn arch(
    name: &'static str,
    family: Family,
    class: &'static str,
    model_type: &'static str,
    norm_eps: f64,
    shapes: &'static [Shape],
) -> Arch {
    Arch { name, family, class, model_type, norm_eps, shapes }
}
