//! Choices that a kernel makes for the matrix unit.

/// How many phases a product takes: the more, the more bits of the operands' mantissas are multiplied.
///
/// | phase | SrcA (`in1`) | SrcB (`in0`) |
/// | --- | --- | --- |
/// | 0 | hidden bit, 4 highest bits | hidden bit, 6 highest bits |
/// | 1 | next 5 bits | hidden bit, 6 highest bits |
/// | 2 | hidden bit, 4 highest bits | last 4 bits |
/// | 3 | next 5 bits | last 4 bits |
///
/// No phase reads the last one of the 10 mantissa bits of SrcA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fidelity {
    /// Phase 0.
    LoFi,
    /// Phases 0 and 1.
    HiFi2,
    /// Phases 0 to 2.
    HiFi3,
    /// Phases 0 to 3.
    HiFi4,
}

impl Fidelity {
    /// All of them, by ascending phases.
    pub const ALL: [Self; 4] = [Self::LoFi, Self::HiFi2, Self::HiFi3, Self::HiFi4];

    /// Phases of one product.
    pub const fn phases(self) -> usize {
        match self {
            Self::LoFi => 1,
            Self::HiFi2 => 2,
            Self::HiFi3 => 3,
            Self::HiFi4 => 4,
        }
    }

    /// Tenstorrent's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LoFi => "LoFi",
            Self::HiFi2 => "HiFi2",
            Self::HiFi3 => "HiFi3",
            Self::HiFi4 => "HiFi4",
        }
    }

    /// The fidelity of that [name](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fidelity| fidelity.name() == name)
    }
}

/// What Dst holds while the matrix unit adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Accumulate {
    /// 32 bits a value (`fp32_dest_acc_en`), half as many tiles.
    Float32,
    /// 16 bits a value: every sum is rounded to bfloat16. (Where operands are float16 the hardware rounds to that.)
    Bfloat16,
}

impl Accumulate {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Float32, Self::Bfloat16];

    /// Name of the format that Dst holds, as [`Format::name`](super::Format::name) has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// The choice of that [name](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|accumulate| accumulate.name() == name)
    }
}
