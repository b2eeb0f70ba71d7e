//! ggml's libraries, in a program that they are no part of: found beside it, and loaded where the machine has what they need.
//!
//! ggml itself does not say why it could not load one. So what is missing is asked of `ldd`, in the rare case that no GPU was found and
//! somebody wants to know.

use std::path::{Path, PathBuf};

/// Beside every such program, for processors of one kind or another.
const CPU_LIBRARY: &str = "libggml-cpu";

/// Where the libraries may be, the likeliest place first: installed as `bin/tandem` and `lib/tandem/*.so`, or all in one directory. `built`
/// is where the build left them. It is looked at by programs in the same build directory alone: for others it may be a path that anybody
/// can write to.
fn directories(program: &Path, built: Option<&Path>) -> Vec<PathBuf> {
    let Some(folder) = program.parent() else { return Vec::new() };
    let mut all = vec![folder.join("../lib/tandem"), folder.to_owned()];
    // `built` is `PROFILE/build/PACKAGE/out/backends`.
    all.extend(
        built.filter(|built| built.ancestors().nth(4).is_some_and(|at| folder.starts_with(at))).map(Path::to_owned),
    );
    all
}

/// The first directory that has a library to compute with on a processor.
fn find(directories: &[PathBuf]) -> Option<&PathBuf> {
    let has_one = |directory: &&PathBuf| {
        let entries = fs_err::read_dir(directory.as_path()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(CPU_LIBRARY))
    };
    directories.iter().find(has_one)
}

/// Of what `ldd` says of a library: what it needs that is neither on the machine nor beside it.
fn missing(ldd: &str, directory: &Path) -> Vec<String> {
    let absent = ldd.lines().filter_map(|line| line.trim().strip_suffix("=> not found"));
    absent.map(|name| name.trim().to_owned()).filter(|name| !directory.join(name).exists()).collect()
}

/// One sentence about a library that gave no GPU. `log` is what ggml said when it was loaded.
fn why(library: &str, missing: &[String], log: &[String]) -> String {
    if !missing.is_empty() {
        let named: Vec<_> = missing.iter().map(|name| format!("{name}{}", origin(name))).collect();
        return format!("{library} needs {}, not found on this machine", named.join(" and "));
    }
    match log.iter().find(|line| line.contains("failed to initialize")) {
        Some(line) => format!("{library} finds no GPU: {line}"),
        None => format!("{library} finds no GPU"),
    }
}

/// Where a library comes from, for whoever has to get it.
fn origin(library: &str) -> &'static str {
    match library.split('.').next().unwrap_or(library) {
        "libcuda" => " (of NVIDIA's driver)",
        "libcudart" | "libcublas" | "libcublasLt" => " (of CUDA)",
        "libvulkan" => " (the loader of Vulkan)",
        _ => "",
    }
}

#[cfg(feature = "dynamic-backends")]
pub(crate) use loading::load;

#[cfg(feature = "dynamic-backends")]
mod loading {
    use std::{env, path::Path, process::Command};

    use llama_cpp_2::{
        LlamaBackendDeviceType, list_llama_ggml_backend_devices, llama_backend::load_backends_from_path,
    };

    use super::{directories, find, missing, why};
    use crate::{devices, logged::logged, runtime::NOT_BUILT};

    /// Those for GPUs, and whether the program was built with them.
    const GPU_LIBRARIES: [(&str, bool); 2] =
        [("libggml-cuda.so", cfg!(feature = "cuda")), ("libggml-vulkan.so", cfg!(feature = "vulkan"))];

