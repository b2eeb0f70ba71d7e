use super::{
    gpus::Gpus,
    report::{Gpu, Host},
};

impl Host {
    /// This machine, as far as it tells.
    pub(super) fn here(gpus: Option<&Gpus>) -> Self {
        let read = |path: &str| fs_err::read_to_string(path).ok();
        let field = |text: &str, name: &str| {
            let value = text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1;
            Some(value.trim().to_owned())
        };
        let cpu = read("/proc/cpuinfo").and_then(|text| field(&text, "model name"));
        let memory = read("/proc/meminfo").and_then(|text| field(&text, "MemTotal"));
        let memory = memory.and_then(|text| text.strip_suffix("kB")?.trim().parse::<u64>().ok());
        let load = read("/proc/loadavg").and_then(|text| text.split_whitespace().next()?.parse().ok());
        let kernel = read("/proc/sys/kernel/osrelease").map_or_else(String::new, |text| format!(" {}", text.trim()));
        let cards = gpus.map(Gpus::cards).unwrap_or_default();
        Self {
            cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.map(|kib| kib << 10),
            os: format!("{}{kernel}", std::env::consts::OS),
            gpu: names(&cards).or_else(listed),
            gpus: cards,
            gpu_driver: gpus.and_then(Gpus::driver),
            load_before: load,
            memory_bytes_per_s: None,
        }
    }
}

fn names(cards: &[Gpu]) -> Option<String> {
    let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The cards that NVIDIA's driver lists, where its library tells of none.
fn listed() -> Option<String> {
    let cards = fs_err::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let names = cards.filter_map(Result::ok).filter_map(|card| {
        let text = fs_err::read_to_string(card.path().join("information")).ok()?;
        Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned())
    });
    let names: Vec<String> = names.collect();
    (!names.is_empty()).then(|| names.join(", "))
}
