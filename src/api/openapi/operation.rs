use std::collections::BTreeSet;

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

/// What a key that has limits is told with every answer.
pub(super) const RATE_LIMITS: [&str; 6] = [
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Reset-Requests",
    "X-RateLimit-Limit-Tokens",
    "X-RateLimit-Remaining-Tokens",
    "X-RateLimit-Reset-Tokens",
];

/// A schema that is added to the document where it is named.
pub(super) type SchemaOf = fn(&mut Schemas) -> Value;

/// One method of one URL, as the document tells it.
#[derive(Debug)]
pub(super) struct Operation {
    /// In lower case.
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// A name for generated clients.
    pub(super) id: &'static str,
    /// One of [`TAGS`](super::operations::TAGS).
    pub(super) tag: &'static str,
    /// A few words.
    pub(super) summary: &'static str,
    /// The rest of what there is to say; may be empty.
    pub(super) about: &'static str,
    /// A type whose fields are parameters of the query, and those of them that this operation has.
    pub(super) query: Option<(SchemaOf, &'static [&'static str])>,
    /// A type whose fields are headers of the request.
    pub(super) headers: Option<SchemaOf>,
    /// Headers of its answer beside those that all answers have.
    pub(super) tells: &'static [&'static str],
    pub(super) body: Option<Body>,
    /// What comes back when all goes well.
    pub(super) answers: &'static [Answer],
    /// Statuses of errors, in groups.
    pub(super) fails: &'static [&'static [u16]],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    Json(SchemaOf),
    Form(SchemaOf),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// With status 200.
    Json(SchemaOf),
    /// With status 200, when `stream` is true: server-sent events with data of this schema.
    Events(SchemaOf),
    /// With status 200, when `follow` is true: server-sent events, each of the first schema until the last, which is of the second.
    Followed(SchemaOf, SchemaOf),
    /// Bytes of this media type.
    Bytes(u16, &'static str),
}

impl Operation {
    /// The operation as it stands in the document.
    pub(super) fn describe(&self, schemas: &mut Schemas) -> Value {
        let mut object = json!({ "operationId": self.id, "tags": [self.tag], "summary": self.summary });
        if !self.about.is_empty() {
            object["description"] = self.about.into();
        }
        let parameters = self.parameters(schemas);
        if !parameters.is_empty() {
            object["parameters"] = parameters.into();
        }
        match self.body {
            None => {}
            Some(Body::Json(schema)) => object["requestBody"] = body("application/json", &schema(schemas)),
            Some(Body::Form(schema)) => object["requestBody"] = body("multipart/form-data", &schema(schemas)),
        }
        if !self.is_keyed() {
            object["security"] = json!([]);
        }
        object["responses"] = self.responses(schemas).into();
        object
    }

    /// Whether it may take a key.
    fn is_keyed(&self) -> bool {
        self.fails.iter().any(|statuses| statuses.contains(&401))
    }

    fn parameters(&self, schemas: &mut Schemas) -> Vec<Value> {
        let mut parameters = Vec::new();
        for name in self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": {"type": "string"} }));
        }
        if let Some((schema, names)) = self.query {
            let fields = as_parameters("query", &schema(schemas)).into_iter();
            parameters.extend(fields.filter(|field| field["name"].as_str().is_some_and(|name| names.contains(&name))));
        }
        if let Some(schema) = self.headers {
            parameters.extend(as_parameters("header", &schema(schemas)));
        }
        parameters
    }

    fn responses(&self, schemas: &mut Schemas) -> Map<String, Value> {
        let mut responses = Map::new();
        let mut names = vec!["X-Request-Id"];
        names.extend(self.tells);
        if self.is_keyed() {
            names.push("X-Tandem-Ignored-Params");
            names.extend(RATE_LIMITS);
        }
        for answer in self.answers {
            let (status, media, content) = match *answer {
                Answer::Json(schema) => (200, "application/json", json!({ "schema": schema(schemas) })),
                Answer::Events(schema) => (200, "text/event-stream", json!({ "schema": event(&schema(schemas)) })),
                Answer::Followed(line, last) => {
                    let schema = followed(&line(schemas), &last(schemas));
                    (200, "text/event-stream", json!({ "schema": schema }))
                }
                Answer::Bytes(status, media) => (status, media, json!({})),
            };
            let response = responses.entry(status.to_string()).or_insert_with(|| {
                let description = if status == 206 { "The part that was asked for." } else { "Done." };
                json!({ "description": description, "headers": headers(&names), "content": {} })
            });
            response["content"][media] = content;
        }
        let failures: BTreeSet<u16> = self.fails.iter().copied().flatten().copied().collect();
        for status in failures {
            responses.insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{status}") }));
        }
        responses
    }
}

