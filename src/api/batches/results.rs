//! The finished lines of a batch, page by page or as they come.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::web::{Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use futures_core::Stream;
use futures_util::stream;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{not_found, show_batch};
use crate::api::listing::store_error;
use crate::api::sse;
use crate::batch::{Batches, Followed, Follower, ResultLine, ResultsError, ResultsQuery};
use crate::openai::batches::ResultList;
use crate::openai::error::ApiError;
use crate::store::Tenant;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;
/// How a client that lost its stream says where it was.
const LAST_EVENT_ID: &str = "last-event-id";

/// The query, as it was typed.
#[derive(Debug, Deserialize, JsonSchema)]
pub(in crate::api) struct ResultsParams {
    /// The last id of the page before.
    after: Option<String>,
    /// How many on a page. Not with `follow`.
    #[schemars(with = "Option<u32>", range(min = 1, max = 1000))]
    limit: Option<String>,
    /// Lines that ended so alone.
    #[schemars(extend("enum" = ["completed", "failed"]))]
    status: Option<String>,
    /// Send a stream instead, with lines as they finish.
    #[schemars(extend("enum" = ["true", "false"]))]
    follow: Option<String>,
}

pub(super) async fn results(
    request: HttpRequest,
    id: Path<String>,
    tenant: Tenant,
    params: Query<ResultsParams>,
    batches: Data<Batches>,
) -> Result<HttpResponse, ApiError> {
    let ResultsParams { after, limit, status, follow } = params.into_inner();
    let failed = match status.as_deref() {
        None => None,
        Some("completed") => Some(false),
        Some("failed") => Some(true),
        Some(other) => return Err(ApiError::not_one_of("status", other, &["completed", "failed"])),
    };
    let follow = match follow.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(ApiError::not_one_of("follow", other, &["true", "false"])),
    };
    let mut query = ResultsQuery { after: cursor(after.as_deref())?, failed };
    let refused = |error| results_error(error, &id);
    if follow {
        if limit.is_some() {
            let message = "Invalid 'limit': a stream of results has none.";
            return Err(ApiError::invalid_value("limit", message));
        }
        let seen = request.headers().get(LAST_EVENT_ID).and_then(|seen| seen.to_str().ok());
        query.after = query.after.max(cursor(seen)?);
        let follower = batches.follow(&tenant, &id, query).await.map_err(refused)?;
        return Ok(sse::events(events(follower, batches.into_inner().as_ref().clone())));
    }
    let page = batches.results(&tenant, &id, query, read_limit(limit.as_deref())?).await.map_err(refused)?;
    let status = page.batch.status().map_err(store_error)?.shown(page.batch.stop_reason());
    let id_of = |line: Option<&ResultLine>| line.map(|line| line.seq.to_string());
    let (first_id, last_id) = (id_of(page.lines.first()), id_of(page.lines.last()));
    let data = page.lines.into_iter().map(raw).collect::<Result<_, _>>()?;
    let batch_status = status.as_str();
    // For clients that look at no body: whether to come again, and from where.
    let incomplete = page.has_more || !status.has_ended();
    let last_line = last_id.clone().unwrap_or_else(|| query.after.to_string());
    let mut response = HttpResponse::Ok();
    response.insert_header(("x-incomplete", incomplete.to_string())).insert_header(("x-last-line", last_line));
    Ok(response.json(ResultList { object: "list", data, first_id, last_id, has_more: page.has_more, batch_status }))
}

fn cursor(text: Option<&str>) -> Result<i64, ApiError> {
    match text {
        None | Some("") => Ok(0),
        Some(text) => text.parse().ok().filter(|seq| *seq >= 0).ok_or_else(|| {
            ApiError::invalid("invalid_cursor", "after", "Invalid 'after': it is no 'last_id' of a page of results.")
        }),
    }
}

fn read_limit(text: Option<&str>) -> Result<usize, ApiError> {
    let Some(text) = text else { return Ok(LIMIT_DEFAULT) };
    text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or_else(|| {
        ApiError::invalid_value("limit", format!("Invalid 'limit': expected an integer from 1 to {LIMIT_MAX}."))
    })
}

fn raw(line: ResultLine) -> Result<Box<RawValue>, ApiError> {
    let text = String::from_utf8(line.record).ok();
    text.and_then(|text| RawValue::from_string(text).ok()).ok_or_else(|| {
        tracing::error!(seq = line.seq, "a stored record is not JSON");
        ApiError::internal()
    })
}

/// An event for each line with its place as the id, which a client that reconnects names; and the batch when it has ended.
fn events(
    follower: Follower,
    batches: Batches,
) -> impl FnMut(&mut Context<'_>, &mut Vec<u8>) -> Poll<Option<Result<(), ApiError>>> + Unpin {
    let mut events = Box::pin(stream::unfold(Some(follower), move |follower| {
        let batches = batches.clone();
        async move {
            let mut follower = follower?;
            match follower.next().await {
                Ok(Some(Followed::Line(line))) => Some((Ok(line_event(&line)), Some(follower))),
                Ok(Some(Followed::Ended(batch))) => {
                    let end = show_batch(&batches, &batch).map(|batch| {
                        let batch = serde_json::to_string(&batch).unwrap_or_default();
                        format!("event: batch\ndata: {batch}\n\n").into_bytes()
                    });
                    Some((end, None))
                }
                Ok(None) => Some((Err(ApiError::stopping()), None)),
                Err(error) => Some((Err(results_error(error, "")), None)),
            }
        }
    }));
    move |cx, out| {
        let next: Pin<&mut _> = events.as_mut();
        next.poll_next(cx).map(|event| event.map(|event| event.map(|bytes: Vec<u8>| out.extend_from_slice(&bytes))))
    }
}

fn line_event(line: &ResultLine) -> Vec<u8> {
    let mut event = format!("id: {}\ndata: ", line.seq).into_bytes();
    event.extend_from_slice(&line.record);
    event.extend_from_slice(b"\n\n");
    event
}

fn results_error(error: ResultsError, id: &str) -> ApiError {
    match error {
        ResultsError::Gone => ApiError::results_gone(),
        ResultsError::Store(error) => not_found(error, id),
    }
}
