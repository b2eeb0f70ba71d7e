use std::io::Cursor as Bytes;

use super::*;

/// A file that is built up piece by piece, whole or broken.
#[derive(Clone)]
struct File {
    magic: [u8; 4],
    version: u32,
    values: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<(Vec<u8>, Vec<u64>, u32, u64)>,
    counts: Option<(u64, u64)>,
    data: usize,
}

/// Name, dimensions, type, offset.
type TensorEntry<'a> = (&'a str, &'a [u64], u32, u64);

fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

fn array(kind: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

impl File {
    /// One value of each type and two small tensors.
    fn good() -> Self {
        let value = |key: &str, kind: u32, bytes: &[u8]| (key.as_bytes().to_vec(), kind, bytes.to_vec());
        Self {
            magic: *b"GGUF",
            version: 3,
            values: vec![
                value("u8", 0, &[7]),
                value("i8", 1, &[0xff]),
                value("u16", 2, &7u16.to_le_bytes()),
                value("i16", 3, &(-7i16).to_le_bytes()),
                value("u32", 4, &7u32.to_le_bytes()),
                value("i32", 5, &(-7i32).to_le_bytes()),
                value("f32", 6, &0.5f32.to_le_bytes()),
                value("bool", 7, &[1]),
                value("string", 8, &string("llama")),
                value("words", 9, &array(8, 2, &[string("a"), string("bc")].concat())),
                value("numbers", 9, &array(5, 3, &[0; 12])),
                value("u64", 10, &7u64.to_le_bytes()),
                value("i64", 11, &(-7i64).to_le_bytes()),
                value("f64", 12, &0.25f64.to_le_bytes()),
            ],
            tensors: vec![(b"first".to_vec(), vec![3, 2], 0, 0), (b"second".to_vec(), vec![32, 2], 2, 32)],
            counts: None,
            data: 32 + 36,
        }
    }

    fn with_value(mut self, key: &str, kind: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.values.push((key.into(), kind, bytes.into()));
        self
    }

    fn with_tensors(mut self, tensors: &[TensorEntry<'_>]) -> Self {
        self.tensors = tensors
            .iter()
            .map(|&(name, dims, kind, offset)| (name.as_bytes().to_vec(), dims.to_vec(), kind, offset))
            .collect();
        self
    }

    fn header(&self) -> Vec<u8> {
        let (tensors, values) = self.counts.unwrap_or((self.tensors.len() as u64, self.values.len() as u64));
        let mut out = Vec::new();
        out.extend_from_slice(&self.magic);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&tensors.to_le_bytes());
        out.extend_from_slice(&values.to_le_bytes());
        for (key, kind, bytes) in &self.values {
            out.extend(string(key));
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(bytes);
        }
        for (name, dims, kind, offset) in &self.tensors {
            out.extend(string(name));
            out.extend_from_slice(&(dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        out
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }
}

fn read(bytes: &[u8]) -> Result<Header> {
    Header::read(Bytes::new(bytes), bytes.len() as u64)
}

fn reason(bytes: &[u8]) -> String {
    match read(bytes) {
        Ok(header) => panic!("accepted: {header:?}"),
        Err(error @ (HeaderError::NotGguf(_) | HeaderError::Malformed(_))) => error.to_string(),
        Err(HeaderError::Io(error)) => panic!("an I/O error: {error}"),
    }
}

#[test]
fn a_good_file_is_read() {
    for version in [2, 3] {
        let header = read(&File { version, ..File::good() }.bytes()).expect("a good file");
        for key in ["u8", "u16", "u32", "u64"] {
            assert_eq!(header.unsigned(key), Some(7), "{key}");
        }
        for (key, value) in [("i8", -1), ("i16", -7), ("i32", -7), ("i64", -7)] {
            assert_eq!(header.get(key), Some(&Value::Signed(value)), "{key}");
            assert_eq!(header.unsigned(key), None, "{key}");
        }
        assert_eq!(header.get("f32"), Some(&Value::Float(0.5)));
        assert_eq!(header.get("f64"), Some(&Value::Double(0.25)));
        assert_eq!(header.get("bool"), Some(&Value::Bool(true)));
        assert_eq!(header.text("string"), Some("llama"));
        assert_eq!((header.array_len("words"), header.array_len("numbers")), (Some(2), Some(3)));
        assert_eq!(header.tensors()[1].name, "second");
        assert_eq!(header.tensors()[1].dims, [32, 2]);
    }
}

#[test]
fn every_shorter_file_is_refused() {
    let bytes = File::good().bytes();
    for len in 0..bytes.len() {
        // The length as the file system tells it, and one that lies: the file shrank meanwhile.
        reason(&bytes[..len]);
        assert!(
            Header::read(Bytes::new(&bytes[..len]), bytes.len() as u64).is_err() || len >= File::good().header().len()
        );
    }
    read(&bytes).expect("the whole file is good");
}

#[test]
fn no_changed_byte_makes_it_panic() {
    let bytes = File::good().bytes();
    for at in 0..File::good().header().len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, bytes[at].wrapping_add(1)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            // Refused or not, it comes back.
            let _ = read(&bytes);
        }
    }
}

#[test]
fn preambles_that_are_refused() {
    let good = File::good();
    for (file, expected) in [
        (File { magic: *b"FUGG", ..good.clone() }, "not a GGUF v2/v3 file: it does not begin with `GGUF`"),
        (File { version: 0, ..good.clone() }, "not a GGUF v2/v3 file: its version is 0"),
        (File { version: 1, ..good.clone() }, "not a GGUF v2/v3 file: its version is 1"),
        (File { version: 4, ..good.clone() }, "not a GGUF v2/v3 file: its version is 4"),
        (File { version: 3u32.swap_bytes(), ..good.clone() }, "not a GGUF v2/v3 file: its numbers are big-endian"),
        (File { counts: Some((u64::MAX, 1)), ..good.clone() }, "implausible tensor count 18446744073709551615"),
        (File { counts: Some((1, u64::MAX)), ..good.clone() }, "implausible metadata count 18446744073709551615"),
        (File { counts: Some((1, 65_000)), ..good.clone() }, "implausible metadata count 65000"),
        (File { counts: Some((65_537, 1)), ..good }, "implausible tensor count 65537"),
    ] {
        assert_eq!(reason(&file.bytes()), expected);
    }
}

#[test]
fn metadata_that_is_refused() {
    let with = |key: &str, kind: u32, bytes: &[u8]| File::good().with_value(key, kind, bytes);
    let huge = u64::MAX.to_le_bytes();
    for (file, expected) in [
        (with("k", 13, &[]), "unsupported value type 13 of `k`"),
        (with("k", u32::MAX, &[]), "unsupported value type 4294967295 of `k`"),
        (with("k", 9, &array(9, 1, &array(0, 1, &[0]))), "unsupported value type 9 in the array `k`"),
        (with("k", 9, &array(77, 0, &[])), "unsupported value type 77 in the array `k`"),
        (with("k", 9, &array(0, u64::MAX, &[])), "array `k`: length 18446744073709551615 exceeds file"),
        (with("k", 9, &array(12, 1 << 20, &[])), "array `k`: length 1048576 exceeds file"),
        (with("k", 9, &array(8, 1, &huge)), "string in k: length 18446744073709551615 exceeds file"),
        (with("k", 8, &huge), "string in k: length 18446744073709551615 exceeds file"),
        (with("k", 8, &(1u64 << 20).to_le_bytes()), "string in k: length 1048576 exceeds file"),
        (with("", 0, &[0]), "empty metadata key"),
        (with("u8", 0, &[0]), "duplicate metadata key `u8`"),
        (with("general.alignment", 4, &[0; 4]), "invalid alignment Unsigned(0): it must be an unsigned power of two"),
        (
            with("general.alignment", 4, &[13, 0, 0, 0]),
            "invalid alignment Unsigned(13): it must be an unsigned power of two",
        ),
        (
            with("general.alignment", 5, &[32, 0, 0, 0]),
            "invalid alignment Signed(32): it must be an unsigned power of two",
        ),
    ] {
        assert_eq!(reason(&file.bytes()), expected);
    }
    let mut file = File::good();
    file.values[0].0 = vec![0xff];
    assert_eq!(reason(&file.bytes()), "a metadata key is not UTF-8");
}

#[test]
fn a_token_stands_in_its_vocabulary_once() {
    let with = |tokens: &[&[u8]]| {
        let strings: Vec<u8> = tokens.iter().flat_map(string).collect();
        File::good().with_value(TOKENS, 9, array(8, tokens.len() as u64, &strings)).bytes()
    };
    assert_eq!(read(&with(&[b"a", b"", b"b", b""])).expect("a good file").array_len(TOKENS), Some(4));
    for tokens in [[&b"a"[..], b"b", b"a"], [b"a\0b", b"b", b"a\0c"], [b"[EMPTY_2]", b"a", b""]] {
        assert_eq!(reason(&with(&tokens)), "token 2 of `tokenizer.ggml.tokens` stands there twice");
    }
}

#[test]
fn tensors_that_are_refused() {
    let long = "n".repeat(64);
    let with = |tensors: &[TensorEntry<'_>]| File::good().with_tensors(tensors);
    for (file, expected) in [
        (with(&[("t", &[], 0, 0)]), "tensor `t`: 0 dimensions, 1 to 4 expected"),
        (with(&[("t", &[1; 5], 0, 0)]), "tensor `t`: 5 dimensions, 1 to 4 expected"),
        (with(&[("t", &[4, 0], 0, 0)]), "tensor `t`: a dimension is zero"),
        (with(&[("t", &[1 << 40, 1 << 40], 0, 0)]), "tensor `t`: tensor size overflow"),
        (with(&[("t", &[1 << 62], 0, 0)]), "tensor `t`: tensor size overflow"),
        (with(&[("t", &[u64::MAX, 1], 0, 0)]), "tensor `t`: tensor size overflow"),
        (with(&[("t", &[31], 2, 0)]), "tensor `t`: row size 31 is no multiple of 32"),
        (with(&[("t", &[1], 4, 0)]), "tensor `t`: unknown tensor type 4"),
        (with(&[("t", &[1], u32::MAX, 0)]), "tensor `t`: unknown tensor type 4294967295"),
        (with(&[("t", &[1], 0, 4)]), "tensor `t`: offset 4, 0 expected"),
        (with(&[("t", &[1], 0, u64::MAX)]), "tensor `t`: offset 18446744073709551615, 0 expected"),
        (with(&[("t", &[1], 0, 0), ("t", &[1], 0, 32)]), "duplicate tensor name `t`"),
        (with(&[("t", &[1], 0, 0), ("s", &[1], 0, 0)]), "tensor `s`: offset 0, 32 expected"),
        (with(&[(&long, &[1], 0, 0)]), "a tensor name of 64 bytes, 63 at most"),
    ] {
        assert_eq!(reason(&file.bytes()), expected);
    }
    let file = with(&[("t", &[1 << 20], 0, 0)]);
    let len = file.bytes().len();
    assert_eq!(reason(&file.bytes()), format!("tensor `t`: its data exceeds the file of {len} bytes"));
}

#[test]
fn long_strings_are_walked_over() {
    let long = "x".repeat((1 << 20) + 1);
    let header = read(&File::good().with_value("long", 8, string(&long)).bytes()).expect("a good file");
    assert_eq!(header.get("long"), Some(&Value::LongString(long.len() as u64)));
    assert_eq!(header.tensors().len(), 2);
}

#[test]
fn the_alignment_is_the_files_own() {
    let mut file = File::good().with_value("general.alignment", 4, 64u32.to_le_bytes());
    assert_eq!(reason(&file.bytes()), "tensor `second`: offset 32, 64 expected");
    file.tensors[1].3 = 64;
    file.data = 192;
    read(&file.bytes()).expect("aligned to 64");
}

#[path = "../tests/forger/mod.rs"]
mod forger;

/// Forged headers for a minute: no panic, and nothing read that the file does not hold.
mod slow {
    use std::time::{Duration, Instant};

    use super::{forger::Forger, *};

    #[test]
    fn a_minute_of_forged_headers() {
        let good = File::good().bytes();
        let begun = Instant::now();
        let (mut read_well, mut refused) = (0u64, 0u64);
        for seed in 0.. {
            if seed % 1024 == 0 && begun.elapsed() >= Duration::from_secs(60) {
                break;
            }
            let mut bytes = good.clone();
            Forger::new(seed).forge(&mut bytes, good.len());
            match read(&bytes) {
                Ok(header) => {
                    let data: u64 = header.tensors().iter().map(|tensor| tensor.bytes).sum();
                    assert!(data <= bytes.len() as u64, "forgery {seed}: {data} bytes of tensors in {}", bytes.len());
                    read_well += 1;
                }
                Err(HeaderError::Io(error)) => panic!("forgery {seed}: read beyond the end: {error}"),
                Err(HeaderError::NotGguf(_) | HeaderError::Malformed(_)) => refused += 1,
            }
        }
        assert!(read_well > 1000 && refused > 1000, "{read_well} read, {refused} refused");
    }
}

#[test]
fn what_a_file_says_of_generating_is_read_as_far_as_it_can_be_meant() {
    let tokens = array(8, 4, &["a", "b", "c", "d"].map(string).concat());
    let file = File::good()
        .with_value("general.sampling.temp", 6, 0.75f32.to_le_bytes())
        .with_value("general.sampling.top_k", 5, 20i32.to_le_bytes())
        .with_value("general.sampling.top_p", 6, 1.5f32.to_le_bytes())
        .with_value("general.sampling.penalty_repeat", 6, 1.25f32.to_le_bytes())
        .with_value("tokenizer.ggml.tokens", 9, tokens)
        .with_value("tokenizer.ggml.fim_pre_token_id", 4, 3u32.to_le_bytes())
        .with_value("tokenizer.ggml.suffix_token_id", 4, 1u32.to_le_bytes());
    let header = read(&file.bytes()).unwrap();
    let defaults = crate::sampling(&header);
    assert_eq!((defaults.temperature, defaults.top_k, defaults.repetition_penalty), (Some(0.75), Some(20), Some(1.25)));
    assert_eq!((defaults.top_p, defaults.min_p), (None, None), "nobody could ask for it");
    assert_eq!(crate::fill_in_the_middle(&header), None, "one is missing");
    let middle = |id: u32| {
        let file = file.clone().with_value("tokenizer.ggml.fim_mid_token_id", 4, id.to_le_bytes());
        crate::fill_in_the_middle(&read(&file.bytes()).unwrap()).map(|marks| [marks.prefix, marks.suffix, marks.middle])
    };
    assert_eq!(middle(2), Some([3, 1, 2]));
    assert_eq!(middle(4), None, "beyond the vocabulary");
}