    /// Loads what there is, before llama.cpp starts: by itself it would look into the working directory too. Gives back why there is no GPU,
    /// if there is none.
    ///
    /// # Errors
    /// Without a library that computes on this processor nothing works.
    pub(crate) fn load() -> Result<Option<String>, String> {
        let program = env::current_exe().map_err(|error| format!("where this program lies cannot be told: {error}"))?;
        let directories = directories(&program, llama_cpp_sys_2::BACKENDS_DIR.map(Path::new));
        let Some(directory) = find(&directories) else {
            let places: Vec<_> = directories.iter().map(|place| place.display().to_string()).collect();
            return Err(format!("llama.cpp's libraries (libggml-cpu*.so) are in none of {}", places.join(", ")));
        };
        // The wrapper panics on others.
        if directory.to_str().is_none_or(|path| path.contains('\0')) {
            return Err(format!("the path of llama.cpp's libraries, {}, is not UTF-8", directory.display()));
        }
        let ((), log) = logged(|| load_backends_from_path(directory));
        for line in &log {
            tracing::info!(target: "llama-cpp-2", "{line}");
        }
        let devices = list_llama_ggml_backend_devices();
        if !devices.iter().any(|device| device.device_type == LlamaBackendDeviceType::Cpu) {
            return Err(format!("none of the libraries libggml-cpu*.so in {} can be loaded", directory.display()));
        }
        if !devices::gpus().is_empty() {
            return Ok(None);
        }
        let reasons = GPU_LIBRARIES.iter().filter_map(|&(library, is_built)| {
            let path = directory.join(library);
            if !path.exists() {
                return is_built.then(|| format!("{library} is not in {}", directory.display()));
            }
            // Where there is no `ldd` the sentence is shorter.
            let ldd = Command::new("ldd").arg(&path).output();
            let said = ldd.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            Some(why(library, &missing(&said, directory), &log))
        });
        let reasons: Vec<_> = reasons.collect();
        Ok(Some(if reasons.is_empty() { NOT_BUILT.to_owned() } else { reasons.join("; ") }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_looked_for_beside_the_program_and_where_it_was_built() {
        let built = Path::new("/target/release/build/llama-cpp-sys-2-0/out/backends");
        let found = |program: &str| directories(Path::new(program), Some(built));
        let beside = |folder: &str| vec![PathBuf::from(format!("{folder}/../lib/tandem")), PathBuf::from(folder)];
        assert_eq!(found("/opt/tandem/bin/tandem"), beside("/opt/tandem/bin"));
        for folder in ["/target/release", "/target/release/deps"] {
            let mut all = beside(folder);
            all.push(built.to_owned());
            assert_eq!(found(&format!("{folder}/tandem")), all);
        }
        assert_eq!(found("/target/debug/tandem"), beside("/target/debug"));
    }

    #[test]
    fn a_directory_without_a_library_for_processors_will_not_do() {
        let (with, without) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        fs_err::write(with.path().join("libggml-cpu-haswell.so"), "").expect("a file");
        fs_err::write(without.path().join("libggml-cuda.so"), "").expect("a file");
        let (with, without) = (with.path().to_owned(), without.path().to_owned());
        let absent = PathBuf::from("/no/such/folder");
        assert_eq!(find(&[absent.clone(), without.clone(), with.clone()]), Some(&with));
        assert_eq!(find(&[absent, without]), None);
    }

    #[test]
    fn what_is_missing_is_named_in_one_sentence_with_where_it_comes_from() {
        let folder = tempfile::tempdir().expect("a folder");
        fs_err::write(folder.path().join("libggml-base.so.0"), "").expect("a file");
        let ldd = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibggml-base.so.0 => not found\n\tlibcudart.so.13 => /opt/libcudart.so.13 (0x1)\n\
                   \tlibcublas.so.13 => not found\n\tlibcuda.so.1 => not found\n";
        let missing = missing(ldd, folder.path());
        assert_eq!(missing, ["libcublas.so.13", "libcuda.so.1"]);
        assert_eq!(
            why("libggml-cuda.so", &missing, &[]),
            "libggml-cuda.so needs libcublas.so.13 (of CUDA) and libcuda.so.1 (of NVIDIA's driver), not found on this machine"
        );
    }

    #[test]
    fn what_ggml_says_of_a_machine_without_a_card_is_passed_on() {
        let log = ["loaded".to_owned(), "failed to initialize CUDA: no CUDA-capable device is detected".to_owned()];
        let expected = "libggml-cuda.so finds no GPU: failed to initialize CUDA: no CUDA-capable device is detected";
        assert_eq!(why("libggml-cuda.so", &[], &log), expected);
        assert_eq!(why("libggml-vulkan.so", &[], &log[..1]), "libggml-vulkan.so finds no GPU");
    }
}
