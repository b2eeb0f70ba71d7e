//! The elements of arrays, read when somebody asks for them.

use std::io::{Read, Seek, SeekFrom};

use crate::{
    cursor::{Cursor, Result, malformed},
    header::{Array, MAX_STRING_BYTES, STRING},
};

/// The longest array that is read; the largest real ones are merges, of which a vocabulary of 256 Ki tokens has about twice as many.
const MAX_LEN: u64 = 2 << 20;
/// The bytes that all strings of an array may have together; the largest real ones have about ten mebibytes.
const MAX_BYTES: u64 = 64 << 20;

/// Strings, UTF-8 or not.
pub(crate) fn strings(source: impl Read + Seek, len: u64, key: &str, array: &Array) -> Result<Vec<Box<[u8]>>> {
    if array.kind != STRING {
        return Err(malformed(format!("array `{key}`: strings expected")));
    }
    let mut cursor = at(source, len, key, array)?;
    let mut strings = Vec::new();
    let mut room = MAX_BYTES;
    for _ in 0..array.len {
        let bytes = cursor.string_len(key, MAX_STRING_BYTES)?;
        room = room
            .checked_sub(bytes)
            .ok_or_else(|| malformed(format!("array `{key}`: more than {MAX_BYTES} bytes of strings")))?;
        strings.push(cursor.vec(bytes, key)?.into_boxed_slice());
    }
    Ok(strings)
}

/// Numbers of any type.
pub(crate) fn numbers(source: impl Read + Seek, len: u64, key: &str, array: &Array) -> Result<Vec<f64>> {
    let mut cursor = at(source, len, key, array)?;
    let mut numbers = Vec::new();
    for _ in 0..array.len {
        numbers.push(match array.kind {
            0 => u8::from_le_bytes(cursor.bytes(key)?).into(),
            1 => i8::from_le_bytes(cursor.bytes(key)?).into(),
            2 => u16::from_le_bytes(cursor.bytes(key)?).into(),
            3 => i16::from_le_bytes(cursor.bytes(key)?).into(),
            4 => u32::from_le_bytes(cursor.bytes(key)?).into(),
            5 => i32::from_le_bytes(cursor.bytes(key)?).into(),
            6 => f32::from_le_bytes(cursor.bytes(key)?).into(),
            7 => f64::from(u8::from(cursor.bytes::<1>(key)? != [0])),
            10 => u64::from_le_bytes(cursor.bytes(key)?) as f64,
            11 => i64::from_le_bytes(cursor.bytes(key)?) as f64,
            12 => f64::from_le_bytes(cursor.bytes(key)?),
            _ => return Err(malformed(format!("array `{key}`: numbers expected"))),
        });
    }
    Ok(numbers)
}

/// The place of the first element.
fn at<S: Read + Seek>(mut source: S, len: u64, key: &str, array: &Array) -> Result<Cursor<S>> {
    if array.len > MAX_LEN {
        return Err(malformed(format!("array `{key}`: {} elements, {MAX_LEN} at most", array.len)));
    }
    source.seek(SeekFrom::Start(array.at))?;
    Ok(Cursor { source, at: array.at, len })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor as Bytes;

    use super::*;

    fn array(kind: u32, len: u64) -> Array {
        Array { len, kind, at: 3 }
    }

    #[test]
    fn strings_are_read_from_their_place() {
        let bytes = b"...\x01\0\0\0\0\0\0\0a\x02\0\0\0\0\0\0\0\xff ";
        let read = |len| strings(Bytes::new(&bytes[..len]), len as u64, "k", &array(STRING, 2));
        assert_eq!(read(bytes.len()).expect("good"), [b"a".as_slice(), b"\xff "].map(Box::from));
        for len in 3..bytes.len() {
            assert!(read(len).is_err(), "{len} bytes");
        }
        let error = strings(Bytes::new(bytes), 30, "k", &array(4, 2)).expect_err("numbers");
        assert_eq!(error.to_string(), "array `k`: strings expected");
        let error = strings(Bytes::new(bytes), 30, "k", &array(STRING, MAX_LEN + 1)).expect_err("too long");
        assert_eq!(error.to_string(), "array `k`: 2097153 elements, 2097152 at most");
    }

    #[test]
    fn numbers_of_all_types() {
        let read = |kind, bytes: &[u8]| {
            let bytes = [b"...", bytes].concat();
            numbers(Bytes::new(&bytes), bytes.len() as u64, "k", &array(kind, 1)).map(|numbers| numbers[0])
        };
        for (kind, bytes) in [
            (0, &[7u8][..]),
            (1, &[7]),
            (2, &7u16.to_le_bytes()),
            (3, &7i16.to_le_bytes()),
            (4, &7u32.to_le_bytes()),
            (5, &7i32.to_le_bytes()),
            (6, &7f32.to_le_bytes()),
            (10, &7u64.to_le_bytes()),
            (11, &7i64.to_le_bytes()),
            (12, &7f64.to_le_bytes()),
        ] {
            assert_eq!(read(kind, bytes).expect("good"), 7.0, "{kind}");
            assert!(read(kind, &bytes[1..]).is_err(), "{kind}");
        }
        assert_eq!(read(7, &[7]).expect("good"), 1.0);
        assert_eq!(read(STRING, &[0; 8]).expect_err("a string").to_string(), "array `k`: numbers expected");
    }
}
