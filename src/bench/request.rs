use serde_json::Value;

use crate::openai::Endpoint;

/// What a target is asked, whichever it is: model and stream are the target's part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) endpoint: Endpoint,
    pub(super) body: Value,
    pub(super) expect: Expect,
}

/// Requests of which each waits for the answer to the one before.
pub(super) type Conversation = Vec<Request>;

/// What an answer has to be, so that its figures count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// An answer that has an end.
    Whole,
    /// So many tokens; fewer are an answer cut short.
    Tokens(u64),
    /// A text that is JSON.
    Json,
    /// A vector for each of so many inputs.
    Vectors(usize),
}

impl Request {
    /// The body as it is sent to a server.
    pub(super) fn body_for(&self, model: &str, stream: bool) -> Vec<u8> {
        let mut body = self.body.clone();
        body["model"] = model.into();
        if self.is_streamed(stream) {
            body["stream"] = true.into();
            body["stream_options"] = serde_json::json!({"include_usage": true});
        } else if let Some(fields) = body.as_object_mut() {
            fields.shift_remove("stream");
            fields.shift_remove("stream_options");
        }
        body.to_string().into_bytes()
    }

    /// Vectors and scores come as a whole.
    pub(super) fn is_streamed(&self, stream: bool) -> bool {
        stream && matches!(self.endpoint, Endpoint::ChatCompletions | Endpoint::Completions)
    }

    /// The request as a line of a batch.
    pub(super) fn line_for(&self, model: &str, custom_id: &str) -> String {
        let mut body = self.body.clone();
        body["model"] = model.into();
        if let Some(fields) = body.as_object_mut() {
            fields.shift_remove("stream");
            fields.shift_remove("stream_options");
        }
        serde_json::json!({"custom_id": custom_id, "method": "POST", "url": self.endpoint.path(), "body": body})
            .to_string()
    }
}
