//! A reader of GGUF headers that trusts nothing.
//!
//! It runs before llama.cpp sees the file, so that a file that is cut short, forged or simply something else is refused with one exact
//! sentence instead of whatever the C++ parser makes of it. It is total: no input makes it panic, loop for long, or allocate more than what
//! the file really holds.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read, Seek, SeekFrom},
};

use thiserror::Error;

use crate::ggml_type;

/// More metadata keys or tensors than any model has.
const MAX_COUNT: u64 = 1 << 16;
/// A key is a short dotted name.
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// The longest string that is let through; the largest real ones are chat templates of some ten kilobytes.
const MAX_STRING_BYTES: u64 = 16 << 20;
/// The longest array that is let through; the largest real ones are vocabularies and their merges.
const MAX_ARRAY_LEN: u64 = 64 << 20;
/// The longest token that is let through; the largest real ones are runs of a few hundred spaces.
const MAX_TOKEN_BYTES: u64 = 1 << 16;
const TOKENS: &str = "tokenizer.ggml.tokens";
/// Longer strings are walked over, not kept.
const MAX_KEPT_BYTES: u64 = 1 << 20;
/// ggml stores a tensor's name in 64 bytes with a closing zero.
const MAX_TENSOR_NAME_BYTES: usize = 63;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Unpickling runs code that the file brings along.
pub(crate) const PICKLE: &str = "pickle-based weights are not supported";

/// What a header says.
#[derive(Debug, Default)]
pub(crate) struct Header {
    values: HashMap<String, Value>,
    tensors: Vec<Tensor>,
}

/// A metadata value, as far as anybody here asks for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    /// Of 32 bits. llama.cpp tells the two apart, and aborts when it asks for the one and finds the other.
    Float(f32),
    Double(f64),
    Bool(bool),
    String(Box<[u8]>),
    /// A string too long to be kept.
    LongString(u64),
    /// An array's length; its elements are walked over.
    Array(u64),
}

/// One entry of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    /// ggml's number for the type.
    pub(crate) kind: u32,
    pub(crate) bytes: u64,
    offset: u64,
}

impl Tensor {
    /// All four dimensions, as ggml counts them.
    pub(crate) fn shape(&self) -> [u64; MAX_DIMS as usize] {
        std::array::from_fn(|at| self.dims.get(at).copied().unwrap_or(1))
    }
}

/// Why a header was refused.
#[derive(Debug, Error)]
pub(crate) enum HeaderError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("not a GGUF v2/v3 file: {0}")]
    NotGguf(String),
    #[error("{0}")]
    Malformed(String),
}

type Result<T> = std::result::Result<T, HeaderError>;

impl Header {
    /// Reads the header of a file of `len` bytes, from its start to its tensor table, and checks that all tensor data lies in the file.
    ///
    /// # Errors
    /// With the first rule that the file breaks.
    pub(crate) fn read(source: impl Read + Seek, len: u64) -> Result<Self> {
        let mut cursor = Cursor { source, at: 0, len };
        let (tensor_count, value_count) = read_preamble(&mut cursor)?;
        let values = read_values(&mut cursor, value_count)?;
        let alignment = alignment(&values)?;
        let tensors = read_tensors(&mut cursor, tensor_count)?;
        check_layout(&tensors, cursor.at, alignment, len)?;
        Ok(Self { values, tensors })
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A text; `None` when it is absent, no string, not UTF-8, or longer than a mebibyte.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Double(_)
            | Value::Bool(_)
            | Value::LongString(_)
            | Value::Array(_) => None,
        }
    }

    /// A number that is not negative.
    pub(crate) fn unsigned(&self, key: &str) -> Option<u64> {
        match *self.get(key)? {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => u64::try_from(value).ok(),
            Value::Float(_)
            | Value::Double(_)
            | Value::Bool(_)
            | Value::String(_)
            | Value::LongString(_)
            | Value::Array(_) => None,
        }
    }

    /// The length of an array.
    pub(crate) fn array_len(&self, key: &str) -> Option<u64> {
        match *self.get(key)? {
            Value::Array(len) => Some(len),
            Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Double(_)
            | Value::Bool(_)
            | Value::String(_)
            | Value::LongString(_) => None,
        }
    }

    /// The tensor table.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }
}

fn read_preamble<S: Read + Seek>(cursor: &mut Cursor<S>) -> Result<(u64, u64)> {
    let not_gguf = |reason: &str| HeaderError::NotGguf(reason.to_owned());
    let short = |_| not_gguf("shorter than a header");
    let magic: [u8; 4] = cursor.bytes("the header").map_err(short)?;
    if magic[0] == 0x80 && matches!(magic[1], 2..=5) {
        return Err(malformed(PICKLE));
    }
    if magic != *b"GGUF" {
        return Err(not_gguf("it does not begin with `GGUF`"));
    }
    match u32::from_le_bytes(cursor.bytes("the header").map_err(short)?) {
        2 | 3 => {}
        version if version.swap_bytes() == 2 || version.swap_bytes() == 3 => {
            return Err(not_gguf("its numbers are big-endian"));
        }
        version => return Err(not_gguf(&format!("its version is {version}"))),
    }
    let tensors = u64::from_le_bytes(cursor.bytes("the header").map_err(short)?);
    let values = u64::from_le_bytes(cursor.bytes("the header").map_err(short)?);
    // The smallest value is a key of one byte with a one-byte number (8 + 1 + 4 + 1); the smallest tensor a one-byte name, one dimension,
    // type and offset (8 + 1 + 4 + 8 + 4 + 8).
    for (what, count, smallest) in [("metadata", values, 14), ("tensor", tensors, 33)] {
        if count > MAX_COUNT || count * smallest > cursor.remaining() {
            return Err(malformed(format!("implausible {what} count {count}")));
        }
    }
    Ok((tensors, values))
}

