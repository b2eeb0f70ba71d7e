use tandem_core::{AheadStep, Input};
use tandem_cuda::{PROMPT_ROWS, waiting_for};

const WORD: usize = 4;

/// Chunks of fewer tokens are looked at row by row.
const PROMPT: usize = 16;

/// What a model's steps stay within.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) vocab: usize,
    pub(super) slots: usize,
    pub(super) page_len: usize,
    pub(super) pages: usize,
    /// Pages of the longest sequence.
    pub(super) table: usize,
    /// Whether prompts are computed on tensor cores.
    pub(super) prompts: bool,
}

/// A step laid out for the device: all that it is told, in one piece.
#[derive(Debug, Default)]
pub(super) struct Batch {
    words: Vec<i32>,
    /// With those that fill up a bucket.
    pub(super) rows: usize,
    pub(super) sequences: usize,
    /// Rows that are looked at one by one.
    pub(super) single: usize,
    /// Runs of rows that are looked at together.
    pub(super) runs: usize,
    /// Rows that a token is sampled after, and those behind them that are scored.
    pub(super) sampled: usize,
    pub(super) scored: usize,
    /// Whether all rows are wanted, in their order.
    pub(super) all_wanted: bool,
    places: Places,
}

/// Where each list begins, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    tokens: usize,
    positions: usize,
    sequence_of_row: usize,
    single: usize,
    wanted: usize,
    runs: usize,
    tables: usize,
}

/// Sizes that steps of decoding are made: each few enough rows larger than the one before, and no more of them than are worth their memory.
const BUCKETS: [usize; 24] =
    [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 512];

/// The rows that a step of decoding is made to have, which are not more than `most`; `None` where it is left as it is.
pub(super) fn bucket(rows: usize, most: usize) -> Option<usize> {
    BUCKETS.into_iter().find(|bucket| *bucket >= rows).map(|bucket| bucket.min(most)).filter(|bucket| *bucket >= rows)
}

/// Rows that tokens are sampled after in one step, at most.
pub(super) fn most_sampled(parallel: usize, rows: usize) -> usize {
    parallel.min(rows)
}

/// Whether a step is one token of each of its sequences, all to be sampled after.
pub(super) fn is_decoding(step: &AheadStep<'_>) -> bool {
    step.chunks.iter().all(|chunk| chunk.tokens.len() == 1 && chunk.sample && !chunk.score)
}

impl Batch {
    /// Bytes that the largest step needs, of `rows` tokens and so many sequences.
    pub(super) fn most_bytes(limits: &Limits, rows: usize, sequences: usize) -> usize {
        let runs = rows / PROMPT_ROWS + sequences;
        // Slots are two words each; every token may be wanted twice.
        (rows * 8 + 4 * runs + sequences * limits.table) * WORD
    }

