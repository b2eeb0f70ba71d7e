//! The table of bad inputs: what is wrong with each, and the exact answer.
//!
//! `table.toml` has an entry for each. Most are requests, with what is answered; what takes more than a request is a procedure, which the entry
//! names. They are run against servers with the settings that the table has, while a stream runs beside them that must not suffer; and after
//! each of them the server is well.

mod access;
mod answer;
mod batches;
mod case;
mod dawdle;
mod files;
mod generate;
mod grammars;
mod place;
mod sampling;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};

use place::Place;
use table::{Entry, Table};

/// The sections of the catalogue, with how many entries each has.
const SECTIONS: [(char, usize); 7] = [('A', 20), ('B', 14), ('C', 26), ('D', 22), ('E', 10), ('F', 16), ('G', 14)];

type Procedure = fn(Arc<Place>) -> BoxFuture<'static, ()>;

/// What an entry may name.
const PROCEDURES: &[(&str, Procedure)] = &[
    ("a_head_in_drops", |place| Box::pin(dawdle::a_head_in_drops(place))),
    ("nothing_at_all", |place| Box::pin(dawdle::nothing_at_all(place))),
    ("a_body_in_drops", |place| Box::pin(dawdle::a_body_in_drops(place))),
    ("clients_that_leave", |place| Box::pin(dawdle::clients_that_leave(place))),
    ("a_handler_that_panics", |place| Box::pin(dawdle::a_handler_that_panics(place))),
    ("a_full_queue", |place| Box::pin(dawdle::a_full_queue(place))),
    ("lines_for_models_of_others", |place| Box::pin(access::lines_for_models_of_others(place))),
    ("files_of_others_as_input", |place| Box::pin(access::files_of_others_as_input(place))),
    ("many_wrong_keys", |place| Box::pin(access::many_wrong_keys(place))),
    ("control_tokens_that_are_typed", |place| Box::pin(sampling::control_tokens_that_are_typed(place))),
    ("a_tiny_temperature", |place| Box::pin(sampling::a_tiny_temperature(place))),
    ("stops_within", |place| Box::pin(sampling::stops_within(place))),
    ("a_dead_end", |place| Box::pin(grammars::a_dead_end(place))),
    ("many_schemas", |place| Box::pin(grammars::many_schemas(place, 200))),
    ("an_upload_that_breaks_off", |place| Box::pin(files::an_upload_that_breaks_off(place))),
    ("a_file_that_has_expired", |place| Box::pin(files::a_file_that_has_expired(place))),
    ("input_that_is_none", |place| Box::pin(batches::input_that_is_none(place))),
    ("idempotency", |place| Box::pin(batches::idempotency(place))),
    ("a_library_that_tries_again", |place| Box::pin(batches::a_library_that_tries_again(place))),
    ("too_many_batches", |place| Box::pin(batches::too_many_batches(place))),
    ("cancel_what_has_ended", |place| Box::pin(batches::cancel_what_has_ended(place))),
    ("cancel_twice", |place| Box::pin(batches::cancel_twice(place))),
    ("cancel_while_validating", |place| Box::pin(batches::cancel_while_validating(place))),
    ("cancel_while_finalizing", |place| Box::pin(batches::cancel_while_finalizing(place))),
    ("cancels_in_a_race", |place| Box::pin(batches::cancels_in_a_race(place))),
];

#[test]
fn no_entry_is_missing() {
    let table = Table::read();
    let expected: Vec<String> =
        SECTIONS.iter().flat_map(|(section, count)| (1..=*count).map(move |at| format!("{section}{at}"))).collect();
    let ids: Vec<String> = table.entries.iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(ids, expected);
    for Entry { id, input, deviates, cases, procedure, .. } in &table.entries {
        assert!(!cases.is_empty() || procedure.is_some(), "{id} tests nothing");
        assert!(!input.is_empty(), "{id} is not described");
        let mut reasons = deviates.iter().chain(cases.iter().filter_map(|case| case.deviates.as_ref()));
        assert!(reasons.all(|reason| reason.ends_with('.')), "{id} deviates for no reason");
    }
    let named: BTreeSet<_> = table.entries.iter().filter_map(|entry| entry.procedure.as_deref()).collect();
    let known: BTreeSet<_> = PROCEDURES.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, known);
}

/// The list of refusals in docs/API.md is that of the table.
#[test]
fn refusals_are_documented() {
    const PAGE: &str = include_str!("../../../docs/API.md");
    let (_, section) = PAGE.split_once("\n## Refusals\n").expect("the section is there");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| row.split_once(" | "))
        .filter(|(status, _)| status.parse::<u16>().is_ok())
        .flat_map(|(status, rest)| {
            let codes = rest.split(" | ").next().unwrap_or_default().split(", ");
            codes.map(move |code| format!("{status} {}", code.trim_matches('`')))
        })
        .collect();
    assert_eq!(documented, Table::read().refusals());
}

/// Everything that is to be done at one server, in the order of the table.
async fn run(name: String, table: Arc<Table>) -> Vec<String> {
    let place = Arc::new(Place::start(&name, &table.servers[&name]).await);
    let mut failures = Vec::new();
    for entry in &table.entries {
        for (at, case) in entry.cases.iter().enumerate() {
            if case.server() == name {
                let outcome = case.run(&place).await.and(place.is_well().await);
                failures.extend(outcome.err().map(|error| format!("{}, case {at}: {error}", entry.id)));
            }
        }
        if let Some(procedure) = entry.procedure.as_deref().filter(|_| entry.server() == name) {
            let (_, procedure) = PROCEDURES.iter().find(|(known, _)| *known == procedure).expect("it is known");
            let outcome =
                tokio::spawn(procedure(Arc::clone(&place))).await.map_err(|error| panic_of(&*error.into_panic()));
            let outcome = match outcome {
                Ok(()) => place.is_well().await,
                Err(error) => Err(error),
            };
            failures.extend(outcome.err().map(|error| format!("{}: {error}", entry.id)));
        }
    }
    failures.extend(end(place).await.err().map(|error| format!("{name}: {error}")));
    failures
}

/// Whether all went well beside it.
async fn end(place: Arc<Place>) -> Result<(), String> {
    place.end().await?;
    Arc::into_inner(place).ok_or("something still runs")?.farewell().await
}

fn panic_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_input_has_its_exact_answer() {
    let table = Arc::new(Table::read());
    let used: BTreeMap<&str, ()> = table.places().map(|name| (name, ())).collect();
    let runs = used.keys().map(|name| tokio::spawn(run((*name).to_owned(), Arc::clone(&table))));
    let failures: Vec<String> = join_all(runs).await.into_iter().flat_map(Result::unwrap).collect();
    assert!(failures.is_empty(), "{} of the table:\n{}", failures.len(), failures.join("\n"));
}

mod slow {
    use super::*;

    /// E10 and F4 in their full size.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_takes_long_is_bounded_too() {
        let table = Table::read();
        let place = Arc::new(Place::start("open", &table.servers["open"]).await);
        grammars::many_schemas(Arc::clone(&place), 10_000).await;
        files::half_a_gigabyte_and_a_byte(Arc::clone(&place)).await;
        place.is_well().await.unwrap();
        end(place).await.unwrap();
    }
}
