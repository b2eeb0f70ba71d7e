//! A seed's text depends on the request alone, not on what else runs.

use tandem_core::SamplingParams;
use tandem_engine::GenerateRequest;

use crate::helpers::{BACKENDS, chat, engine, generate, request, tokens};

#[tokio::test]
async fn a_seeded_request_gives_the_same_text_alone_and_among_63_others() {
    for backend in BACKENDS {
        let engine = engine(backend, true).await;
        for temperature in [0.0, 0.8] {
            let ask = |question: &str, seed: u64| GenerateRequest {
                sampling: SamplingParams { temperature, top_p: 0.95, ..SamplingParams::default() },
                seed,
                ..request(chat(&engine, None, question), 32)
            };
            let ours = ask("Tell me about the sea.", 4711);
            let alone = tokens(&generate(&engine, vec![ours.clone()]).await[0]);
            let mut all: Vec<_> = (0..63).map(|at| ask(&format!("What is {at}+{}?", at % 9), at)).collect();
            all.insert(31, ours);
            let among = tokens(&generate(&engine, all).await[31]);
            assert_eq!(alone, among, "{backend}, temperature {temperature}");
            assert!(alone.len() > 4, "{backend}, temperature {temperature}: enough text to differ in: {alone:?}");
        }
    }
}
