//! float16 and bfloat16 from and to float32, without branches, so that loops over them become vector code.
//!
//! After F. Giesen, *Half to float done quick* and *Float to half conversion*.

const INFINITY: u32 = 0x7f80_0000;
/// The least float32 that is too large for float16 whatever the rounding.
const F16_LIMIT: u32 = (127 + 16) << 23;
/// The least float32 that is a normal float16.
const F16_NORMAL: u32 = (127 - 14) << 23;

/// The value of a float16.
#[inline(always)]
pub(super) fn from_f16(half: u16) -> f32 {
    let (sign, rest) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7fff));
    // As a float32 it is 2^112 times too small, subnormal ones too.
    let scaled = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    let special = if rest >= 0x7c00 { INFINITY } else { 0 };
    f32::from_bits(scaled.to_bits() | special | sign)
}

/// The nearest float16, ties to even.
#[inline(always)]
pub(super) fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, size) = ((bits >> 16) as u16 & 0x8000, bits & 0x7fff_ffff);
    // Adding 2^-1 × 2^-24 × 2^24 lets the float32 adder round at the last bit of a subnormal float16.
    let magic = (127 - 15 + 23 - 10 + 1) << 23;
    let subnormal = (f32::from_bits(size) + f32::from_bits(magic)).to_bits().wrapping_sub(magic);
    let odd = (size >> 13) & 1;
    let normal = size.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + odd) >> 13;
    let special = if size > INFINITY { 0x7e00 } else { 0x7c00 };
    let finite = if size < F16_NORMAL { subnormal } else { normal };
    (if size >= F16_LIMIT { special } else { finite }) as u16 | sign
}

/// The value of a bfloat16.
#[inline(always)]
pub(super) fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// The nearest bfloat16, ties to even.
#[inline(always)]
pub(super) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let nan = (bits >> 16) as u16 | 0x40;
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if bits & 0x7fff_ffff > INFINITY { nan } else { rounded }
}

/// Whether a finite value became infinite, and whether one below the normal float16 changed.
#[inline(always)]
pub(super) fn lost(value: f32, rounded: f32) -> (bool, bool) {
    let (size, after) = (value.to_bits() & 0x7fff_ffff, rounded.to_bits() & 0x7fff_ffff);
    (size < INFINITY && after == INFINITY, size < F16_NORMAL && size != after)
}
