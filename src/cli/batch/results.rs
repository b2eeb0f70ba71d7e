use std::{io::Write as _, path::PathBuf, time::Duration};

use futures_util::StreamExt as _;
use serde_json::{Value, value::RawValue};

use super::{
    client::{Client, ClientError, Result, pieces},
    view::BatchView,
    watch::{Failures, watch},
};

const PAGE: &str = "500";
const RECONNECT: Duration = Duration::from_secs(1);

/// Which lines are wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: String,
    /// `completed` or `failed`; all if absent.
    pub(super) status: Option<String>,
}

/// Where records go, one a line.
pub(super) struct Sink(Box<dyn std::io::Write + Send>);

impl Sink {
    pub(super) fn open(path: Option<&PathBuf>) -> std::io::Result<Self> {
        Ok(match path {
            Some(path) => Self(Box::new(std::io::BufWriter::new(fs_err::File::create(path)?))),
            None => Self(Box::new(std::io::stdout())),
        })
    }

    fn write(&mut self, record: &[u8]) -> Result<()> {
        let written = self.0.write_all(record).and_then(|()| self.0.write_all(b"\n"));
        written.map_err(ClientError::File)
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush().map_err(ClientError::File)
    }
}

/// Writes the lines that are finished now. `None` if this server gives them only at the end, and it is not there yet.
pub(super) async fn finished(client: &Client, wanted: &Wanted, sink: &mut Sink) -> Result<Option<()>> {
    #[derive(serde::Deserialize)]
    struct Page {
        data: Vec<Box<RawValue>>,
        last_id: Option<String>,
        has_more: bool,
    }
    let mut after = None;
    loop {
        let page = match client.open(&path(wanted), &query(wanted, after.as_deref(), ("limit", PAGE))).await {
            Ok(page) => page.text().await.map_err(|error| ClientError::Unreachable(error.to_string()))?,
            Err(error) if error.is_unknown_route() => return published(client, wanted, sink).await,
            Err(error) => return Err(error),
        };
        let page: Page = serde_json::from_str(&page)
            .map_err(|error| ClientError::Unreadable(format!("what is no page of results: {error}")))?;
        for record in &page.data {
            sink.write(record.get().as_bytes())?;
        }
        sink.flush()?;
        if !page.has_more || page.last_id.is_none() {
            return Ok(Some(()));
        }
        after = page.last_id;
    }
}

/// Writes lines as they end, until the batch has; the batch. A connection that breaks is made anew where it broke.
pub(super) async fn follow(client: &Client, wanted: &Wanted, sink: &mut Sink) -> Result<Value> {
    let (mut seen, mut failures) = (None, Failures::default());
    loop {
        let before = seen.clone();
        match stream(client, wanted, sink, &mut seen).await {
            Ok(Some(batch)) => return Ok(batch),
            Ok(None) => failures.bear(ClientError::Unreachable("the stream broke off".to_owned()))?,
            Err(error) if error.is_unknown_route() && seen.is_none() => {
                let batch = watch(client, &wanted.id).await?;
                published(client, wanted, sink).await?;
                return Ok(batch);
            }
            Err(error) => failures.bear(error)?,
        }
        if seen != before {
            failures = Failures::default();
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// One connection. `None` if it ends and the batch has not.
async fn stream(client: &Client, wanted: &Wanted, sink: &mut Sink, seen: &mut Option<String>) -> Result<Option<Value>> {
    let response = client.open(&path(wanted), &query(wanted, seen.as_deref(), ("follow", "true"))).await?;
    let mut lines = std::pin::pin!(pieces(response));
    let mut event = Event::default();
    while let Some(line) = lines.next().await {
        match event.take(&line?) {
            None => {}
            Some(Event { name, .. }) if name == b"error" => return Ok(None),
            Some(Event { name, data, .. }) if name == b"batch" => {
                let batch = serde_json::from_slice(&data);
                return batch.map(Some).map_err(|_| ClientError::Unreadable("what is no batch".to_owned()));
            }
            Some(Event { id: Some(id), data, .. }) => {
                sink.write(&data)?;
                sink.flush()?;
                *seen = Some(id);
            }
            // An error of the server's, or something newer than this program.
            Some(Event { data, .. }) if data.starts_with(b"{\"error\"") => return Ok(None),
            Some(_) => {}
        }
    }
    Ok(None)
}

/// A server-sent event, as far as it has been read.
#[derive(Debug, Default)]
struct Event {
    id: Option<String>,
    name: Vec<u8>,
    data: Vec<u8>,
}

impl Event {
    /// Reads one more line; the event, if this ends it.
    fn take(&mut self, line: &[u8]) -> Option<Self> {
        if line.is_empty() {
            let event = std::mem::take(self);
            return (!event.data.is_empty()).then_some(event);
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"id" => self.id = Some(String::from_utf8_lossy(value).into_owned()),
            b"event" => self.name = value.to_vec(),
            b"data" => self.data.extend_from_slice(value),
            _ => {}
        }
        None
    }
}

/// The published files of a batch, for servers that have no more than these. `None` while there are none.
async fn published(client: &Client, wanted: &Wanted, sink: &mut Sink) -> Result<Option<()>> {
    let batch = BatchView::of(&client.get(&format!("/batches/{}", wanted.id), &[]).await?)?;
    if !batch.has_ended() {
        return Ok(None);
    }
    let files = [("completed", &batch.output_file_id), ("failed", &batch.error_file_id)];
    for (status, file_id) in files {
        // Some servers say "" where there is no file.
        let Some(file_id) = file_id.as_deref().filter(|id| !id.is_empty()) else { continue };
        if wanted.status.as_deref().is_none_or(|wanted| wanted == status) {
            let mut lines = client.file_lines(file_id).await?;
            while let Some(line) = lines.next().await {
                sink.write(&line?)?;
            }
        }
    }
    sink.flush()?;
    Ok(Some(()))
}

fn path(wanted: &Wanted) -> String {
    format!("/batches/{}/results", wanted.id)
}

fn query(wanted: &Wanted, after: Option<&str>, (name, value): (&'static str, &str)) -> Vec<(&'static str, String)> {
    let mut query = vec![(name, value.to_owned())];
    query.extend(wanted.status.clone().map(|status| ("status", status)));
    query.extend(after.map(|after| ("after", after.to_owned())));
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_line_by_line() {
        let mut event = Event::default();
        let lines = [": keep-alive", "", "id: 7", "data: {\"a\":1}", "", "event:batch", "data:x", "", "retry"];
        let events: Vec<_> = lines.iter().filter_map(|line| event.take(line.as_bytes())).collect();
        let [record, batch] = &events[..] else { panic!("{events:?}") };
        assert_eq!((record.id.as_deref(), &record.data[..]), (Some("7"), &b"{\"a\":1}"[..]));
        assert_eq!((&batch.name[..], &batch.data[..], batch.id.as_deref()), (&b"batch"[..], &b"x"[..], None));
    }
}