/// One event of a stream.
fn event(schema: &Value) -> Value {
    let description = "Each event. The data of the last is `[DONE]`, or an `Error`.";
    json!({ "type": "object", "description": description, "properties": {"data": data(&[schema])}, "required": ["data"] })
}

/// One event of a stream of a batch's lines.
fn followed(line: &Value, last: &Value) -> Value {
    // An event without a name is a `message`: https://html.spec.whatwg.org/multipage/server-sent-events.html
    let names = json!({ "enum": ["message", "batch"], "default": "message" });
    json!({
        "type": "object",
        "description": "Each line, with its place as the id; then the batch, as an event `batch`, and `[DONE]`; or an `Error`.",
        "properties": { "id": {"type": "string"}, "event": names, "data": data(&[line, last]) },
        "required": ["data"],
    })
}

/// The data of an event: JSON in all but the last of a stream.
fn data(schemas: &[&Value]) -> Value {
    let error = json!({ "$ref": "#/components/schemas/Error" });
    let content: Vec<&Value> = schemas.iter().copied().chain([&error]).collect();
    let json = json!({ "contentMediaType": "application/json", "contentSchema": {"anyOf": content} });
    json!({ "type": "string", "anyOf": [{"const": "[DONE]"}, json] })
}

fn body(media: &str, schema: &Value) -> Value {
    json!({ "required": true, "content": { media: { "schema": schema } } })
}

pub(super) fn headers(names: &[&str]) -> Value {
    names.iter().map(|name| ((*name).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }))).collect()
}

/// The fields of a struct as parameters; an optional one is absent, never null.
fn as_parameters(place: &'static str, schema: &Value) -> Vec<Value> {
    let required: Vec<Value> = schema["required"].as_array().cloned().unwrap_or_default();
    let fields = schema["properties"].as_object().cloned().unwrap_or_default();
    let parameter = |(name, mut schema): (String, Value)| {
        let description = schema.as_object_mut().and_then(|schema| schema.shift_remove("description"));
        if let Some(Value::Array(kinds)) = schema.get("type") {
            schema["type"] = kinds.first().cloned().unwrap_or_default();
        }
        let required = required.contains(&Value::from(name.as_str()));
        let mut parameter = json!({ "name": name, "in": place, "required": required, "schema": schema });
        if let Some(description) = description {
            parameter["description"] = description;
        }
        parameter
    };
    fields.into_iter().map(parameter).collect()
}

/// The schemas that operations name, which become components of the document.
#[derive(Debug)]
pub(super) struct Schemas {
    /// What clients send: a field that may be null may be absent.
    sent: SchemaGenerator,
    /// What they get: a field is there unless serde leaves it out.
    got: SchemaGenerator,
}

impl Schemas {
    pub(super) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.meta_schema = None;
            settings.definitions_path = "/components/schemas".into();
        });
        Self {
            sent: settings.clone().for_deserialize().into_generator(),
            got: settings.for_serialize().into_generator(),
        }
    }

    /// Of what clients send.
    pub(super) fn request<T: JsonSchema>(&mut self) -> Value {
        self.sent.subschema_for::<T>().to_value()
    }

    /// Of what they get.
    pub(super) fn response<T: JsonSchema>(&mut self) -> Value {
        self.got.subschema_for::<T>().to_value()
    }

    /// The schema itself, where no component is wanted.
    pub(super) fn fields<T: JsonSchema>(&mut self) -> Value {
        T::json_schema(&mut self.sent).to_value()
    }

    /// An object that no type describes.
    pub(super) fn any_object(&mut self) -> Value {
        self.got.subschema_for::<Map<String, Value>>().to_value()
    }

    /// Names that stand for one thing when it is sent and for another when it is got.
    #[cfg(test)]
    pub(super) fn ambiguous(&self) -> Vec<&String> {
        let (sent, got) = (self.sent.definitions(), self.got.definitions());
        sent.keys().filter(|name| got.get(*name).is_some_and(|schema| *schema != sent[*name])).collect()
    }

    /// Everything that was named.
    pub(super) fn into_components(mut self) -> Map<String, Value> {
        let mut components = self.sent.take_definitions(true);
        components.extend(self.got.take_definitions(true));
        components
    }
}
