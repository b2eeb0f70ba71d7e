use std::time::Duration;

use super::*;

fn load(overrides: &Overrides) -> Result<Settings, String> {
    Settings::load(overrides).map_err(|error| error.to_string())
}

fn profile(name: &str) -> Overrides {
    Overrides { profile: Some(name.to_owned()), ..Overrides::default() }
}

fn with_file(text: &str) -> Result<Settings, String> {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs_err::write(file.path(), text).unwrap();
    load(&Overrides { config: Some(file.path().to_owned()), ..profile("sim") })
}

#[test]
fn shipped_profiles_say_what_they_promise() {
    let demo = load(&profile("demo")).unwrap();
    assert_eq!(demo.backend.name(), "llama-cpp");
    assert_eq!(demo.models[0].name, "tiny");
    assert!(matches!(load(&profile("sim")).unwrap().backend, BackendSettings::Sim { .. }));
    let BackendSettings::LlamaCpp(rtx4080) = load(&profile("rtx4080")).unwrap().backend else { panic!("llama-cpp") };
    assert_eq!((rtx4080.parallel, rtx4080.gpu_layers, rtx4080.gpu_memory), (8, GpuLayers::All, Some(16 << 30)));
}

#[test]
fn a_profile_for_a_gpu_names_the_card_and_its_share() {
    let settings = load(&profile("a100")).unwrap();
    let device = super::CandleDevice::Cuda { ordinal: 0, tensor_parallel_size: 1, memory_fraction: 0.9 };
    let BackendSettings::Candle { device: asked, .. } = settings.backend else { panic!("{settings:?}") };
    assert_eq!(asked, device);
}

#[test]
fn another_backend_takes_over_a_profile() {
    let settings = load(&Overrides { backend: Some("candle".to_owned()), ..profile("demo") }).unwrap();
    assert!(matches!(settings.backend, BackendSettings::Candle { parallel: 8, context: 1024, .. }), "{settings:?}");
    assert_eq!(settings.models[0].source, Some(ModelSource::Path("models/tiny".into())));
}

