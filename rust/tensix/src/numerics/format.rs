//! Formats of values in memory.

use super::tile::TILE_VALUES;

/// Groups of 16 values, each one row of a face, that share an exponent in the block formats.
pub(super) const GROUPS: usize = 64;

/// How the values of a tile are stored in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// IEEE 754 binary32.
    Float32,
    /// The upper half of a binary32.
    Bfloat16,
    /// IEEE 754 binary16.
    Float16,
    /// A sign and a 7-bit magnitude a value, and an 8-bit exponent for each row of a face: value
    /// `±magnitude · 2^(exponent - 133)`.
    Bfloat8B,
    /// A sign and a 3-bit magnitude a value, and an 8-bit exponent for each row of a face: value
    /// `±magnitude · 2^(exponent - 129)`.
    Bfloat4B,
    /// 8-bit integers, in two's complement here (the hardware keeps sign and magnitude).
    Int8,
    /// 32-bit integers, in two's complement.
    Int32,
    /// Unsigned 16-bit integers.
    UInt16,
    /// Unsigned 32-bit integers.
    UInt32,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 9] = [
        Self::Float32,
        Self::Bfloat16,
        Self::Float16,
        Self::Bfloat8B,
        Self::Bfloat4B,
        Self::Int8,
        Self::Int32,
        Self::UInt16,
        Self::UInt32,
    ];

    /// Tenstorrent's name of the format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
            Self::Bfloat8B => "bfloat8_b",
            Self::Bfloat4B => "bfloat4_b",
            Self::Int8 => "int8",
            Self::Int32 => "int32",
            Self::UInt16 => "uint16",
            Self::UInt32 => "uint32",
        }
    }

    /// The format of that [name](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Bits of one value, without its share of an exponent that it has in common with others.
    pub const fn bits(self) -> usize {
        match self {
            Self::Float32 | Self::Int32 | Self::UInt32 => 32,
            Self::Bfloat16 | Self::Float16 | Self::UInt16 => 16,
            Self::Bfloat8B | Self::Int8 => 8,
            Self::Bfloat4B => 4,
        }
    }

    /// Bytes of one tile.
    pub const fn tile_bytes(self) -> usize {
        TILE_VALUES * self.bits() / 8 + if self.block() { GROUPS } else { 0 }
    }

    /// Whether values are floating-point numbers; they are integers otherwise.
    pub const fn is_float(self) -> bool {
        match self {
            Self::Float32 | Self::Bfloat16 | Self::Float16 | Self::Bfloat8B | Self::Bfloat4B => true,
            Self::Int8 | Self::Int32 | Self::UInt16 | Self::UInt32 => false,
        }
    }

    /// Whether 16 values share one exponent.
    pub const fn block(self) -> bool {
        matches!(self, Self::Bfloat8B | Self::Bfloat4B)
    }
}
