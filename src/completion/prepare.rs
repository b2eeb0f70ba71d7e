//! From a checked request to what the engine is asked for: defaults, the model's limits, the prompt's tokens.

use std::sync::Arc;

use tandem_core::{AdapterId, SamplingParams, TokenId, TokenMask, Vocab};
use tandem_engine::{GenerateRequest, Grammar, GrammarError, GrammarSpec, ModelInfo, Part, Priority, StopRules};

use super::answer::AnswerForm;
use super::prompt::{self, Conversation};
use super::read::{self, ChatRequest, CompletionRequest, Message, Options, Prompt, Structure, Tool, texts};
use super::template::ChatTemplate;
use super::{Limits, Plan, Settings, ToldPrompt};
use crate::openai::error::ApiError;

/// OpenAI's default length of a completion that says none. A chat's answer may fill the context.
const COMPLETION_TOKENS: u32 = 16;
/// Many choices make a large answer, and log-probabilities a thousand times as large as its text.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
const LOGPROB_BYTES: u64 = 64;
/// Of text, for a token.
const TOKEN_BYTES: u64 = 4;

pub(super) fn chat(
    request: ChatRequest,
    info: &ModelInfo,
    template: &ChatTemplate,
    limits: &Limits,
    priority: Priority,
) -> Result<Plan, ApiError> {
    let ChatRequest { model, messages, options, tools, .. } = &request;
    let adapter = adapter(options, model, info)?;
    check_tokens(options, info)?;
    let sampling = sampling(options, info)?;
    check_messages(messages, info)?;
    let listed = tools.as_ref().map(|tools| tools.list.as_slice()).unwrap_or_default();
    check_tools(listed, info)?;
    let conversation = Conversation {
        messages,
        tools: listed,
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        variables: &request.variables,
    };
    let prompt::Prompt { mut ids, end } = prompt::of_chat(conversation, template, &info.vocab, &*info.tokenizer)?;
    if options.add_special_tokens == Some(true) {
        ids = prompt::opened(ids, &info.vocab);
    }
    let reasoning =
        end.as_ref().and_then(|end| template.reasoning().map(|format| Some((format, format.beginning(end)?))));
    let answer = AnswerForm {
        reasoning: reasoning.flatten(),
        tools: tools.clone().map(|tools| (template.tool_format(), Arc::new(tools))),
        shows_reasoning: request.include_reasoning,
    };
    let asked = Asked {
        param: "messages",
        default_tokens: info.defaults.max_tokens,
        logprobs: request.logprobs,
        score_prompt: false,
        grammar: answer_grammar(options, &answer, info)?,
        adapter,
        sampling,
        shown: answer.shown(&info.vocab),
        options,
        priority,
    };
    asked.truncate(&mut ids, 0, info)?;
    let last = messages.last().filter(|message| request.echo && message.role == "assistant");
    let echo = last.and_then(|message| message.content.clone());
    let prompts = vec![ToldPrompt::new(echo, &ids, options, info, false)];
    let requests = asked.choices(ids, info, limits, options.seed.unwrap_or_else(rand::random))?;
    check_answer(options, &requests)?;
    Ok(Plan { requests, settings: Settings { answer, ..settings(request.options, prompts, request.ignored) } })
}

pub(super) fn text(
    request: CompletionRequest,
    info: &ModelInfo,
    limits: &Limits,
    priority: Priority,
) -> Result<Plan, ApiError> {
    let CompletionRequest { model, prompts, options, echo, suffix, logprobs, ignored } = request;
    let adapter = adapter(&options, &model, info)?;
    check_tokens(&options, info)?;
    let seed = options.seed.unwrap_or_else(rand::random);
    let asked = Asked {
        param: "prompt",
        default_tokens: Some(COMPLETION_TOKENS),
        logprobs,
        score_prompt: echo && logprobs.is_some(),
        grammar: grammar(&options, info)?,
        adapter,
        sampling: sampling(&options, info)?,
        shown: Arc::default(),
        options: &options,
        priority,
    };
    let mut requests = Vec::new();
    let mut told = Vec::new();
    for prompt in prompts {
        let (ids, text) = match &suffix {
            None => asked.prompt(prompt, info)?,
            Some(suffix) => asked.around(prompt, suffix, info)?,
        };
        let echo = echo.then(|| text.unwrap_or_else(|| prompt::text_of(&ids, &info.vocab)));
        told.push(ToldPrompt::new(echo, &ids, &options, info, asked.score_prompt));
        requests.append(&mut asked.choices(ids, info, limits, seed)?);
    }
    check_answer(&options, &requests)?;
    Ok(Plan { requests, settings: settings(options, told, ignored) })
}

