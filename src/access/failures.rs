use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bucket::Bucket;

/// Wrong keys that one address may try in a minute.
const PER_MINUTE: u32 = 20;
/// Addresses remembered; beyond it those are forgotten that have not failed of late.
const ADDRESSES_MAX: usize = 4096;

/// Counts wrong keys by where they come from.
#[derive(Debug, Default)]
pub(super) struct Failures {
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Failures {
    /// Notes a wrong key; for how long to wait, if there were too many.
    pub(super) fn note(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= ADDRESSES_MAX {
            buckets.retain(|_, bucket| !bucket.level(now).reset.is_zero());
            if buckets.len() >= ADDRESSES_MAX {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(network(address)).or_insert_with(|| Bucket::new(PER_MINUTE, now));
        bucket.check(now)?;
        bucket.charge(1, now);
        Ok(())
    }
}

/// Who has one IPv6 address has 2⁶⁴ of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_fail_so_often_and_others_are_not_held_to_account() {
        let failures = Failures::default();
        let now = Instant::now();
        let (one, neighbour, other): (IpAddr, IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap(), "10.0.0.1".parse().unwrap());
        for _ in 0..PER_MINUTE {
            assert_eq!(failures.note(one, now), Ok(()));
        }
        assert_eq!(failures.note(neighbour, now), Err(Duration::from_secs(3)));
        assert_eq!(failures.note(other, now), Ok(()));
        assert_eq!(failures.note(one, now + Duration::from_secs(3)), Ok(()));
    }

    #[test]
    fn memory_of_addresses_is_bounded() {
        let failures = Failures::default();
        let now = Instant::now();
        for host in 0..2 * ADDRESSES_MAX as u32 {
            failures.note(IpAddr::V4(host.into()), now).unwrap();
        }
        assert!(failures.buckets.lock().unwrap().len() <= ADDRESSES_MAX);
    }
}
