use std::ops::Range;

use crate::{
    config::{DecoderConfig, MlpConfig, QkNorm},
    models::Product,
    weights::Slice,
};

/// A model divided among ranks as Megatron-LM has it: heads and the inner state of MLPs, so that ranks add up what they made of a row after
/// each attention and each MLP, and need no more of each other. Norms, routers and vectors of tokens are the same on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    rank: usize,
    ranks: usize,
}

impl Split {
    /// # Panics
    /// When there is no such rank.
    pub(crate) fn new(rank: usize, ranks: usize) -> Self {
        assert!(rank < ranks, "rank {rank} of {ranks}");
        Self { rank, ranks }
    }

    pub(crate) fn rank(self) -> usize {
        self.rank
    }

    pub(crate) fn ranks(self) -> usize {
        self.ranks
    }

    /// What every rank computes: the decoder with its share of the heads and of each inner state. Or why it has none.
    pub(crate) fn config(ranks: usize, config: &DecoderConfig) -> Result<DecoderConfig, String> {
        if ranks == 1 {
            return Ok(config.clone());
        }
        let refused = |what: String| format!("{what} cannot be divided among {ranks} GPUs (tensor_parallel_size)");
        let &DecoderConfig { heads, kv_heads, vocab_size, qk_norm, .. } = config;
        if qk_norm == Some(QkNorm::AllHeads) {
            return Err(refused("heads whose queries are normalised all together".to_owned()));
        }
        if !heads.is_multiple_of(ranks) {
            return Err(refused(format!("{heads} attention heads")));
        }
        if !kv_heads.is_multiple_of(ranks) && !ranks.is_multiple_of(kv_heads) {
            return Err(refused(format!("{kv_heads} heads of keys and values")));
        }
        if vocab_size < ranks {
            return Err(refused(format!("{vocab_size} logits")));
        }
        let mut config = config.clone();
        for layer in &mut config.layers {
            let (MlpConfig::Dense { width } | MlpConfig::Experts { width, .. }) = &mut layer.mlp;
            if !width.is_multiple_of(ranks) {
                return Err(refused(format!("MLPs that are {width} wide inside")));
            }
            *width /= ranks;
        }
        // Where there are fewer of keys and values than ranks, several have the same one.
        Ok(DecoderConfig { heads: heads / ranks, kv_heads: (kv_heads / ranks).max(1), ..config })
    }

    /// Outputs and inputs that each rank has of a layer of this name; `part` is what [`config`](Self::config) gave. For the head the most that
    /// one has.
    pub(crate) fn shape(ranks: usize, part: &DecoderConfig, layer: &str, [outputs, inputs]: [usize; 2]) -> [usize; 2] {
        match layer.rsplit('.').next() {
            _ if ranks == 1 => [outputs, inputs],
            Some("q_proj") => [part.q_width(), inputs],
            Some("k_proj" | "v_proj") => [part.kv_width(), inputs],
            Some("qkv_proj") => [part.q_width() + 2 * part.kv_width(), inputs],
            Some("gate_proj" | "up_proj" | "gate_up_proj") => [outputs / ranks, inputs],
            Some("o_proj" | "down_proj") => [outputs, inputs / ranks],
            Some("lm_head") => [outputs.div_ceil(ranks), inputs],
            _ => [outputs, inputs],
        }
    }

    /// All of a product.
    pub(crate) fn whole(product: &Product) -> Vec<Slice> {
        product.parts.iter().map(|(name, outputs)| Slice::whole(name, *outputs, product.inputs)).collect()
    }

    /// Of queries, keys and values this rank's heads; `config` is that of the whole.
    pub(crate) fn qkv(self, config: &DecoderConfig, product: &Product) -> Vec<Slice> {
        let (q, kv, dim) = (config.q_width(), config.kv_width(), config.head_dim);
        let heads = |heads: Range<usize>| heads.start * dim..heads.end * dim;
        let queries = heads(self.share(config.heads));
        let keys = heads(self.kv_heads(config.kv_heads));
        Self::rows(product, &[(q, queries), (kv, keys.clone()), (kv, keys)])
    }

    /// This rank's share of the gates and values of an MLP whose inner state is so wide in all.
    pub(crate) fn gate_up(self, width: usize, product: &Product) -> Vec<Slice> {
        Self::rows(product, &[(width, self.share(width)), (width, self.share(width))])
    }

    /// What meets this rank's share of the inputs.
    pub(crate) fn columns(self, product: &Product) -> Vec<Slice> {
        let columns = self.share(product.inputs);
        Self::whole(product).into_iter().map(|slice| Slice { columns: columns.clone(), ..slice }).collect()
    }

    /// This rank's share of the logits.
    pub(crate) fn head(self, product: &Product) -> Vec<Slice> {
        Self::whole(product)
            .into_iter()
            .map(|slice| Slice { rows: Vec::from([self.share(slice.shape[0])]), ..slice })
            .collect()
    }

    /// All shares are as equal as they can be.
    fn share(self, things: usize) -> Range<usize> {
        let Self { rank, ranks } = self;
        rank * things / ranks..(rank + 1) * things / ranks
    }

    fn kv_heads(self, heads: usize) -> Range<usize> {
        if heads < self.ranks {
            let one = self.rank * heads / self.ranks;
            return one..one + 1;
        }
        self.share(heads)
    }

    /// Of each member of a product, given by its width, some rows. The file may have a tensor for each of them, or one for all.
    fn rows(product: &Product, members: &[(usize, Range<usize>)]) -> Vec<Slice> {
        let Product { parts, inputs, .. } = product;
        let slice = |name: &str, outputs, rows| Slice { rows, ..Slice::whole(name, outputs, *inputs) };
        if let [(name, outputs)] = &parts[..] {
            let starts = members.iter().scan(0, |end, (width, _)| {
                let start = *end;
                *end += width;
                Some(start)
            });
            let rows = starts.zip(members).map(|(start, (_, rows))| start + rows.start..start + rows.end);
            return vec![slice(name, *outputs, rows.collect())];
        }
        let of = |((name, outputs), (_, rows)): (&(String, usize), &(usize, Range<usize>))| {
            slice(name, *outputs, Vec::from([rows.clone()]))
        };
        parts.iter().zip(members).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(parts: &[(&str, usize)], inputs: usize) -> Product {
        Product {
            parts: parts.iter().map(|(name, outputs)| ((*name).to_owned(), *outputs)).collect(),
            inputs,
            has_bias: true,
        }
    }

    #[test]
    fn shares_are_of_every_member_of_a_fused_product() {
        let split = Split::new(1, 2);
        let fused = split.gate_up(6, &product(&[("gate_up_proj", 12)], 4));
        assert_eq!(fused[0].rows, [3..6, 9..12]);
        let apart = split.gate_up(6, &product(&[("gate_proj", 6), ("up_proj", 6)], 4));
        assert_eq!(apart.into_iter().flat_map(|slice| slice.rows).collect::<Vec<_>>(), [3..6, 3..6]);
        assert_eq!(split.columns(&product(&[("down_proj", 4)], 6))[0].columns, 3..6);
        // Seven logits are three and four.
        assert_eq!(split.head(&product(&[("lm_head", 7)], 4))[0].rows.first(), Some(&(3..7)));
    }

    #[test]
    fn few_heads_of_keys_are_had_by_several_ranks() {
        let heads = |ranks: usize| (0..ranks).map(|rank| Split::new(rank, ranks).kv_heads(2)).collect::<Vec<_>>();
        assert_eq!(heads(2), [0..1, 1..2]);
        assert_eq!(heads(4), [0..1, 0..1, 1..2, 1..2]);
    }
}
