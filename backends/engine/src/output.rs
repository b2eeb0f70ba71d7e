use std::{ops::Range, str::Utf8Error};

/// Turns the bytes of tokens into text that may be shown: whole characters, and nothing that may still become a stop string.
///
/// The text that comes out, all pieces joined, does not depend on how the bytes were divided among tokens. Invalid UTF-8 becomes U+FFFD as
/// [`String::from_utf8_lossy`] has it. No byte of text is looked at twice, and a push that yields no text does not allocate.
#[derive(Debug)]
pub struct Output {
    stops: Vec<Stop>,
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
    /// A stop string is complete, and `text` is the last text before it.
    Stopped {
        /// Without the stop string.
        text: String,
        /// The stop string.
        stop: String,
    },
}

impl Output {
    /// Nothing pushed yet. No stop string may be empty.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty stop string would end every generation");
        // What is held while nothing can be shown is shorter than a stop string.
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        Self {
            stops: stops.into_iter().map(Stop::new).collect(),
            partial: Vec::with_capacity(longest + 4),
            held: String::with_capacity(longest),
        }
    }

    /// Takes the bytes of the next token.
    pub fn push(&mut self, bytes: &[u8]) -> Pushed {
        let known = self.held.len();
        if self.partial.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            self.held.push_str(text);
        } else {
            self.partial.extend_from_slice(bytes);
            decode(&mut self.partial, &mut self.held);
        }
        if let Some(found) = self.advance(known) {
            self.partial.clear();
            let mut text = std::mem::take(&mut self.held);
            let stop = text[found.clone()].to_owned();
            text.truncate(found.start);
            return Pushed::Stopped { text, stop };
        }
        if self.stops.is_empty() {
            return Pushed::Text(std::mem::take(&mut self.held));
        }
        // What a stop string matches so far is the end of the text.
        let undecided = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let certain = self.held.len() - undecided;
        let text = self.held[..certain].to_owned();
        self.held.drain(..certain);
        Pushed::Text(text)
    }

    /// The text still held back, when generation ended otherwise.
    pub fn finish(&mut self) -> String {
        let known = self.held.len();
        self.held.push_str(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        // What was half a character may have completed a stop string, whose text is U+FFFD.
        let end = self.advance(known).map_or(self.held.len(), |found| found.start);
        self.held.truncate(end);
        std::mem::take(&mut self.held)
    }

    /// Goes over the text behind the first `known` bytes, and says where the stop string lies that is complete first; of several that end
    /// together, the longest.
    fn advance(&mut self, known: usize) -> Option<Range<usize>> {
        if self.stops.is_empty() {
            return None;
        }
        for (at, &byte) in self.held.as_bytes().iter().enumerate().skip(known) {
            let complete = self.stops.iter_mut().filter_map(|stop| stop.advance(byte)).max();
            if let Some(len) = complete {
                self.stops.iter_mut().for_each(|stop| stop.matched = 0);
                return Some(at + 1 - len..at + 1);
            }
        }
        None
    }
}

/// A stop string, and how much of its beginning the text ends with (Knuth, Morris and Pratt 1977).
///
/// It goes by bytes: in UTF-8 no character's bytes begin within another's, so what matches are whole characters.
#[derive(Debug)]
struct Stop {
    text: Box<[u8]>,
    /// For each length from 1, how long the longest shorter beginning is with which a beginning of that length also ends.
    borders: Box<[usize]>,
    matched: usize,
}

impl Stop {
    fn new(text: String) -> Self {
        let text = text.into_bytes().into_boxed_slice();
        let mut borders = vec![0; text.len()].into_boxed_slice();
        let mut border = 0;
        for at in 1..text.len() {
            border = extend(&text, &borders, border, text[at]);
            borders[at] = border;
        }
        Self { text, borders, matched: 0 }
    }

    /// Takes one more byte of the text; the stop string's length when that completes it, after which `matched` has to be set anew.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        self.matched = extend(&self.text, &self.borders, self.matched, byte);
        (self.matched == self.text.len()).then_some(self.matched)
    }
}

