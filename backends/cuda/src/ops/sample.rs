use super::{F32, I32, grid, size};
use crate::{Buffer, CudaError, Device, Place, executor::Extent};

/// As many as the kernel is made for.
const THREADS: u32 = 512;

/// How one token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct SampleParams {
    /// The row of logits.
    pub row: i32,
    /// 0 for the likeliest.
    pub temperature: f32,
    /// 1 for no bound.
    pub top_p: f32,
    /// 0 for no bound.
    pub min_p: f32,
    /// Uniform in `[0, 1)`.
    pub u: f32,
    /// 0 for no bound.
    pub top_k: i32,
}

impl SampleParams {
    /// Bytes that each row takes of a buffer, for what is asked and for the answer.
    pub const BYTES: usize = 4 * F32 + 3 * I32;
}

impl Device {
    /// Chooses a token for each of `rows`, of logits in F32 of `vocab` each; `None` where logits are not finite. `room` has
    /// [`SampleParams::BYTES`] for each.
    ///
    /// # Errors
    /// Those of the device.
    pub fn sample(
        &self,
        logits: Place<'_>,
        vocab: usize,
        rows: &[SampleParams],
        room: &Buffer,
    ) -> Result<Vec<Option<u32>>, CudaError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let count = rows.len();
        let highest = rows.iter().map(|row| row.row).max().unwrap_or(0);
        assert!(rows.iter().all(|row| row.row >= 0), "rows of logits are counted from 0");
        let logits = logits.for_bytes((highest.unsigned_abs() as usize + 1) * vocab * F32);
        let mut bytes = Vec::with_capacity(count * (SampleParams::BYTES - I32));
        bytes.extend(rows.iter().flat_map(|row| row.row.to_le_bytes()));
        bytes.extend(
            rows.iter().flat_map(|row| [row.temperature, row.top_p, row.min_p, row.u]).flat_map(f32::to_le_bytes),
        );
        bytes.extend(rows.iter().flat_map(|row| row.top_k.to_le_bytes()));
        room.write(0, &bytes)?;
        let (choices, top_ks, tokens) = (count * I32, count * (I32 + 4 * F32), count * (2 * I32 + 4 * F32));
        let arguments = [
            logits,
            room.all().for_bytes(count * I32),
            room.at(choices).for_bytes(count * 4 * F32),
            room.at(top_ks).for_bytes(count * I32),
            size(vocab),
            room.at(tokens).for_bytes(count * I32),
        ];
        let extent = Extent { grid: [grid(count), 1, 1], threads: THREADS, shared_bytes: 0 };
        self.launch("sample", extent, &arguments)?;
        let mut answer = vec![0; count * I32];
        room.read(tokens, &mut answer)?;
        let tokens = answer.as_chunks().0.iter().map(|&token| i32::from_le_bytes(token));
        Ok(tokens.map(|token| u32::try_from(token).ok()).collect())
    }
}
