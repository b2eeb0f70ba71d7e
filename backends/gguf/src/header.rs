use std::{
    collections::{HashMap, HashSet},
    io::{Read, Seek},
};

use crate::{
    cursor::{Cursor, HeaderError, MAX_KEPT_BYTES, Result, malformed},
    ggml_type,
};

/// More metadata keys or tensors than any model has.
const MAX_COUNT: u64 = 1 << 16;
/// A key is a short dotted name.
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// The longest string that is let through; the largest real ones are chat templates of some ten kilobytes.
pub(crate) const MAX_STRING_BYTES: u64 = 16 << 20;
/// The longest array that is let through; the largest real ones are vocabularies and their merges.
const MAX_ARRAY_LEN: u64 = 64 << 20;
/// The longest token that is let through; the largest real ones are runs of a few hundred spaces.
const MAX_TOKEN_BYTES: u64 = 1 << 16;
const TOKENS: &str = "tokenizer.ggml.tokens";
/// ggml stores a tensor's name in 64 bytes with a closing zero.
const MAX_TENSOR_NAME_BYTES: usize = 63;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Unpickling runs code that the file brings along.
pub(crate) const PICKLE: &str = "pickle-based weights are not supported";

/// What a header says.
#[derive(Debug, Default)]
pub struct Header {
    values: HashMap<String, Value>,
    tensors: Vec<Tensor>,
    /// Where the data of tensors begins.
    data: u64,
}

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of any width.
    Unsigned(u64),
    /// Of any width.
    Signed(i64),
    /// Of 32 bits. llama.cpp tells the two apart, and aborts when it asks for the one and finds the other.
    Float(f32),
    /// Of 64 bits.
    Double(f64),
    /// Any byte but zero is true.
    Bool(bool),
    /// UTF-8 or not.
    String(Box<[u8]>),
    /// The length of a string too long to be kept.
    LongString(u64),
    /// Its elements are walked over: they are read when somebody asks for them.
    Array(Array),
}

/// Where an array lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Elements.
    pub len: u64,
    /// GGUF's number for the type of the elements.
    pub(crate) kind: u32,
    /// The place of the first element.
    pub(crate) at: u64,
}

/// One entry of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Unique in its file.
    pub name: String,
    /// One to four, the row first.
    pub dims: Vec<u64>,
    /// ggml's number for the type.
    pub kind: u32,
    /// Of its data.
    pub bytes: u64,
    offset: u64,
}

impl Tensor {
    /// All four dimensions, as ggml counts them.
    #[must_use]
    pub fn shape(&self) -> [u64; MAX_DIMS as usize] {
        std::array::from_fn(|at| self.dims.get(at).copied().unwrap_or(1))
    }
}

impl Header {
    /// Reads the header of a file of `len` bytes, from its start to its tensor table, and checks that all tensor data lies in the file.
    ///
    /// # Errors
    /// With the first rule that the file breaks.
    pub fn read(source: impl Read + Seek, len: u64) -> Result<Self> {
        let mut cursor = Cursor { source, at: 0, len };
        let (tensor_count, value_count) = read_preamble(&mut cursor)?;
        let values = read_values(&mut cursor, value_count)?;
        let alignment = alignment(&values)?;
        let tensors = read_tensors(&mut cursor, tensor_count)?;
        let data = cursor.at.next_multiple_of(alignment);
        check_layout(&tensors, data, alignment, len)?;
        Ok(Self { values, tensors, data })
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A text; `None` when it is absent, no string, not UTF-8, or longer than a mebibyte.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
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
    #[must_use]
    pub fn unsigned(&self, key: &str) -> Option<u64> {
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
    #[must_use]
    pub fn array_len(&self, key: &str) -> Option<u64> {
        self.array(key).map(|array| array.len)
    }

    /// An array.
    #[must_use]
    pub fn array(&self, key: &str) -> Option<&Array> {
        match self.get(key)? {
            Value::Array(array) => Some(array),
            Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Double(_)
            | Value::Bool(_)
            | Value::String(_)
            | Value::LongString(_) => None,
        }
    }

    /// A number, whatever it is written as.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<f64> {
        match *self.get(key)? {
            Value::Unsigned(value) => Some(value as f64),
            Value::Signed(value) => Some(value as f64),
            Value::Float(value) => Some(value.into()),
            Value::Double(value) => Some(value),
            Value::Bool(_) | Value::String(_) | Value::LongString(_) | Value::Array(_) => None,
        }
    }

    /// Yes or no.
    #[must_use]
    pub fn flag(&self, key: &str) -> Option<bool> {
        match *self.get(key)? {
            Value::Bool(value) => Some(value),
            Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Double(_)
            | Value::String(_)
            | Value::LongString(_)
            | Value::Array(_) => None,
        }
    }

    /// The tensor table.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Where the data of one of this header's tensors begins in the file.
    pub(crate) fn place(&self, tensor: &Tensor) -> u64 {
        self.data + tensor.offset
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

pub(crate) const STRING: u32 = 8;

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
    let at = cursor.at;
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
    Ok(Value::Array(Array { len, kind, at }))
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
fn check_layout(tensors: &[Tensor], data: u64, alignment: u64, len: u64) -> Result<()> {
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

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
