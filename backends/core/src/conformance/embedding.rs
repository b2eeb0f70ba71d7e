//! The part of the suite for backends that turn texts into vectors.

use crate::{BackendLoader, EmbeddingBackend, LoadError, TokenId};

/// Runs the whole suite on one loaded embedding model, which must take inputs of 16 tokens at least, and three of them at once. Numbers are
/// compared within `tolerance` of the longest vector's length.
///
/// # Errors
/// When the model cannot be loaded.
///
/// # Panics
/// When the backend breaks the contract.
pub fn check_embedder(loader: Box<dyn BackendLoader>, tolerance: f32) -> Result<(), LoadError> {
    loader.with_backend(&mut |loaded| {
        let vocab = loaded.vocab.len();
        let mut rig = Rig { backend: loaded.backend.embedder().expect("the model is an embedder"), tolerance };
        rig.the_spec_makes_sense(vocab);
        rig.others_in_a_pass_make_no_difference();
        rig.a_pass_leaves_nothing_behind();
        rig.the_order_of_tokens_makes_a_difference();
        rig.a_pass_may_be_as_large_as_it_says();
    })
}

struct Rig<'a> {
    backend: &'a mut dyn EmbeddingBackend,
    tolerance: f32,
}

impl Rig<'_> {
    /// Some tokens; others for another `salt`.
    fn input(&self, salt: u32, len: u32) -> Vec<TokenId> {
        let vocab = self.backend.spec().vocab_size;
        (0..len).map(|at| salt.wrapping_mul(31).wrapping_add(at.wrapping_mul(at.wrapping_add(7))) % vocab).collect()
    }

    fn embed(&mut self, inputs: &[&[TokenId]]) -> Vec<Vec<f32>> {
        let dimensions = self.backend.spec().dimensions as usize;
        // Something that is there already stays.
        let mut out = vec![0.5];
        self.backend.embed(inputs, &mut out).expect("a pass within the spec succeeds");
        assert_eq!(out.len(), 1 + inputs.len() * dimensions, "a vector of its dimensions for each input");
        assert!(out[0] == 0.5, "vectors are appended");
        assert!(out.iter().all(|number| number.is_finite()), "the model's vectors are finite");
        let ranks = self.backend.spec().ranks();
        assert!(!ranks || out.iter().all(|number| (0.0..=1.0).contains(number)), "ranks are from 0 to 1");
        out[1..].chunks_exact(dimensions).map(<[f32]>::to_vec).collect()
    }

    fn assert_same(&self, what: &str, expected: &[f32], got: &[f32]) {
        let apart = distance(expected, got);
        assert!(apart <= self.tolerance * length(expected), "{what}: the vector is off by {apart}");
    }

    fn the_spec_makes_sense(&self, vocab: usize) {
        let spec = self.backend.spec();
        assert!(vocab <= spec.vocab_size as usize, "every token of the vocabulary can be in an input");
        assert!(spec.dimensions > 0, "vectors have numbers");
        assert!(spec.dimensions == 1 || !spec.ranks(), "a rank is one number");
        assert!(spec.max_input_tokens >= 16, "the suite needs inputs of 16 tokens");
        assert!(spec.max_inputs >= 3, "the suite needs passes of three inputs");
        assert!(spec.max_pass_tokens >= 16, "the suite needs passes of 16 tokens");
    }

    fn others_in_a_pass_make_no_difference(&mut self) {
        // The first is no longer than what any pass has left beside the others.
        let inputs = [self.input(1, 5), self.input(2, 1), self.input(3, 9)];
        let alone: Vec<_> = inputs.iter().map(|input| self.embed(&[input]).remove(0)).collect();
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let together = self.embed(&order.map(|at| &*inputs[at]));
            for (at, got) in std::iter::zip(order, &together) {
                self.assert_same("an input among others", &alone[at], got);
            }
        }
        let twice = self.embed(&[&inputs[0], &inputs[0]]);
        self.assert_same("an input that is there twice", &twice[0], &twice[1]);
    }

    fn a_pass_leaves_nothing_behind(&mut self) {
        let (ours, theirs) = (self.input(4, 6), self.input(5, 12));
        let expected = self.embed(&[&ours]).remove(0);
        self.embed(&[&theirs]);
        let got = self.embed(&[&ours]).remove(0);
        self.assert_same("after another pass", &expected, &got);
    }

    fn the_order_of_tokens_makes_a_difference(&mut self) {
        let input = self.input(6, 8);
        let backwards: Vec<_> = input.iter().rev().copied().collect();
        let both = self.embed(&[&input, &backwards]);
        let apart = distance(&both[0], &both[1]);
        assert!(apart > self.tolerance * length(&both[0]), "an input backwards has the same vector");
    }

    fn a_pass_may_be_as_large_as_it_says(&mut self) {
        let spec = self.backend.spec().clone();
        let longest = self.input(7, spec.max_input_tokens);
        self.embed(&[&longest]);
        let few = spec.max_pass_tokens.div_ceil(spec.max_input_tokens).max(2);
        let full = vec![&longest[..(spec.max_pass_tokens / few) as usize]; few.min(spec.max_inputs) as usize];
        self.embed(&full);
        let shortest = &longest[..1];
        self.embed(&vec![shortest; spec.max_inputs.min(spec.max_pass_tokens) as usize]);
    }
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|number| number * number).sum::<f32>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    std::iter::zip(a, b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}
