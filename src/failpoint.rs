//! Places where tests end the process, to see that nothing is lost there.

/// Every place, in the order in which a batch comes by them.
pub const FAILPOINTS: [&str; 24] = [
    "blob.half",
    "blob.synced",
    "blob.renamed",
    "file.uncommitted",
    "file.committed",
    "batch.uncommitted",
    "batch.committed",
    "ingest.committed",
    "ingest.done",
    "batch.started",
    "claim.uncommitted",
    "claim.committed",
    "line.running",
    "line.answered",
    "result.queued",
    "result.uncommitted",
    "result.committed",
    "publish.begun",
    "publish.half",
    "publish.rendered",
    "publish.committed",
    "purge.bite",
    "cancel.marked",
    "file.deleted",
];

/// Ends the process at once, as a power cut would, if the variable `FAILPOINTS` says so: `NAME=3*off->return` is the fourth time that
/// this place is reached. Does nothing outside of tests, where the `fail` crate is compiled without its points.
pub(crate) fn failpoint(name: &str) {
    debug_assert!(FAILPOINTS.contains(&name), "an unknown failpoint");
    reach(name);
}

/// The same for one line of many: the place is called `line.poison.CUSTOM_ID`.
pub(crate) fn poison(custom_id: &str) {
    if fail::has_failpoints() {
        reach(&format!("line.poison.{custom_id}"));
    }
}

/// A place where tests have a handler panic, by `FAILPOINTS=request.begun=panic`.
pub(crate) fn request_begun() {
    reach("request.begun");
}

fn reach(name: &str) {
    // Nothing else reads it where there are no points.
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}

/// Reads the variable `FAILPOINTS`, in tests.
pub(crate) fn arm() {
    if fail::has_failpoints() {
        // Armed for as long as the process lives.
        std::mem::forget(fail::FailScenario::setup());
    }
}
