use tandem_cuda::{Buffer, CudaError, Device, Input, Place, Weight};

const F32: usize = 4;

/// `y = x Wᵀ`, the outputs of several weights behind each other. Whoever reads `y` adds the bias, so that it costs no pass of its own.
#[derive(Debug)]
pub(crate) struct DeviceLinear {
    parts: Vec<Weight>,
    bias: Option<Buffer>,
}

impl DeviceLinear {
    pub(crate) fn new(parts: Vec<Weight>, bias: Option<Buffer>) -> Self {
        Self { parts, bias }
    }

    /// Of all parts.
    pub(crate) fn outputs(&self) -> usize {
        self.parts.iter().map(Weight::outputs).sum()
    }

    /// What is still to be added to each row of the product.
    pub(crate) fn bias(&self) -> Option<&Buffer> {
        self.bias.as_ref()
    }

    /// Its one weight, where it has one.
    pub(crate) fn whole(&self) -> Option<&Weight> {
        match &self.parts[..] {
            [whole] => Some(whole),
            _ => None,
        }
    }

    /// Writes the product to `y`, in F32 and row behind row.
    pub(crate) fn forward(
        &self,
        device: &Device,
        input: Input<'_>,
        y: Place<'_>,
        scratch: &Buffer,
    ) -> Result<(), CudaError> {
        self.forward_apart(device, input, y, self.outputs(), scratch)
    }

    /// The same with rows of the product so many numbers apart.
    pub(crate) fn forward_apart(
        &self,
        device: &Device,
        input: Input<'_>,
        y: Place<'_>,
        stride: usize,
        scratch: &Buffer,
    ) -> Result<(), CudaError> {
        let mut first = 0;
        for part in &self.parts {
            device.multiply(part, input, y.skip(first * F32), stride, scratch)?;
            first += part.outputs();
        }
        Ok(())
    }
}
