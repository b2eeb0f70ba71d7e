//! Loading to a device: the emulator, or a card where `TANDEM_TEST_DEVICE=cuda` says so.

use tandem_candle::{CandleLoader, CandleSettings, ComputeDevice};
use tandem_cuda::Device;

pub(crate) fn on_device(settings: CandleSettings) -> CandleLoader {
    let device = match std::env::var("TANDEM_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::open(0).unwrap(),
        _ => Device::emulated(),
    };
    let setting = ComputeDevice::Cuda { ordinal: 0, memory_fraction: 0.95 };
    CandleLoader::new(CandleSettings { device: setting, ..settings }).on(device)
}
