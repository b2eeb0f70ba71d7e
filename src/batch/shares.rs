use std::collections::HashMap;

use crate::store::Batch;

/// Who gets the places that are free: tenants hold as many as one another, and so do the batches of each tenant that come first by their
/// priority.
///
/// A place goes to whoever holds the fewest. Who has had none for the longest goes first among equals, so that all get their turn where
/// there are fewer places than batches.
#[derive(Debug, Default)]
pub(super) struct Shares {
    dealt: u64,
    /// When each was served last: the tenants, and the batches by their ids.
    tenants: HashMap<String, u64>,
    batches: HashMap<String, u64>,
}

/// A batch that has lines to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claimant<'a> {
    pub(super) tenant: &'a str,
    pub(super) batch_id: &'a str,
    /// Among those of its tenant: the lower has what it wants before the higher has any.
    pub(super) priority: i64,
    /// Places that it has.
    pub(super) held: usize,
    /// Places that all batches of its tenant have, those without a line to claim among them.
    pub(super) held_by_tenant: usize,
}

impl Shares {
    /// How many of the free places each claimant gets. The oldest comes first among those that were never served.
    pub(super) fn deal(&mut self, claimants: &[Claimant<'_>], free: usize) -> Vec<usize> {
        let mut shares = vec![0; claimants.len()];
        let mut tenants: HashMap<&str, usize> =
            claimants.iter().map(|claimant| (claimant.tenant, claimant.held_by_tenant)).collect();
        for _ in 0..free {
            let next = std::iter::zip(claimants, &shares).enumerate().min_by_key(|(_, (claimant, share))| {
                let Claimant { tenant, batch_id, priority, held, .. } = claimant;
                let turn = |turns: &HashMap<String, u64>, name: &str| turns.get(name).copied().unwrap_or(0);
                let first = claimants.iter().position(|other| other.tenant == *tenant);
                let of_tenant = (tenants.get(tenant).copied(), turn(&self.tenants, tenant), first);
                (of_tenant, *priority, held + **share, turn(&self.batches, batch_id))
            });
            let Some((index, (Claimant { tenant, batch_id, .. }, _))) = next else { break };
            self.dealt += 1;
            self.tenants.insert((*tenant).to_owned(), self.dealt);
            self.batches.insert((*batch_id).to_owned(), self.dealt);
            *tenants.entry(tenant).or_default() += 1;
            shares[index] += 1;
        }
        self.tenants.retain(|tenant, _| claimants.iter().any(|claimant| claimant.tenant == tenant));
        self.batches.retain(|id, _| claimants.iter().any(|claimant| claimant.batch_id == id));
        shares
    }
}

/// The batches that may run together, at most `most`: the first of each tenant, then the second of each, and so on. First is who has the
/// lower priority, then who is older.
pub(super) fn choose(mut batches: Vec<Batch>, most: usize) -> Vec<Batch> {
    batches.sort_by_key(|batch| (batch.priority, batch.seq));
    let mut before: HashMap<String, usize> = HashMap::new();
    let mut ranked: Vec<(usize, Batch)> = batches
        .into_iter()
        .map(|batch| {
            let place = before.entry(batch.tenant.clone()).or_default();
            *place += 1;
            (*place, batch)
        })
        .collect();
    ranked.sort_by_key(|(place, batch)| (*place, batch.seq));
    ranked.truncate(most);
    ranked.sort_by_key(|(_, batch)| batch.seq);
    ranked.into_iter().map(|(_, batch)| batch).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUNDS: usize = 840;
    const TENANTS: [&str; 4] = ["a", "b", "c", "d"];

    /// Tenants by number, the priorities of their batches and the places that these hold.
    fn claimants<'a>(held: &[(usize, i64, usize)], ids: &'a [String]) -> Vec<Claimant<'a>> {
        let of = |tenant: usize| held.iter().filter(|(other, ..)| *other == tenant).map(|(.., held)| held).sum();
        std::iter::zip(held, ids)
            .map(|((tenant, priority, held), batch_id)| Claimant {
                tenant: TENANTS[*tenant],
                batch_id,
                priority: *priority,
                held: *held,
                held_by_tenant: of(*tenant),
            })
            .collect()
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|id| id.to_string()).collect()
    }

    proptest! {
        /// Nobody who got a place had more than somebody who could have had it: neither a tenant, nor a batch among its tenant's.
        #[test]
        fn a_place_goes_to_whoever_has_the_fewest(
            held in prop::collection::vec((0..TENANTS.len(), 0..3_i64, 0..20_usize), 0..12), free in 0..40_usize
        ) {
            let ids = ids(held.len());
            let claimants = claimants(&held, &ids);
            let shares = Shares::default().deal(&claimants, free);
            prop_assert_eq!(shares.iter().sum::<usize>(), if claimants.is_empty() { 0 } else { free });
            let got = |tenant| std::iter::zip(&claimants, &shares).filter(|(c, _)| c.tenant == tenant).map(|(_, s)| s).sum::<usize>();
            for (one, share) in std::iter::zip(&claimants, &shares).filter(|(_, share)| **share > 0) {
                let tenant_has = one.held_by_tenant + got(one.tenant);
                for (other, others) in std::iter::zip(&claimants, &shares) {
                    prop_assert!(tenant_has <= other.held_by_tenant + got(other.tenant) + 1);
                    if one.tenant == other.tenant {
                        prop_assert!(one.priority <= other.priority);
                    }
                    if (one.tenant, one.priority) == (other.tenant, other.priority) {
                        prop_assert!(one.held + share <= other.held + others + 1);
                    }
                }
            }
        }

        /// A place at a time, given back before the next: all tenants come to the same number of lines, and so do the batches of each.
        #[test]
        fn where_places_are_few_all_take_turns(tenants in prop::collection::vec(0..TENANTS.len(), 1..10)) {
            let held: Vec<_> = tenants.iter().map(|tenant| (*tenant, 0, 0)).collect();
            let ids = ids(held.len());
            let claimants = claimants(&held, &ids);
            let mut shares = Shares::default();
            let mut served = vec![0_usize; held.len()];
            for _ in 0..ROUNDS {
                let dealt = shares.deal(&claimants, 1);
                std::iter::zip(&mut served, dealt).for_each(|(served, dealt)| *served += dealt);
            }
            let batches_of = |tenant: usize| tenants.iter().filter(|other| **other == tenant).count();
            let there = (0..TENANTS.len()).filter(|tenant| batches_of(*tenant) > 0).count();
            for (tenant, served) in std::iter::zip(&tenants, served) {
                let due = ROUNDS / there / batches_of(*tenant);
                prop_assert!(served.abs_diff(due) <= 1, "{served} where {due} are due");
            }
        }
    }
}
