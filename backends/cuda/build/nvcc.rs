//! The kernels for cards: one image for each file, with machine code for each architecture that is asked for and, for cards that come after
//! them, the intermediate code of the newest.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, exit},
    thread,
};

/// Ampere, Ada and Hopper.
const ARCHITECTURES: &str = "80,89,90";

/// What nvcc makes of one file in `kernels/`.
struct Image {
    source: String,
    name: String,
    flags: Vec<String>,
}

/// Compiles `kernels/NAME.cu` to `NAME.fatbin` in cargo's folder.
pub(crate) fn compile(kernels: &[&str]) {
    let image = |name: &&str| Image { source: (*name).to_owned(), name: (*name).to_owned(), flags: Vec::new() };
    compile_all(&kernels.iter().map(image).collect::<Vec<_>>(), usize::MAX);
}

/// Compiles `kernels/flash.cu` for BF16 and F16, for which there have to be FlashAttention-2 as the crate candle-flash-attn has it, and CUTLASS.
#[cfg(feature = "flash-attn")]
pub(crate) fn compile_flash_attention() {
    let folder = |variable: &str, within: &str| {
        println!("cargo::rerun-if-env-changed={variable}");
        let known = env::var_os(variable).map(|folder| PathBuf::from(folder).join(within));
        let there = known.filter(|folder| folder.is_dir());
        let folder = there.unwrap_or_else(|| {
            fail(&format!(
                "the feature flash-attn needs FLASH_ATTN_DIR and CUTLASS_DIR, the folders of candle-flash-attn 0.11.1 and of CUTLASS 3.5: \
                 scripts/cuda-toolkit --flash-attn fetches both ({variable} has no folder {within})"
            ))
        });
        format!("-I{}", folder.display())
    };
    let sources = [folder("FLASH_ATTN_DIR", "kernels"), folder("CUTLASS_DIR", "include")];
    let image = |(number, head): (&str, u32)| {
        let defines = [format!("-DTANDEM_NUMBER={number}"), format!("-DTANDEM_HEAD={head}")];
        // As candle-flash-attn has it compiled.
        let flags = ["--expt-relaxed-constexpr", "--use_fast_math"].map(str::to_owned);
        let name = format!("flash_{number}_{head}");
        Image { source: "flash".to_owned(), name, flags: [&sources[..], &flags, &defines].concat() }
    };
    let images = ["bf16", "f16"].iter().flat_map(|number| [64, 96, 128, 256].map(|head| image((number, head))));
    // Each takes up to 4 GB of memory.
    compile_all(&images.collect::<Vec<_>>(), 2);
}

/// As many at a time as cargo has jobs, and no more than `most`.
fn compile_all(images: &[Image], most: usize) {
    for variable in ["CUDA_COMPUTE_CAP", "NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let nvcc = nvcc();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to write"));
    let architectures = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let flags = code_flags(&architectures);
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    for batch in images.chunks(jobs.min(most)) {
        thread::scope(|scope| {
            let running: Vec<_> =
                batch.iter().map(|image| scope.spawn(|| (&image.source, image.compile(&nvcc, &flags, &out)))).collect();
            for one in running {
                let (source, result) = one.join().expect("a thread that only waits");
                if let Err(reason) = result {
                    fail(&format!("kernels/{source}.cu: {reason}"));
                }
            }
        });
    }
}

impl Image {
    fn compile(&self, nvcc: &Path, flags: &[String], out: &Path) -> Result<(), String> {
        let output = Command::new(nvcc)
            .args(["-std=c++17", "-O3", "--fatbin"])
            .args(flags)
            .args(&self.flags)
            .arg("-o")
            .arg(out.join(&self.name).with_extension("fatbin"))
            .arg(format!("kernels/{}.cu", self.source))
            .output()
            .map_err(|error| format!("cannot run {}: {error}", nvcc.display()))?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

/// `80,90` or `8.0,9.0`: machine code for each, and intermediate code of the last.
fn code_flags(architectures: &str) -> Vec<String> {
    let mut numbers: Vec<u32> = architectures
        .split([',', ';', ' '])
        .filter(|part| !part.is_empty())
        .map(|part| {
            let number = part.trim().replace('.', "").parse().ok();
            number.unwrap_or_else(|| fail(&format!("CUDA_COMPUTE_CAP: '{part}' is no compute capability, such as 89")))
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let Some(newest) = numbers.last() else { fail("CUDA_COMPUTE_CAP names no compute capability") };
    if numbers[0] < 80 {
        fail(&format!("CUDA_COMPUTE_CAP: {} is not supported, cards before 80 have no BF16", numbers[0]));
    }
    let machine = numbers.iter().map(|number| format!("-gencode=arch=compute_{number},code=sm_{number}"));
    machine.chain([format!("-gencode=arch=compute_{newest},code=compute_{newest}")]).collect()
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let known = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("bin/nvcc"));
    known.into_iter().find(|nvcc| nvcc.exists()).unwrap_or_else(|| PathBuf::from("nvcc"))
}

fn fail(reason: &str) -> ! {
    println!("cargo::error={}", reason.replace('\n', " "));
    eprintln!("{reason}");
    exit(1)
}