    /// Of a step, made `rows` long with tokens that change nothing; the reason why not where it is not within the limits.
    pub(super) fn new(step: &AheadStep<'_>, rows: usize, limits: &Limits) -> Result<Self, String> {
        let used = step.tokens();
        debug_assert!(used <= rows, "{used} tokens in {rows} rows");
        let (mut slots, mut tokens, mut positions, mut sequence_of_row) = (vec![], vec![], vec![], vec![]);
        let (mut single, mut sampled, mut scored) = (vec![], vec![], vec![]);
        let (mut runs, mut tables) = (<[Vec<i32>; 4]>::default(), vec![]);
        for (at, chunk) in step.chunks.iter().enumerate() {
            let first = tokens.len();
            match chunk.tokens {
                Input::Known(known) => {
                    if let Some(token) = known.iter().find(|token| **token as usize >= limits.vocab) {
                        return Err(format!("token {token} is not in the vocabulary of {}", limits.vocab));
                    }
                    tokens.extend(known.iter().map(|token| token.cast_signed()));
                }
                Input::Chosen if chunk.slot.index() < limits.slots => tokens.push(waiting_for(chunk.slot.0)),
                Input::Chosen => return Err(format!("slot {} of {}", chunk.slot.0, limits.slots)),
            }
            let len = chunk.tokens.len();
            for position in chunk.start as usize..chunk.start as usize + len {
                let page = chunk.block_table.get(position / limits.page_len).map(|block| block.index());
                let page = page.filter(|page| *page < limits.pages);
                let page = page.ok_or_else(|| format!("position {position} has no page"))?;
                slots.push((page * limits.page_len + position % limits.page_len) as i64);
                positions.push(position as i32);
                sequence_of_row.push(at as i32);
            }
            if limits.prompts && len >= PROMPT {
                for run in (0..len).step_by(PROMPT_ROWS) {
                    let of_run = [first + run, (len - run).min(PROMPT_ROWS), at, chunk.start as usize + run];
                    runs.iter_mut().zip(of_run).for_each(|(list, number)| list.push(number as i32));
                }
            } else {
                single.extend(first as i32..(first + len) as i32);
            }
            if chunk.sample {
                sampled.push((first + len - 1) as i32);
            }
            if chunk.score {
                scored.extend(first as i32..(first + len) as i32);
            }
            let table = tables.len();
            let pages = (chunk.start as usize + len).div_ceil(limits.page_len);
            tables.extend(chunk.block_table[..pages].iter().map(|block| block.0.cast_signed()));
            tables.resize(table + limits.table, 0);
        }
        let all_wanted = scored.is_empty() && sampled.len() == used;
        let sequences = if all_wanted { rows } else { step.chunks.len() };
        // As many tables as rows where the step is to look like others of so many rows.
        tables.resize(sequences * limits.table, 0);
        // Rows that are not there look at the first token of the first sequence, store nothing, and are asked for nothing.
        for row in used..rows {
            slots.push(-1);
            tokens.push(0);
            positions.push(0);
            sequence_of_row.push(0);
            single.push(row as i32);
            if all_wanted {
                sampled.push(row as i32);
            }
        }
        let mut batch = Self {
            rows,
            sequences,
            single: single.len(),
            runs: runs[0].len(),
            sampled: sampled.len(),
            scored: scored.len(),
            all_wanted,
            ..Self::default()
        };
        // Slots first, where they are aligned.
        batch.words.extend(slots.iter().flat_map(|slot| [*slot as i32, (slot >> 32) as i32]));
        let mut append = |list: &[i32]| {
            let place = batch.words.len() * WORD;
            batch.words.extend_from_slice(list);
            place
        };
        batch.places = Places {
            tokens: append(&tokens),
            positions: append(&positions),
            sequence_of_row: append(&sequence_of_row),
            single: append(&single),
            wanted: append(&[sampled, scored].concat()),
            runs: append(&runs.concat()),
            tables: append(&tables),
        };
        Ok(batch)
    }

    /// Bytes of what the device is told.
    pub(super) fn bytes(&self) -> usize {
        self.words.len() * WORD
    }

    /// What the device is told, of which there are so many bytes.
    pub(super) fn write(&self, into: &mut [u8]) {
        into.as_chunks_mut().0.iter_mut().zip(&self.words).for_each(|(place, word)| *place = word.to_le_bytes());
    }

    pub(super) fn tokens(&self) -> usize {
        self.places.tokens
    }

    pub(super) fn positions(&self) -> usize {
        self.places.positions
    }

    pub(super) fn sequence_of_row(&self) -> usize {
        self.places.sequence_of_row
    }

    pub(super) fn single_rows(&self) -> usize {
        self.places.single
    }

    pub(super) fn wanted(&self) -> usize {
        self.places.wanted
    }

    pub(super) fn run_lists(&self) -> usize {
        self.places.runs
    }

    pub(super) fn tables(&self) -> usize {
        self.places.tables
    }
}
