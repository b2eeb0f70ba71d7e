use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    answer::{Answer, Verdict, error_message},
    program::{Program, Taken},
    request::{Conversation, Request},
    sample::Sample,
    target::Own,
};

/// Requests that were answered without a server.
#[derive(Debug)]
pub(super) struct OfflineRound {
    pub(super) samples: Vec<Sample>,
    /// From the first line to the last, without loading.
    pub(super) wall: Duration,
    pub(super) load: Duration,
    pub(super) taken: Taken,
}

/// A line of the log in JSON.
#[derive(Deserialize)]
struct LogLine {
    message: String,
    seconds: Option<f64>,
}

/// By which `run-batch` says that it has ended.
const DONE: &str = "batch done";

/// Has a profile of ours answer everything through `run-batch`.
///
/// # Errors
/// When that does not come to its end; with the reason.
pub(super) async fn round(
    own: &Own,
    spec: Option<&str>,
    model: &str,
    conversations: &[Conversation],
    log: &Path,
) -> Result<OfflineRound, String> {
    let failed = |error: std::io::Error| format!("cannot hold the batch: {error}");
    let dir = tempfile::tempdir().map_err(failed)?;
    let [input, output, errors] = ["in.jsonl", "out.jsonl", "errors.jsonl"].map(|name| dir.path().join(name));
    let requests: Vec<&Request> = conversations.iter().flatten().collect();
    let lines: String =
        requests.iter().enumerate().map(|(id, request)| request.line_for(model, &id.to_string()) + "\n").collect();
    fs_err::write(&input, lines).map_err(failed)?;
    // What was logged before is of earlier runs.
    fs_err::write(log, "").map_err(failed)?;
    let started = Instant::now();
    let mut program = Program::run_batch(own, spec, log, [&input, &output, &errors])?;
    let taken = program.finish(|| {}).await?;
    let all = started.elapsed();
    let wall = seconds(&fs_err::read_to_string(log).map_err(failed)?).ok_or("did not tell how long it took")?;
    let mut answers = HashMap::new();
    for path in [&output, &errors] {
        let text = fs_err::read_to_string(path).map_err(|error| format!("left no answers: {error}"))?;
        answers.extend(text.lines().filter_map(record));
    }
    let samples = requests.iter().enumerate().map(|(id, request)| sample(request, answers.remove(&id.to_string())));
    Ok(OfflineRound { samples: samples.collect(), wall, load: all.saturating_sub(wall), taken })
}

/// How long the lines took, as the log says.
fn seconds(log: &str) -> Option<Duration> {
    let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    let done = lines.filter(|line| line.message == DONE).find_map(|line| line.seconds)?;
    Duration::try_from_secs_f64(done).ok()
}

/// A line of an output file: its id, and the answer or why there is none.
fn record(line: &str) -> Option<(String, Result<Answer, String>)> {
    #[derive(Deserialize)]
    struct Record {
        custom_id: String,
        response: Option<Response>,
        error: Option<Box<RawValue>>,
    }
    #[derive(Deserialize)]
    struct Response {
        status_code: u16,
        body: Box<RawValue>,
    }
    let record: Record = serde_json::from_str(line).ok()?;
    let answer = match (record.response, record.error) {
        (Some(Response { status_code: 200, body }), _) => {
            let mut answer = Answer::default();
            answer.add(body.get().as_bytes()).map(|_| answer)
        }
        (Some(Response { status_code, body }), _) => Err(format!("{} ({status_code})", error_message(body.get()))),
        (None, Some(error)) => Err(error_message(error.get())),
        (None, None) => Err("neither an answer nor an error".to_owned()),
    };
    Some((record.custom_id, answer))
}

fn sample(request: &Request, answer: Option<Result<Answer, String>>) -> Sample {
    let (verdict, usage) = match answer {
        None => (Verdict::Failed("no line of the output has it".to_owned()), None),
        Some(Err(reason)) => (Verdict::Failed(reason), None),
        Some(Ok(answer)) => (answer.check(request.expect), answer.usage),
    };
    let usage = usage.unwrap_or_default();
    Sample {
        e2e_ms: 0.0,
        ttft_ms: None,
        gaps_ms: Vec::new(),
        input_tokens: usage.input,
        output_tokens: usage.output,
        cached_tokens: usage.cached,
        verdict,
        refused: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_the_last_line_that_says_it() {
        let log = "{\"message\":\"loading\"}\nnot JSON\n{\"message\":\"batch done\",\"seconds\":1.5}\n";
        assert_eq!(seconds(log), Some(Duration::from_millis(1500)));
        assert_eq!(seconds("{\"message\":\"loading\",\"seconds\":2}"), None);
    }

    #[test]
    fn a_record_is_an_answer_or_says_why_not() {
        let good = r#"{"id":"x","custom_id":"0","response":{"status_code":200,"request_id":"r","body":{"choices":[
            {"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}},"error":null}"#;
        let (id, answer) = record(&good.replace('\n', "")).unwrap();
        assert_eq!((id.as_str(), answer.unwrap().text.as_str()), ("0", "Hi"));
        let bad =
            r#"{"custom_id":"1","response":{"status_code":400,"body":{"error":{"message":"too long"}}},"error":null}"#;
        assert_eq!(record(bad).unwrap().1.unwrap_err(), "too long (400)");
        let expired = r#"{"custom_id":"2","response":null,"error":{"code":"batch_expired","message":"too late"}}"#;
        assert_eq!(record(expired).unwrap().1.unwrap_err(), "too late");
        assert_eq!(record("{}"), None);
    }
}