/// How much of the beginning of `stop` a text ends with that ended with `matched` bytes of it, less than all, before this byte.
fn extend(stop: &[u8], borders: &[usize], mut matched: usize, byte: u8) -> usize {
    while stop[matched] != byte {
        match matched {
            0 => return 0,
            some => matched = borders[some - 1],
        }
    }
    matched + 1
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
                Pushed::Stopped { text, .. } => return (all + &text, true),
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
        assert_eq!(output.push(b"ND of it"), Pushed::Stopped { text: String::new(), stop: "END".to_owned() });
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        let stops = ["bcd".to_owned(), "c".to_owned()];
        assert_eq!(run(b"abcd", &[], &stops), ("ab".to_owned(), true));
        assert_eq!(run(b"abcd", &[1, 2, 3], &stops), ("ab".to_owned(), true));
    }

    #[test]
    fn of_stop_strings_that_end_together_the_longest_wins() {
        let stops = ["c".to_owned(), "abc".to_owned(), "bc".to_owned()];
        for cuts in [&[][..], &[1, 2, 3]] {
            assert_eq!(run(b"xabc", cuts, &stops), ("x".to_owned(), true));
        }
    }

    #[test]
    fn an_unfinished_character_may_complete_a_stop_string() {
        let stop = ["a\u{fffd}".to_owned()];
        assert_eq!(run(b"xa\xf0\x9f", &[], &stop), ("x".to_owned(), false));
        assert_eq!(run(b"xa\xf0\x9fb", &[], &stop), ("x".to_owned(), true));
    }

    #[test]
    fn what_is_held_has_room_from_the_start() {
        let mut output = Output::new(vec!["aaaaaaab".to_owned(), "é".to_owned()]);
        let room = (output.partial.capacity(), output.held.capacity());
        for token in [&b"aaa"[..], b"aa", b"aa", b"\xc3"] {
            assert_eq!(output.push(token), Pushed::Text(String::new()));
        }
        assert_eq!((output.partial.capacity(), output.held.capacity()), room);
    }

    /// What is to come out: all text decoded, and cut where the stop string begins that ends first.
    fn reference(bytes: &[u8], stops: &[String]) -> (String, bool) {
        let text = String::from_utf8_lossy(bytes);
        for end in 0..=text.len() {
            let ending = stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(longest) = ending.map(String::len).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.into_owned(), false)
    }

    /// Few different bytes, so that characters and stop strings come about, and also break off.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            Just(b'a'),
            Just(b'b'),
            Just(0xc3),
            Just(0xa9),
            Just(0xf0),
            Just(0xef),
            Just(0xbf),
            Just(0xbd),
            any::<u8>()
        ];
        proptest::collection::vec(byte, 0..60)
    }

    proptest! {
        #[test]
        fn the_reference_agrees(
            bytes in bytes(),
            cuts in proptest::collection::vec(0usize..64, 0..12),
            stops in proptest::collection::vec("[abé\u{fffd}]{1,6}", 0..4),
        ) {
            // What is left at the end is shown as it is cut, though a stop string that half a character completes there is no reason to end.
            prop_assert_eq!(run(&bytes, &cuts, &stops).0, reference(&bytes, &stops).0);
            let whole = [&bytes[..], b"x"].concat();
            prop_assert_eq!(run(&whole, &cuts, &stops), reference(&whole, &stops));
        }

        #[test]
        fn overlapping_stop_strings_are_found_in_long_runs(
            runs in proptest::collection::vec((1usize..40, 0usize..3), 1..8),
            stops in proptest::collection::vec("a{0,20}b{1,2}a{0,3}", 1..4),
            cuts in proptest::collection::vec(0usize..400, 0..12),
        ) {
            let text: String = runs.iter().map(|&(a, b)| "a".repeat(a) + &"b".repeat(b)).collect();
            prop_assert_eq!(run(text.as_bytes(), &cuts, &stops), reference(text.as_bytes(), &stops));
        }

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
