use std::time::Duration;

use tandem_core::{BackendLoader, LoadError, LoadProgress};
use tandem_sim::{Faults, SimEmbedderLoader, SimEmbedderSettings, SimLayout, SimLoader, SimPairs, SimSettings};

#[cfg(any(feature = "llama-cpp", feature = "candle"))]
use super::plan::{Place, Share};
use super::{Plan, Room, SynthFailure, SynthOrder};
use crate::settings::{BackendSettings, ModelSettings, SimFaults, Task};

/// The loader for a model on the chosen backend, which tells how far it has come where that takes long enough. The one place that names concrete backends, and that knows which of them this program was
/// built with.
pub(super) fn loader(
    backend: &BackendSettings,
    model: &ModelSettings,
    progress: &LoadProgress,
) -> Result<Box<dyn BackendLoader>, LoadError> {
    match backend {
        BackendSettings::LlamaCpp(_) => llama_cpp(backend, model, progress),
        BackendSettings::Candle { .. } => candle(backend, model, progress),
        &BackendSettings::Sim { parallel, context, max_step_tokens, step_delay_ms, faults, .. }
            if model.task != Task::Generate =>
        {
            Ok(Box::new(SimEmbedderLoader::new(SimEmbedderSettings {
                max_input_tokens: context,
                max_inputs: parallel,
                max_pass_tokens: max_step_tokens,
                pass_delay: Duration::from_millis(step_delay_ms),
                pairs: (model.task == Task::Rank).then_some(SimPairs::Framed { separated: false }),
                faults: sim_faults(faults),
                ..SimEmbedderSettings::default()
            })))
        }
        &BackendSettings::Sim { parallel, context, max_step_tokens, block_size, kv_tokens, step_delay_ms, faults } => {
            let tokens = kv_tokens.unwrap_or_else(|| parallel.saturating_mul(context));
            let adapters = &model.adapters;
            Ok(Box::new(SimLoader::new(SimSettings {
                context,
                parallel,
                max_step_tokens,
                layout: SimLayout::Blocks { count: tokens / block_size, block_size },
                step_delay: Duration::from_millis(step_delay_ms),
                adapters: adapters.iter().map(|adapter| adapter.name.clone()).collect(),
                faults: sim_faults(faults),
                ..SimSettings::default()
            })))
        }
    }
}

fn sim_faults(faults: SimFaults) -> Faults {
    let SimFaults { hangs_at, panics_at, device_fails_at, device_lost_at, kv_full_every, nan_every } = faults;
    Faults { hangs_at, panics_at, device_fails_at, device_lost_at, kv_full_every, nan_every, ..Faults::default() }
}

/// The backends of this program and what they stand on.
#[must_use]
pub fn backend_versions() -> Vec<(&'static str, String)> {
    vec![
        #[cfg(feature = "llama-cpp")]
        ("llama-cpp", tandem_llama_cpp::version()),
        #[cfg(feature = "candle")]
        ("candle", tandem_candle::version().to_owned()),
        ("sim", env!("CARGO_PKG_VERSION").to_owned()),
    ]
}

#[cfg(not(all(feature = "llama-cpp", feature = "candle")))]
fn not_built(backend: &BackendSettings) -> LoadError {
    LoadError::Unsupported(format!("this program was built without the backend {}", backend.name()))
}

#[cfg(any(feature = "llama-cpp", feature = "candle"))]
fn path(source: Option<&crate::settings::ModelSource>) -> Result<std::path::PathBuf, LoadError> {
    let source = source.ok_or_else(|| LoadError::Unsupported("the model has no source".to_owned()))?;
    source.resolve().map_err(LoadError::Unsupported)
}

/// How much memory a model would take, of which room.
///
/// # Errors
/// When the model cannot be loaded for another reason than memory, or its backend does not know beforehand.
pub fn plan(backend: &BackendSettings, model: &ModelSettings, room: Room) -> Result<Plan, LoadError> {
    match backend {
        BackendSettings::LlamaCpp(asked) => plan_llama_cpp(asked, model, room),
        BackendSettings::Candle { .. } => plan_candle(backend, model, room),
        BackendSettings::Sim { .. } => {
            Err(LoadError::Unsupported(format!("the backend {} cannot plan its memory", backend.name())))
        }
    }
}

