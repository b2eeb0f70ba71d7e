use std::{io::Write, ops::Range};

use rayon::prelude::*;

use super::{Progress, SynthError};

/// Numbers that one thread makes at a time.
const PER_TASK: usize = 1 << 20;

/// Writes a tensor some rows at a time, which all threads make together: no more of it is ever in memory than they work on.
pub(super) fn write(
    rows: usize,
    columns: usize,
    file: &mut dyn Write,
    progress: &mut Progress<'_>,
    encode: impl Fn(Range<usize>) -> Result<Vec<u8>, SynthError> + Sync,
) -> Result<(), SynthError> {
    let per_task = (PER_TASK / columns).max(1);
    let starts: Vec<usize> = (0..rows).step_by(per_task).collect();
    for starts in starts.chunks(2 * rayon::current_num_threads()) {
        let made: Vec<Vec<u8>> =
            starts.par_iter().map(|&start| encode(start..rows.min(start + per_task))).collect::<Result<_, _>>()?;
        for bytes in made {
            file.write_all(&bytes)?;
            progress.add(bytes.len() as u64);
        }
    }
    Ok(())
}
