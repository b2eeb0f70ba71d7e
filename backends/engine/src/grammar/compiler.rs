use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Map, Value};
use tandem_core::{TokenId, Vocab};
use toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use super::{GrammarError, GrammarSpec, JsonForm, MAX_SOURCE_BYTES, WhiteSpace, ebnf, pattern, schema};

/// The compilers below recurse over rules that refer to rules, as many as a source has room for, so they get a stack of a known size. The
/// pages of it that are never touched cost nothing.
const STACK_BYTES: usize = 256 << 20;
/// Compiled grammars that are kept, and their estimated size together.
const MAX_CACHED: usize = 1_000;
const MAX_CACHED_BYTES: usize = 64 << 20;
/// Tokens longer than this are left out: the trie holds none of more than 1,024 bytes.
const MAX_TOKEN_BYTES: usize = 1_000;

/// Compiles grammars for one model and keeps the compiled ones. Shared by request tasks.
pub struct Grammars {
    vocab: Arc<Vocab>,
    vocab_size: u32,
    /// Made for the first grammar: the trie of a large vocabulary takes a while.
    factory: OnceLock<Option<ParserFactory>>,
    cache: Mutex<Cache>,
}

/// A compiled grammar. Cheap to clone.
#[derive(Clone)]
pub struct Grammar {
    compiled: Arc<Compiled>,
}

struct Compiled {
    vocab: Arc<Vocab>,
    /// At the beginning of an output, with the first mask computed. Sequences start from copies of it.
    start: Mutex<Matcher>,
    /// An estimate.
    bytes: usize,
}

impl Grammars {
    /// For a model with this vocabulary and logits for `vocab_size` tokens.
    #[must_use]
    pub fn new(vocab: Arc<Vocab>, vocab_size: u32) -> Self {
        Self { vocab, vocab_size, factory: OnceLock::new(), cache: Mutex::default() }
    }

    /// Compiles a grammar, or finds it compiled. This can take seconds of computing: call it on a thread for such work.
    ///
    /// # Errors
    /// When the source is wrong, cannot be enforced as a whole, or costs too much.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar, GrammarError> {
        if let Some(grammar) = self.cache().get(spec) {
            return Ok(grammar);
        }
        if spec.source_bytes() > MAX_SOURCE_BYTES {
            return Err(GrammarError::TooComplex);
        }
        let compiling = || {
            let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES);
            // Nothing is compiled on the caller's stack, whose size is not known: without a thread there is no grammar.
            std::thread::scope(|scope| match thread.spawn_scoped(scope, || self.compile_here(spec)) {
                Ok(thread) => thread.join().unwrap_or_else(|panic| Err(panicked(&*panic))),
                Err(error) => {
                    tracing::error!(%error, "cannot start a thread to compile a grammar");
                    Err(GrammarError::TooComplex)
                }
            })
        };
        let grammar = compiling()?;
        self.cache().insert(spec.clone(), grammar.clone());
        Ok(grammar)
    }

    fn compile_here(&self, spec: &GrammarSpec) -> Result<Grammar, GrammarError> {
        let source = spec.for_llguidance()?;
        let Some(factory) = self.factory() else { return Err(GrammarError::TooComplex) };
        let compiled = catch_unwind(AssertUnwindSafe(|| factory.create_parser(source)));
        let parser = compiled.map_err(|panic| panicked(&*panic))?.map_err(|error| refused(spec, &error))?;
        let bytes = spec.source_bytes() + parser.parser.lexer_stats().num_bytes;
        let mut start = Matcher::new(Ok(parser));
        // Computed here, the first mask costs the sequences nothing; and a grammar that allows no output at all is found out.
        if let Err(error) = start.compute_mask_or_eos() {
            tracing::info!(%error, "a grammar allows no first token");
            return Err(match start.stop_reason() {
                llguidance::api::StopReason::NoExtensionBias => nothing_satisfies(),
                _ => refused(spec, &error),
            });
        }
        let compiled = Compiled { vocab: Arc::clone(&self.vocab), start: Mutex::new(start), bytes };
        Ok(Grammar { compiled: Arc::new(compiled) })
    }

    fn factory(&self) -> Option<&ParserFactory> {
        let factory = || {
            let made = catch_unwind(AssertUnwindSafe(|| factory(&self.vocab, self.vocab_size)));
            match made {
                Ok(Ok(factory)) => return Some(factory),
                Ok(Err(error)) => tracing::error!(%error, "cannot constrain the output of this model"),
                Err(_) => tracing::error!("panicked while building the trie of this model's tokens"),
            }
            None
        };
        self.factory.get_or_init(factory).as_ref()
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = self.cache();
        f.debug_struct("Grammars")
            .field("cached", &cache.entries.len())
            .field("bytes", &cache.bytes)
            .finish_non_exhaustive()
    }
}

