//! What settings for GPUs come to in a program that cannot use any.

use tandem_core::BackendLoader;
use tandem_llama_cpp::{GpuLayers, GpuSettings, GpuSplit, LlamaCppLoader, LlamaCppSettings};

use crate::helpers;

fn with(layers: GpuLayers) -> LlamaCppLoader {
    let gpu = GpuSettings { layers, split: GpuSplit::Layer, main: 0, devices: Vec::new() };
    LlamaCppLoader::new(LlamaCppSettings { gpu, ..helpers::settings(2, 128) })
}

#[test]
fn a_number_of_layers_is_refused_with_the_reason() {
    let error = Box::new(with(GpuLayers::Count(3))).with_backend(&mut |_| ()).expect_err("there is no GPU");
    let expected = "gpu_layers is 3, but this program was built without GPU support (one of the features `cuda`, `vulkan` and `metal`); with \"all\" or \"auto\" the processor takes over";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn all_layers_and_as_many_as_fit_run_on_the_processor() {
    for layers in [GpuLayers::All, GpuLayers::Auto] {
        helpers::with_backend(with(layers), |loaded| {
            let tokens = helpers::greedy(helpers::generator(loaded), 0, &[5, 6, 7, 8], 4);
            assert_eq!(tokens.len(), 4);
        });
    }
}
