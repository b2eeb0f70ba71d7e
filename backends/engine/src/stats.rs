/// Counters of one engine since it was loaded, and gauges as of the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that hold a slot.
    pub running: u32,
    /// Sequences that wait for one, or requests for vectors that are not answered.
    pub waiting: u32,
    /// Of these, sequences that wait for a prefix that another one is computing.
    pub following: u32,
    /// Sequences that pause because nobody reads what they have generated.
    pub stalled: u32,
    /// Tokens of KV cache in use by running sequences.
    pub kv_used: u64,
    /// Tokens of KV cache in all.
    pub kv_capacity: u64,
    /// Steps carried out; passes, of a model that has vectors.
    pub steps: u64,
    /// Tokens computed by steps, prompt and output alike.
    pub computed_tokens: u64,
    /// Prompt tokens of admitted sequences that were found in the cache.
    pub cached_tokens: u64,
    /// Prompt tokens of admitted sequences.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Sequences that lost their slot and were computed again.
    pub preemptions: u64,
    /// Steps that the backend refused because its KV memory could not hold them.
    pub refusals: u64,
    /// Generations, or requests for vectors, that ended well.
    pub finished: u64,
    /// Those whose submitter left.
    pub cancelled: u64,
    /// Those that failed.
    pub failed: u64,
}