#[cfg(feature = "llama-cpp")]
fn plan_llama_cpp(
    asked: &crate::settings::LlamaCppSettings,
    model: &ModelSettings,
    room: Room,
) -> Result<Plan, LoadError> {
    use tandem_llama_cpp::{Assumptions, GPU_MARGIN, MemoryPlace, Planner};

    let assumed = match room {
        Room::Free => Assumptions::default(),
        Room::Meant => Assumptions { memory: None, absent_gpu: asked.gpu_memory },
        Room::Given(bytes) => Assumptions { memory: Some(bytes), absent_gpu: Some(bytes) },
    };
    let planner = Planner::new(&llama_cpp_settings(asked, model)?, assumed)?;
    let fitted = planner.fitted_plan()?;
    let needs = fitted.needs();
    let shares = fitted.shares.iter().map(|share| Share {
        place: match &share.place {
            MemoryPlace::Ram if assumed.memory.is_some() && fitted.shares.len() == 1 => Place::Given,
            MemoryPlace::Ram => Place::Ram,
            MemoryPlace::Gpu { name, description } => Place::Gpu(format!("{name} ({description})")),
            MemoryPlace::AbsentGpu => Place::AbsentGpu,
        },
        weights: share.needs.weights,
        kv: share.needs.kv,
        compute: share.needs.compute,
        room: share.free,
        margin: if share.place == MemoryPlace::Ram { 0 } else { GPU_MARGIN },
    });
    Ok(Plan {
        weights: needs.weights,
        looked_up: planner.looked_up(),
        formats: planner.formats(),
        kv: needs.kv,
        compute: needs.compute,
        shares: shares.collect(),
        gpu_layers: (fitted.shares.len() > 1).then_some(fitted.layers),
        parallel: fitted.parallel,
        context: fitted.context,
        trained: fitted.trained,
        longest_context: planner.longest_context()?,
        most_sequences: planner.most_sequences()?,
        work: None,
    })
}

#[cfg(not(feature = "llama-cpp"))]
fn plan_llama_cpp(asked: &crate::settings::LlamaCppSettings, _: &ModelSettings, _: Room) -> Result<Plan, LoadError> {
    Err(not_built(&BackendSettings::LlamaCpp(asked.clone())))
}

#[cfg(feature = "llama-cpp")]
fn llama_cpp(
    backend: &BackendSettings,
    model: &ModelSettings,
    progress: &LoadProgress,
) -> Result<Box<dyn BackendLoader>, LoadError> {
    match backend {
        BackendSettings::LlamaCpp(asked) => {
            let loader = tandem_llama_cpp::LlamaCppLoader::new(llama_cpp_settings(asked, model)?);
            Ok(Box::new(loader.with_progress(progress.clone())))
        }
        BackendSettings::Candle { .. } | BackendSettings::Sim { .. } => not_for_this_backend(backend),
    }
}

#[cfg(feature = "llama-cpp")]
fn llama_cpp_settings(
    asked: &crate::settings::LlamaCppSettings,
    model: &ModelSettings,
) -> Result<tandem_llama_cpp::LlamaCppSettings, LoadError> {
    use tandem_llama_cpp::{FlashAttention, GpuLayers, GpuSettings, GpuSplit, KvType, LlamaCppSettings, Numa};

    use crate::settings;

    let settings::LlamaCppSettings {
        parallel,
        context,
        max_step_tokens,
        micro_batch_tokens,
        threads,
        threads_batch,
        flash_attention,
        kv_type,
        kv_unified,
        swa_full,
        gpu_layers,
        gpu_split,
        main_gpu,
        ref gpus,
        gpu_memory: _,
        fit_context,
        mmap,
        mlock,
        numa,
    } = *asked;
    Ok(LlamaCppSettings {
        model: path(model.source.as_ref())?,
        sha256: model.sha256,
        context: Some(context),
        fit_context,
        parallel,
        max_step_tokens,
        micro_batch_tokens,
        threads,
        threads_batch,
        flash_attention: match flash_attention {
            settings::FlashAttention::Auto => FlashAttention::Auto,
            settings::FlashAttention::On => FlashAttention::On,
            settings::FlashAttention::Off => FlashAttention::Off,
        },
        kv_type: match kv_type {
            settings::KvType::F16 => KvType::F16,
            settings::KvType::Q8_0 => KvType::Q8_0,
            settings::KvType::Q4_0 => KvType::Q4_0,
        },
        kv_unified,
        swa_full,
        gpu: GpuSettings {
            layers: match gpu_layers {
                settings::GpuLayers::All => GpuLayers::All,
                settings::GpuLayers::Auto => GpuLayers::Auto,
                settings::GpuLayers::Count(count) => GpuLayers::Count(count),
            },
            split: match gpu_split {
                settings::GpuSplit::None => GpuSplit::None,
                settings::GpuSplit::Layer => GpuSplit::Layer,
                settings::GpuSplit::Row => GpuSplit::Row,
                settings::GpuSplit::Tensor => GpuSplit::Tensor,
            },
            main: main_gpu,
            devices: gpus.clone(),
        },
        mmap,
        mlock,
        numa: match numa {
            settings::Numa::Off => Numa::Off,
            settings::Numa::Distribute => Numa::Distribute,
            settings::Numa::Isolate => Numa::Isolate,
            settings::Numa::Numactl => Numa::Numactl,
        },
        adapters: model.adapters.iter().map(llama_cpp_adapter).collect::<Result<_, _>>()?,
    })
}

