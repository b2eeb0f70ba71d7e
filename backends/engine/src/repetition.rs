use tandem_core::TokenId;

use crate::Repetition;

/// Follows an output and notices when it repeats itself.
///
/// For each length of a run it is remembered for how many tokens the output has been equal to itself that many tokens before: a run of `n`
/// tokens stands there `count` times when that is so for `n * (count - 1)` of them. So a token costs one comparison for each length, however
/// often a run has to come.
#[derive(Debug)]
pub(crate) struct Repeats {
    rule: Repetition,
    /// For `rule.shortest` and each length after it.
    equal: Vec<u32>,
}

impl Repeats {
    pub(crate) fn new(rule: Repetition) -> Self {
        debug_assert!(rule.shortest >= 1 && rule.count >= 2 && rule.longest <= Repetition::MAX_RUN, "checked before");
        let lengths = (rule.longest + 1).saturating_sub(rule.shortest);
        Self { rule, equal: vec![0; lengths as usize] }
    }

    /// Looks at the last token of `output`, which has one more than the last time. True when the output repeats itself.
    pub(crate) fn notice(&mut self, output: &[TokenId]) -> bool {
        let Some((last, before)) = output.split_last() else { return false };
        let mut repeats = false;
        for (length, equal) in std::iter::zip(self.rule.shortest.., &mut self.equal) {
            let same = before.len().checked_sub(length as usize).is_some_and(|at| {
                // `before` lacks the last token, so a run earlier is one place further on.
                before.get(at) == Some(last)
            });
            *equal = if same { *equal + 1 } else { 0 };
            repeats |= *equal >= length.saturating_mul(self.rule.count - 1);
        }
        repeats
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Looks for copies of the end, one length after the other.
    fn ends_with_copies(output: &[TokenId], rule: Repetition) -> bool {
        (rule.shortest as usize..=rule.longest as usize).any(|length| {
            let all = length * rule.count as usize;
            output.len() >= all && {
                let end = &output[output.len() - all..];
                end.chunks(length).all(|run| run == &end[..length])
            }
        })
    }

    proptest! {
        #[test]
        fn repeats_are_noticed_when_they_are_complete(
            output in proptest::collection::vec(0u32..3, 0..60),
            shortest in 1u32..4,
            more in 0u32..4,
            count in 2u32..5,
        ) {
            let rule = Repetition { shortest, longest: shortest + more, count };
            let mut repeats = Repeats::new(rule);
            for len in 1..=output.len() {
                prop_assert_eq!(repeats.notice(&output[..len]), ends_with_copies(&output[..len], rule), "{}", len);
            }
        }
    }
}
