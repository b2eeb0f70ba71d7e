//! `config.json`: from the fields that a family of models writes to one checked description of what is computed.

mod decoder;
mod encoder;
mod fields;
mod model;
mod rope;

pub(crate) use decoder::{
    Activation, Biases, DecoderConfig, Defaults, Head, LayerConfig, LogitMap, MAX_MLP, MlpConfig, NormPlacement,
    NormWeight, Projections, QkNorm, RouteWeights,
};
pub(crate) use encoder::{EncoderActivation, EncoderConfig, EncoderFields, EncoderNames, HeadNames};
pub(crate) use fields::Fields;
pub(crate) use model::{BodyConfig, EmbedderConfig, ModelConfig};
pub(crate) use rope::{Rope, RopeFrame, RopeScaling};