fn read_values<S: Read + Seek>(cursor: &mut Cursor<S>, count: u64) -> Result<HashMap<String, Value>> {
    let mut values = HashMap::new();
    for _ in 0..count {
        let key = cursor.name("a metadata key", MAX_KEY_BYTES)?;
        if key.is_empty() {
            return Err(malformed("empty metadata key"));
        }
        let value = read_value(cursor, &key)?;
        if values.contains_key(&key) {
            return Err(malformed(format!("duplicate metadata key `{key}`")));
        }
        values.insert(key, value);
    }
    Ok(values)
}

fn read_value<S: Read + Seek>(cursor: &mut Cursor<S>, key: &str) -> Result<Value> {
    let kind = u32::from_le_bytes(cursor.bytes(key)?);
    Ok(match kind {
        0 => Value::Unsigned(u8::from_le_bytes(cursor.bytes(key)?).into()),
        1 => Value::Signed(i8::from_le_bytes(cursor.bytes(key)?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(cursor.bytes(key)?).into()),
        3 => Value::Signed(i16::from_le_bytes(cursor.bytes(key)?).into()),
        4 => Value::Unsigned(u32::from_le_bytes(cursor.bytes(key)?).into()),
        5 => Value::Signed(i32::from_le_bytes(cursor.bytes(key)?).into()),
        6 => Value::Float(f32::from_le_bytes(cursor.bytes(key)?)),
        7 => Value::Bool(u8::from_le_bytes(cursor.bytes(key)?) != 0),
        STRING => match cursor.string_len(key, MAX_STRING_BYTES)? {
            len if len <= MAX_KEPT_BYTES => Value::String(cursor.vec(len, key)?.into_boxed_slice()),
            len => {
                cursor.skip(len)?;
                Value::LongString(len)
            }
        },
        9 => read_array(cursor, key)?,
        10 => Value::Unsigned(u64::from_le_bytes(cursor.bytes(key)?)),
        11 => Value::Signed(i64::from_le_bytes(cursor.bytes(key)?)),
        12 => Value::Double(f64::from_le_bytes(cursor.bytes(key)?)),
        _ => return Err(malformed(format!("unsupported value type {kind} of `{key}`"))),
    })
}

const STRING: u32 = 8;

fn read_array<S: Read + Seek>(cursor: &mut Cursor<S>, key: &str) -> Result<Value> {
    let kind = u32::from_le_bytes(cursor.bytes(key)?);
    let len = u64::from_le_bytes(cursor.bytes(key)?);
    // A string is at least its length.
    let width = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        STRING | 10..=12 => 8,
        _ => return Err(malformed(format!("unsupported value type {kind} in the array `{key}`"))),
    };
    if len > MAX_ARRAY_LEN || len * width > cursor.remaining() {
        return Err(malformed(format!("array `{key}`: length {len} exceeds file")));
    }
    if kind == STRING && key == TOKENS {
        check_tokens(cursor, len)?;
    } else if kind == STRING {
        for _ in 0..len {
            let bytes = cursor.string_len(key, MAX_STRING_BYTES)?;
            cursor.skip(bytes)?;
        }
    } else {
        cursor.skip(len * width)?;
    }
    Ok(Value::Array(len))
}

/// Walks over the vocabulary. llama.cpp asserts that no token stands in it twice, as it reads them: up to a zero byte, and empty ones by
/// another name.
fn check_tokens<S: Read + Seek>(cursor: &mut Cursor<S>, len: u64) -> Result<()> {
    let mut seen = HashSet::new();
    for id in 0..len {
        let bytes = cursor.string_len(TOKENS, MAX_TOKEN_BYTES)?;
        let mut token = cursor.vec(bytes, TOKENS)?;
        token.truncate(token.iter().position(|&byte| byte == 0).unwrap_or(token.len()));
        if token.is_empty() {
            token = format!("[EMPTY_{id}]").into_bytes();
        }
        if !seen.insert(token.into_boxed_slice()) {
            return Err(malformed(format!("token {id} of `{TOKENS}` stands there twice")));
        }
    }
    Ok(())
}

fn alignment(values: &HashMap<String, Value>) -> Result<u64> {
    match values.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(value)) if value.is_power_of_two() && *value <= 1 << 20 => Ok(*value),
        Some(value) => Err(malformed(format!("invalid alignment {value:?}: it must be an unsigned power of two"))),
    }
}

