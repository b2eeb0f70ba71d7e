use super::{F32, I32, Input, ROW_THREADS, Weight, blocks, grid, size};
use crate::{
    CudaError, Device, Place,
    executor::{Arg, Extent},
};

/// Pairs of one expert that its weights are read for together.
const GROUP: usize = 8;
const WARP: u32 = 32;
const THREADS: u32 = 128;
/// Outputs of a block: a warp has two.
const OUTPUTS: usize = 8;
/// Of a layer, at most.
pub const MOST_EXPERTS: usize = 1024;

/// How the rows of a layer go through its experts: each through `per_token` of them, so that there are as many pairs of a row and an expert.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    pub rows: usize,
    pub experts: usize,
    pub per_token: usize,
    /// For each pair its expert (I32), and how much it counts (F32).
    pub chosen: Place<'a>,
    pub shares: Place<'a>,
    /// [`group_bytes`](Self::group_bytes) for pairs by expert.
    pub groups: Place<'a>,
}

impl Routing<'_> {
    /// Bytes of the groups of so many rows.
    #[must_use]
    pub fn group_bytes(rows: usize, experts: usize, per_token: usize) -> usize {
        groups(rows * per_token, experts) * (1 + GROUP) * I32
    }

    fn pairs(&self) -> usize {
        self.rows * self.per_token
    }
}

/// As many as there may be: each expert has one that is not full.
fn groups(pairs: usize, experts: usize) -> usize {
    pairs / GROUP + experts.min(pairs)
}

impl Device {
    /// Picks the experts of each row by `scores` (F32), one for each row and expert. An expert counts by its probability among all, or
    /// `among_chosen`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn route(&self, scores: Place<'_>, among_chosen: bool, routing: &Routing<'_>) -> Result<(), CudaError> {
        let &Routing { rows, experts, per_token, chosen, shares, groups: of_groups } = routing;
        assert!(experts <= MOST_EXPERTS && (1..=experts).contains(&per_token), "{per_token} of {experts} experts");
        let pairs = routing.pairs();
        let (chosen, shares) = (chosen.for_bytes(pairs * I32), shares.for_bytes(pairs * F32));
        let arguments = [
            scores.for_bytes(rows * experts * F32),
            size(experts),
            size(per_token),
            Arg::I32(among_chosen.into()),
            chosen,
            shares,
        ];
        let extent = Extent { grid: [grid(rows), 1, 1], threads: WARP, shared_bytes: 0 };
        self.launch("route", extent, &arguments)?;
        let groups = groups(pairs, experts);
        let arguments = [
            chosen,
            size(pairs),
            size(experts),
            size(groups),
            of_groups.for_bytes(groups * I32),
            of_groups.skip(groups * I32).for_bytes(groups * GROUP * I32),
        ];
        let extent = Extent { grid: [1, 1, 1], threads: ROW_THREADS, shared_bytes: 0 };
        self.launch("group_pairs", extent, &arguments)
    }

    /// For each pair the product of its row with the weight of its expert, in F32; `weight` has those of all experts behind each other. `input`
    /// has one row for each row of the layer, or one for each pair.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// When the weight's numbers are plain and other ones than those of `x`, or the input has another number of rows.
    pub fn multiply_experts(
        &self,
        weight: &Weight,
        Input { x, number, rows }: Input<'_>,
        routing: &Routing<'_>,
        y: Place<'_>,
    ) -> Result<(), CudaError> {
        let &Routing { experts, per_token, chosen, groups: of_groups, .. } = routing;
        let pairs = routing.pairs();
        let pairs_of_row = if rows == pairs { 1 } else { per_token };
        assert!(
            rows * pairs_of_row == pairs && weight.outputs().is_multiple_of(experts),
            "one row for each, or for each pair"
        );
        let (inputs, outputs) = (weight.inputs(), weight.outputs() / experts);
        let (x, y) = (x.for_bytes(rows * inputs * number.bytes()), y.for_bytes(pairs * outputs * F32));
        let shape = [size(pairs_of_row), size(inputs), size(outputs)];
        if !inputs.is_multiple_of(8) {
            let arguments = [&[weight.place(), x, y, chosen.for_bytes(pairs * I32)], &shape[..]].concat();
            let extent = Extent { grid: [grid(pairs), blocks(outputs, THREADS), 1], threads: THREADS, shared_bytes: 0 };
            return self.launch(&format!("experts_any_{}", number.kernel()), extent, &arguments);
        }
        let groups = groups(pairs, experts);
        let of_experts = of_groups.for_bytes(groups * I32);
        let of_pairs = of_groups.skip(groups * I32).for_bytes(groups * GROUP * I32);
        let arguments = [&[weight.place(), x, y, of_experts, of_pairs], &shape[..]].concat();
        let kernel = format!("experts_{}_{}", weight.format().kernel(), number.kernel());
        let extent =
            Extent { grid: [grid(outputs.div_ceil(OUTPUTS)), grid(groups), 1], threads: THREADS, shared_bytes: 0 };
        self.launch(&kernel, extent, &arguments)
    }

    /// Adds up what the experts of each row made, `width` numbers of F32 for each pair.
    ///
    /// # Errors
    /// Those of the device.
    pub fn join_experts(
        &self,
        of_pairs: Place<'_>,
        routing: &Routing<'_>,
        width: usize,
        out: Place<'_>,
    ) -> Result<(), CudaError> {
        let &Routing { rows, per_token, shares, .. } = routing;
        let arguments = [
            of_pairs.for_bytes(routing.pairs() * width * F32),
            shares.for_bytes(routing.pairs() * F32),
            out.for_bytes(rows * width * F32),
            size(per_token),
            size(width),
            size(rows),
        ];
        let extent = Extent { grid: [blocks(rows * width, ROW_THREADS), 1, 1], threads: ROW_THREADS, shared_bytes: 0 };
        self.launch("join_experts", extent, &arguments)
    }
}
