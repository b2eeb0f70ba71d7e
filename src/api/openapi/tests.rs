use std::cell::RefCell;
use std::collections::BTreeSet;

use actix_web::App;
use serde_json::Number;
use tandem_engine::EngineLimits;
use tandem_sim::{SimLoader, SimSettings};

use super::super::batches::{CREATE_FIELDS, ResultsParams, read_create};
use super::super::files::EstimateParams;
use super::super::listing::ListQuery;
use super::*;
use crate::batch;
use crate::completion::{Completions, Limits, asked};
use crate::models::Models;
use crate::openai::error::ApiError;
use crate::openai::{AllowedModels, Endpoint};
use crate::store::Tenant;

type Set = BTreeSet<String>;
type Body = Map<String, Value>;

thread_local! {
    static SERVED: RefCell<Set> = RefCell::default();
}

/// Takes down that a resource has been made.
pub(in crate::api) fn served(path: &str, methods: &[Method]) {
    // The document has no patterns of parameters.
    let path = path.replace(":.+}", "}");
    let routes = methods.iter().map(|method| format!("{method} {path}"));
    SERVED.with_borrow_mut(|served| served.extend(routes));
}

#[test]
fn every_route_is_described_and_nothing_else() {
    SERVED.take();
    let _ = App::new().configure(super::super::routes);
    let described: Vec<String> =
        OPERATIONS.iter().map(|one| format!("{} {}", one.method.to_uppercase(), one.path)).collect();
    let distinct: Set = described.iter().cloned().collect();
    assert_eq!(described.len(), distinct.len(), "an operation stands twice in the table");
    assert_eq!(distinct, SERVED.take());
    let ids: BTreeSet<_> = OPERATIONS.iter().map(|one| one.id).collect();
    assert_eq!(ids.len(), OPERATIONS.len(), "two operations have one id");
}

