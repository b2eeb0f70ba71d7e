//! What fits onto a card of 16 GB, of models as large as people run on one. Their files are hollow: planning reads no weights.

use tandem_llama_cpp::{
    Assumptions, FlashAttention, GPU_MARGIN, GpuLayers, GpuSettings, GpuSplit, KvType, LlamaCppSettings, MemoryPlace,
    Planner,
};

use crate::gguf::{Gguf, Value};

const CARD: u64 = 16 << 30;
/// ggml's numbers for types, and bytes of a block with the numbers in it.
const F32: (u32, u64, u64) = (0, 4, 1);
const Q4_K: (u32, u64, u64) = (12, 144, 256);
const Q6_K: (u32, u64, u64) = (14, 210, 256);

struct Shape {
    layers: u32,
    width: u64,
    inner: u64,
    vocabulary: u64,
}

/// As Llama 3.1 8B.
const EIGHT_BILLION: Shape = Shape { layers: 32, width: 4096, inner: 14_336, vocabulary: 128_256 };
/// As Mistral Nemo.
const TWELVE_BILLION: Shape = Shape { layers: 40, width: 5120, inner: 14_336, vocabulary: 131_072 };
const HEADS: u64 = 32;
const KV_HEADS: u64 = 8;
const HEAD: u64 = 128;

impl Shape {
    /// Packed as `Q4_K_M`.
    fn write(&self) -> tempfile::TempPath {
        let &Self { layers, width, inner, vocabulary } = self;
        let mut file = Gguf::new("llama");
        for (key, number) in [
            ("block_count", u64::from(layers)),
            ("context_length", 131_072),
            ("embedding_length", width),
            ("feed_forward_length", inner),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
            ("attention.key_length", HEAD),
            ("attention.value_length", HEAD),
            ("rope.dimension_count", HEAD),
            ("vocab_size", vocabulary),
        ] {
            file.number(key, u32::try_from(number).expect("small numbers"));
        }
        file.float("attention.layer_norm_rms_epsilon", 1e-5);
        file.float("rope.freq_base", 500_000.0);
        let Some(Value::Texts(mut tokens)) = file.get("tokenizer.ggml.tokens") else { panic!("a vocabulary of texts") };
        let Some(Value::I32s(mut types)) = file.get("tokenizer.ggml.token_type") else {
            panic!("a vocabulary of types")
        };
        tokens.extend((tokens.len() as u64..vocabulary).map(|token| format!("t{token}")));
        types.resize(tokens.len(), 1);
        file.set("tokenizer.ggml.tokens", Value::Texts(tokens));
        file.set("tokenizer.ggml.token_type", Value::I32s(types));
        file.write_hollow(&self.tensors())
    }

    fn tensors(&self) -> Vec<(String, Vec<u64>, u32, u64)> {
        let &Self { layers, width, inner, vocabulary } = self;
        let tensor = |name: String, dims: &[u64], (kind, bytes, block): (u32, u64, u64)| {
            (name, dims.to_vec(), kind, dims.iter().product::<u64>() / block * bytes)
        };
        let mut all = vec![
            tensor("token_embd.weight".to_owned(), &[width, vocabulary], Q4_K),
            tensor("output_norm.weight".to_owned(), &[width], F32),
            tensor("output.weight".to_owned(), &[width, vocabulary], Q6_K),
        ];
        for layer in 0..layers {
            // The first and the last eighth, and each third between them, as llama.cpp's own tool has it.
            let eighth = layers / 8;
            let more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
            let much = if more { Q6_K } else { Q4_K };
            let mut add =
                |part: &str, dims: &[u64], kind| all.push(tensor(format!("blk.{layer}.{part}.weight"), dims, kind));
            add("attn_norm", &[width], F32);
            add("ffn_norm", &[width], F32);
            add("attn_q", &[width, HEADS * HEAD], Q4_K);
            add("attn_k", &[width, KV_HEADS * HEAD], Q4_K);
            add("attn_v", &[width, KV_HEADS * HEAD], much);
            add("attn_output", &[HEADS * HEAD, width], Q4_K);
            add("ffn_gate", &[width, inner], Q4_K);
            add("ffn_up", &[width, inner], Q4_K);
            add("ffn_down", &[inner, width], much);
        }
        all
    }
}

/// As the profile `rtx4080` has it.
fn settings(model: &tempfile::TempPath, kv_type: KvType) -> LlamaCppSettings {
    LlamaCppSettings {
        context: Some(32_768),
        fit_context: true,
        kv_type,
        flash_attention: FlashAttention::On,
        gpu: gpu(GpuLayers::All),
        ..LlamaCppSettings::new(model.to_path_buf())
    }
}

fn gpu(layers: GpuLayers) -> GpuSettings {
    GpuSettings { layers, split: GpuSplit::Layer, main: 0, devices: Vec::new() }
}

/// With a card of so many bytes, which is not here.
fn planner(settings: &LlamaCppSettings, card: u64) -> Planner {
    Planner::new(settings, Assumptions { memory: None, absent_gpu: Some(card) }).expect("a model of that shape")
}

/// The longest context of eight sequences that `fitted_plan` leaves, which fills the card but for the margin and one step.
fn longest(shape: &Shape, kv_type: KvType, token: u64, weights: std::ops::Range<f64>) -> u32 {
    let model = shape.write();
    let plan = planner(&settings(&model, kv_type), CARD).fitted_plan().expect("a plan");
    assert_eq!((plan.shares.len(), &plan.shares[1].place), (2, &MemoryPlace::AbsentGpu), "{plan:?}");
    let needs = plan.shares[1].needs;
    assert_eq!((plan.parallel, plan.layers.0), (8, plan.layers.1));
    assert_eq!(needs.kv, 8 * u64::from(plan.context) * token, "{plan:?}");
    assert!(weights.contains(&(needs.weights as f64 / f64::from(1 << 30))), "{plan:?}");
    let spare = CARD - GPU_MARGIN - needs.total();
    assert!(plan.fits() && spare < 8 * 512 * token, "{spare} bytes are left: {plan:?}");
    plan.context
}

#[test]
fn eight_billion_weights_leave_eight_sequences_a_long_context() {
    let halves = longest(&EIGHT_BILLION, KvType::F16, 131_072, 4.2..4.5);
    let eighths = longest(&EIGHT_BILLION, KvType::Q8_0, 69_632, 4.2..4.5);
    assert!(halves >= 8192 && eighths >= 16_384, "{halves}, {eighths}");
}

#[test]
fn twelve_billion_weights_leave_eight_sequences_a_context_for_most_work() {
    let context = longest(&TWELVE_BILLION, KvType::Q8_0, 87_040, 6.2..6.9);
    assert!(context >= 8192, "{context}");
}

#[test]
fn what_does_not_fit_leaves_layers_to_the_processor() {
    // A small vocabulary is read fast, as often as a number of layers is tried.
    let model = Shape { vocabulary: 4096, ..EIGHT_BILLION }.write();
    let settings = LlamaCppSettings {
        context: Some(2048),
        fit_context: false,
        gpu: gpu(GpuLayers::Auto),
        ..settings(&model, KvType::Q8_0)
    };
    // Weights and KV are 3.9 and 1.1 GiB, and one of 5 is to stay free.
    let plan = planner(&settings, 5 << 30).plan().expect("a plan");
    let (on_card, layers) = plan.layers;
    assert!((20..30).contains(&on_card) && layers == 33, "{plan:?}");
    assert!(plan.fits() && plan.shares[0].needs.kv > 0, "{plan:?}");
}
