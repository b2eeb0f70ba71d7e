//! Our settings in llama.cpp's terms.

use llama_cpp_2::{
    context::params::{LlamaContextParams, LlamaPoolingType},
    model::params::{LlamaModelParams, LlamaSplitMode},
};
use tandem_core::{LoadError, Pooling};

use crate::{
    FlashAttention, GpuLayers, GpuSettings, GpuSplit, LlamaCppSettings,
    devices::{self, Gpu},
    embedder::EmbedderSizes,
    runtime::Llama,
    settings::Sizes,
};

/// How to load the model.
///
/// # Errors
/// When the settings want GPUs that are not there.
pub(crate) fn model(settings: &LlamaCppSettings, llama: &Llama) -> Result<LlamaModelParams, LoadError> {
    let GpuSettings { layers, split, main, devices } = &settings.gpu;
    let params = LlamaModelParams::default()
        // A callback of our own, since llama.cpp's default one prints dots.
        .with_progress_callback(|_| true)
        .with_use_mmap(settings.mmap)
        .with_use_mlock(settings.mlock);
    // Without layers on GPUs, llama.cpp would still copy weights to them for long prompts, in memory that nobody reckoned with.
    let on_processor = |params: LlamaModelParams| {
        let params = params.with_n_gpu_layers(0).with_devices(&[]);
        params.map_err(|error| LoadError::Other { context: "leaving GPUs alone".to_owned(), source: error.into() })
    };
    let params = match (*layers, &llama.no_gpu) {
        (GpuLayers::Count(0), _) | (GpuLayers::All | GpuLayers::Auto, Some(_)) => return on_processor(params),
        (GpuLayers::Count(layers), Some(reason)) => {
            return Err(LoadError::Unsupported(format!(
                "gpu_layers is {layers}, but {reason}; with \"all\" or \"auto\" the processor takes over"
            )));
        }
        (GpuLayers::Count(layers), None) => params.with_n_gpu_layers(layers),
        // More than any model has.
        (GpuLayers::All | GpuLayers::Auto, None) => params.with_n_gpu_layers(i32::MAX.unsigned_abs()),
    };
    let chosen = chosen(&settings.gpu)?;
    // llama.cpp counts the main GPU among those that it is given.
    if *main > 0 && *main as usize >= chosen.len() {
        let given = chosen.len();
        return Err(LoadError::Unsupported(format!("main_gpu is {main}, of {given} GPUs, which are counted from 0")));
    }
    let params = params.with_main_gpu(i32::try_from(*main).unwrap_or(i32::MAX)).with_split_mode(match split {
        GpuSplit::None => LlamaSplitMode::None,
        GpuSplit::Layer => LlamaSplitMode::Layer,
        GpuSplit::Row => LlamaSplitMode::Row,
        GpuSplit::Tensor => LlamaSplitMode::Tensor,
    });
    if devices.is_empty() {
        return Ok(params);
    }
    let indices: Vec<_> = chosen.iter().map(|gpu| gpu.index).collect();
    params.with_devices(&indices).map_err(|error| LoadError::Unsupported(format!("gpus is {devices:?}: {error}")))
}

/// The GPUs that a model is laid over: none where there is none to use, or none is wanted.
///
/// # Errors
/// As for [`model`].
pub(crate) fn gpus(settings: &LlamaCppSettings) -> Result<Vec<Gpu>, LoadError> {
    let GpuSettings { layers, split, main, .. } = settings.gpu;
    if layers == GpuLayers::Count(0) {
        return Ok(Vec::new());
    }
    let mut chosen = chosen(&settings.gpu)?;
    match split {
        GpuSplit::None if (main as usize) < chosen.len() => Ok(vec![chosen.swap_remove(main as usize)]),
        GpuSplit::Tensor if !chosen.is_empty() => Ok(vec![devices::together(&chosen)]),
        GpuSplit::None | GpuSplit::Layer | GpuSplit::Row | GpuSplit::Tensor => Ok(chosen),
    }
}

/// Those that the settings name; otherwise all but such without memory of their own, unless there are no others, as llama.cpp has it.
fn chosen(GpuSettings { devices, .. }: &GpuSettings) -> Result<Vec<Gpu>, LoadError> {
    let all = devices::gpus();
    if all.is_empty() {
        return Ok(all);
    }
    if devices.is_empty() {
        let has_own = all.iter().any(|gpu| !gpu.integrated);
        return Ok(all.into_iter().filter(|gpu| !gpu.integrated || !has_own).collect());
    }
    let named: Option<_> = devices.iter().map(|&device| all.get(device as usize).cloned()).collect();
    named.ok_or_else(|| LoadError::Unsupported(format!("gpus is {devices:?}, but llama.cpp sees {} GPUs", all.len())))
}

/// How to run it.
pub(crate) fn context(settings: &LlamaCppSettings, sizes: Sizes) -> LlamaContextParams {
    common(settings)
        .with_n_seq_max(settings.parallel)
        .with_n_ctx(Some(sizes.cells))
        .with_n_batch(sizes.batch)
        .with_n_ubatch(sizes.micro_batch)
        .with_kv_unified(settings.kv_unified)
        .with_swa_full(settings.swa_full)
}

/// How to run a model that turns texts into vectors.
pub(crate) fn embedding_context(
    settings: &LlamaCppSettings,
    sizes: EmbedderSizes,
    pooling: Pooling,
) -> LlamaContextParams {
    common(settings)
        .with_embeddings(true)
        .with_pooling_type(match pooling {
            Pooling::Mean => LlamaPoolingType::Mean,
            Pooling::Cls => LlamaPoolingType::Cls,
            Pooling::Last => LlamaPoolingType::Last,
            Pooling::Rank => LlamaPoolingType::Rank,
        })
        .with_n_seq_max(sizes.inputs)
        .with_n_ctx(Some(sizes.batch))
        .with_n_batch(sizes.batch.get())
        .with_n_ubatch(sizes.batch.get())
        // With a pool for each sequence a pass would be cut wherever sequences differ in length.
        .with_kv_unified(true)
        // A pass is forgotten at once, so a window's cells are no less than all.
        .with_swa_full(true)
}

fn common(settings: &LlamaCppSettings) -> LlamaContextParams {
    let (threads, threads_batch) = settings.thread_counts();
    let kv_type = settings.kv_type.into();
    LlamaContextParams::default()
        .with_n_threads(threads)
        .with_n_threads_batch(threads_batch)
        .with_type_k(kv_type)
        .with_type_v(kv_type)
        // As in llama.h: -1 leaves it to llama.cpp.
        .with_flash_attention_policy(match settings.flash_attention {
            FlashAttention::Auto => -1,
            FlashAttention::Off => 0,
            FlashAttention::On => 1,
        })
}
