use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::HttpRequest;
use actix_web::error::PayloadError;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::{Data, Json};
use futures_util::{StreamExt, TryStreamExt};

use super::super::body::not_compressed;
use super::super::guard;
use super::super::listing::store_error;
use super::super::repetition::is_repetition;
use super::{now, show_file};
use crate::batch::FILE_EXPIRES_S;
use crate::openai::error::ApiError;
use crate::openai::files::FileObject;
use crate::store::{Blob, BlobWriter, NewFile, Store, StoreError, Tenant};

/// How large an upload may be.
#[derive(Clone, Copy, Debug)]
pub struct UploadLimits {
    /// Of a file for a batch.
    pub batch_bytes: u64,
    /// Of any other file.
    pub file_bytes: u64,
    /// Of all files of one tenant; `None` is as the disk has room.
    pub tenant_bytes: Option<u64>,
    /// What an upload leaves free on the disk.
    pub free_bytes: u64,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self { batch_bytes: 200 << 20, file_bytes: 512 << 20, tenant_bytes: None, free_bytes: 0 }
    }
}

const PURPOSES: [&str; 6] = ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"];
const PARTS_MAX: usize = 16;
/// Room on the disk is looked for again after so much.
const ROOM_CHECK_BYTES: u64 = 16 << 20;
const TEXT_BYTES_MAX: usize = 1024;
const FILENAME_BYTES_MAX: usize = 255;
/// A first line longer than this is left for the batch to judge.
const FIRST_LINE_BYTES_MAX: usize = 1 << 20;
const EXPIRES_AFTER_S: std::ops::RangeInclusive<i64> = 3600..=2_592_000;
const INVALID_FORMAT: &str = "Invalid file format for Batch API. Must be .jsonl";

pub(super) async fn create(
    request: HttpRequest,
    parts: Multipart,
    tenant: Tenant,
    store: Data<Store>,
    limits: Option<Data<UploadLimits>>,
) -> Result<Json<FileObject>, ApiError> {
    let limits = limits.map_or_else(UploadLimits::default, |limits| **limits);
    not_compressed(&request)?;
    if let Some(quota) = limits.tenant_bytes
        && store.stored_bytes(&tenant).await.map_err(store_error)? >= quota
    {
        return Err(ApiError::quota_exceeded(quota));
    }
    check_room(&store, limits, announced_bytes(&request)).await?;
    let Form { purpose, file, anchor, seconds } = read_form(parts, &store, limits).await?;
    let purpose = purpose.ok_or_else(|| ApiError::missing("purpose"))?;
    let file = file.ok_or_else(|| ApiError::missing("file"))?;
    let expires_after = expires_after(anchor.as_deref(), seconds.as_deref())?;
    if purpose == "batch" {
        check_batch_file(&file, limits)?;
    }
    if file.blob.bytes() == 0 {
        return Err(ApiError::invalid("empty_file", "file", "The file is empty."));
    }
    let blob: Blob = file.blob.finish().await.map_err(store_error)?;
    let created_at = now();
    let lifetime = expires_after.or_else(|| (purpose == "batch").then_some(FILE_EXPIRES_S));
    let expires_at = lifetime.map(|seconds| created_at + seconds);
    let new = NewFile { tenant, purpose, filename: file.filename, blob, created_at, expires_at };
    let quota = limits.tenant_bytes;
    let repeated = is_repetition(&request);
    let added = if repeated { store.add_repeated_file(new, quota).await } else { store.add_file(new, quota).await };
    let file = added.map_err(|error| match (error, quota) {
        (StoreError::Quota, Some(quota)) => ApiError::quota_exceeded(quota),
        (error, _) => store_error(error),
    })?;
    tracing::info!(file.id = %file.id, bytes = file.bytes, "stored a file");
    Ok(Json(show_file(file)))
}

/// Room on the disk for so many bytes more, and for what else the server has to write.
async fn check_room(store: &Store, limits: UploadLimits, bytes: u64) -> Result<(), ApiError> {
    if limits.free_bytes == 0 {
        return Ok(());
    }
    let free = store.blobs().free_bytes().await.map_err(store_error)?;
    if free >= bytes.saturating_add(limits.free_bytes) {
        return Ok(());
    }
    let reason = format!("{free} bytes are free, {bytes} are to come and {} to be left", limits.free_bytes);
    Err(store_error(StoreError::Full(reason.into())))
}

/// What the client says that it sends, which is more than the file by its frame.
fn announced_bytes(request: &HttpRequest) -> u64 {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or(0)
}

