use rand::{Rng as _, rngs::StdRng};

/// How many tokens something has: so many, or any number between two, each as likely as the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    least: u32,
    most: u32,
}

impl Length {
    #[must_use]
    pub const fn exactly(tokens: u32) -> Self {
        Self { least: tokens, most: tokens }
    }

    /// Reads `N`, or `N..M` for the numbers from N to M.
    ///
    /// # Errors
    /// When it is not of that form; with the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        let wrong = || "has to be a number from 1 on, or two with the smaller first, as in 100..1024".to_owned();
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0).ok_or_else(wrong);
        let length = Self { least: number(least)?, most: number(most)? };
        if length.least <= length.most { Ok(length) } else { Err(wrong()) }
    }

    /// One of them. Where there is but one nothing is drawn.
    pub(super) fn drawn(self, random: &mut StdRng) -> u32 {
        if self.least == self.most { self.least } else { random.random_range(self.least..=self.most) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_length_is_a_number_or_lies_between_two() {
        assert_eq!(Length::parse("256"), Ok(Length::exactly(256)));
        assert_eq!(Length::parse("100..1024"), Ok(Length { least: 100, most: 1024 }));
        for text in ["", "0", "-1", "0..5", "5..4", "5..", "..5", "5...6", "many"] {
            assert!(Length::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn drawn_lengths_reach_both_ends_and_follow_from_the_seed() {
        let draw = || {
            let mut random = StdRng::seed_from_u64(3);
            (0..200).map(|_| Length { least: 4, most: 9 }.drawn(&mut random)).collect::<Vec<_>>()
        };
        let drawn = draw();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&4), Some(&9)));
        assert_eq!(drawn, draw());
    }
}
