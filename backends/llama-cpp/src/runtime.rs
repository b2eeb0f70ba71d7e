//! llama.cpp as a library of this process: one initialization, its log, and what it says of itself.

use std::sync::OnceLock;

use llama_cpp_2::{
    LogOptions, list_llama_ggml_backend_devices,
    llama_backend::{LlamaBackend, NumaStrategy},
    send_logs_to_tracing,
};
use tandem_core::LoadError;

use crate::Numa;

/// The versions that Cargo.lock pins; a test compares.
const WRAPPER: &str = "0.1.160";
const BUNDLE: &str = "0.1.161";

/// Which llama.cpp this is.
///
/// The bundled sources do not say which commit they are of, so the crates that carry them are named.
#[must_use]
pub fn version() -> String {
    format!("llama.cpp as bundled by llama-cpp-sys-2 {BUNDLE} (llama-cpp-2 {WRAPPER})")
}

/// What ggml computes with: its devices, and the CPU's instruction sets that it was compiled for.
///
/// llama.cpp can print the latter itself, but not through the safe wrapper. They are told here from the compiler flags of this crate, which
/// the build of ggml follows: `target-cpu=native` there means native here. A build for another CPU has at least AVX2 on x86-64, as ggml's
/// own default goes.
#[must_use]
pub fn system_info() -> String {
    let devices: Vec<_> = list_llama_ggml_backend_devices()
        .into_iter()
        .map(|device| format!("{} ({})", device.name, device.description.trim()))
        .collect();
    let features = if cfg!(feature = "dynamic-backends") {
        // Of several libraries that one is loaded which is made for this processor.
        "the processor it runs on".to_owned()
    } else {
        compiled_features().join(" ")
    };
    format!("devices: {}; compiled for: {features}", devices.join(", "))
}

/// Why there is no GPU, where the program is the reason.
pub(crate) const NOT_BUILT: &str =
    "this program was built without GPU support (one of the features `cuda`, `vulkan` and `metal`)";

/// llama.cpp, ready to be used.
#[derive(Debug)]
pub(crate) struct Llama {
    pub(crate) backend: LlamaBackend,
    /// Why nothing can be computed on a GPU; `None` where it can.
    pub(crate) no_gpu: Option<String>,
}

/// Initializes llama.cpp, if that has not been done, for the rest of the process: a second live instance is refused by the wrapper, and
/// several engines may come and go. What it does about NUMA is decided the first time.
pub(crate) fn init(numa: Numa) -> Result<&'static Llama, LoadError> {
    static LLAMA: OnceLock<Result<Llama, String>> = OnceLock::new();
    let llama = LLAMA.get_or_init(|| {
        send_logs_to_tracing(LogOptions::default());
        let no_gpu = find_gpus()?;
        let strategy = match numa {
            Numa::Off => None,
            Numa::Distribute => Some(NumaStrategy::DISTRIBUTE),
            Numa::Isolate => Some(NumaStrategy::ISOLATE),
            Numa::Numactl => Some(NumaStrategy::NUMACTL),
        };
        let backend =
            strategy.map_or_else(LlamaBackend::init, LlamaBackend::init_numa).map_err(|error| error.to_string())?;
        tracing::info!(version = version(), system = system_info(), ?numa, "llama.cpp is ready");
        Ok(Llama { backend, no_gpu })
    });
    llama
        .as_ref()
        .map_err(|error| LoadError::Other { context: "initializing llama.cpp".into(), source: error.clone().into() })
}

/// Loads what there is to compute with, and gives back why there is no GPU among it, if there is none.
#[cfg(feature = "dynamic-backends")]
fn find_gpus() -> Result<Option<String>, String> {
    crate::libraries::load()
}

/// Everything there is to compute with is a part of the program.
#[cfg(not(feature = "dynamic-backends"))]
#[expect(clippy::unnecessary_wraps, reason = "libraries that are loaded may be missing")]
fn find_gpus() -> Result<Option<String>, String> {
    let reason = if cfg!(feature = "metal") { "Metal finds no GPU" } else { NOT_BUILT };
    Ok(crate::devices::gpus().is_empty().then(|| reason.to_owned()))
}

macro_rules! compiled {
    ($($feature:literal),*) => {
        [$(($feature, cfg!(target_feature = $feature))),*]
    };
}

fn compiled_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let all = compiled!(
        "sse3",
        "ssse3",
        "sse4.2",
        "avx",
        "avxvnni",
        "avx2",
        "f16c",
        "fma",
        "bmi2",
        "avx512f",
        "avx512bw",
        "avx512vbmi",
        "avx512vnni",
        "avx512bf16"
    );
    #[cfg(target_arch = "aarch64")]
    let all = compiled!("neon", "fp16", "dotprod", "i8mm", "sve", "sve2", "sme");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&'static str, bool); 0] = [];
    all.into_iter().filter_map(|(feature, enabled)| enabled.then_some(feature)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_that_are_linked() {
        let lock = fs_err::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock"))
            .expect("the workspace's lock file");
        for (name, version) in [("llama-cpp-2", WRAPPER), ("llama-cpp-sys-2", BUNDLE)] {
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"");
            assert!(lock.contains(&entry), "{name} is not at {version}");
        }
    }

    #[test]
    fn the_cpu_is_a_device() {
        init(Numa::Off).expect("llama.cpp starts");
        assert!(system_info().contains("CPU"), "{}", system_info());
        // A second engine gets the same instance.
        init(Numa::Off).expect("llama.cpp is there");
    }
}
