//! Compiles the kernels: with nvcc for cards, and with a C++ compiler for the emulator.

#[cfg(feature = "driver")]
mod nvcc;

#[cfg(any(feature = "driver", feature = "emulator"))]
const KERNELS: [&str; 8] =
    ["attention", "elementwise", "experts", "narrow", "prefill", "product", "rope_store", "sample"];

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=emulator");
    #[cfg(feature = "driver")]
    nvcc::compile(&KERNELS);
    #[cfg(feature = "flash-attn")]
    nvcc::compile_flash_attention();
    #[cfg(feature = "emulator")]
    emulator();
}

#[cfg(feature = "emulator")]
fn emulator() {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).define("TANDEM_EMULATED", None).flag("-xc++");
    // Kernels register themselves, so none of their files may be left out for want of anyone who names them.
    build.link_lib_modifier("+whole-archive");
    build.flag_if_supported("-Wno-unknown-pragmas").flag_if_supported("-ffp-contract=off");
    // Kernels read and write vectors of numbers at once, as is usual on cards.
    build.flag_if_supported("-fno-strict-aliasing");
    build.file("emulator/emulator.cpp");
    build.files(KERNELS.map(|name| format!("kernels/{name}.cu")));
    build.compile("tandem_cuda_emulator");
}
