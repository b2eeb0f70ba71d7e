//! Loading to a device: the emulator, or a card where `TANDEM_TEST_DEVICE=cuda` says so.

use tandem_candle::{CandleLoader, CandleSettings, ComputeDevice};
use tandem_cuda::{Device, Rank};

pub(crate) fn on_device(settings: CandleSettings) -> CandleLoader {
    let device = match std::env::var("TANDEM_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::open(0).unwrap(),
        _ => Device::emulated(),
    };
    CandleLoader::new(with_ranks(settings, 1)).on(device)
}

/// The same, divided among several: emulated ones, or as many cards where `TANDEM_TEST_RANKS=cuda` says so.
pub(crate) fn on_ranks(settings: CandleSettings, ranks: usize) -> CandleLoader {
    let all = match std::env::var("TANDEM_TEST_RANKS").as_deref() {
        Ok("cuda") => Rank::open(0, ranks).unwrap(),
        _ => Rank::emulated(ranks),
    };
    CandleLoader::new(with_ranks(settings, ranks)).on_ranks(all)
}

pub(crate) fn with_ranks(settings: CandleSettings, ranks: usize) -> CandleSettings {
    CandleSettings { device: ComputeDevice::Cuda { ordinal: 0, ranks, memory_fraction: 0.95 }, ..settings }
}
