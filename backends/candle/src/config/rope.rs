use std::f64::consts::TAU;

use super::Fields;

const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];
const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";
/// Where YaRN's ramp begins and ends, in turns over the original context, if the file does not say.
const YARN_BETA: (f64, f64) = (32.0, 1.0);

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f64,
    /// Values of each head that are turned, the first ones; the others stay as they are.
    pub(crate) rotary_dim: usize,
    pub(crate) scaling: RopeScaling,
}

/// How the angles are stretched beyond the context that the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// Pairs below `ramp.0` are left alone, those above `ramp.1` slowed down, and what is rotated grows by `magnitude`.
    Yarn {
        factor: f64,
        ramp: (f64, f64),
        original_context: f64,
        magnitude: f64,
    },
    /// A divisor for each pair: `short` up to the original context, `long` beyond. What is rotated grows by `magnitude`.
    Long {
        short: Vec<f64>,
        long: Vec<f64>,
        original_context: f64,
        magnitude: f64,
    },
}

/// What the angles depend on besides their own fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeFrame {
    pub(crate) head_dim: usize,
    /// `max_position_embeddings`.
    pub(crate) positions: u32,
    /// Where the file says nothing.
    pub(crate) theta: f64,
}

impl Rope {
    /// Reads `rope_scaling` or `rope_parameters`, where newer files keep everything, and what older ones keep beside it.
    pub(crate) fn parse(fields: &Fields<'_>, frame: &RopeFrame) -> Result<Self, String> {
        Self::parse_partial(fields, frame)?.of_whole_heads(frame)
    }

    /// The same for architectures that turn only a part of each head if the file says so.
    pub(crate) fn parse_partial(fields: &Fields<'_>, frame: &RopeFrame) -> Result<Self, String> {
        let own = match fields.object("rope_scaling")? {
            Some(scaling) => Some(scaling),
            None => fields.object("rope_parameters")?,
        };
        if let Some(kind) = LAYER_TYPES.iter().find(|kind| own.is_some_and(|own| own.has(kind))) {
            return Err(format!("invalid config: rope_parameters: {kind}: this architecture has one for all layers"));
        }
        let theta = fields.optional_positive("rope_theta")?.unwrap_or(frame.theta);
        Self::parse_object(own, theta, fields, frame)
    }

    /// The angles of the layers that see everything, for architectures where others have angles of their own. Only these are scaled by
    /// `rope_scaling`.
    pub(crate) fn parse_global(fields: &Fields<'_>, frame: &RopeFrame) -> Result<Self, String> {
        let own = match fields.object("rope_scaling")? {
            Some(scaling) => Some(scaling),
            None => Self::of_layer_type(fields, LAYER_TYPES[0])?,
        };
        let theta = fields.optional_positive("rope_theta")?.unwrap_or(frame.theta);
        Self::parse_object(own, theta, fields, frame)?.of_whole_heads(frame)
    }

    /// The angles of the layers with a window; `frame` has their theta.
    pub(crate) fn parse_local(fields: &Fields<'_>, frame: &RopeFrame) -> Result<Self, String> {
        let own = Self::of_layer_type(fields, LAYER_TYPES[1])?;
        let theta = fields.optional_positive("rope_local_base_freq")?.unwrap_or(frame.theta);
        Self::parse_object(own, theta, fields, frame)?.of_whole_heads(frame)
    }

    fn of_whole_heads(self, frame: &RopeFrame) -> Result<Self, String> {
        if self.rotary_dim == frame.head_dim {
            Ok(self)
        } else {
            Err("invalid config: partial_rotary_factor: only 1 is supported by this architecture".to_owned())
        }
    }

    fn of_layer_type<'a>(fields: &Fields<'a>, kind: &str) -> Result<Option<Fields<'a>>, String> {
        match fields.object("rope_parameters")? {
            Some(kinds) if !LAYER_TYPES.iter().any(|kind| kinds.has(kind)) => {
                Err(format!("invalid config: rope_parameters: neither {} nor {}", LAYER_TYPES[0], LAYER_TYPES[1]))
            }
            Some(kinds) => kinds.object(kind),
            None => Ok(None),
        }
    }

    /// Reads the angles from an object of their own, whose gaps `theta` and the fields beside it fill.
    fn parse_object(
        own: Option<Fields<'_>>,
        theta: f64,
        fields: &Fields<'_>,
        frame: &RopeFrame,
    ) -> Result<Self, String> {
        let positive = |fields: Option<Fields<'_>>, name: &str| match fields {
            Some(fields) => fields.optional_positive(name),
            None => Ok(None),
        };
        let theta = positive(own, "rope_theta")?.unwrap_or(theta);
        let part = match positive(own, "partial_rotary_factor")? {
            Some(part) => part,
            None => fields.optional_positive("partial_rotary_factor")?.unwrap_or(1.0),
        };
        let rotary_dim = (frame.head_dim as f64 * part) as usize;
        if !(2..=frame.head_dim).contains(&rotary_dim) || !rotary_dim.is_multiple_of(2) {
            let reason = format!("{part} of {} values are no pairs", frame.head_dim);
            return Err(format!("invalid config: partial_rotary_factor: {reason}"));
        }
        let scaling = match own {
            Some(own) => RopeScaling::parse(&Scaling { own, fields, frame, theta, rotary_dim })?,
            None => RopeScaling::None,
        };
        Ok(Self { theta, rotary_dim, scaling })
    }

    /// Tokens of the longest sequence, where `max_position_embeddings` is `positions`: files keep it as it was when YaRN is added.
    pub(super) fn reach(&self, positions: u32) -> u32 {
        match self.scaling {
            RopeScaling::Yarn { factor, original_context, .. } => positions.max((factor * original_context) as u32),
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } | RopeScaling::Long { .. } => {
                positions
            }
        }
    }
}

