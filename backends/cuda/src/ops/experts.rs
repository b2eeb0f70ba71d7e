use super::{
    F32, I32, Input, ROW_THREADS, Weight, blocks, grid,
    product::{NARROW_CHUNK, Tiles},
    size,
};
use crate::{
    CudaError, Device, Number, Place,
    executor::{Arg, Extent},
};

/// Pairs of one expert that its weights are read for together: where experts have few, and where they have many.
const GROUPS: [usize; 2] = [8, 32];
/// Pairs that an expert has on average where they are many.
const MANY: usize = 16;
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
    /// What [`group`](Self::group) has of these.
    pub group: usize,
    /// [`group_bytes`](Self::group_bytes) for pairs by expert.
    pub groups: Place<'a>,
}

impl Routing<'_> {
    /// Pairs of one expert that are multiplied together, where the products have `inputs` of such numbers.
    #[must_use]
    pub fn group(rows: usize, experts: usize, per_token: usize, number: Number, inputs: [usize; 2]) -> usize {
        let many = rows * per_token >= MANY * experts;
        GROUPS[usize::from(many && inputs.iter().all(|&inputs| is_narrow(number, inputs)))]
    }

    /// Bytes of the groups of up to so many rows.
    #[must_use]
    pub fn group_bytes(rows: usize, experts: usize, per_token: usize) -> usize {
        let bytes = GROUPS.map(|group| groups(rows * per_token, experts, group) * (1 + group) * I32);
        bytes[0].max(bytes[1])
    }

    fn pairs(&self) -> usize {
        self.rows * self.per_token
    }
}

/// As many as there may be: each expert has one that is not full.
fn groups(pairs: usize, experts: usize, group: usize) -> usize {
    pairs / group + experts.min(pairs)
}

impl Device {
    /// Picks the experts of each row by `scores` (F32), one for each row and expert. An expert counts by its probability among all, or
    /// `among_chosen`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn route(&self, scores: Place<'_>, among_chosen: bool, routing: &Routing<'_>) -> Result<(), CudaError> {
        let &Routing { rows, experts, per_token, chosen, shares, group, groups: of_groups } = routing;
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
        let groups = groups(pairs, experts, group);
        let arguments = [
            chosen,
            size(pairs),
            size(experts),
            size(groups),
            size(group),
            of_groups.for_bytes(groups * I32),
            of_groups.skip(groups * I32).for_bytes(groups * group * I32),
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
        let &Routing { experts, per_token, chosen, group, groups: of_groups, .. } = routing;
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
        let groups = groups(pairs, experts, group);
        let of_experts = of_groups.for_bytes(groups * I32);
        let of_pairs = of_groups.skip(groups * I32).for_bytes(groups * group * I32);
        let mut arguments = [&[weight.place(), x, y, of_experts, of_pairs], &shape[..]].concat();
        let mut kernel = format!("experts_{}_{}", weight.format().kernel(), number.kernel());
        if is_narrow(number, inputs) {
            let tiles = Tiles::of_rows(group);
            // There are blocks enough, one for each group.
            let beside = 4;
            arguments.push(size(beside));
            kernel += &format!("_{}", tiles.rows);
            return self.launch(&kernel, tiles.extent([tiles.blocks(outputs, beside), groups]), &arguments);
        }
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

/// Whether rows of so many inputs are multiplied on tensor cores.
fn is_narrow(number: Number, inputs: usize) -> bool {
    matches!(number, Number::Bf16 | Number::F16) && inputs.is_multiple_of(NARROW_CHUNK)
}
