/// What a forger tries: numbers at the edges, in places where they were not.
#[derive(Debug)]
pub(crate) struct Forger {
    state: u64,
}

impl Forger {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Changes up to four places within the first `header` bytes.
    pub(crate) fn forge(&mut self, bytes: &mut Vec<u8>, header: usize) {
        const EDGES: [u64; 14] = [
            0,
            1,
            2,
            3,
            31,
            0xff,
            0x7fff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 40,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX,
        ];
        for _ in 0..=self.below(4) {
            let at = self.below(header as u64) as usize;
            match self.below(8) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = bytes[at].wrapping_add(1),
                2 => bytes[at] = self.below(256) as u8,
                3 | 4 => self.overwrite(bytes, at, 4, EDGES),
                5 => self.overwrite(bytes, at, 8, EDGES),
                6 => {
                    // A run of bytes from elsewhere in the header.
                    let (from, len) = (self.below(header as u64) as usize, self.below(16) as usize);
                    let run = bytes[from..(from + len).min(bytes.len())].to_vec();
                    for (place, byte) in bytes[at..].iter_mut().zip(run) {
                        *place = byte;
                    }
                }
                _ if self.below(16) == 0 => bytes.truncate(at.max(1)),
                _ => bytes[at] = bytes[at].wrapping_sub(1),
            }
            if bytes.len() < header {
                return;
            }
        }
    }

    fn overwrite(&mut self, bytes: &mut [u8], at: usize, width: usize, edges: [u64; 14]) {
        let number = edges[self.below(14) as usize].to_le_bytes();
        for (place, byte) in bytes[at..].iter_mut().zip(&number[..width]) {
            *place = *byte;
        }
    }

    /// `SplitMix64`, Steele et al. 2014.
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
