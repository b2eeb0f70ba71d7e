//! The GPUs that llama.cpp can compute with.

use llama_cpp_2::{LlamaBackendDeviceType, list_llama_ggml_backend_devices};

/// A GPU, as ggml lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// Where it stands in ggml's list of devices.
    pub(crate) index: usize,
    /// `CUDA0`.
    pub(crate) name: String,
    /// What its makers call it.
    pub(crate) description: String,
    /// It has no memory of its own.
    pub(crate) integrated: bool,
    /// Bytes that are free on it now.
    pub(crate) free: u64,
    /// How many GPUs it stands for. Each has a share of weights and KV, and the whole of the room to compute in.
    pub(crate) count: u64,
}

/// All of them, in the order in which settings count them.
pub(crate) fn gpus() -> Vec<Gpu> {
    let is_gpu = |kind| matches!(kind, LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu);
    list_llama_ggml_backend_devices()
        .into_iter()
        .filter(|device| is_gpu(device.device_type))
        .map(|device| Gpu {
            index: device.index,
            integrated: device.device_type == LlamaBackendDeviceType::IntegratedGpu,
            name: device.name,
            description: device.description.trim().to_owned(),
            free: device.memory_free as u64,
            count: 1,
        })
        .collect()
}

/// Several as one, as llama.cpp has those that share every matrix: all get as much as the one with the least room.
pub(crate) fn together(gpus: &[Gpu]) -> Gpu {
    let joined = |of: fn(&Gpu) -> &str| gpus.iter().map(of).collect::<Vec<_>>().join(",");
    let count = gpus.len() as u64;
    Gpu {
        index: gpus.first().map_or(0, |gpu| gpu.index),
        name: format!("Meta({})", joined(|gpu| &gpu.name)),
        description: joined(|gpu| &gpu.description),
        integrated: gpus.iter().all(|gpu| gpu.integrated),
        free: count * gpus.iter().map(|gpu| gpu.free).min().unwrap_or(0),
        count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_that_share_every_matrix_have_the_room_of_the_smallest() {
        let gpu = |index, free| Gpu {
            index,
            name: format!("CUDA{index}"),
            description: "A card".to_owned(),
            integrated: false,
            free,
            count: 1,
        };
        let both = together(&[gpu(1, 10), gpu(2, 7)]);
        assert_eq!((both.name.as_str(), both.free, both.count), ("Meta(CUDA1,CUDA2)", 14, 2));
    }
}
