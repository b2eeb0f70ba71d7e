use super::{F32, I32, ROW_THREADS, blocks, grid, size};
use crate::{Buffer, Copying, CudaError, Device, Outbox, Pinned, Place, executor::Extent};

/// As many as the kernel is made for.
const THREADS: u32 = 1024;

/// Shared memory for the counters with which the kernel finds what top-k and top-p leave.
const COUNTERS: u32 = 2 * 256 * 32 * 4;

/// Tokens that a vocabulary may have: with 2^19 of them the kernel's counters could overflow.
pub const MOST_TOKENS: usize = 500_000;

/// How one token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct SampleParams {
    /// The row of logits.
    pub row: i32,
    /// Where the token is kept for [`Device::follow`].
    pub slot: i32,
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
    /// Bytes of what is asked for a row.
    const ASKED: usize = 4 * F32 + 3 * I32;

    /// In lists, one of each field: as the kernel has them.
    fn write(rows: &[Self], into: &mut [u8]) {
        let integers = |field: fn(&Self) -> i32| rows.iter().map(field).map(i32::to_le_bytes);
        let choices = rows.iter().flat_map(|row| [row.temperature, row.top_p, row.min_p, row.u]).map(f32::to_le_bytes);
        let words = integers(|row| row.row).chain(choices);
        let words = words.chain(integers(|row| row.top_k)).chain(integers(|row| row.slot));
        into.as_chunks_mut().0.iter_mut().zip(words).for_each(|(place, word)| *place = word);
    }
}

/// Chooses tokens on a device. What is asked, and the answers, pass through pinned memory, so that nobody waits but who wants an answer.
#[derive(Debug)]
pub struct Chooser {
    /// What is asked of the kernel, and its answers.
    room: Buffer,
    asked: Outbox,
    /// For answers; those that are on their way are not here.
    answers: Vec<Pinned>,
    most: usize,
}

/// Tokens that were asked for.
#[derive(Debug)]
#[must_use = "tokens are asked for to be collected"]
pub struct Choosing {
    copying: Copying,
    count: usize,
}

impl Chooser {
    /// For up to so many rows at a time. Of so many answers at a time there is room without asking for more: the one that is collected while
    /// the next is on its way.
    const AT_ONCE: usize = 2;

    /// For up to `most` rows at a time.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], or when the device has failed.
    pub fn new(device: &Device, most: usize) -> Result<Self, CudaError> {
        let answers = (0..Self::AT_ONCE).map(|_| device.pin(most * I32)).collect::<Result<_, _>>()?;
        Ok(Self {
            room: device.allocate(most * (SampleParams::ASKED + I32))?,
            asked: Outbox::new(device, most * SampleParams::ASKED)?,
            answers,
            most,
        })
    }

    /// Asks for a token for each of `rows`, of logits in F32 of `vocab` each. It is kept in `last`, at the row's slot, for the next step. Waits
    /// for nothing.
    ///
    /// # Errors
    /// Those of the device.
    pub fn choose(
        &mut self,
        device: &Device,
        logits: Place<'_>,
        vocab: usize,
        rows: &[SampleParams],
        last: &Buffer,
    ) -> Result<Choosing, CudaError> {
        let (count, room) = (rows.len(), &self.room);
        assert!(vocab <= MOST_TOKENS, "{vocab} tokens, more than {MOST_TOKENS}");
        assert!(count <= self.most, "{count} rows of {}", self.most);
        assert!(rows.iter().all(|row| row.row >= 0), "rows of logits are counted from 0");
        let places = last.len() / I32;
        let is_place = |slot: i32| usize::try_from(slot).is_ok_and(|slot| slot < places);
        assert!(rows.iter().all(|row| is_place(row.slot)), "there are {places} slots");
        let tokens = count * SampleParams::ASKED;
        if let Some(highest) = rows.iter().map(|row| row.row.unsigned_abs() as usize).max() {
            self.asked.send(room, tokens, |bytes| SampleParams::write(rows, bytes))?;
            let (choices, top_ks, slots) = (count * I32, count * (I32 + 4 * F32), count * (2 * I32 + 4 * F32));
            let arguments = [
                logits.for_bytes((highest + 1) * vocab * F32),
                room.all().for_bytes(count * I32),
                room.at(choices).for_bytes(count * 4 * F32),
                room.at(top_ks).for_bytes(count * I32),
                room.at(slots).for_bytes(count * I32),
                size(vocab),
                room.at(tokens).for_bytes(count * I32),
                last.all().for_bytes(places * I32),
            ];
            let truncated = rows.iter().any(|row| row.top_k > 0 || row.top_p < 1.0);
            let shared_bytes = if truncated { COUNTERS } else { 0 };
            let extent = Extent { grid: [grid(count), 1, 1], threads: THREADS, shared_bytes };
            device.launch("sample", extent, &arguments)?;
        }
        let into = match self.answers.pop() {
            Some(pinned) => pinned,
            None => device.pin(self.most * I32)?,
        };
        // Without rows too: whoever waits for it waits for all that was asked for before.
        Ok(Choosing { copying: room.read_later(tokens, into, count * I32)?, count })
    }

    /// Waits for tokens, not for what was asked for since; `None` where logits are not finite.
    ///
    /// # Errors
    /// Those of the device.
    pub fn collect(&mut self, choosing: Choosing) -> Result<Vec<Option<u32>>, CudaError> {
        let Choosing { copying, count } = choosing;
        let answers = copying.wait()?;
        let tokens = answers[..count * I32].as_chunks().0.iter().map(|&token| i32::from_le_bytes(token));
        let tokens = tokens.map(|token| u32::try_from(token).ok()).collect();
        self.answers.push(answers);
        Ok(tokens)
    }
}

impl Device {
    /// Puts tokens that were chosen into a list of `rows` of them, where it has [`waiting_for`] their slot.
    ///
    /// # Errors
    /// Those of the device.
    pub fn follow(&self, tokens: Place<'_>, rows: usize, last: &Buffer) -> Result<(), CudaError> {
        let extent = Extent { grid: [blocks(rows, ROW_THREADS), 1, 1], threads: ROW_THREADS, shared_bytes: 0 };
        let arguments = [tokens.for_bytes(rows * I32), last.all().for_bytes(last.len()), size(rows)];
        self.launch("follow", extent, &arguments)
    }
}

/// What stands in a list of tokens for the one that is chosen for a slot.
#[must_use]
pub fn waiting_for(slot: u32) -> i32 {
    -1 - slot.cast_signed()
}
