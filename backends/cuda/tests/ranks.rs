//! What ranks do with each other. They are emulated, or cards where `TANDEM_TEST_RANKS=cuda` says so.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::thread;

use support::{get, integers, put, room};
use tandem_cuda::{CudaError, Number, Rank};

fn ranks(count: usize) -> Vec<Rank> {
    match std::env::var("TANDEM_TEST_RANKS").as_deref() {
        Ok("cuda") => Rank::open(0, count).unwrap(),
        _ => Rank::emulated(count),
    }
}

/// What each rank comes to, on a thread of its own.
fn on_all<T: Send>(ranks: &[Rank], work: impl Fn(&Rank) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let threads: Vec<_> = ranks.iter().map(|rank| scope.spawn(|| work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn all_ranks_come_to_the_sum() {
    let sums = on_all(&ranks(2), |rank| {
        let mine: Vec<f32> = (0..5).map(|at| (at * 10 + rank.rank()) as f32).collect();
        let numbers = put(rank.device(), Number::F32, &mine);
        // The last one is not asked for.
        rank.all_reduce(numbers.all(), 4).unwrap();
        let once = get(&numbers, Number::F32);
        let graph = rank.device().record(|| rank.all_reduce(numbers.all(), 4)).unwrap();
        assert_eq!(get(&numbers, Number::F32), once, "written down and not carried out");
        graph.replay().unwrap();
        graph.replay().unwrap();
        (once, get(&numbers, Number::F32))
    });
    for (rank, (once, again)) in (0u8..).zip(sums) {
        let own = 40.0 + f32::from(rank);
        assert_eq!(once, [1.0, 21.0, 41.0, 61.0, own]);
        assert_eq!(again, [4.0, 84.0, 164.0, 244.0, own]);
    }
}

/// Seven columns are three and four, so that a row of the first rank has one that is nothing.
#[test]
fn shares_are_put_together_on_the_first() {
    const WIDTH: usize = 7;
    const ROWS: usize = 3;
    let number = |row: usize, column: usize| (10 * row + column) as f32;
    let joined = on_all(&ranks(2), |rank| {
        let (columns, longest) = (rank.share(WIDTH), WIDTH.div_ceil(2));
        let mine = (0..ROWS).flat_map(|row| {
            let of_row = columns.clone().map(move |column| number(row, column));
            of_row.chain([f32::NAN]).take(longest)
        });
        let parts =
            room(rank.device(), Number::F32, if rank.rank() == 0 { 2 * ROWS * longest } else { ROWS * longest });
        let mut bytes = Vec::new();
        Number::F32.write(&mine.collect::<Vec<_>>(), &mut bytes);
        parts.write(0, &bytes).unwrap();
        rank.gather(parts.all(), ROWS * longest, parts.all()).unwrap();
        if rank.rank() > 0 {
            return Vec::new();
        }
        let out = room(rank.device(), Number::F32, ROWS * WIDTH);
        rank.device().join_parts(parts.all(), 2, ROWS, WIDTH, out.all()).unwrap();
        get(&out, Number::F32)
    });
    let all: Vec<f32> = (0..ROWS).flat_map(|row| (0..WIDTH).map(move |column| number(row, column))).collect();
    assert_eq!(joined, [all, Vec::new()]);
}

#[test]
fn all_have_what_the_first_has() {
    let got = on_all(&ranks(2), |rank| {
        let mine = integers(rank.device(), &[rank.rank() as i32 - 1, 7 + rank.rank() as i32]);
        rank.broadcast(mine.all(), 1).unwrap();
        let mut bytes = [0; 8];
        mine.read(0, &mut bytes).unwrap();
        bytes.as_chunks().0.iter().map(|&word| i32::from_le_bytes(word)).collect::<Vec<_>>()
    });
    assert_eq!(got, [[-1, 7], [-1, 8]]);
}

#[test]
fn nobody_waits_for_a_rank_that_has_failed() {
    let failure = CudaError::Failed { call: "a test", reason: "made to fail".to_owned() };
    let ended = on_all(&Rank::emulated(3), |rank| {
        let numbers = put(rank.device(), Number::F32, &[1.0]);
        if rank.rank() == 1 {
            rank.fail(failure.clone());
        }
        (rank.all_reduce(numbers.all(), 1), rank.check())
    });
    for (rank, (together, well)) in ended.into_iter().enumerate() {
        assert_eq!((together, well), (Err(failure.clone()), Err(failure.clone())), "rank {rank}");
    }
}

#[test]
fn one_that_is_alone_has_nobody_to_ask() {
    let [rank] = &Rank::emulated(1)[..] else { panic!("one") };
    let numbers = put(rank.device(), Number::F32, &[1.0, 2.0]);
    rank.all_reduce(numbers.all(), 2).unwrap();
    rank.fail(CudaError::Unavailable("nothing".to_owned()));
    assert_eq!((get(&numbers, Number::F32), rank.check(), rank.share(9)), (vec![1.0, 2.0], Ok(()), 0..9));
}
