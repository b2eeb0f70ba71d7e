//! Which layer's weights and KV lie on which GPU, from what llama.cpp logs as it deals them out.

const MEBIBYTE: f64 = (1 << 20) as f64;

/// For each layer the GPU that it is on, counted from 0, or none for the machine's own memory. The last layer is the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement(Vec<Option<usize>>);

impl Placement {
    /// From the log of a load. `gpus` are ggml's names for them.
    pub(crate) fn read(lines: &[String], gpus: &[&str]) -> Self {
        let device = |line: &String| {
            let (layer, rest) = line.strip_prefix("layer ")?.split_once(" assigned to device ")?;
            layer.trim().parse::<usize>().ok()?;
            // Several GPUs may go by a name with commas in it.
            let (name, _) = rest.rsplit_once(", ")?;
            Some(gpus.iter().position(|gpu| *gpu == name))
        };
        Self(lines.iter().filter_map(device).collect())
    }

    /// As llama.cpp deals so many layers out to a single GPU: the last ones, and the output first of all.
    pub(crate) fn with_gpu(&self, layers: u32) -> Self {
        let first = self.0.len().saturating_sub(layers as usize);
        Self((0..self.0.len()).map(|layer| (layer >= first).then_some(0)).collect())
    }

    /// Layers, the output among them.
    pub(crate) fn layers(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// How many of them are on GPUs.
    pub(crate) fn on_gpus(&self) -> u32 {
        u32::try_from(self.0.iter().flatten().count()).unwrap_or(u32::MAX)
    }

    fn gpu(&self, layer: usize) -> Option<usize> {
        self.0.get(layer).copied().flatten()
    }

    /// Bytes of weights on each of `gpus` GPUs, and how many of them are in the machine's memory as well: the table of embeddings stays where
    /// the processor is, which looks rows up in it, and where it is the output's matrix too the GPU has a copy. `tensors` are names and bytes.
    pub(crate) fn weights(&self, tensors: &[(String, u64)], gpus: usize) -> (Vec<u64>, u64) {
        let mut on_gpus = vec![0; gpus];
        let mut twice = 0;
        let output = self.0.len().saturating_sub(1);
        let has_output = tensors.iter().any(|(name, _)| name == "output.weight");
        for (name, bytes) in tensors {
            let layer = match name.strip_prefix("blk.") {
                Some(rest) => rest.split('.').next().and_then(|number| number.parse().ok()),
                None if name.starts_with("output") => Some(output),
                None if name == "token_embd.weight" && !has_output => Some(output),
                None => None,
            };
            if let Some(gpu) = layer.and_then(|layer| self.gpu(layer)) {
                on_gpus[gpu] += bytes;
                if name == "token_embd.weight" {
                    twice += bytes;
                }
            }
        }
        (on_gpus, twice)
    }

    /// Bytes of KV, or of states in its place, in the machine's memory and then on each of `gpus` GPUs, from the log of a context: layers are
    /// named before the size of each cache that they share evenly.
    pub(crate) fn kv(&self, lines: &[String], gpus: usize) -> Vec<u64> {
        let mut places = vec![0.0; gpus + 1];
        let mut layers = Vec::new();
        for line in lines {
            if let Some(layer) = kv_layer(line) {
                layers.push(layer);
            } else if let Some(mebibytes) = kv_size(line) {
                for layer in &layers {
                    places[self.gpu(*layer).map_or(0, |gpu| gpu + 1)] += mebibytes / layers.len() as f64;
                }
                if layers.is_empty() {
                    places[0] += mebibytes;
                }
                layers.clear();
            }
        }
        places.into_iter().map(|mebibytes| (mebibytes * MEBIBYTE).round() as u64).collect()
    }
}

/// Bytes to compute in, and for results, in the machine's memory and then on each of `gpus`, from the log of a context.
pub(crate) fn compute(lines: &[String], gpus: &[&str]) -> Vec<u64> {
    let mut places = vec![0.0; gpus.len() + 1];
    for (buffer, mebibytes) in lines.iter().filter_map(|line| buffer_size(line)) {
        // The machine's memory goes by several names: `CPU`, `CUDA_Host`.
        places[gpus.iter().position(|gpu| *gpu == buffer).map_or(0, |gpu| gpu + 1)] += mebibytes;
    }
    places.into_iter().map(|mebibytes| (mebibytes * MEBIBYTE) as u64).collect()
}

/// `layer   0: dev = CUDA0`, with the name of a function before it for some kinds.
fn kv_layer(line: &str) -> Option<usize> {
    let (before, _) = line.split_once(": dev = ")?;
    before.rsplit_once("layer ")?.1.trim().parse().ok()
}

/// `size =   20.00 MiB (  8192 cells, …` is of KV, or of the states in its place.
fn kv_size(line: &str) -> Option<f64> {
    let (size, rest) = line.strip_prefix("size =")?.split_once(" MiB (")?;
    rest.contains("cells").then(|| size.trim().parse().ok())?
}

/// `CPU compute buffer size =    13.52 MiB`, or `CPU  output buffer size = …`.
fn buffer_size(line: &str) -> Option<(&str, f64)> {
    let (what, size) = line.split_once("buffer size =")?;
    let what = what.trim();
    let name = what.strip_suffix("compute").or_else(|| what.strip_suffix("output"))?;
    Some((name.trim(), size.trim().strip_suffix("MiB")?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// Four layers and the output, dealt out to two GPUs and the processor.
    fn dealt() -> Placement {
        let log = "layer   0 assigned to device CPU, is_swa = 0
            layer   1 assigned to device CUDA0, is_swa = 0
            layer   2 assigned to device CUDA0, is_swa = 1
            layer   3 assigned to device CUDA1, is_swa = 0
            layer   4 assigned to device CUDA1, is_swa = 0
            offloaded 4/5 layers to GPU";
        Placement::read(&lines(log), &["CUDA0", "CUDA1"])
    }

    #[test]
    fn layers_are_where_the_log_says() {
        let placement = dealt();
        assert_eq!(placement, Placement(vec![None, Some(0), Some(0), Some(1), Some(1)]));
        assert_eq!((placement.layers(), placement.on_gpus()), (5, 4));
    }

    #[test]
    fn a_gpu_that_is_not_there_gets_the_last_layers() {
        assert_eq!(dealt().with_gpu(2), Placement(vec![None, None, None, Some(0), Some(0)]));
        assert_eq!(dealt().with_gpu(u32::MAX).on_gpus(), 5);
        assert_eq!(dealt().with_gpu(0).on_gpus(), 0);
    }

    #[test]
    fn weights_follow_their_layers() {
        let named =
            |names: &[(&str, u64)]| names.iter().map(|&(name, bytes)| (name.to_owned(), bytes)).collect::<Vec<_>>();
        let mut tensors = named(&[
            ("token_embd.weight", 1),
            ("blk.0.attn_q.weight", 10),
            ("blk.1.attn_q.weight", 100),
            ("blk.2.ffn_up.weight", 1_000),
            ("blk.3.ffn_up.weight", 10_000),
            ("output_norm.weight", 100_000),
            ("rope_freqs.weight", 5),
        ]);
        // The table of embeddings is the output's matrix too.
        assert_eq!(dealt().weights(&tensors, 2), (vec![1_100, 110_001], 1));
        tensors.extend(named(&[("output.weight", 1_000_000)]));
        assert_eq!(dealt().weights(&tensors, 2), (vec![1_100, 1_110_000], 0));
    }

    #[test]
    fn each_cache_is_shared_by_the_layers_named_before_it() {
        let log = "layer   0: dev = CPU
            layer   1: dev = CUDA0
            layer   3: dev = CUDA1
            size =   30.00 MiB (  8192 cells,   3 layers,  8/8 seqs), K (f16):   15.00 MiB
            llama_memory_recurrent, layer   2: dev = CUDA0
            size =    8.00 MiB (     8 cells,   1 layers,  8 seqs), R (f32):    3.00 MiB";
        assert_eq!(dealt().kv(&lines(log), 2), [10 << 20, 18 << 20, 10 << 20]);
        let whole = "size =   20.00 MiB (  8192 cells,   5 layers,  8/1 seqs), K (f16):   10.00 MiB";
        assert_eq!(dealt().kv(&lines(whole), 2), [20 << 20, 0, 0]);
    }

    #[test]
    fn buffers_to_compute_in_are_told_by_their_names() {
        let log = "CUDA0 compute buffer size =   250.50 MiB
            CUDA_Host compute buffer size =    16.00 MiB
            CUDA_Host  output buffer size =     4.00 MiB
            CUDA1 KV buffer size =     0.00 MiB
            CUDA1 compute buffer size =     1.50 MiB";
        assert_eq!(compute(&lines(log), &["CUDA0", "CUDA1"]), [20 << 20, 501 << 19, 3 << 19]);
    }

    #[test]
    fn lines_of_other_things_do_not_count() {
        assert_eq!(kv_size("file size   = 2.39 MiB (5.36 BPW)"), None);
        assert_eq!(buffer_size("CPU KV buffer size =     0.00 MiB"), None);
        assert_eq!(kv_layer("layer   0 assigned to device CPU, is_swa = 0"), None);
    }
}
