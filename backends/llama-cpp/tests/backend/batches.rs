//! Several sequences in one context.

use std::thread;

use tandem_core::{KvLayout, KvOp, SlotId, StepError};

use crate::helpers::{Piece, empty, forward, generator, greedy, likeliest, loader, prompt, sample, with_backend};

#[test]
fn eight_sequences_together_are_as_good_as_each_alone() {
    with_backend(loader(8, 128), |loaded| {
        let backend = generator(loaded);
        let prompts: Vec<_> = (0..8).map(|slot| prompt(slot, 9 + 5 * slot)).collect();
        let alone: Vec<_> = prompts.iter().map(|prompt| greedy(backend, 3, prompt, 12)).collect();

        let slots: Vec<u32> = (0..8).collect();
        let ops: Vec<_> = slots.iter().map(|&slot| empty(slot)).collect();
        let pieces: Vec<Piece<'_>> = slots.iter().map(|&slot| (slot, 0, &*prompts[slot as usize], true)).collect();
        forward(backend, &ops, &pieces).expect("eight prompts fit");
        for round in 0..12 {
            // Kernels round differently for one row and for eight, so where two tokens are nearly as likely the other one may win. All
            // are given the token that won alone, and it has to be as likely as the likeliest here but for rounding.
            for (slot, top) in likeliest(backend, &slots).into_iter().enumerate() {
                let token = alone[slot][round];
                let found = top.iter().find(|(one, _)| *one == token);
                let behind = found.map_or(f32::INFINITY, |(_, logprob)| top[0].1 - logprob);
                assert!(behind < 0.05, "slot {slot}, token {round}: {token} is {behind} behind in {top:?}");
            }
            let pieces: Vec<Piece<'_>> = slots
                .iter()
                .map(|&slot| {
                    let at = slot as usize;
                    (slot, (prompts[at].len() + round) as u32, &alone[at][round..=round], true)
                })
                .collect();
            forward(backend, &[], &pieces).expect("eight tokens fit");
        }
    });
}

#[test]
fn a_full_cache_says_so_and_loses_nothing() {
    with_backend(loader(2, 128), |loaded| {
        let backend = generator(loaded);
        assert_eq!(backend.spec().kv, KvLayout::Slots { cells: 256, partial_reuse: true });
        let (ours, theirs) = (prompt(1, 100), prompt(2, 128));
        let expected = greedy(backend, 0, &ours, 8);

        forward(backend, &[empty(0)], &[(0, 0, &ours, true)]).expect("100 of 256 cells");
        let first = sample(backend, &[0]).expect("a row");
        forward(backend, &[], &[(1, 0, &theirs, false)]).expect("228 of 256 cells");
        // Another 40 do not fit, neither alone nor beside a token that would.
        let more = prompt(3, 40);
        for pieces in [&[(1, 128, &*more, true)][..], &[(0, 100, &first, true), (1, 128, &more, true)]] {
            assert!(matches!(forward(backend, &[], pieces), Err(StepError::KvFull)));
            assert!(matches!(sample(backend, &[1]), Err(StepError::Device(_))), "nothing was computed");
        }
        // What was there is as it was.
        let mut tokens = first;
        for at in 0..3 {
            let last = tokens[tokens.len() - 1];
            forward(backend, &[], &[(0, 100 + at, &[last], true)]).expect("a token fits");
            tokens.extend(sample(backend, &[0]).expect("a row"));
        }
        assert_eq!(tokens, expected[..4]);

        // A step's changes to memory hold although its pass does not fit.
        let too_many = prompt(4, 200);
        let full = forward(backend, &[KvOp::Truncate { slot: SlotId(0), from: 100 }], &[(1, 128, &too_many, true)]);
        assert!(matches!(full, Err(StepError::KvFull)));
        forward(backend, &[], &[(0, 100, &tokens[..1], true)]).expect("position 100 is free again");
        assert_eq!(sample(backend, &[0]).expect("a row"), expected[1..2]);

        // With one sequence given up there is room, and the answers are right.
        forward(backend, &[empty(1)], &[(1, 0, &more, true)]).expect("there is room");
        assert_eq!(greedy(backend, 1, &ours, 8), expected);
    });
}

#[test]
fn a_shared_prefix_takes_no_cells() {
    with_backend(loader(4, 64), |loaded| {
        let backend = generator(loaded);
        let shared = prompt(5, 60);
        let expected = greedy(backend, 0, &[&shared[..], &[400]].concat(), 3);
        let ops = [empty(0), empty(1), empty(2), empty(3)];
        forward(backend, &ops, &[(0, 0, &shared, false)]).expect("60 of 256 cells");
        let copies = [1, 2, 3].map(|slot| KvOp::CopyPrefix { src: SlotId(0), dst: SlotId(slot), len: 60 });
        forward(backend, &copies, &[]).expect("memory operations alone");
        // 60 + 4 + 190 cells are less than 256 only because 60 count once.
        let slots = [(0, 60, &[400][..], true), (1, 60, &[401], true), (2, 60, &[402], true), (3, 60, &[400], true)];
        forward(backend, &[], &slots).expect("four tokens");
        let tokens = sample(backend, &[0, 1, 2, 3]).expect("four rows");
        assert_eq!((tokens[0], tokens[3]), (expected[0], expected[0]));
        forward(backend, &[], &[(2, 61, &prompt(6, 190), false)]).expect("254 of 256 cells");
        // The source may go; its copies keep what they share.
        forward(backend, &[empty(0)], &[(3, 61, &[expected[0]], true)]).expect("a token");
        assert_eq!(sample(backend, &[3]).expect("a row"), expected[1..2]);
    });
}

#[test]
fn steps_that_break_the_contract_are_errors() {
    with_backend(loader(2, 64), |loaded| {
        let backend = generator(loaded);
        let long = prompt(0, 513);
        for piece in [
            (2, 0, &[300][..], true),
            (u32::MAX, 0, &[300], true),
            (0, u32::MAX, &[300], true),
            (0, 0, &[1_000_000], true),
            (0, 0, &[u32::MAX], true),
            (0, 0, &[], true),
            (0, 0, &long, true),
        ] {
            let result = forward(backend, &[], &[piece]);
            assert!(matches!(result, Err(StepError::Device(_))), "{piece:?}: {result:?}");
        }
        for op in [empty(2), KvOp::CopyPrefix { src: SlotId(0), dst: SlotId(9), len: 1 }] {
            assert!(matches!(forward(backend, &[op], &[]), Err(StepError::Device(_))), "{op:?}");
        }
        forward(backend, &[], &[(0, 0, &[300, 301], true), (1, 0, &[302], false)]).expect("a good step");
        for slots in [&[][..], &[1], &[0, 1], &[0, 0]] {
            assert!(matches!(sample(backend, slots), Err(StepError::Device(_))), "{slots:?}");
        }
        sample(backend, &[0]).expect("the row that was computed");
    });
}

#[test]
fn two_engines_at_once_do_not_disturb_each_other() {
    let run = || {
        let mut tokens = Vec::new();
        with_backend(loader(2, 64), |loaded| tokens = greedy(generator(loaded), 0, &prompt(1, 20), 10));
        tokens
    };
    let expected = run();
    let others: Vec<_> = (0..2).map(|_| thread::spawn(run)).collect();
    for other in others {
        assert_eq!(other.join().expect("the other engine finishes"), expected);
    }
}
