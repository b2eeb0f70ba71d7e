use rand::{rngs::StdRng, seq::IndexedRandom as _};

use super::counter::Counter;

/// Words of which prompts are made: short and common ones, most of them a token of a usual vocabulary.
const WORDS: &[&str] = &[
    "the", "river", "old", "stone", "bridge", "market", "morning", "lamp", "letter", "winter", "garden", "road",
    "station", "window", "music", "paper", "bread", "and", "of", "near", "under", "with", "city", "north", "summer",
    "house", "water", "light", "night", "field", "story", "voice", "table", "glass", "train", "ship", "cloud",
    "forest", "mountain", "valley", "early", "quiet", "open", "green", "small", "large", "long", "new", "first",
    "last", "where", "when", "which", "because", "before", "after", "while", "between", "every", "other", "many",
    "some", "people", "children", "teacher", "doctor", "farmer", "captain", "question", "answer", "number", "picture",
    "reason", "history", "science", "language", "country", "island", "village", "street", "door", "wall", "roof",
    "fire", "rain", "snow", "wind", "sun", "moon", "star", "tree", "leaf", "flower", "horse", "bird", "fish", "apple",
    "salt", "sugar", "milk", "tea", "hand", "eye", "heart", "mind",
];
/// Words for a token, where nothing better is known; for English text and usual vocabularies.
const WORDS_PER_TOKEN: f64 = 0.75;
/// After so many looks a text is taken as it is: some lengths cannot be had with some vocabularies.
const LOOKS_MAX: usize = 24;

/// Makes texts of a number of tokens.
#[derive(Debug)]
pub(super) struct Writer {
    /// Counts tokens; without it they are estimated by words.
    pub(super) counter: Option<Counter>,
    /// As it was with the texts before.
    pub(super) words_per_token: f64,
}

/// A text that grows and shrinks: words, and full stops behind them where a word would be too much.
struct Draft {
    words: Vec<&'static str>,
    stops: usize,
}

impl Writer {
    pub(super) fn new(counter: Option<Counter>) -> Self {
        Self { counter, words_per_token: WORDS_PER_TOKEN }
    }

    /// A text of so many tokens in all, with what `count` says of it; at least a word.
    pub(super) async fn write(
        &mut self,
        random: &mut StdRng,
        tokens: usize,
        count: impl AsyncFn(&Counter, &str) -> Option<usize>,
    ) -> String {
        let mut draft = Draft { words: Vec::new(), stops: 0 };
        draft.add_words(random, ((tokens as f64 * self.words_per_token) as usize).max(1));
        let Some(counter) = &self.counter else { return draft.text() };
        for _ in 0..LOOKS_MAX {
            let Some(counted) = count(counter, &draft.text()).await else { break };
            let words = |tokens: usize| ((tokens as f64 * self.words_per_token) as usize).max(1);
            match tokens.checked_sub(counted) {
                Some(0) => break,
                // As many as the longest word has, with a vocabulary of letters: else a word too much and a word too few would take turns.
                Some(few @ 1..=8) => draft.stops += few,
                Some(missing) => draft.add_words(random, words(missing)),
                None if draft.stops > 0 => draft.stops = draft.stops.saturating_sub(counted - tokens),
                None if draft.words.len() == 1 => break,
                None => draft.drop_words(words(counted - tokens)),
            }
            if counted > 16 {
                self.words_per_token = draft.words.len() as f64 / counted.max(tokens) as f64;
            }
        }
        draft.text()
    }
}

impl Draft {
    fn add_words(&mut self, random: &mut StdRng, count: usize) {
        self.words.extend((0..count).filter_map(|_| WORDS.choose(random)));
    }

    /// One is always left.
    fn drop_words(&mut self, count: usize) {
        self.words.truncate(self.words.len().saturating_sub(count).max(1));
    }

    fn text(&self) -> String {
        self.words.join(" ") + &".".repeat(self.stops)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::bench::{client::Client, counter::Form};

    #[tokio::test]
    async fn without_a_counter_words_stand_for_tokens() {
        let mut writer = Writer::new(None);
        let mut random = StdRng::seed_from_u64(1);
        let text = writer.write(&mut random, 100, async |_, _| None).await;
        assert_eq!(text.split(' ').count(), 75);
        assert_eq!(writer.write(&mut random, 0, async |_, _| None).await.split(' ').count(), 1);
    }

    /// A tokenizer for which a word is its letters, by twos, and a full stop is a token.
    #[tokio::test]
    async fn texts_have_exactly_the_tokens_that_were_asked_for() {
        let client = Client::new("http://127.0.0.1:1", None, false, std::time::Duration::ZERO).unwrap();
        let mut writer = Writer::new(Some(Counter { client, form: Form::Vllm }));
        let count = |text: &str| {
            let words = text.trim_end_matches('.');
            words.split(' ').map(|word| word.len().div_ceil(2)).sum::<usize>() + text.len() - words.len()
        };
        let mut random = StdRng::seed_from_u64(1);
        for tokens in [8, 31, 64, 256, 500] {
            let text = writer.write(&mut random, tokens, async |_, text| Some(count(text))).await;
            assert_eq!(count(&text), tokens, "{text}");
        }
    }
}