impl ToldPrompt {
    /// `echo` goes in front of the choices; `with_first` keeps what their log-probabilities begin with.
    fn new(echo: Option<String>, ids: &[TokenId], options: &Options, info: &ModelInfo, with_first: bool) -> Self {
        let told = &options.telling;
        Self {
            tokens: ids.len() as u32,
            echo,
            first: ids.first().copied().filter(|_| with_first),
            ids: told.token_ids.then(|| ids.to_vec()),
            text: told.prompt_text.then(|| prompt::text_of(ids, &info.vocab)),
        }
    }
}

/// What the answer has to look like, compiled for the model.
fn grammar(options: &Options, info: &ModelInfo) -> Result<Option<Grammar>, ApiError> {
    let Some(Structure { path, spec }) = &options.structure else { return Ok(None) };
    // Parts tell by themselves where the client finds them.
    let base = if let GrammarSpec::Parts(_) = spec { "" } else { path };
    compile(spec, path, base, info).map(Some)
}

/// The same for a chat, in whose answer there may be reasoning and calls of tools.
fn answer_grammar(options: &Options, answer: &AnswerForm, info: &ModelInfo) -> Result<Option<Grammar>, ApiError> {
    if answer.tools.is_none() && answer.reasoning.is_none() {
        return grammar(options, info);
    }
    let text = options.structure.as_ref().map(|Structure { path, spec }| {
        if let GrammarSpec::Parts(part) = spec {
            part.clone()
        } else {
            Part::Grammar { path: path.clone(), spec: Box::new(spec.clone()) }
        }
    });
    let (constraint, list) = match &answer.tools {
        Some((format, tools)) => (format.constraint(tools, text, &info.vocab), tools.field()),
        None => (text, ""),
    };
    let Some(mut part) = constraint else { return Ok(None) };
    if let Some((format, beginning)) = answer.reasoning {
        part = format.before(beginning, part, &info.vocab);
    }
    let path = options.structure.as_ref().map_or(list, |structure| &structure.path);
    compile(&GrammarSpec::Parts(part), path, "", info).map(Some)
}

/// Compiles a grammar that the client finds at `path`; errors in it are told by their place below `base`.
fn compile(spec: &GrammarSpec, path: &str, base: &str, info: &ModelInfo) -> Result<Grammar, ApiError> {
    info.grammars.compile(spec).map_err(|error| match error {
        GrammarError::Invalid { place, reason } => {
            let dot = if base.is_empty() || place.is_empty() || place.starts_with('[') { "" } else { "." };
            let place = format!("{base}{dot}{place}");
            ApiError::invalid_schema(if place.is_empty() { path } else { &place }, &reason)
        }
        GrammarError::TooComplex => ApiError::schema_too_complex(path),
    })
}

/// The ids at `path` are tokens of the model.
pub(super) fn check_token_ids(path: &str, ids: &[TokenId], vocab_size: u32, vocab: &Vocab) -> Result<(), ApiError> {
    match ids.iter().position(|id| !in_vocabulary(*id, vocab_size, vocab)) {
        Some(at) => Err(not_a_token(&format!("{path}[{at}]"), ids[at])),
        None => Ok(()),
    }
}

