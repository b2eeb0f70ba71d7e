use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::LoadError;

/// Bytes of a loaded model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryNeeds {
    /// The numbers of the model and of its adapters.
    pub weights: u64,
    /// Keys and values of all sequences, or their states.
    pub kv: u64,
    /// Room to compute in, and for results.
    pub compute: u64,
}

impl MemoryNeeds {
    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { weights, kv, compute } = self;
        weights + kv + compute
    }

    /// Compares with what is `free`, before anything is tried: what comes of trying is an out-of-memory killer, or a machine that swaps.
    /// `place` is said behind the number, such as " on the GPUs".
    ///
    /// # Errors
    /// With all numbers, when it is too little.
    pub fn check(&self, sequences: u32, context: u32, free: u64, place: &str) -> Result<(), LoadError> {
        if self.total() <= free {
            return Ok(());
        }
        let gibibytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        Err(LoadError::Unsupported(format!(
            "needs {:.1} GiB (weights {:.1}, KV of {sequences} sequences of {context} tokens {:.1}, work space {:.1}), {:.1} GiB free{place}",
            gibibytes(self.total()),
            gibibytes(self.weights),
            gibibytes(self.kv),
            gibibytes(self.compute),
            gibibytes(free),
        )))
    }
}

/// Bytes that this process may still take: of the machine, and of its control group where that has a bound.
#[must_use]
pub fn free_ram() -> u64 {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory);
    let machine = system.available_memory();
    system.cgroup_limits().map_or(machine, |group| machine.min(group.free_memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said_in_numbers() {
        let needs = MemoryNeeds { weights: 5 << 30, kv: 8 << 30, compute: 1 << 29 };
        assert!(needs.check(8, 8192, needs.total(), "").is_ok());
        let error = needs.check(8, 8192, 1 << 30, " on the GPUs").expect_err("too little");
        let expected = "needs 13.5 GiB (weights 5.0, KV of 8 sequences of 8192 tokens 8.0, work space 0.5), 1.0 GiB free on the GPUs";
        assert_eq!(error.to_string(), expected);
        assert!(free_ram() > 1 << 20);
    }
}