#[test]
fn wrong_settings_are_refused_by_name() {
    let cases = [
        ("[server]\nprot = 1", "config: server.prot: unknown field `prot`"),
        ("[server]\nport = 70000", "config: server.port: "),
        ("[server]\nport = \"x\"", "config: server.port: "),
        ("[server]\nallowed_hosts = [\"http://x\"]", "config: server.allowed_hosts: 'http://x' is no name of a host"),
        ("[server]\ncors_origins = [\"https://x/\"]", "config: server.cors_origins: 'https://x/' is no origin"),
        ("[server]\nmax_connections = 0", "config: server.max_connections: 0 is not between 1 and "),
        ("[server.tls]\ncert = \"x.pem\"", "config: server.tls.key: is missing"),
        ("[batch]\nmax_active = 0", "config: batch.max_active: 0 is not between 1 and "),
        ("[backend]\nparallel = 0", "config: backend.parallel: 0 is not between 1 and 4096"),
        ("[backend]\nkind = \"vllm\"", "config: backend.kind: unknown backend 'vllm'"),
        ("[backend]\ndtype = \"f32\"", "config: backend.dtype: does not apply to the backend sim"),
        (
            "[backend]\nkind = \"candle\"\ndtype = \"f8\"\n[models.sim]\nsource = \"x\"",
            "config: backend.dtype: 'f8' is not known here",
        ),
        (
            "[backend]\nkind = \"candle\"\ntensor_parallel_size = 2\n[models.sim]\nsource = \"x\"",
            "config: backend.tensor_parallel_size: 2 needs backend.device = \"cuda\": a model is divided among GPUs",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\ntensor_parallel_size = 2\n[models.sim]\nsource = \"x\"",
            "config: backend.tensor_parallel_size: does not apply to the backend llama-cpp",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\nnuma = \"on\"\n[models.sim]\nsource = \"x\"",
            "config: backend.numa: 'on' is not known here: one of off, distribute, isolate, numactl",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\nkv_type = \"q8_0\"\nflash_attention = \"off\"\n[models.sim]\nsource = \"x\"",
            "config: backend.kv_type: quantized KV needs flash attention",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\ngpu_layers = \"most\"\n[models.sim]\nsource = \"x\"",
            "config: backend.gpu_layers: 'most' is not known here: one of all, auto",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\ngpu_split = \"tensor\"\nflash_attention = \"off\"\n[models.sim]\nsource = \"x\"",
            "config: backend.gpu_split: a split by tensors needs flash attention",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\ngpus = [0, 1, 0]\n[models.sim]\nsource = \"x\"",
            "config: backend.gpus: names GPU 0 twice",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\ngpu_memory_gib = 0\n[models.sim]\nsource = \"x\"",
            "config: backend.gpu_memory_gib: 0 is not between 0 and 4096",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\ngpu_layers = \"auto\"\nfit_context = true\n[models.sim]\nsource = \"x\"",
            "config: backend.fit_context: has no meaning with backend.gpu_layers = \"auto\"",
        ),
        ("[backend]\nmmap = false", "config: backend.mmap: does not apply to the backend sim"),
        ("[engine]\nstep_timeout_ms = 5", "config: engine.step_timeout_ms: 5 is not between 100 and "),
        ("[backend.faults]\nhang_at = 1", "config: backend.faults.hang_at: unknown field `hang_at`"),
        (
            "[backend]\nkind = \"candle\"\n[backend.faults]\nhangs_at = 1\n[models.sim]\nsource = \"x\"",
            "config: backend.faults.hangs_at: does not apply to the backend candle",
        ),
        ("[limits]\nmax_n = 0", "config: limits.max_n: 0 is not between 1 and 128"),
        ("[log]\nformat = \"xml\"", "config: log.format: 'xml' is not known here: one of text, json"),
        ("[models.\"a/../b\"]\nsource = \"x\"", "config: models.a/../b: is no name for a model"),
        (
            "[models.sim]\ngeneration_config = \"vllm\"",
            "config: models.sim.generation_config: 'vllm' is not known here: one of auto, off",
        ),
        ("[models.sim]\nmatryoshka = []", "config: models.sim.matryoshka: names no lengths that a vector can have"),
        (
            "[models.sim]\ntask = \"draw\"",
            "config: models.sim.task: 'draw' is not known here: one of generate, embed, rank",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\n[models.sim]\nsource = \"x\"\ntask = \"embed\"",
            "config: models.sim.task: does not apply to the backend llama-cpp: a model's file says what it is for",
        ),
        (
            "[models.sim]\nsha256 = \"00\"",
            "config: models.sim.sha256: does not apply to the backend sim: the simulated model has no file",
        ),
        (
            "[backend]\nkind = \"candle\"\n[models.sim]\nsource = \"x\"\nsha256 = \"00\"",
            "config: models.sim.sha256: '00' is no SHA-256 hash, which is written in 64 hexadecimal digits",
        ),
        ("[models.sim.adapters.a]\nscale = nan", "config: models.sim.adapters.a.scale: is no number that a model can"),
        (
            "[models.sim.adapters.a]\nscale = 1e300",
            "config: models.sim.adapters.a.scale: is no number that a model can",
        ),
        ("[models.sim.adapters.a]\nstrength = 1", "config: models.sim.adapters.a.strength: unknown field `strength`"),
        ("[models.sim.adapters.\"\"]\nscale = 1", "config: models.sim.adapters.: is no name for an adapter"),
        (
            "[backend]\nkind = \"candle\"\n[models.sim]\nsource = \"x\"\n[models.sim.adapters.a]\npath = \"y\"",
            "config: models.sim.adapters: the backend candle has no adapters",
        ),
        (
            "[backend]\nkind = \"llama-cpp\"\n[models.sim]\nsource = \"x\"\n[models.sim.adapters.a]\nscale = 1",
            "config: models.sim.adapters.a.path: is missing: llama-cpp needs a file",
        ),
    ];
    for (text, expected) in cases {
        let error = with_file(text).unwrap_err();
        assert!(error.starts_with(expected), "{text:?} gave {error:?}");
    }
}

#[test]
fn faults_and_the_time_of_a_step_are_read() {
    let settings = with_file("[backend.faults]\nhangs_at = 7\nnan_every = 3\n[engine]\nstep_timeout_ms = 0").unwrap();
    let BackendSettings::Sim { faults, .. } = settings.backend else { panic!("{settings:?}") };
    assert_eq!((faults.hangs_at, faults.nan_every, faults.panics_at), (7, 3, 0));
    assert_eq!(settings.step_timeout, None);
    assert!(settings.server.debug, "the profile for developing clients can be looked into");
    let demo = load(&profile("demo")).unwrap();
    assert_eq!((demo.step_timeout, demo.server.debug), (Some(Duration::from_secs(30)), false));
}

#[test]
fn adapters_are_read_in_the_order_of_their_names() {
    let text = r#"
        [backend]
        kind = "llama-cpp"
        [models.base]
        source = "base.gguf"
        adapters = { poems = { path = "poems.gguf" }, "org/legal.v2" = { path = "hf:org/legal:l.gguf", scale = -2 } }
        [models.sim]
        source = "sim.gguf"
    "#;
    let settings = with_file(text).unwrap();
    let adapters = &settings.models[0].adapters;
    let named: Vec<_> = adapters.iter().map(|adapter| (adapter.name.as_str(), adapter.scale)).collect();
    assert_eq!(named, [("org/legal.v2", -2.0), ("poems", 1.0)]);
    assert_eq!(adapters[1].source, Some(ModelSource::Path("poems.gguf".into())));
    assert!(matches!(&adapters[0].source, Some(ModelSource::Hub { repo, .. }) if repo == "org/legal"), "{adapters:?}");
    assert!(settings.models[1].adapters.is_empty());
}

