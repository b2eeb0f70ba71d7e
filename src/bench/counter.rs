use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::client::Client;

/// Counts tokens as the model of a server does.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    pub(super) client: Client,
    pub(super) form: Form,
}

/// How a server's `/tokenize` is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As vLLM and Tandem have it: texts and chats, answered by their count.
    Vllm,
    /// As llama-server has it: texts alone, answered by their tokens; `/apply-template` makes a text of a chat.
    LlamaServer,
}

#[derive(Deserialize)]
struct Count {
    count: usize,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct Rendered {
    prompt: String,
}

const TOKENIZE: &str = "/tokenize";
/// A text of at least one token: a server that does not know the question finds none in it.
const PROBE: &str = "a";

impl Counter {
    /// `None` where the server does not tell.
    pub(super) async fn of(client: Client) -> Option<Self> {
        for form in [Form::Vllm, Form::LlamaServer] {
            let counter = Self { client: client.clone(), form };
            if counter.text(PROBE).await.is_some_and(|tokens| tokens > 0) {
                return Some(counter);
            }
        }
        None
    }

    /// Of a text by itself.
    pub(super) async fn text(&self, text: &str) -> Option<usize> {
        match self.form {
            Form::Vllm => self.count(&json!({"prompt": text, "add_special_tokens": false})).await,
            Form::LlamaServer => self.tokens(text, false).await,
        }
    }

    /// Of a chat with all that its template adds.
    pub(super) async fn chat(&self, messages: &Value) -> Option<usize> {
        match self.form {
            Form::Vllm => self.count(&json!({"messages": messages})).await,
            Form::LlamaServer => {
                let rendered: Rendered = self.client.look("/apply-template", &json!({"messages": messages})).await?;
                self.tokens(&rendered.prompt, true).await
            }
        }
    }

    async fn count(&self, body: &Value) -> Option<usize> {
        let mut body = body.clone();
        body["model"] = self.client.model.as_str().into();
        self.client.look(TOKENIZE, &body).await.map(|answer: Count| answer.count)
    }

    async fn tokens(&self, text: &str, add_special: bool) -> Option<usize> {
        let body = json!({"content": text, "add_special": add_special, "parse_special": true});
        self.client.look(TOKENIZE, &body).await.map(|answer: Tokens| answer.tokens.len())
    }
}
