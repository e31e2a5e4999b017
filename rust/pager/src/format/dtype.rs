//! Element types that files hold, under the names of each format.

use std::fmt;

/// Element type of a tensor in a file. Values are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it: kind and bits, for small floats exponent and mantissa")]
pub enum DType {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    Bf16,
    F32,
    F64,
    C64,
    C128,
    F8E4M3,
    F8E5M2,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F8E8M0,
    F6E2M3,
    F6E3M2,
    F4,
}

/// Bits of an element, NumPy's (ml_dtypes') name, safetensors' name and npy's `descr`, where they have one.
type Row = (DType, u32, &'static str, Option<&'static str>, Option<&'static str>);

const TABLE: [Row; 23] = [
    (DType::Bool, 8, "bool", Some("BOOL"), Some("|b1")),
    (DType::U8, 8, "uint8", Some("U8"), Some("|u1")),
    (DType::I8, 8, "int8", Some("I8"), Some("|i1")),
    (DType::U16, 16, "uint16", Some("U16"), Some("<u2")),
    (DType::I16, 16, "int16", Some("I16"), Some("<i2")),
    (DType::U32, 32, "uint32", Some("U32"), Some("<u4")),
    (DType::I32, 32, "int32", Some("I32"), Some("<i4")),
    (DType::U64, 64, "uint64", Some("U64"), Some("<u8")),
    (DType::I64, 64, "int64", Some("I64"), Some("<i8")),
    (DType::F16, 16, "float16", Some("F16"), Some("<f2")),
    // What np.save writes for ml_dtypes' bfloat16, the only type of two bytes that it writes so.
    (DType::Bf16, 16, "bfloat16", Some("BF16"), Some("<V2")),
    (DType::F32, 32, "float32", Some("F32"), Some("<f4")),
    (DType::F64, 64, "float64", Some("F64"), Some("<f8")),
    (DType::C64, 64, "complex64", Some("C64"), Some("<c8")),
    (DType::C128, 128, "complex128", None, Some("<c16")),
    (DType::F8E4M3, 8, "float8_e4m3fn", Some("F8_E4M3"), None),
    (DType::F8E5M2, 8, "float8_e5m2", Some("F8_E5M2"), None),
    (DType::F8E4M3Fnuz, 8, "float8_e4m3fnuz", Some("F8_E4M3FNUZ"), None),
    (DType::F8E5M2Fnuz, 8, "float8_e5m2fnuz", Some("F8_E5M2FNUZ"), None),
    (DType::F8E8M0, 8, "float8_e8m0fnu", Some("F8_E8M0"), None),
    (DType::F6E2M3, 6, "float6_e2m3fn", Some("F6_E2M3"), None),
    (DType::F6E3M2, 6, "float6_e3m2fn", Some("F6_E3M2"), None),
    (DType::F4, 4, "float4_e2m1fn", Some("F4"), None),
];

impl DType {
    /// All types.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        // The table is in the enum's order, which a test holds.
        &TABLE[self as usize]
    }

    /// Bits of one element; fewer than 8 where several share a byte.
    pub fn bits(self) -> u32 {
        self.row().1
    }

    /// The name of NumPy's or ml_dtypes' type.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// The name in a safetensors header.
    pub fn safetensors(self) -> Option<&'static str> {
        self.row().3
    }

    /// The `descr` in an npy header.
    pub fn npy(self) -> Option<&'static str> {
        self.row().4
    }

    /// The type that NumPy or ml_dtypes calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The type that a safetensors header calls so.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.3 == Some(name)).map(|row| row.0)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_finds_itself_by_its_names() {
        assert_eq!(DType::all().count(), TABLE.len());
        for dtype in DType::all() {
            assert_eq!(dtype.row().0, dtype);
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            if let Some(name) = dtype.safetensors() {
                assert_eq!(DType::from_safetensors(name), Some(dtype));
            }
        }
    }
}