fn read_tensors<S: Read + Seek>(cursor: &mut Cursor<S>, count: u64) -> Result<Vec<Tensor>> {
    let mut seen = HashSet::new();
    let mut tensors = Vec::new();
    for _ in 0..count {
        let tensor = read_tensor(cursor)?;
        if !seen.insert(tensor.name.clone()) {
            return Err(malformed(format!("duplicate tensor name `{}`", tensor.name)));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor<S: Read + Seek>(cursor: &mut Cursor<S>) -> Result<Tensor> {
    let name = cursor.name("a tensor name", MAX_STRING_BYTES)?;
    if name.len() > MAX_TENSOR_NAME_BYTES {
        return Err(malformed(format!("a tensor name of {} bytes, {MAX_TENSOR_NAME_BYTES} at most", name.len())));
    }
    let what = format!("tensor `{name}`");
    let count = u32::from_le_bytes(cursor.bytes(&what)?);
    if count == 0 || count > MAX_DIMS {
        return Err(malformed(format!("{what}: {count} dimensions, 1 to {MAX_DIMS} expected")));
    }
    let mut dims = Vec::new();
    for _ in 0..count {
        dims.push(u64::from_le_bytes(cursor.bytes(&what)?));
    }
    let kind = u32::from_le_bytes(cursor.bytes(&what)?);
    let offset = u64::from_le_bytes(cursor.bytes(&what)?);
    let block = ggml_type::block(kind).ok_or_else(|| malformed(format!("{what}: unknown tensor type {kind}")))?;
    if dims.contains(&0) {
        return Err(malformed(format!("{what}: a dimension is zero")));
    }
    if dims[0] % block.values != 0 {
        return Err(malformed(format!("{what}: row size {} is no multiple of {}", dims[0], block.values)));
    }
    // llama.cpp counts in signed numbers.
    let bytes = dims
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))
        .and_then(|values| (values / block.values).checked_mul(block.bytes))
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| malformed(format!("{what}: tensor size overflow")))?;
    Ok(Tensor { name, dims, kind, bytes, offset })
}

/// Tensor data follows the table, each tensor at the next aligned place: neither gaps nor overlaps, and nothing beyond the file's end.
fn check_layout(tensors: &[Tensor], table_end: u64, alignment: u64, len: u64) -> Result<()> {
    let data = table_end.next_multiple_of(alignment);
    let mut expected = 0u64;
    for Tensor { name, bytes, offset, .. } in tensors {
        if *offset != expected {
            return Err(malformed(format!("tensor `{name}`: offset {offset}, {expected} expected")));
        }
        let end = data.checked_add(expected).and_then(|start| start.checked_add(*bytes));
        if end.is_none_or(|end| end > len) {
            return Err(malformed(format!("tensor `{name}`: its data exceeds the file of {len} bytes")));
        }
        // Cannot overflow: the end lies within the file, whose length is at most `i64::MAX`.
        expected = (expected + bytes).next_multiple_of(alignment);
    }
    Ok(())
}

fn malformed(reason: impl Into<String>) -> HeaderError {
    HeaderError::Malformed(reason.into())
}

/// A place in the file that knows how much is left.
struct Cursor<S> {
    source: S,
    at: u64,
    len: u64,
}

impl<S: Read + Seek> Cursor<S> {
    fn remaining(&self) -> u64 {
        self.len.saturating_sub(self.at)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut buffer = [0; N];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    /// The next `len` bytes. Callers bound `len`.
    fn vec(&mut self, len: u64, what: &str) -> Result<Vec<u8>> {
        let mut buffer = vec![0; usize::try_from(len).map_err(|_| truncated(what))?];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        let len = buffer.len() as u64;
        if len > self.remaining() {
            return Err(truncated(what));
        }
        self.source.read_exact(buffer)?;
        self.at += len;
        Ok(())
    }

    /// The length in front of a string, which lies within the file.
    fn string_len(&mut self, what: &str, max: u64) -> Result<u64> {
        let len = u64::from_le_bytes(self.bytes(what)?);
        if len > max || len > self.remaining() {
            return Err(malformed(format!("string in {what}: length {len} exceeds file")));
        }
        Ok(len)
    }

    /// A string that must be short and UTF-8.
    fn name(&mut self, what: &str, max: u64) -> Result<String> {
        let len = self.string_len(what, max.min(MAX_KEPT_BYTES))?;
        String::from_utf8(self.vec(len, what)?).map_err(|_| malformed(format!("{what} is not UTF-8")))
    }

    /// Walks over bytes that are known to be there.
    fn skip(&mut self, len: u64) -> Result<()> {
        // Reading over a few bytes is cheaper than a seek, which empties a buffered reader.
        let mut scratch = [0; 256];
        match scratch.get_mut(..usize::try_from(len).unwrap_or(usize::MAX)) {
            Some(short) => self.source.read_exact(short)?,
            None => {
                self.source.seek(SeekFrom::Start(self.at + len))?;
            }
        }
        self.at += len;
        Ok(())
    }
}

fn truncated(what: &str) -> HeaderError {
    malformed(format!("truncated in {what}"))
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