/// What is the same for all choices of a request.
struct Asked<'a> {
    /// What the client can shorten.
    param: &'static str,
    /// Tokens of output when the request does not say; `None` is what the context has room for.
    default_tokens: Option<u32>,
    logprobs: Option<u8>,
    score_prompt: bool,
    grammar: Option<Grammar>,
    adapter: Option<AdapterId>,
    sampling: SamplingParams,
    shown: Arc<[TokenId]>,
    options: &'a Options,
    priority: Priority,
}

impl Asked<'_> {
    /// A prompt's ids, and its text where it came as text and is whole.
    fn prompt(&self, prompt: Prompt, info: &ModelInfo) -> Result<(Vec<TokenId>, Option<String>), ApiError> {
        match prompt {
            Prompt::Text { path, text } => {
                let opens = self.options.add_special_tokens.unwrap_or(true);
                let mut ids = self.encode(&path, &text, info)?;
                let whole = ids.len();
                self.truncate(&mut ids, usize::from(opens && info.vocab.opening().is_some()), info)?;
                let text = Some(text).filter(|_| ids.len() == whole);
                // What was cut is told as it is now, which does not begin with what was put in front.
                let text = text.or_else(|| Some(prompt::text_of(&ids, &info.vocab)));
                Ok((if opens { prompt::opened(ids, &info.vocab) } else { ids }, text))
            }
            Prompt::Tokens { path, mut ids } => {
                check_token_ids(&path, &ids, info.spec.vocab_size, &info.vocab)?;
                self.truncate(&mut ids, 0, info)?;
                Ok((ids, None))
            }
        }
    }

    /// What stands around the answer, as models that fill in the middle were trained to find it; and the text in front.
    fn around(
        &self,
        prompt: Prompt,
        suffix: &str,
        info: &ModelInfo,
    ) -> Result<(Vec<TokenId>, Option<String>), ApiError> {
        let Some(marks) = info.vocab.fill_in_the_middle() else {
            return Err(ApiError::unsupported_value(
                "suffix",
                "Unsupported value: 'suffix' is not supported by this model.",
            ));
        };
        let (before, text) = match prompt {
            Prompt::Text { path, text } => (self.encode(&path, &text, info)?, text),
            Prompt::Tokens { path, ids } => {
                check_token_ids(&path, &ids, info.spec.vocab_size, &info.vocab)?;
                let text = prompt::text_of(&ids, &info.vocab);
                (ids, text)
            }
        };
        let after = self.encode("suffix", suffix, info)?;
        let mut ids = Vec::with_capacity(before.len() + after.len() + 4);
        if self.options.add_special_tokens.unwrap_or(true) {
            ids.extend(info.vocab.opening());
        }
        ids.push(marks.prefix);
        ids.extend(before);
        ids.push(marks.suffix);
        ids.extend(after);
        ids.push(marks.middle);
        if self
            .options
            .truncation
            .is_some_and(|truncation| truncation.tokens.is_none_or(|most| ids.len() > most as usize))
        {
            let text = "Unsupported value: 'truncate_prompt_tokens' does not support prompts with a 'suffix'.";
            return Err(ApiError::unsupported_value(read::TRUNCATE, text));
        }
        Ok((ids, Some(text)))
    }

    fn encode(&self, path: &str, text: &str, info: &ModelInfo) -> Result<Vec<TokenId>, ApiError> {
        // What is going to be cut may be long.
        if self.options.truncation.is_none() {
            check_length(path, text.chars().count(), info.spec.max_context)?;
        }
        prompt::of_text(path, text, &*info.tokenizer)
    }

    /// Cuts a prompt as the request asks for, so that `more` tokens fit beside it, and the answer.
    fn truncate(&self, ids: &mut Vec<TokenId>, more: usize, info: &ModelInfo) -> Result<(), ApiError> {
        let Some(truncation) = self.options.truncation else { return Ok(()) };
        let asked = self.options.max_tokens.map(|asked| asked.tokens).or(self.default_tokens);
        let answer = asked.unwrap_or(0).max(self.options.min_tokens).max(1);
        let context = context(info);
        truncation.cut(ids, context, context.saturating_sub(answer), more)
    }

    /// The choices for one prompt, each with a seed of its own.
    fn choices(
        &self,
        prompt: Vec<TokenId>,
        info: &ModelInfo,
        limits: &Limits,
        seed: u64,
    ) -> Result<Vec<GenerateRequest>, ApiError> {
        let options = self.options;
        let stop = StopRules {
            max_tokens: self.max_tokens(prompt.len(), info, limits)?,
            min_tokens: options.min_tokens,
            strings: options.stop.clone(),
            token_ids: options.stop_token_ids.clone(),
            ignore_eos: options.ignore_eos,
            include_end: options.telling.include_end,
            repetition: options.repetition,
        };
        let request = GenerateRequest {
            prompt,
            sampling: self.sampling.clone(),
            stop,
            seed,
            priority: self.priority,
            rank: options.rank,
            score_prompt: self.score_prompt,
            special_tokens: options.telling.special_tokens,
            logprobs: self.logprobs,
            cache_salt: options.cache_salt,
            grammar: self.grammar.clone(),
            adapter: self.adapter,
            shown: Arc::clone(&self.shown),
        };
        Ok((0..options.n)
            .map(|choice| GenerateRequest { seed: choice_seed(seed, choice), ..request.clone() })
            .collect())
    }

    /// The output's length, which has to fit the context beside the prompt if the request names it.
    fn max_tokens(&self, prompt: usize, info: &ModelInfo, limits: &Limits) -> Result<u32, ApiError> {
        let context = context(info);
        if prompt == 0 {
            return Err(ApiError::invalid_value(self.param, format!("Invalid '{}': it has no tokens.", self.param)));
        }
        let prompt = match u32::try_from(prompt) {
            Ok(prompt) if prompt < context => prompt,
            _ => return Err(ApiError::context_length_exceeded(self.param, context.into(), prompt as u64)),
        };
        let room = context - prompt;
        let cap = limits.max_output_tokens.unwrap_or(u32::MAX);
        let Some(asked) = self.options.max_tokens else {
            let tokens = self.default_tokens.unwrap_or(u32::MAX).max(self.options.min_tokens).min(room).min(cap);
            return match self.options.min_tokens {
                min if min > tokens => Err(ApiError::integer_above("min_tokens", tokens.into(), &min.to_string())),
                _ => Ok(tokens),
            };
        };
        if asked.tokens > cap {
            return Err(ApiError::integer_above(asked.name, cap.into(), &asked.tokens.to_string()));
        }
        if asked.tokens > room {
            return Err(ApiError::output_too_long(asked.name, self.param, context, prompt, asked.tokens));
        }
        Ok(asked.tokens)
    }
}