#[test]
fn every_reference_leads_somewhere() {
    let document = describe();
    let mut pending = vec![&document];
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(entries) => pending.extend(entries.values()),
            Value::Array(items) => pending.extend(items),
            Value::String(text) if text.starts_with("#/") => {
                assert!(document.pointer(&text[1..]).is_some(), "{text} leads nowhere");
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

#[test]
fn a_name_stands_for_one_schema() {
    let mut schemas = Schemas::new();
    for operation in OPERATIONS {
        operation.describe(&mut schemas);
    }
    assert_eq!(schemas.ambiguous(), Vec::<&String>::new());
    assert!(schemas.into_components().contains_key("ChatRequest"));
}

#[test]
fn queries_have_the_parameters_that_are_read() {
    let mut schemas = Schemas::new();
    let cases = [
        (keys(&schemas.fields::<ListQuery>()["properties"]), &["listFiles", "listBatches"][..]),
        (keys(&schemas.fields::<ResultsParams>()["properties"]), &["listBatchResults"]),
        (keys(&schemas.fields::<EstimateParams>()["properties"]), &["estimateFile"]),
    ];
    for (fields, ids) in cases {
        let used = OPERATIONS.iter().filter(|one| ids.contains(&one.id));
        let used: Set =
            used.filter_map(|one| one.query).flat_map(|(_, names)| names).map(|name| (*name).to_owned()).collect();
        assert_eq!(used, fields, "{ids:?}");
    }
}

#[test]
fn readers_and_document_know_the_same_fields() {
    let document = describe();
    for endpoint in Endpoint::ALL {
        let schema = &document["components"]["schemas"][request_of(endpoint)];
        let bodies = bodies(&document, schema);
        compare(&document, schema, &bodies, |body| asked::read(endpoint, body));
    }
}

#[test]
fn bounds_are_where_they_are_said_to_be() {
    let document = describe();
    for endpoint in Endpoint::ALL {
        let schema = &document["components"]["schemas"][request_of(endpoint)];
        let base = &bases(&document, schema)[0];
        for (name, field) in schema["properties"].as_object().unwrap() {
            let with = |value: Value| asked::read(endpoint, &with_field(&document, schema, base, name, value));
            for value in within(field) {
                let shown = shown(&value);
                assert!(with(value).is_ok(), "{endpoint:?}: {name} = {shown} is refused, against the document");
            }
            for value in beyond(field) {
                let shown = shown(&value);
                let Err(error) = with(value) else { panic!("{endpoint:?}: {name} = {shown} is accepted") };
                assert!(
                    error.body.param.is_some_and(|param| param.starts_with(name)),
                    "{endpoint:?}: {name} = {shown}"
                );
            }
        }
    }
}

#[test]
fn a_batch_is_created_with_the_fields_that_are_described() {
    let document = describe();
    let schema = &document["components"]["schemas"]["BatchRequest"];
    assert_eq!(keys(&schema["properties"]), CREATE_FIELDS.map(str::to_owned).into());
    let settings = batch::Settings::default();
    for body in bodies(&document, schema) {
        assert!(read_create(&body, Tenant::default(), &settings).is_ok(), "{body:?}");
    }
    for name in schema["required"].as_array().unwrap() {
        let mut body = bodies(&document, schema)[0].clone();
        body.shift_remove(name.as_str().unwrap());
        assert!(read_create(&body, Tenant::default(), &settings).is_err(), "{name} is not required");
    }
}

#[tokio::test]
async fn tokenizers_read_the_fields_that_are_described() {
    let loader =
        || -> Result<Box<dyn tandem_core::BackendLoader>, _> { Ok(Box::new(SimLoader::new(SimSettings::default()))) };
    let models = Models::from_loader("demo", EngineLimits::default(), loader);
    models.ready().await.unwrap();
    let completions = Completions::new(models, Limits::default());
    let document = describe();
    for name in ["TokenizeRequest", "DetokenizeRequest"] {
        let schema = &document["components"]["schemas"][name];
        let mut asked = BTreeSet::new();
        for body in bodies(&document, schema) {
            asked::take();
            let bytes = serde_json::to_vec(&body).unwrap();
            let outcome = match name {
                "TokenizeRequest" => completions.tokenize(&bytes, &AllowedModels::default()).await.map(|_| ()),
                _ => completions.detokenize(&bytes, &AllowedModels::default()).await.map(|_| ()),
            };
            assert_eq!(outcome, Ok(()), "{body:?}");
            asked.extend(asked::take());
        }
        let unread: Vec<_> = described(&document, schema).difference(&asked).cloned().collect();
        assert!(unread.is_empty(), "{name}: described and not read: {unread:?}");
        let secret: Vec<_> = asked.difference(&described(&document, schema)).cloned().collect();
        // What a message may have elsewhere, and is refused here by name.
        assert_eq!(secret, if name == "TokenizeRequest" { vec!["messages[].audio"] } else { vec![] });
    }
}

fn request_of(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::ChatCompletions => "ChatRequest",
        Endpoint::Completions => "CompletionRequest",
        Endpoint::Embeddings => "EmbeddingRequest",
        Endpoint::Rerank => "RerankRequest",
    }
}

/// The fields that are described are those that are asked for when the examples are read; but those that are refused whatever their value.
fn compare(document: &Value, schema: &Value, bodies: &[Body], read: impl Fn(&Body) -> Result<(), ApiError>) {
    let described = described(document, schema);
    asked::take();
    for body in bodies {
        let outcome = read(body);
        assert_eq!(outcome, Ok(()), "{}", Value::from(body.clone()));
    }
    let asked = asked::take();
    let unread: Vec<_> = described.difference(&asked).collect();
    assert!(unread.is_empty(), "described and not read: {unread:?}");
    for path in asked.difference(&described) {
        for value in [json!("x"), json!(1), json!(true), json!([]), json!([{}]), json!({}), json!({"x": "y"})] {
            let mut body = Value::from(bodies[0].clone());
            let pointer = format!("/{}", path.replace("[].", "/0/").replace('.', "/"));
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            body.pointer_mut(parent).unwrap()[name] = value.clone();
            let refused = read(body.as_object().unwrap()).is_err();
            assert!(refused, "{path} is read and not described, and {value} is accepted");
        }
    }
}

/// The paths of all fields that a schema names: `messages[].role`.
fn described(document: &Value, schema: &Value) -> Set {
    fn walk(document: &Value, schema: &Value, path: &str, found: &mut Set) {
        let schema = resolve(document, schema);
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(document, field, &path, found);
            found.insert(path);
        }
        if let Some(items) = schema.get("items") {
            walk(document, items, &format!("{path}[]"), found);
        }
        for variant in ["anyOf", "oneOf", "allOf"].iter().filter_map(|name| schema[*name].as_array()).flatten() {
            walk(document, variant, path, found);
        }
    }
    let mut found = BTreeSet::new();
    walk(document, schema, "", &mut found);
    found
}

