//! Roundings of single values, in a form that loops over them vectorise.

/// The exponent bits of an f32; all set in infinities and NaNs, all clear in zeros and denormals.
pub(super) const EXPONENT: u32 = 0x7f80_0000;
/// The sign bit of an f32.
pub(super) const SIGN: u32 = 0x8000_0000;
/// The NaN that arithmetic of this module gives, so that results do not depend on the CPU.
pub(super) const NAN: u32 = 0x7fc0_0000;
/// The bits of an f32 that tf32 has: sign, 8 exponent bits, 10 mantissa bits.
pub(super) const TF32: u32 = 0xffff_e000;

/// The nearest bfloat16, ties to even. What is too large becomes infinite; a NaN stays one, made quiet.
#[inline(always)]
pub fn round_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let kept = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
    f32::from_bits(kept & 0xffff_0000)
}

/// The tf32 that a value becomes on its way into SrcA or SrcB: its low 13 mantissa bits are dropped. A NaN stays one,
/// made quiet.
#[inline(always)]
pub fn to_tf32(value: f32) -> f32 {
    let bits = value.to_bits();
    let kept = if value.is_nan() { bits | 0x0040_0000 } else { bits };
    f32::from_bits(kept & TF32)
}

/// A denormal becomes zero, and so does negative zero; all else stays as it is.
#[inline(always)]
pub fn flush_denormal(value: f32) -> f32 {
    if value.to_bits() & EXPONENT == 0 { 0.0 } else { value }
}