#[test]
fn each_backend_loads_the_file_that_is_meant_for_it() {
    for (backend, both, gguf_alone) in [("llama-cpp", "a.gguf", "b.gguf"), ("candle", "directory", "b.gguf")] {
        let text = format!(
            "[backend]\nkind = \"{backend}\"\n[models.a]\nsource = \"directory\"\ngguf = \"a.gguf\"\n[models.sim]\ngguf = \"b.gguf\""
        );
        let sources: Vec<_> = with_file(&text).unwrap().models.into_iter().map(|model| model.source).collect();
        let path = |path: &str| Some(ModelSource::Path(path.into()));
        assert_eq!(sources, [path(both), path(gguf_alone)], "{backend}");
    }
}

#[test]
fn a_models_hash_is_read_in_either_case() {
    let hash = "0123456789abcdefABCDEF9876543210".repeat(2);
    let text = format!(
        "[backend]\nkind = \"llama-cpp\"\n[models.sim]\nsource = \"a.gguf\"\nsha256 = \"{hash}\"\n[models.b]\nsource = \"b.gguf\""
    );
    let models = with_file(&text).unwrap().models;
    assert_eq!(models[0].sha256, None);
    assert_eq!(models[1].sha256.map(|hash| (hash[0], hash[8], hash[31])), Some((0x01, 0xab, 0x10)));
    let shown = text_of_a_shown_hash(&hash);
    assert!(shown.contains(&hash), "no secret: {shown}");
}

fn text_of_a_shown_hash(hash: &str) -> String {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs_err::write(file.path(), format!("[models.sim]\nsha256 = \"{hash}\"")).unwrap();
    Resolved::load(&Overrides { config: Some(file.path().to_owned()), ..profile("sim") }).unwrap().show()
}

#[test]
fn the_simulated_model_has_adapters_without_files() {
    let settings = with_file("[models.sim.adapters]\none = {}\ntwo = { scale = 0.5 }").unwrap();
    let names: Vec<_> = settings.models[0].adapters.iter().map(|adapter| adapter.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
}

#[test]
fn an_unknown_profile_names_those_that_exist() {
    let error = load(&profile("rtx9999")).unwrap_err();
    assert_eq!(error, "config: profile: unknown profile 'rtx9999': those that ship are a100, demo, rtx4080, sim");
    assert!(load(&profile("../secret")).is_err());
}

#[test]
fn a_file_with_a_duplicate_key_or_none_at_all_is_refused() {
    assert!(with_file("[server]\nport = 1\nport = 2").is_err());
    let missing = load(&Overrides { config: Some("no/such.toml".into()), ..Overrides::default() }).unwrap_err();
    assert!(missing.starts_with("config: no/such.toml: "), "{missing}");
}

#[test]
fn one_model_on_the_command_line_is_the_only_one() {
    let settings = load(&Overrides { model: Some("some/dir/model.gguf".to_owned()), ..profile("demo") }).unwrap();
    let names: Vec<_> = settings.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["model"]);
}

#[test]
fn shown_settings_say_where_each_value_came_from() {
    let overrides = Overrides { port: Some(9), ..profile("sim") };
    let shown = Resolved::load(&overrides).unwrap().show();
    assert!(shown.contains("port = 9  # --port"), "{shown}");
    assert!(shown.contains("max_step_tokens = 512  # config/default.toml (built in)"), "{shown}");
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs_err::write(file.path(), "[models.sim.adapters.\"a.b\"]\npath = \"x.gguf\"\nscale = 0.5").unwrap();
    let shown = Resolved::load(&Overrides { config: Some(file.path().to_owned()), ..overrides }).unwrap().show();
    assert!(shown.contains("[models.sim.adapters.\"a.b\"]\npath = \"x.gguf\"  # "), "{shown}");
    assert!(shown.contains("scale = 0.5  # "), "{shown}");
}

#[test]
fn the_file_of_a_key_is_shown() {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    fs_err::write(file.path(), "[server.tls]\ncert = \"a.pem\"\nkey = \"a.key\"").unwrap();
    let resolved = Resolved::load(&Overrides { config: Some(file.path().to_owned()), ..profile("sim") }).unwrap();
    assert!(resolved.show().contains("[server.tls]\ncert = \"a.pem\"  # "), "{}", resolved.show());
    assert!(resolved.show().contains("key = \"a.key\"  # "), "{}", resolved.show());
    let tls = resolved.settings().unwrap().server.tls.unwrap();
    assert_eq!((tls.cert.to_str(), tls.key.to_str()), (Some("a.pem"), Some("a.key")));
}

#[test]
fn lists_are_written_with_brackets_or_commas() {
    for hosts in ["[\"A.example\", \"b\"]", "\"A.example, b\""] {
        let settings = with_file(&format!("[server]\nallowed_hosts = {hosts}")).unwrap();
        assert_eq!(settings.server.allowed_hosts, ["a.example", "b", "127.0.0.1"], "{hosts}");
    }
}
