//! What is asked for on the command line.

use std::path::PathBuf;

pub(crate) const USAGE: &str = "usage: card MODEL [--json FILE] [--prompts 512,2048,8192] [--sequences 1,8,32,128,256] [--before 512] [--decoded 64] [--emulated]";

#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) model: PathBuf,
    pub(crate) json: Option<PathBuf>,
    /// Tokens of each prompt that is measured.
    pub(crate) prompts: Vec<usize>,
    /// How many sequences are decoded at a time.
    pub(crate) sequences: Vec<usize>,
    /// Tokens of a sequence before those that are decoded, and these.
    pub(crate) before: usize,
    pub(crate) decoded: usize,
    pub(crate) emulated: bool,
}

impl Orders {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        // cargo says it to every bench.
        let mut words = words.filter(|word| word != "--bench");
        let mut model = None;
        let mut orders = Self {
            model: PathBuf::new(),
            json: None,
            prompts: vec![512, 2048, 8192],
            sequences: vec![1, 8, 32, 128, 256],
            before: 512,
            decoded: 64,
            emulated: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--json" => orders.json = Some(value()?.into()),
                "--prompts" => orders.prompts = numbers(&word, &value()?)?,
                "--sequences" => orders.sequences = numbers(&word, &value()?)?,
                "--before" => orders.before = number(&word, &value()?)?,
                "--decoded" => orders.decoded = number(&word, &value()?)?,
                "--emulated" => orders.emulated = true,
                _ if word.starts_with("--") => return Err(format!("unknown argument {word}")),
                _ if model.is_some() => return Err("one model at a time".to_owned()),
                _ => model = Some(word.into()),
            }
        }
        orders.model = model.ok_or("no model is named")?;
        Ok(orders)
    }

    /// Of all sequences.
    pub(crate) fn longest(&self) -> usize {
        self.prompts.iter().copied().max().unwrap_or(0).max(self.before + self.decoded)
    }
}

fn numbers(option: &str, text: &str) -> Result<Vec<usize>, String> {
    text.split(',').map(|text| number(option, text)).collect()
}

fn number(option: &str, text: &str) -> Result<usize, String> {
    let wrong = || format!("{option} is {text}, and has to be of numbers from 1 to 1000000");
    text.parse().ok().filter(|number| (1..=1_000_000).contains(number)).ok_or_else(wrong)
}
