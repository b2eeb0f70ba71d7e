//! The weights as a model directory has them: BF16, in one file or in several with an index.

use std::io::Write;

use half::bf16;
use serde_json::{Map, Value, json};

use super::{
    output::Output,
    rows,
    weights::Drawn,
    {Progress, SynthError},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Of the weights in one file.
const MAX_SHARD_BYTES: usize = 4 << 30;
/// Headers are filled up to a multiple of it.
const HEADER_ALIGN: usize = 8;

/// Bytes of all weights.
pub(super) fn bytes(tensors: &[Drawn]) -> usize {
    tensors.iter().map(size).sum()
}

pub(super) fn write(tensors: &[Drawn], output: &mut Output, progress: &mut Progress<'_>) -> Result<(), SynthError> {
    let shards = shards(tensors, MAX_SHARD_BYTES);
    let mut names: Vec<String> = match shards.len() {
        1 => vec![SINGLE.to_owned()],
        count => (1..=count).map(|number| format!("model-{number:05}-of-{count:05}.safetensors")).collect(),
    };
    for (name, shard) in names.iter().zip(&shards) {
        output.file(name, |file| write_shard(shard, file, progress))?;
    }
    if names.len() > 1 {
        output.json(INDEX, &index(&names, &shards))?;
        names.push(INDEX.to_owned());
    }
    // Whoever loads the directory would take what an older model left there.
    output.forget(|name| {
        let is_weights =
            name == SINGLE || name == INDEX || (name.starts_with("model-") && name.ends_with(".safetensors"));
        is_weights && !names.iter().any(|written| written == name)
    })
}

fn size(tensor: &Drawn) -> usize {
    tensor.len() * size_of::<bf16>()
}

/// Tensors in their order, as many at a time as fit into a file.
fn shards(tensors: &[Drawn], max: usize) -> Vec<&[Drawn]> {
    let mut taken = 0;
    tensors
        .chunk_by(|_, next| {
            taken += size(next);
            // The first tensor of a file is never asked about.
            taken < max || {
                taken = 0;
                false
            }
        })
        .collect()
}

fn index(names: &[String], shards: &[&[Drawn]]) -> Value {
    let map = names
        .iter()
        .zip(shards)
        .flat_map(|(name, shard)| shard.iter().map(|tensor| (tensor.name.clone(), Value::from(name.as_str()))));
    let map: Map<String, Value> = map.collect();
    let total: usize = shards.iter().map(|shard| bytes(shard)).sum();
    json!({ "metadata": { "total_size": total }, "weight_map": map })
}

fn write_shard(tensors: &[Drawn], file: &mut dyn Write, progress: &mut Progress<'_>) -> Result<(), SynthError> {
    let mut start = 0;
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    for tensor in tensors {
        let end = start + size(tensor);
        let shape = if tensor.is_vector { vec![tensor.columns] } else { vec![tensor.rows, tensor.columns] };
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(HEADER_ALIGN), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors {
        rows::write(tensor.rows, tensor.columns, file, progress, |rows| {
            let mut numbers = Vec::new();
            tensor.rows(rows, &mut numbers);
            Ok(numbers.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes()).collect())
        })?;
    }
    Ok(())
}