#[cfg(feature = "llama-cpp")]
fn llama_cpp_adapter(
    adapter: &crate::settings::AdapterSettings,
) -> Result<tandem_llama_cpp::AdapterSettings, LoadError> {
    let (name, path, scale) = (adapter.name.clone(), path(adapter.source.as_ref())?, adapter.scale);
    Ok(tandem_llama_cpp::AdapterSettings { name, path, scale })
}

#[cfg(not(feature = "llama-cpp"))]
fn llama_cpp(
    backend: &BackendSettings,
    _: &ModelSettings,
    _: &LoadProgress,
) -> Result<Box<dyn BackendLoader>, LoadError> {
    Err(not_built(backend))
}

#[cfg(feature = "candle")]
fn plan_candle(backend: &BackendSettings, model: &ModelSettings, room: Room) -> Result<Plan, LoadError> {
    let planner = tandem_candle::Planner::new(candle_settings(backend, model)?)?;
    let given = match room {
        Room::Free | Room::Meant => None,
        Room::Given(bytes) => Some(bytes),
    };
    let plan = planner.plan_within(given)?;
    let (place, room) = match (given, planner.card()) {
        (Some(bytes), _) => (Place::Given, bytes),
        (None, Some(card)) => (Place::Gpu(card.to_owned()), plan.free),
        (None, None) => (Place::Ram, plan.free),
    };
    let tandem_core::MemoryNeeds { weights, kv, compute } = plan.needs;
    Ok(Plan {
        weights,
        looked_up: plan.looked_up,
        formats: planner.formats().into_iter().map(|(format, bytes)| (format.to_string(), bytes)).collect(),
        kv,
        compute,
        shares: vec![Share { place, weights, kv, compute, room, margin: 0 }],
        gpu_layers: None,
        parallel: plan.parallel,
        context: plan.context,
        trained: plan.trained,
        longest_context: planner.longest_context(room),
        most_sequences: planner.most_sequences(room),
        work: planner.work().map(candle_work),
    })
}

#[cfg(feature = "candle")]
fn candle_work(work: tandem_candle::Work) -> super::Work {
    let tandem_candle::Work { weights: _, kv_layer, layers_flop, head_flop, pair_flop, windows } = work;
    super::Work { kv_layer, layers_flop, head_flop, pair_flop, windows }
}

#[cfg(not(feature = "candle"))]
fn plan_candle(backend: &BackendSettings, _: &ModelSettings, _: Room) -> Result<Plan, LoadError> {
    Err(not_built(backend))
}

#[cfg(feature = "candle")]
fn candle(
    backend: &BackendSettings,
    model: &ModelSettings,
    progress: &LoadProgress,
) -> Result<Box<dyn BackendLoader>, LoadError> {
    match backend {
        BackendSettings::Candle { .. } => {
            let loader = tandem_candle::CandleLoader::new(candle_settings(backend, model)?);
            Ok(Box::new(loader.with_progress(progress.clone())))
        }
        BackendSettings::LlamaCpp(_) | BackendSettings::Sim { .. } => not_for_this_backend(backend),
    }
}

