//! Steps that are asked for before the tokens of the last one are read.

use super::*;
use crate::FinishReason;

fn settings_ahead() -> SimSettings {
    SimSettings { looks_ahead: true, ..settings(BLOCKS) }
}

/// The tokens, and how it ended.
fn told(generation: &mut Generation) -> (Vec<TokenId>, Option<FinishReason>, u32) {
    let (mut tokens, mut ended) = (Vec::new(), (None, 0));
    for event in events(generation) {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished { reason, usage, .. } => ended = (Some(reason), usage.completion_tokens),
            Event::Prompt(_) | Event::Failed(_) => panic!("{event:?}"),
        }
    }
    (tokens, ended.0, ended.1)
}

#[test]
fn the_device_goes_on_while_tokens_are_read_and_no_step_follows_on_a_known_end() {
    Rig::run(settings_ahead(), |rig| {
        let mut generation = rig.submit(request(0..3, 4, Priority::Batch));
        rig.finish();
        let log: Vec<_> = rig.backend.log.lines().skip(1).collect();
        let expected = [
            "step of 3 tokens",
            "  slot 0: 0..3, sample, blocks 0",
            "tokens 1 are chosen on the way",
            "step of 1 tokens",
            "  slot 0: 3..4, not read yet, sample, blocks 0",
            "tokens 2 are chosen on the way",
            "tokens 1 are collected",
            "step of 1 tokens",
            "  slot 0: 4..5, not read yet, sample, blocks 0 1",
            "tokens 3 are chosen on the way",
            "tokens 2 are collected",
            "step of 1 tokens",
            "  slot 0: 5..6, not read yet, sample, blocks 0 1",
            "tokens 4 are chosen on the way",
            "tokens 3 are collected",
            "tokens 4 are collected",
        ];
        assert_eq!(log, expected);
        let (tokens, reason, counted) = told(&mut generation);
        assert_eq!((tokens.len(), reason, counted), (4, Some(FinishReason::Length), 4));
        assert_eq!(rig.scheduler.stats().generated_tokens, 4);
    });
}

#[test]
fn what_follows_on_an_end_that_nobody_knew_is_thrown_away_and_keeps_its_room_until_it_is_computed() {
    Rig::run(settings_ahead(), |rig| {
        let mut all = rig.submit(request(0..3, 5, Priority::Batch));
        rig.finish();
        let (tokens, ..) = told(&mut all);
        assert!(!tokens[..2].contains(&tokens[2]), "the third token is the first of its kind: {tokens:?}");
        let before = rig.scheduler.stats();
        let mut stopped = request(0..3, 5, Priority::Batch);
        stopped.stop.token_ids = vec![tokens[2]];
        let mut generation = rig.submit(stopped);
        // The prompt, two tokens, and one that follows on the third.
        rig.steps(4);
        let (got, reason, counted) = told(&mut generation);
        assert_eq!((&got[..], reason, counted), (&tokens[..3], Some(FinishReason::Stop), 3));
        let stats = rig.scheduler.stats();
        assert_eq!((stats.running, stats.finished), (1, before.finished + 1), "it has ended and is still computed for");
        assert!(stats.kv_used > 0);
        rig.steps(1);
        let stats = rig.scheduler.stats();
        assert_eq!((stats.running, stats.kv_used), (0, 0));
        assert_eq!(stats.computed_tokens - before.computed_tokens, 3 + 2 + 1);
        assert_eq!(stats.generated_tokens - before.generated_tokens, 3, "and not counted");
        assert_eq!(told(&mut generation), (vec![], None, 0), "nor told");
    });
}

#[test]
fn whoever_leaves_while_a_step_is_on_its_way_keeps_its_slot_until_it_has_landed() {
    Rig::run(settings_ahead(), |rig| {
        let leaving = rig.submit(request(0..3, 20, Priority::Batch));
        let mut staying = rig.submit(request(100..103, 6, Priority::Batch));
        rig.steps(2);
        drop(leaving);
        rig.backend.log.clear();
        rig.steps(1);
        let planned = rig.backend.log.lines().find(|line| line.starts_with("step")).unwrap();
        assert_eq!(planned, "step of 1 tokens", "nothing more is computed for it");
        let stats = rig.scheduler.stats();
        assert_eq!((stats.cancelled, stats.running), (1, 1));
        rig.finish();
        assert_eq!(told(&mut staying).0.len(), 6);
        assert_eq!(rig.scheduler.stats().kv_used, 0);
    });
}

#[test]
fn a_row_of_which_the_host_needs_logits_is_waited_for() {
    Rig::run(settings_ahead(), |rig| {
        let mut plain = rig.submit(request(0..3, 9, Priority::Batch));
        let mut with_logprobs =
            rig.submit(GenerateRequest { logprobs: Some(1), ..request(100..103, 4, Priority::Batch) });
        rig.steps(4);
        assert!(!rig.backend.log.contains("chosen"), "{}", rig.backend.log);
        assert_eq!((told(&mut with_logprobs).0.len(), told(&mut plain).0.len()), (4, 4));
        rig.finish();
        assert!(rig.backend.log.contains("chosen on the way"), "{}", rig.backend.log);
        assert_eq!(told(&mut plain).0.len(), 5);
    });
}

#[test]
fn a_failure_of_a_step_that_was_asked_for_ahead_ends_all() {
    let faults = Faults { device_fails_at: 3, ..Faults::default() };
    Rig::run(SimSettings { faults, ..settings_ahead() }, |rig| {
        let mut generation = rig.submit(request(0..3, 20, Priority::Batch));
        rig.steps(2);
        let now = rig.now;
        let error = rig.scheduler.step(&mut rig.backend, &|| now).unwrap_err();
        assert!(matches!(error, StepError::Device(_)), "{error}");
        rig.scheduler.fail_all(EngineError::Gone, now);
        let events = events(&mut generation);
        assert!(matches!(events[..], [Event::Token { .. }, Event::Failed(EngineError::Gone)]), "{events:?}");
        assert!(!rig.scheduler.has_work());
    });
}

#[test]
fn a_refused_step_comes_back_when_all_is_known() {
    let faults = Faults { kv_full_every: 3, ..Faults::default() };
    Rig::run(SimSettings { faults, ..settings_ahead() }, |rig| {
        let mut generation = rig.submit(request(0..3, 5, Priority::Batch));
        rig.finish();
        assert_eq!(told(&mut generation).0.len(), 5);
        let log = &rig.backend.log;
        let mut lines = log.lines().skip_while(|line| !line.ends_with("refused"));
        assert!(lines.nth(2).unwrap().ends_with("are collected"), "{log}");
        let again: Vec<_> = lines.take(2).collect();
        assert!(again[0] == "step of 1 tokens" && !again[1].contains("not read yet"), "{log}");
        assert!(rig.scheduler.stats().refusals > 1);
    });
}
