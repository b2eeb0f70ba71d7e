use std::time::{Duration, Instant};

const MINUTE_S: f64 = 60.0;

/// How much of something a minute may have: full at first, refilled evenly.
///
/// What a request costs is known only when it has ended, so a bucket can be charged for more than it holds, and is then empty for longer.
/// (The crate `governor` has neither debts nor a level to read, which the headers want.)
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    per_minute: f64,
    level: f64,
    at: Instant,
}

/// What a bucket holds, for the client to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) limit: u64,
    pub(super) remaining: u64,
    /// Until it is full again.
    pub(super) reset: Duration,
}

impl Bucket {
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        let per_minute = f64::from(per_minute);
        Self { per_minute, level: per_minute, at: now }
    }

    /// Whether there is one left; if not, when there will be.
    pub(super) fn check(&mut self, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        if self.level >= 1.0 { Ok(()) } else { Err(self.time_for(1.0 - self.level)) }
    }

    /// Takes some, whether or not there are so many.
    pub(super) fn charge(&mut self, amount: u64, now: Instant) {
        self.refill(now);
        self.level -= amount as f64;
    }

    pub(super) fn level(&mut self, now: Instant) -> Level {
        self.refill(now);
        let reset = self.time_for(self.per_minute - self.level);
        Level { limit: self.per_minute as u64, remaining: self.level.max(0.0) as u64, reset }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = self.per_minute.min(self.level + passed * self.per_minute / MINUTE_S);
        self.at = self.at.max(now);
    }

    fn time_for(&self, amount: f64) -> Duration {
        Duration::from_secs_f64(amount.max(0.0) * MINUTE_S / self.per_minute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_and_they_come_back_evenly() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut bucket = Bucket::new(6, start);
        for _ in 0..6 {
            assert_eq!(bucket.check(start), Ok(()));
            bucket.charge(1, start);
        }
        assert_eq!(bucket.check(start), Err(Duration::from_secs(10)));
        assert_eq!(bucket.level(start), Level { limit: 6, remaining: 0, reset: Duration::from_secs(60) });
        assert_eq!(bucket.check(after(9)), Err(Duration::from_secs(1)));
        assert_eq!(bucket.check(after(10)), Ok(()));
        assert_eq!(bucket.level(after(1000)).remaining, 6, "it never holds more than a minute has");
    }

    #[test]
    fn a_debt_is_paid_before_there_is_more() {
        let start = Instant::now();
        let mut bucket = Bucket::new(60, start);
        bucket.charge(180, start);
        assert_eq!(bucket.level(start).remaining, 0);
        assert_eq!(bucket.check(start), Err(Duration::from_secs(121)));
        assert_eq!(bucket.check(start + Duration::from_secs(121)), Ok(()));
    }
}