/// Tokens that one sequence can have: what the model was made for, or less when there is no KV memory for that.
fn context(info: &ModelInfo) -> u32 {
    let tokens = info.spec.kv.capacity().min(info.spec.max_context.into());
    tokens.try_into().unwrap_or(info.spec.max_context)
}

/// Distinct for the choices of a request, and for the first the seed itself.
fn choice_seed(seed: u64, choice: u32) -> u64 {
    seed.wrapping_add(u64::from(choice).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Whether the id is a token of a model that has `vocab_size` of them, some of which may be padding.
fn in_vocabulary(id: TokenId, vocab_size: u32, vocab: &Vocab) -> bool {
    id < vocab_size && (id as usize) < vocab.len()
}

fn not_a_token(path: &str, id: TokenId) -> ApiError {
    ApiError::invalid_value(path, format!("Invalid '{path}': {id} is not a token of this model."))
}

/// The tokens that the request names are tokens of the model.
fn check_tokens(options: &Options, info: &ModelInfo) -> Result<(), ApiError> {
    for (id, _) in &options.sampling.logit_bias {
        if !in_vocabulary(*id, info.spec.vocab_size, &info.vocab) {
            return Err(not_a_token(&format!("logit_bias.{id}"), *id));
        }
    }
    let allowed = options.allowed_token_ids.as_deref().unwrap_or_default();
    let reported = &options.sampling.reported[..];
    let stop = &options.stop_token_ids[..];
    for (name, ids) in [("stop_token_ids", stop), ("allowed_token_ids", allowed), ("logprob_token_ids", reported)] {
        check_token_ids(name, ids, info.spec.vocab_size, &info.vocab)?;
    }
    Ok(())
}

/// The adapter that the request names.
fn adapter(options: &Options, model: &str, info: &ModelInfo) -> Result<Option<AdapterId>, ApiError> {
    let Some(name) = &options.lora else { return Ok(None) };
    let known = std::iter::zip(0.., &info.spec.adapters).find(|(_, known)| *known == name);
    known.map(|(at, _)| Some(AdapterId(at))).ok_or_else(|| ApiError::adapter_not_found(name, model))
}

/// How tokens are chosen: as the request says, as the model's makers would have it, and with what takes the model to read: its tokens that are
/// allowed, and those of the bad words.
fn sampling(options: &Options, info: &ModelInfo) -> Result<SamplingParams, ApiError> {
    let mut sampling = options.sampling.resolve(&info.defaults);
    if let Some(ids) = &options.allowed_token_ids {
        sampling.allowed = Some(Arc::new(TokenMask::of(info.spec.vocab_size, ids.iter().copied())));
    }
    for (at, word) in options.bad_words.iter().enumerate() {
        // Most tokenizers have different tokens for a word that begins a text and for one behind a space. As in vLLM, both are meant,
        // whichever the client has written.
        let word = match word.trim_start() {
            "" => word,
            text => text,
        };
        for spelling in [word.to_owned(), format!(" {word}")] {
            let ids = info.tokenizer.encode(&spelling);
            let ids = ids.map_err(|_| ApiError::not_encodable(&format!("bad_words[{at}]")))?;
            if !ids.is_empty() && !sampling.bad_words.contains(&ids) {
                sampling.bad_words.push(ids);
            }
        }
    }
    Ok(sampling)
}

pub(super) fn check_messages(messages: &[Message], info: &ModelInfo) -> Result<(), ApiError> {
    let texts = messages.iter().flat_map(Message::texts);
    check_length("messages", texts.map(|text| text.chars().count()).sum(), info.spec.max_context)
}

fn check_tools(tools: &[Tool], info: &ModelInfo) -> Result<(), ApiError> {
    let chars = |tool: &Tool| texts(&tool.value()).map(|text| text.chars().count()).sum::<usize>();
    check_length("tools", tools.iter().map(chars).sum(), info.spec.max_context)
}

/// A text that no tokenizer could fit into the context is refused before it costs anything.
pub(super) fn check_length(param: &str, chars: usize, max_tokens: u32) -> Result<(), ApiError> {
    let max = max_tokens as usize * 8 + 4096;
    if chars > max { Err(ApiError::string_too_long(param, max, chars)) } else { Ok(()) }
}

fn check_answer(options: &Options, requests: &[GenerateRequest]) -> Result<(), ApiError> {
    let bytes = |request: &GenerateRequest| {
        let reported = request.sampling.reported.len() as u64;
        let per_token = request.logprobs.map_or(0, |top| (u64::from(top).max(reported) + 1) * LOGPROB_BYTES);
        let scored = if request.score_prompt { request.prompt.len() as u64 } else { 0 };
        u64::from(request.stop.max_tokens) * (per_token + TOKEN_BYTES) + scored * per_token
    };
    let scores = requests.iter().any(|request| request.score_prompt);
    let asked_for_much = options.max_tokens.is_some() || requests.len() > 1 || scores;
    if asked_for_much && requests.iter().map(bytes).sum::<u64>() > MAX_ANSWER_BYTES {
        return Err(ApiError::answer_too_large(MAX_ANSWER_BYTES));
    }
    Ok(())
}

fn settings(options: Options, prompts: Vec<ToldPrompt>, ignored: Vec<String>) -> Settings {
    Settings {
        n: options.n as usize,
        stream: options.stream,
        ignore_eos: options.ignore_eos,
        telling: options.telling,
        prompts,
        answer: AnswerForm::default(),
        ignored,
        deadline: None,
        timeout: std::time::Duration::ZERO,
    }
}
