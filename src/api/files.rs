mod estimate;
mod upload;

use actix_web::body::SizedStream;
use actix_web::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, Charset, ContentDisposition, DispositionParam, DispositionType,
    ExtendedValue, HeaderValue, RANGE,
};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Data, Json, Path, Query, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, ResponseError as _};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::listing::{ListQuery, list, page_error, store_error};
use super::{Rule, resource};
use crate::access::Scope;
use crate::clock::Clock;
use crate::openai::error::ApiError;
use crate::openai::files::{FileDeleted, FileObject, ListObject};
use crate::store::{File, Store, StoreError, Tenant};

pub(super) use estimate::EstimateParams;
pub use upload::UploadLimits;

const LIMIT_MAX: u64 = 10_000;
const RULE: Rule = Rule::ReadWrite { read: Scope::FilesRead, write: Scope::FilesWrite };
const READ_BYTES: usize = 64 * 1024;

/// `/v1/files` and what is under it.
pub fn routes(cfg: &mut ServiceConfig) {
    cfg.service(
        resource("/v1/files", &[Method::GET, Method::POST], RULE)
            .route(web::post().to(upload::create))
            .route(web::get().to(index)),
    )
    .service(
        resource("/v1/files/{id}", &[Method::GET, Method::DELETE], RULE)
            .route(web::get().to(show))
            .route(web::delete().to(delete)),
    )
    .service(resource("/v1/files/{id}/content", &[Method::GET], RULE).route(web::get().to(content)))
    .service(resource("/v1/files/{id}/estimate", &[Method::GET], RULE).route(web::get().to(estimate::show)));
}

async fn index(
    query: Query<ListQuery>,
    tenant: Tenant,
    store: Data<Store>,
) -> Result<Json<ListObject<FileObject>>, ApiError> {
    let page = query.page(LIMIT_MAX, LIMIT_MAX)?;
    let (rows, more) = store.files(&tenant, query.purpose.as_deref(), &page, now()).await.map_err(page_error)?;
    Ok(Json(list(rows.into_iter().map(show_file).collect(), more, |file: &FileObject| &file.id)))
}

async fn show(id: Path<String>, tenant: Tenant, store: Data<Store>) -> Result<Json<FileObject>, ApiError> {
    let file = store.file(&tenant, &id, now()).await.map_err(|error| not_found(error, &id))?;
    Ok(Json(show_file(file)))
}

async fn delete(id: Path<String>, tenant: Tenant, store: Data<Store>) -> Result<Json<FileDeleted>, ApiError> {
    store.delete_file(&tenant, &id, now()).await.map_err(|error| not_found(error, &id))?;
    Ok(Json(FileDeleted { id: id.into_inner(), object: "file", deleted: true }))
}

async fn content(
    request: HttpRequest,
    id: Path<String>,
    tenant: Tenant,
    store: Data<Store>,
) -> Result<HttpResponse, ApiError> {
    let file = match store.file(&tenant, &id, now()).await {
        Err(StoreError::NotFound) if store.has_expired(&tenant, &id, now()).await.map_err(store_error)? => {
            return Err(ApiError::file_expired());
        }
        file => file.map_err(|error| not_found(error, &id))?,
    };
    let size = u64::try_from(file.bytes).unwrap_or(0);
    let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
    let (status, start, end) = match range.map_or(Range::Whole, |range| read_range(range, size)) {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
        Range::Outside => {
            let mut response = ApiError::range_not_satisfiable(size).error_response();
            if let Ok(whole) = HeaderValue::from_str(&format!("bytes */{size}")) {
                response.headers_mut().insert(CONTENT_RANGE, whole);
            }
            return Ok(response);
        }
    };
    let mut blob = store.blobs().open_blob(&file.storage_key).await.map_err(store_error)?;
    blob.seek(std::io::SeekFrom::Start(start)).await.map_err(|error| store_error(error.into()))?;
    let bytes = ReaderStream::with_capacity(blob.take(end - start), READ_BYTES);
    let mut response = HttpResponse::build(status);
    response
        .content_type("application/octet-stream")
        .insert_header((ACCEPT_RANGES, "bytes"))
        .insert_header((CONTENT_DISPOSITION, attachment(&file.filename)));
    if status == StatusCode::PARTIAL_CONTENT {
        response.insert_header((CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1)));
    }
    Ok(response.body(SizedStream::new(end - start, bytes)))
}

/// Which bytes were asked for: from `start` to just before `end`.
#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    Part { start: u64, end: u64 },
    Outside,
}

/// One range is served; several, or what is no range of bytes, are as if not asked for (RFC 9110, 14.2).
fn read_range(header: &str, size: u64) -> Range {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let (start, end) = match (first.trim(), last.trim()) {
        ("", suffix) => match suffix.parse::<u64>() {
            Ok(suffix) => (size.saturating_sub(suffix), size),
            Err(_) => return Range::Whole,
        },
        (first, "") => match first.parse() {
            Ok(start) => (start, size),
            Err(_) => return Range::Whole,
        },
        (first, last) => match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(start), Ok(last)) => (start, last.saturating_add(1).min(size)),
            _ => return Range::Whole,
        },
    };
    if start < end { Range::Part { start, end } } else { Range::Outside }
}

/// The name survives as RFC 5987 writes it; a plain one is added only where it cannot be misread.
fn attachment(filename: &str) -> ContentDisposition {
    let name = ExtendedValue {
        charset: Charset::Ext("UTF-8".to_owned()),
        language_tag: None,
        value: filename.as_bytes().to_vec(),
    };
    ContentDisposition {
        disposition: DispositionType::Attachment,
        parameters: vec![DispositionParam::FilenameExt(name)],
    }
}

fn show_file(file: File) -> FileObject {
    FileObject {
        id: file.id,
        object: "file",
        bytes: file.bytes,
        created_at: file.created_at,
        expires_at: file.expires_at,
        filename: file.filename,
        purpose: file.purpose,
        status: "processed",
        status_details: None,
    }
}

fn not_found(error: StoreError, id: &str) -> ApiError {
    let StoreError::NotFound = error else { return store_error(error) };
    let id: String = id.chars().take(100).collect();
    let mut error = ApiError::invalid("not_found", "id", format!("No such File object: {id}"));
    error.status = 404;
    error.body.code = None;
    error
}

fn now() -> i64 {
    Clock::system().seconds()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_one_range_of_bytes() {
        let part = |start, end| Range::Part { start, end };
        let cases = [
            ("bytes=0-", part(0, 10)),
            ("bytes=2-4", part(2, 5)),
            ("bytes=2-400", part(2, 10)),
            ("bytes=-3", part(7, 10)),
            ("bytes=-30", part(0, 10)),
            ("bytes=9-5", Range::Outside),
            ("bytes=10-", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=0-1,3-4", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=", Range::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(read_range(header, 10), expected, "{header}");
        }
    }
}