/// The fields of a scaling, and those around them that it depends on.
struct Scaling<'a> {
    own: Fields<'a>,
    fields: &'a Fields<'a>,
    frame: &'a RopeFrame,
    theta: f64,
    rotary_dim: usize,
}

impl RopeScaling {
    fn parse(scaling: &Scaling<'_>) -> Result<Self, String> {
        let own = &scaling.own;
        let kind = match own.optional::<String>("rope_type")? {
            Some(kind) => Some(kind),
            None => own.optional::<String>("type")?,
        };
        match kind.as_deref() {
            // Dynamic scaling begins beyond `max_position_embeddings`, further than a context may be.
            None | Some("default" | "dynamic") => Ok(Self::None),
            Some("linear") => Ok(Self::Linear { factor: own.positive("factor")? }),
            Some("llama3") => scaling.llama3(),
            // Early files of Phi-3 call it by other names.
            Some("longrope" | "su") => scaling.long(),
            Some("yarn") if own.has("short_factor") => scaling.long(),
            Some("yarn") => scaling.yarn(),
            Some(other) => Err(format!(
                "invalid config: rope_type: {other} is not supported; known: default, linear, dynamic, llama3, yarn, longrope"
            )),
        }
    }
}

impl Scaling<'_> {
    fn llama3(&self) -> Result<RopeScaling, String> {
        let (low, high) = (self.own.positive("low_freq_factor")?, self.own.positive("high_freq_factor")?);
        if low >= high {
            return Err("invalid config: low_freq_factor: must be less than high_freq_factor".to_owned());
        }
        Ok(RopeScaling::Llama3 {
            factor: self.own.positive("factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context: self.original_context()?,
        })
    }

    fn yarn(&self) -> Result<RopeScaling, String> {
        let (factor, original_context) = (self.own.positive("factor")?, self.original_context()?);
        let fast = self.own.optional_positive("beta_fast")?.unwrap_or(YARN_BETA.0);
        let slow = self.own.optional_positive("beta_slow")?.unwrap_or(YARN_BETA.1);
        // The pair, as a fraction, that makes so many turns over the original context.
        let pair =
            |turns: f64| self.rotary_dim as f64 * (original_context / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let (low, high) = match self.own.optional::<bool>("truncate")? {
            Some(false) => (pair(fast), pair(slow)),
            None | Some(true) => (pair(fast).floor(), pair(slow).ceil()),
        };
        let ramp = (low.max(0.0), high.min(self.rotary_dim as f64 - 1.0));
        if !(ramp.0.is_finite() && ramp.1.is_finite() && ramp.0 <= ramp.1) {
            return Err(format!("invalid config: beta_fast: {fast} to {slow} turns are no ramp"));
        }
        let log = |weight: f64| if factor > 1.0 { 0.1 * weight * factor.ln() + 1.0 } else { 1.0 };
        let (mscale, all) = (self.own.optional::<f64>("mscale")?, self.own.optional::<f64>("mscale_all_dim")?);
        let magnitude = match (self.own.optional_positive("attention_factor")?, mscale, all) {
            (Some(magnitude), _, _) => magnitude,
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => log(mscale) / log(all),
            (None, _, _) => log(1.0),
        };
        Ok(RopeScaling::Yarn { factor, ramp, original_context, magnitude })
    }

    fn long(&self) -> Result<RopeScaling, String> {
        if !self.fields.has(ORIGINAL_CONTEXT) && !self.own.has(ORIGINAL_CONTEXT) {
            return Err(format!("invalid config: {ORIGINAL_CONTEXT}: missing"));
        }
        let original_context = self.original_context()?;
        let stretch = self.own.optional_positive("factor")?;
        let stretch = stretch.unwrap_or(f64::from(self.frame.positions) / original_context);
        let magnitude = match self.own.optional_positive("attention_factor")? {
            Some(magnitude) => magnitude,
            None if stretch > 1.0 => (1.0 + stretch.ln() / original_context.ln()).sqrt(),
            None => 1.0,
        };
        let (short, long) = (self.factors("short_factor")?, self.factors("long_factor")?);
        Ok(RopeScaling::Long { short, long, original_context, magnitude })
    }

    /// A number for each pair.
    fn factors(&self, name: &str) -> Result<Vec<f64>, String> {
        let factors = self.own.required::<Vec<f64>>(name)?;
        let pairs = self.rotary_dim / 2;
        match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
            Some(factor) => Err(format!("invalid config: {name}: {factor} is not positive")),
            None if factors.len() != pairs => {
                Err(format!("invalid config: {name}: {} numbers for {pairs} pairs", factors.len()))
            }
            None => Ok(factors),
        }
    }

    /// Tokens of the context that the model was first trained on. The field beside goes first, as in the library that writes both.
    fn original_context(&self) -> Result<f64, String> {
        let own = match self.fields.optional_positive(ORIGINAL_CONTEXT)? {
            Some(context) => Some(context),
            None => self.own.optional_positive(ORIGINAL_CONTEXT)?,
        };
        match own.unwrap_or(f64::from(self.frame.positions)) {
            context if context > 1.0 => Ok(context),
            context => Err(format!("invalid config: {ORIGINAL_CONTEXT}: {context} is no context")),
        }
    }
}
