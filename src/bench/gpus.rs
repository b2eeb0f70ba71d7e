use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nvml_wrapper::{Nvml, error::NvmlError};

use super::{
    figures::{Spread, rounded},
    report::{Gpu, GpuUse},
};

/// The NVIDIA cards of this machine, by what the library of their driver tells (NVML). It is looked for when the program runs.
#[derive(Clone, Debug)]
pub(super) struct Gpus {
    nvml: Arc<Nvml>,
    count: u32,
}

/// What a card tells at one moment; `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reading {
    /// Of the time since the driver last looked, in which something was computed.
    busy_percent: Option<u32>,
    memory_bytes: Option<u64>,
    /// Since the driver was loaded, in thousandths of a joule.
    energy_mj: Option<u64>,
}

/// Reads all cards again and again, until it is told to finish or forgotten.
#[derive(Debug)]
pub(super) struct Watch {
    stop: Sender<()>,
    /// Of each moment those of all cards.
    reader: Option<JoinHandle<Vec<Vec<Reading>>>>,
}

/// Between two readings. Drivers look about ten times a second.
const LOOK: Duration = Duration::from_millis(100);

impl Gpus {
    /// `None` where there is no driver, or no card.
    pub(super) fn open() -> Option<Self> {
        let open = || -> Result<Self, NvmlError> {
            let nvml = Nvml::init()?;
            let count = nvml.device_count()?;
            Ok(Self { nvml: Arc::new(nvml), count })
        };
        match open() {
            Ok(gpus) if gpus.count > 0 => Some(gpus),
            Ok(_) => {
                tracing::debug!("NVML knows of no NVIDIA card");
                None
            }
            Err(error) => {
                tracing::debug!(%error, "NVML cannot be used: nothing is told of NVIDIA cards");
                None
            }
        }
    }

    pub(super) fn cards(&self) -> Vec<Gpu> {
        let card = |index| {
            let device = self.nvml.device_by_index(index).ok();
            let name = device.as_ref().and_then(|device| device.name().ok());
            let memory = device.and_then(|device| device.memory_info().ok());
            Gpu {
                name: name.unwrap_or_else(|| format!("card {index}")),
                memory_bytes: memory.map(|memory| memory.total),
            }
        };
        (0..self.count).map(card).collect()
    }

    pub(super) fn driver(&self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    /// Begins to read.
    pub(super) fn watch(&self) -> Watch {
        let (stop, stopped) = mpsc::channel();
        let gpus = self.clone();
        let read = move || {
            let mut moments = vec![gpus.read()];
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                moments.push(gpus.read());
            }
            moments.push(gpus.read());
            moments
        };
        // Without a thread it is as if cards told nothing.
        Watch { stop, reader: thread::Builder::new().name("bench-gpus".to_owned()).spawn(read).ok() }
    }

    fn read(&self) -> Vec<Reading> {
        let card = |index| {
            let Ok(device) = self.nvml.device_by_index(index) else { return Reading::default() };
            Reading {
                busy_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
                memory_bytes: device.memory_info().ok().map(|memory| memory.used),
                energy_mj: device.total_energy_consumption().ok(),
            }
        };
        (0..self.count).map(card).collect()
    }
}

impl Watch {
    /// What each card did since the beginning.
    pub(super) fn finish(self) -> Vec<GpuUse> {
        drop(self.stop);
        let moments = self.reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        let cards = moments.first().map_or(0, Vec::len);
        (0..cards).map(|card| summary(moments.iter().filter_map(|moment| moment.get(card)))).collect()
    }
}

/// What one card did, by its readings in their order.
fn summary<'a>(readings: impl Iterator<Item = &'a Reading>) -> GpuUse {
    let readings: Vec<&Reading> = readings.collect();
    let busy: Vec<f64> = readings.iter().filter_map(|reading| reading.busy_percent.map(f64::from)).collect();
    let energy = |reading: &&Reading| reading.energy_mj;
    let first = readings.first().and_then(energy);
    // A counter that went back was begun anew meanwhile.
    let energy = readings.last().and_then(energy).zip(first).and_then(|(last, first)| last.checked_sub(first));
    GpuUse {
        utilization: mean(&busy).map(|percent| rounded(percent / 100.0)),
        peak_memory_bytes: readings.iter().filter_map(|reading| reading.memory_bytes).max(),
        energy_j: energy.map(|thousandths| rounded(thousandths as f64 / 1e3)),
    }
}

