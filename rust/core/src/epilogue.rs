use crate::{Error, VecRef};

/// Element-wise function applied to a product in the store of its tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The product itself.
    #[default]
    Identity,
    /// `max(v, 0)`; NaN stays NaN, as in NumPy and torch.
    Relu,
    /// Exact GELU, `v · Φ(v)` with the error function (torch's default).
    Gelu,
    /// `v · sigmoid(v)`, also called swish.
    Silu,
}

impl Activation {
    /// Names accepted by [`Activation::parse`].
    pub const NAMES: [&'static str; 3] = ["relu", "gelu", "silu"];

    /// Finds an activation by its name in the public API.
    ///
    /// # Errors
    /// [`Error::Choice`] for an unknown name.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "relu" => Ok(Self::Relu),
            "gelu" => Ok(Self::Gelu),
            "silu" => Ok(Self::Silu),
            other => Err(Error::Choice {
                what: "activation",
                expected: format!("one of {}", Self::NAMES.join(", ")),
                got: other.to_owned(),
            }),
        }
    }
}

/// What happens to a sum on its way from the accumulators to memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added first: one value per row of the result.
    pub bias: Option<VecRef<'a>>,
    /// Applied after the bias.
    pub activation: Activation,
}

impl Epilogue<'_> {
    /// True when results are stored as they are.
    pub fn is_identity(&self) -> bool {
        self.bias.is_none() && self.activation == Activation::Identity
    }
}
