use std::str::Utf8Error;

/// Turns the bytes of tokens into text that may be shown: whole characters, and nothing that may still become a stop string.
///
/// The text that comes out, all pieces joined, does not depend on how the bytes were divided among tokens. Invalid UTF-8 becomes U+FFFD as
/// [`String::from_utf8_lossy`] has it.
#[derive(Debug)]
pub struct Output {
    stops: Vec<String>,
    /// The start of a character whose end has not come yet; at most three bytes.
    partial: Vec<u8>,
    /// Whole characters that may be the start of a stop string.
    held: String,
}

/// What one token's bytes made certain.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed {
    /// Text that may be shown, perhaps none yet.
    Text(String),
    /// A stop string is complete: this is the last text, without it.
    Stopped(String),
}

impl Output {
    /// Nothing pushed yet. No stop string may be empty.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop string would end every generation");
        Self { stops, partial: Vec::new(), held: String::new() }
    }

    /// Takes the bytes of the next token.
    pub fn push(&mut self, bytes: &[u8]) -> Pushed {
        self.partial.extend_from_slice(bytes);
        decode(&mut self.partial, &mut self.held);
        if let Some(at) = self.first_stop() {
            self.partial.clear();
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return Pushed::Stopped(text);
        }
        let certain = self.held.len() - self.undecided();
        Pushed::Text(self.held.drain(..certain).collect())
    }

    /// The text still held back, when generation ended otherwise.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        // What was half a character may have completed a stop string, whose text is U+FFFD.
        self.held = text;
        let end = self.first_stop().unwrap_or(self.held.len());
        self.held.truncate(end);
        std::mem::take(&mut self.held)
    }

    /// Where the stop string begins that is complete first; of several that end together, the longest.
    fn first_stop(&self) -> Option<usize> {
        self.stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)))
            .min()
            .map(|(_, start)| start)
    }

    /// Bytes at the end of `held` that are the start of a stop string.
    fn undecided(&self) -> usize {
        self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0)
    }
}

/// The longest end of `text` that is a beginning of `stop`, in bytes; shorter than `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest)
        .rev()
        .find(|&len| stop.is_char_boundary(len) && text.as_bytes()[text.len() - len..] == stop.as_bytes()[..len])
        .unwrap_or(0)
}

/// Moves whole characters from `bytes` to `text`, leaving the start of an unfinished one.
fn decode(bytes: &mut Vec<u8>, text: &mut String) {
    let mut done = 0;
    while done < bytes.len() {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(valid) => {
                text.push_str(valid);
                done = bytes.len();
            }
            Err(error) => {
                let valid = done + Utf8Error::valid_up_to(&error);
                text.push_str(&String::from_utf8_lossy(&bytes[done..valid]));
                let Some(invalid) = error.error_len() else {
                    done = valid;
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                done = valid + invalid;
            }
        }
    }
    bytes.drain(..done);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything that comes out for `bytes` divided as `cuts` say, and whether a stop string ended it.
    fn run(bytes: &[u8], cuts: &[usize], stops: &[String]) -> (String, bool) {
        let mut output = Output::new(stops.to_vec());
        let mut all = String::new();
        let mut start = 0;
        let ends = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]);
        let mut ends: Vec<_> = ends.collect();
        ends.sort_unstable();
        for end in ends {
            match output.push(&bytes[start..end]) {
                Pushed::Text(text) => all.push_str(&text),
                Pushed::Stopped(text) => return (all + &text, true),
            }
            start = end;
        }
        (all + &output.finish(), false)
    }

    #[test]
    fn a_character_comes_out_whole() {
        let mut output = Output::new(vec![]);
        let bytes = "né".as_bytes();
        assert_eq!(output.push(&bytes[..2]), Pushed::Text("n".to_owned()));
        assert_eq!(output.push(&bytes[2..]), Pushed::Text("é".to_owned()));
    }

    #[test]
    fn a_possible_stop_string_is_held_back_until_it_is_decided() {
        let mut output = Output::new(vec!["END".to_owned()]);
        assert_eq!(output.push(b"the E"), Pushed::Text("the ".to_owned()));
        assert_eq!(output.push(b"N"), Pushed::Text(String::new()));
        assert_eq!(output.push(b"E"), Pushed::Text("EN".to_owned()));
        assert_eq!(output.push(b"ND of it"), Pushed::Stopped(String::new()));
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        let stops = ["bcd".to_owned(), "c".to_owned()];
        assert_eq!(run(b"abcd", &[], &stops), ("ab".to_owned(), true));
        assert_eq!(run(b"abcd", &[1, 2, 3], &stops), ("ab".to_owned(), true));
    }

    proptest! {
        #[test]
        fn text_does_not_depend_on_how_bytes_are_divided(
            bytes in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(0xc3), Just(0xa9), Just(0xf0), any::<u8>()], 0..40),
            cuts in proptest::collection::vec(0usize..64, 0..8),
            stops in proptest::collection::vec("[abé]{1,4}", 0..3),
        ) {
            prop_assert_eq!(run(&bytes, &cuts, &stops), run(&bytes, &[], &stops));
        }

        #[test]
        fn without_stops_the_text_is_the_lossy_decoding(bytes in proptest::collection::vec(any::<u8>(), 0..40), cuts in proptest::collection::vec(0usize..64, 0..8)) {
            prop_assert_eq!(run(&bytes, &cuts, &[]).0, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn no_stop_string_is_ever_shown(text in "[ab]{0,30}", cuts in proptest::collection::vec(0usize..64, 0..8), stop in "[ab]{1,3}") {
            let (shown, stopped) = run(text.as_bytes(), &cuts, std::slice::from_ref(&stop));
            prop_assert!(!shown.contains(&stop));
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
