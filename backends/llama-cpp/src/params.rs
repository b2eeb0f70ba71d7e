//! Our settings in llama.cpp's terms.

use llama_cpp_2::{
    LlamaBackendDeviceType,
    context::params::{LlamaContextParams, LlamaPoolingType},
    list_llama_ggml_backend_devices,
    llama_backend::LlamaBackend,
    model::params::{LlamaModelParams, LlamaSplitMode},
};
use tandem_core::{LoadError, Pooling};

use crate::{
    FlashAttention, GpuLayers, GpuSettings, GpuSplit, LlamaCppSettings, embedder::EmbedderSizes, settings::Sizes,
};

/// How to load the model.
///
/// # Errors
/// When the settings want GPUs that are not there.
pub(crate) fn model(settings: &LlamaCppSettings, llama: &LlamaBackend) -> Result<LlamaModelParams, LoadError> {
    let GpuSettings { layers, split, main, devices } = &settings.gpu;
    let params = LlamaModelParams::default()
        // A callback of our own, since llama.cpp's default one prints dots.
        .with_progress_callback(|_| true)
        .with_use_mmap(settings.mmap)
        .with_use_mlock(settings.mlock);
    let params = match *layers {
        GpuLayers::Count(0) => return Ok(params.with_n_gpu_layers(0)),
        GpuLayers::Count(layers) if !llama.supports_gpu_offload() => {
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
    let gpus = gpus();
    // llama.cpp counts the main GPU among those that it is given.
    let given = if devices.is_empty() { gpus.len() } else { devices.len() };
    if *main > 0 && *main as usize >= given {
        return Err(LoadError::Unsupported(format!("main_gpu is {main}, of {given} GPUs, which are counted from 0")));
    }
    let params = params.with_main_gpu(i32::try_from(*main).unwrap_or(i32::MAX)).with_split_mode(match split {
        GpuSplit::None => LlamaSplitMode::None,
        GpuSplit::Layer => LlamaSplitMode::Layer,
        GpuSplit::Row => LlamaSplitMode::Row,
    });
    if devices.is_empty() {
        return Ok(params);
    }
    let chosen: Option<Vec<usize>> = devices.iter().map(|&device| gpus.get(device as usize).copied()).collect();
    let missing = || LoadError::Unsupported(format!("gpus is {devices:?}, but llama.cpp sees {} GPUs", gpus.len()));
    params.with_devices(&chosen.ok_or_else(missing)?).map_err(|_| missing())
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

/// Where the GPUs stand in ggml's list of devices.
fn gpus() -> Vec<usize> {
    let is_gpu = |kind| matches!(kind, LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu);
    list_llama_ggml_backend_devices()
        .into_iter()
        .filter(|device| is_gpu(device.device_type))
        .map(|device| device.index)
        .collect()
}