impl Grammar {
    pub(super) fn vocab(&self) -> &Arc<Vocab> {
        &self.compiled.vocab
    }

    /// A matcher of its own at the beginning. The lexer is copied with it: llguidance's plain clones share one, and a limit that one
    /// sequence hits would end all the others.
    pub(super) fn matcher(&self) -> Matcher {
        self.compiled.start.lock().unwrap_or_else(PoisonError::into_inner).deep_clone()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("bytes", &self.compiled.bytes).finish_non_exhaustive()
    }
}

impl GrammarSpec {
    fn source_bytes(&self) -> usize {
        match self {
            Self::JsonSchemaIn(text, JsonForm { white_space: WhiteSpace::Pattern(pattern), .. }) => {
                text.len() + pattern.len()
            }
            Self::JsonSchema(text)
            | Self::JsonSchemaIn(text, _)
            | Self::Regex(text)
            | Self::Lark(text)
            | Self::Ebnf(text) => text.len(),
            Self::JsonObject => 0,
            Self::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        }
    }

    fn for_llguidance(&self) -> Result<TopLevelGrammar, GrammarError> {
        let grammar = match self {
            Self::JsonSchema(text) => json(schema::checked(text, false)?, &WhiteSpace::Compact),
            Self::JsonSchemaIn(text, form) => json(schema::checked(text, form.closed)?, &form.white_space),
            Self::JsonObject => {
                let object = Map::from_iter([("type".to_owned(), "object".into())]);
                json(Value::Object(object), &WhiteSpace::Compact)
            }
            Self::Regex(text) => {
                let pattern = pattern::unanchored(text).map_err(|reason| GrammarError::invalid("", reason))?;
                if pattern.is_empty() {
                    return Err(GrammarError::invalid("", "The regular expression is empty."));
                }
                GrammarWithLexer::from_regex(pattern)
            }
            Self::Choice(texts) => {
                if texts.is_empty() {
                    return Err(GrammarError::invalid("", "Expected one or more choices."));
                }
                if let Some(at) = texts.iter().position(String::is_empty) {
                    return Err(GrammarError::invalid(format!("[{at}]"), "A choice is empty."));
                }
                let texts: Vec<_> = texts.iter().map(|text| regex_syntax::escape(text)).collect();
                GrammarWithLexer::from_regex(&format!("(?:{})", texts.join("|")))
            }
            Self::Lark(text) => {
                // Each would be a way around what is checked above: a schema that nobody read, a token that is no text.
                for (directive, what) in [("%json", "JSON Schema"), ("<[", "token ids")] {
                    if text.contains(directive) {
                        return Err(GrammarError::invalid(
                            "",
                            format!("'{directive}' ({what}) is not supported in a grammar."),
                        ));
                    }
                }
                GrammarWithLexer::from_lark(text.clone())
            }
            Self::Ebnf(text) => GrammarWithLexer::from_lark(ebnf::to_lark(text)?),
        };
        Ok(TopLevelGrammar::from_grammar(grammar))
    }
}

/// A checked schema with the options that it is compiled by: nothing is passed over.
fn json(mut schema: Value, white_space: &WhiteSpace) -> GrammarWithLexer {
    let (blank, whitespace_pattern) = match white_space {
        WhiteSpace::Compact => (" ?", None),
        WhiteSpace::Nothing => ("", None),
        WhiteSpace::Pattern(pattern) => ("", Some(pattern.clone())),
    };
    let options = JsonCompileOptions {
        // Regular expressions.
        item_separator: format!(",{blank}"),
        key_separator: format!(":{blank}"),
        whitespace_flexible: false,
        whitespace_pattern,
        coerce_one_of: false,
        lenient: false,
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    GrammarWithLexer::from_json_schema(schema)
}

fn factory(vocab: &Vocab, vocab_size: u32) -> Result<ParserFactory, Box<dyn std::error::Error + Send + Sync>> {
    // Control tokens are no text, and one that ends generation must not do so in the middle of a string that could spell it. The byte
    // 0xff marks special tokens in the trie; no text has it.
    let is_text = |token: &TokenId| vocab.is_text(*token) && !vocab.is_eog(*token);
    let words: Vec<Vec<u8>> = (0..vocab_size)
        .map(|token| if is_text(&token) { vocab.bytes(token) } else { &[] })
        .map(|bytes| if bytes.contains(&0xff) || bytes.len() > MAX_TOKEN_BYTES { Vec::new() } else { bytes.to_vec() })
        .collect();
    let eog: Vec<_> = vocab.eog().iter().copied().filter(|token| *token < vocab_size).collect();
    let info = TokRxInfo::new(vocab_size, eog.first().copied().unwrap_or(INVALID_TOKEN));
    let mut trie = TokTrie::from(&info, &words);
    if !eog.is_empty() {
        trie = trie.with_eos_tokens(&eog);
    }
    // Not canonical: no tokenization is forced, so every way to spell an allowed text is allowed.
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment)?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        // About 20 ms of building the lexer's expressions; twice what the largest schemas in use take.
        initial_lexer_fuel: 1_000_000,
        // About 15 ms for one mask; typical ones take less than a hundredth of it.
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        // About 2 kB each.
        max_lexer_states: 32_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        // Errors are logged, and would otherwise contain the client's text.
        verbose_errors: false,
    };
    Ok(factory)
}