/// The parts of the form, in whatever order they came.
#[derive(Default)]
struct Form {
    purpose: Option<String>,
    file: Option<Received>,
    anchor: Option<String>,
    seconds: Option<String>,
}

/// A file that has arrived, not yet kept: dropped, it leaves nothing.
struct Received {
    filename: String,
    is_jsonl: bool,
    blob: BlobWriter,
    first_line: Vec<u8>,
}

async fn read_form(mut parts: Multipart, store: &Store, limits: UploadLimits) -> Result<Form, ApiError> {
    let mut form = Form::default();
    let mut count = 0;
    while let Some(part) = parts.next().await {
        let part = part.map_err(invalid_multipart)?;
        count += 1;
        if count > PARTS_MAX {
            return Err(malformed());
        }
        let name = part.name().unwrap_or_default().to_owned();
        let slot = match name.as_str() {
            "file" if form.file.is_some() => return Err(ApiError::duplicate_field("file")),
            "file" => {
                form.file = Some(receive(part, store, limits, form.purpose.as_deref()).await?);
                continue;
            }
            "purpose" => &mut form.purpose,
            "expires_after[anchor]" => &mut form.anchor,
            "expires_after[seconds]" => &mut form.seconds,
            _ => {
                read_text(part, &name).await?;
                continue;
            }
        };
        if slot.is_some() {
            return Err(ApiError::duplicate_field(&name));
        }
        let text = read_text(part, &name).await?;
        if name == "purpose" && !PURPOSES.contains(&text.as_str()) {
            return Err(ApiError::not_one_of("purpose", &text, &PURPOSES));
        }
        *slot = Some(text);
    }
    Ok(form)
}

/// Streams a file to disk; it is never whole in memory. The purpose may come later, and its limit with it.
async fn receive(
    mut part: Field,
    store: &Store,
    limits: UploadLimits,
    purpose: Option<&str>,
) -> Result<Received, ApiError> {
    let limit = if purpose == Some("batch") { limits.batch_bytes } else { limits.file_bytes.max(limits.batch_bytes) };
    let filename = part.content_disposition().and_then(|disposition| {
        let extended = disposition.get_filename_ext().map(|name| String::from_utf8_lossy(&name.value).into_owned());
        extended.or_else(|| disposition.get_filename().map(str::to_owned))
    });
    let filename = filename.unwrap_or_default();
    // A long name may lose its extension when it is shortened.
    let is_jsonl = may_be_jsonl(&filename);
    let filename = clean_filename(&filename);
    let mut blob = store.blobs().create().await.map_err(store_error)?;
    let mut first_line = FirstLine::default();
    let mut unlooked = 0;
    while let Some(chunk) = part.try_next().await.map_err(invalid_multipart)? {
        if blob.bytes() + chunk.len() as u64 > limit {
            return Err(too_large(limit));
        }
        first_line.take(&chunk);
        blob.write(&chunk).await.map_err(store_error)?;
        unlooked += chunk.len() as u64;
        // A client need not say how much it sends, and others send too.
        if unlooked >= ROOM_CHECK_BYTES {
            check_room(store, limits, 0).await?;
            unlooked = 0;
        }
    }
    Ok(Received { filename, is_jsonl, blob, first_line: first_line.bytes })
}

#[derive(Default)]
struct FirstLine {
    bytes: Vec<u8>,
    ended: bool,
}

impl FirstLine {
    fn take(&mut self, chunk: &[u8]) {
        if self.ended {
            return;
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let room = FIRST_LINE_BYTES_MAX + 1 - self.bytes.len();
        self.bytes.extend(chunk.iter().take(end.unwrap_or(chunk.len())).take(room));
        self.ended = end.is_some() || self.bytes.len() > FIRST_LINE_BYTES_MAX;
    }
}

/// What can be said at once about a batch's input. All else is found by the batch, with line numbers.
fn check_batch_file(file: &Received, limits: UploadLimits) -> Result<(), ApiError> {
    if file.blob.bytes() > limits.batch_bytes {
        return Err(too_large(limits.batch_bytes));
    }
    let line = file.first_line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&file.first_line);
    let is_json = file.first_line.len() > FIRST_LINE_BYTES_MAX
        || serde_json::from_slice::<serde::de::IgnoredAny>(line.trim_ascii()).is_ok();
    let empty = file.blob.bytes() == 0;
    if file.is_jsonl && (is_json || empty) {
        return Ok(());
    }
    let mut error = ApiError::invalid("invalid_file_format", "file", INVALID_FORMAT);
    (error.body.param, error.body.code) = (None, None);
    Err(error)
}