/// The required fields alone, for each way in which they may be.
fn bases(document: &Value, schema: &Value) -> Vec<Body> {
    let required = |schema: &Value| -> Vec<String> {
        let names = schema["required"].as_array().into_iter().flatten();
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let ways: Vec<Vec<String>> = match schema["anyOf"].as_array() {
        None => vec![vec![]],
        Some(ways) => ways.iter().map(required).collect(),
    };
    let body = |way: Vec<String>| {
        let names = required(schema).into_iter().chain(way);
        names.map(|name| (name.clone(), examples(document, schema, &name)[0].clone())).collect()
    };
    ways.into_iter().map(body).collect()
}

/// The required fields with each of the others, with each of its examples.
fn bodies(document: &Value, schema: &Value) -> Vec<Body> {
    let mut bodies = bases(document, schema);
    for base in bodies.clone() {
        for name in keys(&schema["properties"]) {
            for value in examples(document, schema, &name) {
                bodies.push(with_field(document, schema, &base, &name, value.clone()));
            }
        }
    }
    bodies
}

/// What the document says in words alone: makers of requests from schemas do not bear more rules of that kind.
const TOGETHER: [(&str, &str); 1] = [("guided_whitespace_pattern", "guided_json")];

/// A field, and what it takes for it to have a meaning.
fn with_field(document: &Value, schema: &Value, base: &Body, name: &str, value: Value) -> Body {
    let mut body = base.clone();
    let rule = &schema["dependentSchemas"][name];
    let rule = rule["anyOf"].get(0).unwrap_or(rule);
    let ruled = rule["required"].as_array().into_iter().flatten().map(|needed| needed.as_str().unwrap());
    let worded = TOGETHER.iter().filter(|(one, _)| *one == name).map(|(_, needed)| *needed);
    for needed in ruled.chain(worded) {
        body.insert(needed.to_owned(), examples(document, schema, needed)[0].clone());
    }
    body.insert(name.to_owned(), value);
    body
}

fn examples<'a>(document: &'a Value, schema: &'a Value, name: &str) -> &'a [Value] {
    let field = resolve(document, &schema["properties"][name]);
    let examples = schema["properties"][name].get("examples").or(field.get("examples"));
    let examples = examples.and_then(Value::as_array).filter(|examples| !examples.is_empty());
    examples.unwrap_or_else(|| panic!("{name} has no example"))
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => schema,
    }
}

fn keys(object: &Value) -> Set {
    object.as_object().unwrap().keys().cloned().collect()
}

/// Values at the bounds of a field.
fn within(field: &Value) -> Vec<Value> {
    let numbers = ["minimum", "maximum"].iter().filter_map(|bound| field.get(*bound).cloned());
    let sizes = ["minItems", "maxItems", "minLength", "maxLength", "maxProperties"];
    let sized = sizes.iter().filter_map(|bound| Some(of_size(field, bound, field.get(*bound)?.as_u64()?)));
    let words = field["enum"].as_array().cloned().unwrap_or_default();
    numbers.chain(sized).chain(words).collect()
}

/// Values just outside of them.
fn beyond(field: &Value) -> Vec<Value> {
    let mut values = Vec::new();
    if let Some(minimum) = field.get("minimum") {
        values.push(moved(minimum, -1));
    }
    if let Some(maximum) = field.get("maximum") {
        values.push(moved(maximum, 1));
    }
    values.extend(field.get("exclusiveMinimum").cloned());
    for bound in ["maxItems", "maxLength", "maxProperties"] {
        values.extend(field.get(bound).and_then(Value::as_u64).map(|size| of_size(field, bound, size + 1)));
    }
    for bound in ["minItems", "minLength"] {
        values.extend(field.get(bound).and_then(Value::as_u64).map(|size| of_size(field, bound, size - 1)));
    }
    if field.get("enum").is_some() {
        values.push(json!("none of them"));
    }
    values
}

fn moved(number: &Value, by: i64) -> Value {
    match number.as_i64() {
        Some(number) => (number + by).into(),
        None => Number::from_f64(number.as_f64().unwrap() + by as f64).unwrap().into(),
    }
}

/// So many times what the field's first example begins with.
fn of_size(field: &Value, bound: &str, size: u64) -> Value {
    let example = &field["examples"][0];
    match bound {
        "minLength" | "maxLength" => "x".repeat(size as usize).into(),
        "minItems" | "maxItems" => vec![example[0].clone(); size as usize].into(),
        _ => {
            let value = example.as_object().unwrap().values().next().unwrap();
            (0..size).map(|key| (key.to_string(), value.clone())).collect::<Body>().into()
        }
    }
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}