fn nothing_satisfies() -> GrammarError {
    GrammarError::invalid("", "No output can satisfy it.")
}

fn panicked(_: &(dyn Any + Send)) -> GrammarError {
    tracing::error!("panicked while compiling a grammar");
    GrammarError::TooComplex
}

/// Our words for the compiler's refusal. It has no types for them, so its texts are what there is to go by.
fn refused(spec: &GrammarSpec, error: &dyn fmt::Display) -> GrammarError {
    const TOO_MUCH: [&str; 9] = [
        "too large",
        "too complex",
        "too many",
        "fuel",
        "exceed",
        "limit",
        "too deeply",
        "Unable to determine",
        "panic",
    ];
    let text = format!("{error:#}");
    tracing::info!(error = %text.chars().take(500).collect::<String>(), "a grammar was refused");
    let has = |part: &&str| text.contains(*part);
    if has(&"Unsatisfiable") {
        return nothing_satisfies();
    }
    if TOO_MUCH.iter().any(has) {
        return GrammarError::TooComplex;
    }
    let reason = match spec {
        _ if has(&"lookaround") => {
            "Look-around, word boundaries and inner anchors are not supported in a regular expression."
        }
        GrammarSpec::JsonSchema(_) | GrammarSpec::JsonSchemaIn(..) | GrammarSpec::JsonObject => match () {
            () if has(&"oneOf") => {
                "'oneOf' is supported where no value can match two of its schemas; use 'anyOf' otherwise."
            }
            () if has(&"min/maxProperties") => {
                "'minProperties' and 'maxProperties' are not supported beside optional properties."
            }
            () if has(&"disjoint") => "Patterns of 'patternProperties' must not match the same name.",
            () if has(&"circular") => "A circular $ref with keywords beside it is not supported.",
            () => "The schema cannot be enforced.",
        },
        GrammarSpec::Regex(_) | GrammarSpec::Choice(_) => "This is not a supported regular expression.",
        GrammarSpec::Lark(_) => "This is not a valid Lark grammar.",
        GrammarSpec::Ebnf(_) => "This is not a valid grammar.",
    };
    GrammarError::invalid("", reason)
}

/// The grammars used last.
#[derive(Default)]
struct Cache {
    entries: HashMap<GrammarSpec, Entry>,
    bytes: usize,
    /// Goes up with every use.
    clock: u64,
}

struct Entry {
    grammar: Grammar,
    used: u64,
}

impl Cache {
    fn get(&mut self, spec: &GrammarSpec) -> Option<Grammar> {
        self.clock += 1;
        let entry = self.entries.get_mut(spec)?;
        entry.used = self.clock;
        Some(entry.grammar.clone())
    }

    fn insert(&mut self, spec: GrammarSpec, grammar: Grammar) {
        let bytes = grammar.compiled.bytes;
        if bytes > MAX_CACHED_BYTES {
            return;
        }
        self.remove(&spec);
        while self.entries.len() >= MAX_CACHED || self.bytes + bytes > MAX_CACHED_BYTES {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(spec, _)| spec.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest);
        }
        self.bytes += bytes;
        self.clock += 1;
        self.entries.insert(spec, Entry { grammar, used: self.clock });
    }

    fn remove(&mut self, spec: &GrammarSpec) {
        if let Some(entry) = self.entries.remove(spec) {
            self.bytes -= entry.grammar.compiled.bytes;
        }
    }
}

#[cfg(test)]
impl Grammars {
    /// Entries of the cache, and their size.
    pub(super) fn cached(&self) -> (usize, usize) {
        let cache = self.cache();
        (cache.entries.len(), cache.bytes)
    }

    pub(super) fn holds(&self, spec: &GrammarSpec) -> bool {
        self.cache().entries.contains_key(spec)
    }
}
