use super::*;
use crate::batch::LineOrder;

fn asked(custom_id: &str, content: &str, fields: &[(&str, Value)]) -> String {
    let mut body = json!({"model": "m1", "messages": [{"role": "user", "content": content}]});
    fields.iter().for_each(|(name, value)| body[*name] = value.clone());
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}).to_string() + "\n"
}

fn same(count: usize, content: &str) -> String {
    (0..count).map(|index| asked(&format!("{content}-{index}"), content, &[("temperature", 0.into())])).collect()
}

/// Forty lines by turns under four long beginnings, and the beginnings in the order in which they were run.
async fn beginnings(order: LineOrder) -> Vec<char> {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| (settings.window, settings.order) = (1, order)).await;
    let long = "and so on, word by word, as long as a prompt of a system is wont to be; ".repeat(5);
    let content = |index: usize| format!("{} {long} {index}", ["a", "b", "c", "d"][index % 4]);
    let text: String = (0..40).map(|index| line(&format!("line-{index}"), &content(index))).collect();
    assert_eq!(world.run(&text).await.done, 40);
    let order = world.fake.state.order.lock().unwrap().clone();
    order.iter().map(|content| content.chars().next().unwrap()).collect()
}

#[tokio::test]
async fn lines_that_begin_alike_run_one_after_the_other() {
    let grouped = ['a', 'b', 'c', 'd'].map(|beginning| vec![beginning; 10]).concat();
    assert_eq!(beginnings(LineOrder::Prefix).await, grouped);
    assert_eq!(beginnings(LineOrder::File).await, ['a', 'b', 'c', 'd'].repeat(10));
}

#[tokio::test]
async fn the_last_lines_are_the_short_ones() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.window = 4).await;
    let text: String = (0..8)
        .map(|index| asked(&format!("line-{index}"), &format!("gate {index}"), &[("max_tokens", (10 + index).into())]))
        .collect();
    let id = world.create(&text).await;
    eventually(async || (world.fake.running() == 4).then_some(())).await;
    let mut first = world.fake.state.order.lock().unwrap().clone();
    first.sort();
    assert_eq!(first, ["gate 4", "gate 5", "gate 6", "gate 7"]);
    world.fake.open_gate();
    assert_eq!(world.ended(&id).await.done, 8);
}

#[tokio::test]
async fn what_is_asked_twice_is_computed_once() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.window = 4).await;
    let drawn: String = (0..3).map(|index| line(&format!("drawn-{index}"), "drawn")).collect();
    let batch = world.run(&(same(50, "hello") + &drawn + &same(2, "bye"))).await;
    assert_eq!((batch.done, batch.failed), (55, 0));
    assert_eq!(world.fake.executions("hello"), 1);
    assert_eq!(world.fake.executions("bye"), 1);
    assert_eq!(world.fake.executions("drawn"), 3, "chance may answer otherwise each time");
    let output = world.output(&batch).await;
    assert!(output[..50].iter().all(|record| record["response"]["body"]["echo"] == "hello"));
    assert_eq!((batch.input_tokens, batch.output_tokens), (55 * 3, 55 * 2), "as the answers say");
}

#[tokio::test]
async fn what_is_not_computed_counts_neither_as_speed_nor_as_work() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.window = 4).await;
    let id = world.create(&(same(50, "hello") + &same(10, "gate") + &lines(3, "gate"))).await;
    let get = async || world.batches.get(&Tenant::default(), &id).await.unwrap();
    let batch = eventually(async || Some(get().await).filter(|batch| batch.done == 50)).await;
    assert_eq!((batch.open_lines, batch.open_work), (13, 4));
    assert_eq!(world.batches.meter.counted(&id), (1, 5), "fifty lines, and one that took computing");
    world.fake.open_gate();
    let ended = world.ended(&id).await;
    assert_eq!((ended.done, ended.open_work), (63, 0));
}

#[tokio::test]
async fn lines_that_wait_for_an_answer_leave_their_places_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start_with(dir.path(), |settings| settings.window = 4).await;
    let id = world.create(&(same(20, "gate") + &lines(12, "gate"))).await;
    eventually(async || (world.fake.running() == 4).then_some(())).await;
    world.fake.open_gate();
    assert_eq!(world.ended(&id).await.done, 32);
    assert_eq!(world.fake.executions("gate"), 1);
    assert_eq!(world.fake.running_max(), 4);
}

#[tokio::test]
async fn a_failure_is_nobody_elses_answer() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let batch = world.run(&(same(5, "refuse") + &same(5, "panic"))).await;
    assert_eq!((batch.done, batch.failed), (0, 10));
    assert_eq!((world.fake.executions("refuse"), world.fake.executions("panic")), (5, 5));
}

#[test]
fn a_shared_answer_is_given_under_an_id_of_its_own() {
    let answer = |text: &str| LineAnswer {
        body: serde_json::value::RawValue::from_string(text.to_owned()).unwrap(),
        tokens: Tokens::default(),
    };
    let named = answer(r#"{"id":"chatcmpl-abc","object":"x","choices":["\"chatcmpl-abc\""]}"#);
    let expected = r#"{"id":"chatcmpl-123","object":"x","choices":["\"chatcmpl-abc\""]}"#;
    assert_eq!(named.for_another("123").body.get(), expected);
    assert_eq!(answer(r#"{"object":"list"}"#).for_another("123").body.get(), r#"{"object":"list"}"#);
}