/// Of several runs: means of utilization, the most memory, medians of energy.
pub(super) fn together(runs: &[&[GpuUse]]) -> Option<Vec<GpuUse>> {
    let cards = runs.iter().map(|run| run.len()).max()?;
    let card = |index: usize| {
        let of = || runs.iter().filter_map(move |run| run.get(index));
        let busy: Vec<f64> = of().filter_map(|card| card.utilization).collect();
        let energy: Vec<f64> = of().filter_map(|card| card.energy_j).collect();
        GpuUse {
            utilization: mean(&busy).map(rounded),
            peak_memory_bytes: of().filter_map(|card| card.peak_memory_bytes).max(),
            energy_j: Spread::of(&energy).map(|spread| spread.median),
        }
    };
    Some((0..cards).map(card).collect())
}

/// Of all cards; `None` where one does not tell.
pub(super) fn energy_j(cards: &[GpuUse]) -> Option<f64> {
    let total = cards.iter().map(|card| card.energy_j).sum::<Option<f64>>();
    total.filter(|_| !cards.is_empty()).map(rounded)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(busy: u32, memory: u64, energy: u64) -> Reading {
        Reading { busy_percent: Some(busy), memory_bytes: Some(memory), energy_mj: Some(energy) }
    }

    #[test]
    fn a_run_has_the_mean_the_most_and_the_difference() {
        let readings = [reading(0, 100, 5_000), reading(90, 700, 6_250), reading(60, 300, 8_500)];
        let expected = GpuUse { utilization: Some(0.5), peak_memory_bytes: Some(700), energy_j: Some(3.5) };
        assert_eq!(summary(readings.iter()), expected);
    }

    #[test]
    fn what_a_card_does_not_tell_is_not_made_up() {
        let silent = Reading::default();
        assert_eq!(summary([silent, silent].iter()), GpuUse::default());
        assert_eq!(summary([].iter()), GpuUse::default());
        let began_anew = [reading(10, 1, 900), reading(10, 1, 100)];
        assert_eq!(summary(began_anew.iter()).energy_j, None);
        let only_the_first = [reading(10, 1, 900), silent];
        assert_eq!(summary(only_the_first.iter()).energy_j, None);
    }

    #[test]
    fn runs_come_together_card_by_card() {
        let card = |utilization, memory, energy| GpuUse {
            utilization: Some(utilization),
            peak_memory_bytes: Some(memory),
            energy_j: Some(energy),
        };
        let runs = [
            [card(0.2, 10, 1.0), card(1.0, 5, 7.0)],
            [card(0.4, 30, 9.0), card(1.0, 6, 8.0)],
            [card(0.6, 20, 2.0), card(0.7, 4, 9.0)],
        ];
        let runs: Vec<&[GpuUse]> = runs.iter().map(|run| &run[..]).collect();
        let cards = together(&runs).unwrap();
        assert_eq!(cards, [card(0.4, 30, 2.0), card(0.9, 6, 8.0)]);
        assert_eq!(energy_j(&cards), Some(10.0));
        assert_eq!(together(&[]), None);
    }

    #[test]
    fn energy_of_all_is_known_when_that_of_each_is() {
        let telling = GpuUse { energy_j: Some(4.0), ..GpuUse::default() };
        assert_eq!(energy_j(&[telling, GpuUse::default()]), None);
        assert_eq!(energy_j(&[]), None);
    }

    mod gpu {
        use super::super::*;

        #[test]
        fn cards_tell_of_themselves() {
            let gpus = Gpus::open().expect("a card");
            let used = gpus.watch().finish();
            assert_eq!(used.len(), gpus.cards().len());
            assert!(gpus.cards().iter().all(|card| card.memory_bytes > Some(1 << 30)), "{:?}", gpus.cards());
            assert!(used.iter().all(|card| card.utilization.is_some() && card.peak_memory_bytes > Some(0)), "{used:?}");
            assert!(gpus.driver().is_some());
        }
    }
}
