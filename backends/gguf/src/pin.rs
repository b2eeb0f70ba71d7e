use std::{
    fmt::Write as _,
    io::{self, Read},
};

use sha2::{Digest as _, Sha256};

/// Read at a time: a file of many gigabytes is hashed as fast as it can be read.
const CHUNK: usize = 1 << 20;

/// Compares what `file` holds, from where it stands to its end, with the SHA-256 hash that it has to have. The inner error says which hash
/// it has instead.
pub(crate) fn compare(mut file: impl Read, expected: &[u8; 32]) -> io::Result<Result<(), String>> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => hash.update(&chunk[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let got: [u8; 32] = hash.finalize().into();
    if got == *expected {
        return Ok(Ok(()));
    }
    Ok(Err(format!("sha256 mismatch: expected {} got {}", hex(expected), hex(&got))))
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time, and every other time nothing but an interruption.
    struct Interrupted<'a>(&'a [u8], bool);

    impl Read for Interrupted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(io::ErrorKind::Interrupted.into()) } else { self.0.read(&mut buffer[..1]) }
        }
    }

    #[test]
    fn all_bytes_count() {
        // FIPS 180-2, appendix B.1.
        let of_abc = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03,
            0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
        ];
        assert_eq!(compare(&b"abc"[..], &of_abc).expect("bytes"), Ok(()));
        assert_eq!(compare(Interrupted(b"abc", false), &of_abc).expect("bytes"), Ok(()));
        let error = compare(&b""[..], &of_abc).expect("bytes").expect_err("other bytes");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let got = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(error, format!("sha256 mismatch: expected {expected} got {got}"));
    }
}
