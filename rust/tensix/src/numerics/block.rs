//! Groups of 16 values that share an exponent (bfloat8_b, bfloat4_b), `M` bits of magnitude each.

use super::round::{EXPONENT, SIGN};

/// Largest finite f32.
const LARGEST: u32 = 0x7f7f_ffff;
/// Smallest normal f32.
const SMALLEST: u32 = 0x0080_0000;

/// The shared exponent of 16 values, that of the largest, and their codes: a magnitude below `2^M` with the sign above
/// it.
///
/// Magnitudes are rounded to nearest, ties to even, and no further than the largest one. (tt-metal's host code drops
/// the bits that a value loses by its smaller exponent before it rounds, so near a tie it can be lower by one.)
/// Denormals become zero; zeros have no sign. Infinities and NaNs have no code: they count as the largest finite f32 of
/// their sign.
#[inline(always)]
pub(super) fn encode<const M: u32>(values: &[f32; 16]) -> (u8, [u8; 16]) {
    let magnitudes = values.map(|value| {
        let bits = value.to_bits() & !SIGN;
        let bits = if bits >= EXPONENT { LARGEST } else { bits };
        if bits < SMALLEST { 0 } else { bits }
    });
    let exponent = magnitudes.iter().fold(0, |max, &bits| bits.max(max)) >> 23;
    let (near, far) = power_of_two(126 + M as i32 - exponent as i32);
    let mut codes = [0; 16];
    for ((code, value), bits) in codes.iter_mut().zip(values).zip(magnitudes) {
        // Products with powers of two are exact down to denormals, which are far below half a unit here. Added to
        // 2^23, whose unit is 1, a magnitude is rounded as it should be and stands in the low bits.
        let scaled = f32::from_bits(bits) * near * far;
        let magnitude = ((scaled + 8_388_608.0).to_bits() & 0xff).min((1 << M) - 1);
        let sign = if magnitude == 0 { 0 } else { value.to_bits() >> 31 << M };
        *code = (sign | magnitude) as u8;
    }
    (exponent as u8, codes)
}

/// The values of 16 codes. What would be denormal is zero, and what exceeds f32 (exponent 255 only) infinite.
///
/// The hardware reads a sign without a magnitude as negative infinity, and lets exponents below zero wrap around; as
/// [`encode`] writes neither, they are read as negative zero and as zero here.
#[inline(always)]
pub(super) fn decode<const M: u32>(exponent: u8, codes: &[u8; 16], values: &mut [f32; 16]) {
    let (near, far) = power_of_two(i32::from(exponent) - 126 - M as i32);
    for (value, &code) in values.iter_mut().zip(codes) {
        let magnitude = f32::from(code & ((1 << M) - 1)) * near * far;
        let bits = magnitude.to_bits();
        let bits = if bits < SMALLEST { 0 } else { bits };
        *value = f32::from_bits(bits | u32::from(code >> M) << 31);
    }
}

/// Two factors whose product is `2^power`, which may exceed what one f32 holds.
#[inline(always)]
fn power_of_two(power: i32) -> (f32, f32) {
    let one = |power: i32| f32::from_bits(((power + 127) as u32) << 23);
    (one(power >> 1), one(power - (power >> 1)))
}