async fn read_text(mut part: Field, name: &str) -> Result<String, ApiError> {
    let mut text = Vec::new();
    while let Some(chunk) = part.try_next().await.map_err(invalid_multipart)? {
        text.extend_from_slice(&chunk);
        if text.len() > TEXT_BYTES_MAX {
            return Err(ApiError::string_too_long(name, TEXT_BYTES_MAX, text.len()));
        }
    }
    String::from_utf8(text).map_err(|_| malformed())
}

fn expires_after(anchor: Option<&str>, seconds: Option<&str>) -> Result<Option<i64>, ApiError> {
    if anchor.is_none() && seconds.is_none() {
        return Ok(None);
    }
    if anchor != Some("created_at") {
        return Err(ApiError::not_one_of("expires_after[anchor]", anchor.unwrap_or_default(), &["created_at"]));
    }
    let seconds = seconds.and_then(|text| text.parse().ok()).filter(|seconds| EXPIRES_AFTER_S.contains(seconds));
    seconds.map(Some).ok_or_else(|| {
        let message = "Invalid 'expires_after[seconds]': expected an integer from 3600 to 2592000.";
        ApiError::invalid_value("expires_after[seconds]", message)
    })
}

/// A name to show: the last part of a path, without what could hide or break lines. It never becomes a path here.
fn clean_filename(name: &str) -> String {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let mut clean = String::new();
    for character in base.chars().filter(|character| !character.is_control() && !is_invisible(*character)) {
        if clean.len() + character.len_utf8() > FILENAME_BYTES_MAX {
            break;
        }
        clean.push(character);
    }
    if clean.is_empty() { "file".to_owned() } else { clean }
}

/// Whether a file of this name may be the input of a batch. SDKs that are given bytes without a name call them `upload`, so a name without an
/// extension says nothing.
fn may_be_jsonl(filename: &str) -> bool {
    let base = filename.rsplit(['/', '\\']).next().unwrap_or_default();
    base.to_ascii_lowercase().ends_with(".jsonl") || (!base.is_empty() && !base.contains('.'))
}

/// Characters that change the direction of text, or have no width.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn too_large(limit: u64) -> ApiError {
    let mut error = ApiError::invalid("file_too_large", "file", format!("File exceeds {limit} bytes."));
    error.status = 413;
    error
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed over by map_err")]
fn invalid_multipart(error: MultipartError) -> ApiError {
    if let MultipartError::Payload(PayloadError::Io(error)) = &error
        && let Some(refused) = guard::refusal(error)
    {
        return refused;
    }
    tracing::debug!(error = %error, "an upload could not be read");
    malformed()
}

fn malformed() -> ApiError {
    let mut error = ApiError::invalid("invalid_multipart", "file", "The request is not a valid multipart form.");
    error.body.param = None;
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filename_is_only_a_name() {
        let long = format!("{}.jsonl", "ä".repeat(200));
        let cases = [
            ("../../etc/cron.d/x", "x"),
            ("a/b.jsonl", "b.jsonl"),
            ("C:\\x\\y.jsonl", "y.jsonl"),
            ("a\0b\n.jsonl", "ab.jsonl"),
            ("\u{202e}lnosj.a", "lnosj.a"),
            ("", "file"),
            ("/", "file"),
        ];
        for (name, expected) in cases {
            assert_eq!(clean_filename(name), expected, "{name:?}");
        }
        assert_eq!(clean_filename(&long).len(), 254);
    }

    #[test]
    fn an_extension_if_there_is_one_is_jsonl() {
        for name in ["in.jsonl", "IN.JSONL", "upload", "a.b/upload", ".jsonl"] {
            assert!(may_be_jsonl(name), "{name:?}");
        }
        for name in ["in.txt", "in.jsonl.gz", "in.json", "jsonl/in.csv", "in.", "", "a/"] {
            assert!(!may_be_jsonl(name), "{name:?}");
        }
    }

    #[test]
    fn the_first_line_is_bounded() {
        let mut line = FirstLine::default();
        line.take(b"{\"a\"");
        line.take(b":1}\n{");
        line.take(b"more");
        assert_eq!(line.bytes, b"{\"a\":1}");
        let mut line = FirstLine::default();
        line.take(&vec![b'x'; FIRST_LINE_BYTES_MAX * 2]);
        assert_eq!(line.bytes.len(), FIRST_LINE_BYTES_MAX + 1);
    }
}