#[cfg(feature = "candle")]
fn candle_settings(
    backend: &BackendSettings,
    model: &ModelSettings,
) -> Result<tandem_candle::CandleSettings, LoadError> {
    use tandem_candle::{CandleSettings, ComputeDevice, Dtype, KvType, Quantization};

    use crate::settings::{CandleDevice, CandleDtype, CandleKvType, CandleQuantization};

    let &BackendSettings::Candle {
        parallel,
        context,
        max_step_tokens,
        threads,
        dtype,
        quantization,
        block_size,
        kv_tokens,
        kv_type,
        device,
    } = backend
    else {
        return Err(LoadError::Unsupported(format!("these settings are for the backend {}", backend.name())));
    };
    Ok(CandleSettings {
        model: path(model.source.as_ref())?,
        sha256: model.sha256,
        context: Some(context),
        parallel,
        dtype: match dtype {
            CandleDtype::Auto => Dtype::Auto,
            CandleDtype::F32 => Dtype::F32,
            CandleDtype::Bf16 => Dtype::Bf16,
            CandleDtype::F16 => Dtype::F16,
        },
        quantization: match quantization {
            CandleQuantization::None => Quantization::None,
            CandleQuantization::Q4_0 => Quantization::Q4_0,
            CandleQuantization::Q4K => Quantization::Q4K,
            CandleQuantization::Q5K => Quantization::Q5K,
            CandleQuantization::Q6K => Quantization::Q6K,
            CandleQuantization::Q8_0 => Quantization::Q8_0,
        },
        block_size,
        max_step_tokens,
        kv_tokens,
        kv_type: match kv_type {
            CandleKvType::Auto => KvType::Auto,
            CandleKvType::Fp8 => KvType::Fp8,
        },
        device: match device {
            CandleDevice::Cpu => ComputeDevice::Cpu,
            CandleDevice::Cuda { ordinal, tensor_parallel_size, memory_fraction } => {
                ComputeDevice::Cuda { ordinal: ordinal as usize, ranks: tensor_parallel_size as usize, memory_fraction }
            }
        },
        threads: threads.map(|threads| threads as usize),
    })
}

#[cfg(not(feature = "candle"))]
fn candle(backend: &BackendSettings, _: &ModelSettings, _: &LoadProgress) -> Result<Box<dyn BackendLoader>, LoadError> {
    Err(not_built(backend))
}

/// Writes a model with random weights, and gives back its files. Tells `progress` how many bytes of weights there are so far, and how many
/// there will be.
///
/// # Errors
/// When there is no such model, or the directory cannot be written.
#[cfg(feature = "candle")]
pub fn synthesize(
    order: SynthOrder,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<std::path::PathBuf>, SynthFailure> {
    use tandem_candle::synth::{self, SynthError};

    let SynthOrder { arch, size, seed, directory, gguf, force } = order;
    let gguf = gguf.iter().map(|name| name.parse::<synth::Mix>()).collect::<Result<Vec<_>, _>>();
    let gguf = gguf.map_err(SynthFailure::Refused)?;
    let order = synth::SynthOrder { arch, size, seed, directory, gguf, force };
    synth::synthesize(&order, progress).map_err(|error| match error {
        SynthError::Unknown(_) => SynthFailure::Refused(error.to_string()),
        SynthError::NotEmpty(_) => SynthFailure::Unwritten(format!("{error}; --force writes into it all the same")),
        SynthError::Io(_) | SynthError::Quantization(_) => SynthFailure::Unwritten(error.to_string()),
    })
}

/// Says that this program cannot.
///
/// # Errors
/// Always.
#[cfg(not(feature = "candle"))]
pub fn synthesize(_: SynthOrder, _: &mut dyn FnMut(u64, u64)) -> Result<Vec<std::path::PathBuf>, SynthFailure> {
    Err(SynthFailure::Refused("this program was built without the backend candle, which writes such models".to_owned()))
}

#[cfg(any(feature = "llama-cpp", feature = "candle"))]
fn not_for_this_backend(backend: &BackendSettings) -> Result<Box<dyn BackendLoader>, LoadError> {
    Err(LoadError::Unsupported(format!("these settings are for the backend {}", backend.name())))
}
