//! Tiles: 32 × 32 values, and their bytes in memory.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::format::GROUPS;
use super::{Error, Format, block, round_bf16};

/// Rows and columns of a tile.
pub const TILE: usize = 32;
/// Rows and columns of a face.
pub const FACE: usize = 16;
/// Values of a tile.
pub const TILE_VALUES: usize = TILE * TILE;

/// The values of a tile, row by row.
pub type Tile<T = f32> = [T; TILE_VALUES];

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i32 {}
}

/// What the values of a tile are computed with: `f32` for floating-point formats, `i32` for integer formats.
pub trait Element: Copy + Default + Send + Sync + sealed::Sealed + 'static {
    #[doc(hidden)]
    const NAME: &'static str;
    #[doc(hidden)]
    const FLOAT: bool;
    #[doc(hidden)]
    fn encode(format: Format, tile: &Tile<Self>, bytes: &mut [u8]);
    #[doc(hidden)]
    fn decode(format: Format, bytes: &[u8], tile: &mut Tile<Self>);
}

/// Writes a tile to `bytes`, which has [`Format::tile_bytes`].
///
/// `f32` to bfloat16 and float16: nearest, ties to even, NaNs kept and made quiet. To the block formats: magnitudes to
/// nearest, ties to even, up to the largest magnitude; denormals become zero, zeros lose their sign, and infinities and
/// NaNs, which have no code, become the largest value. `i32` to int8 and uint16: the nearest value that there is; to
/// uint32: the same bits.
pub fn encode_tile<T: Element>(format: Format, tile: &Tile<T>, bytes: &mut [u8]) -> Result<(), Error> {
    check::<T>(format, 1, bytes.len())?;
    T::encode(format, tile, bytes);
    Ok(())
}

/// Reads a tile from `bytes`, which has [`Format::tile_bytes`].
///
/// All is exact, with two exceptions that [`encode_tile`] never writes: values of block formats below the normal f32
/// are zero, and those above the finite ones infinite. uint32 values are read as `i32` of the same bits.
pub fn decode_tile<T: Element>(format: Format, bytes: &[u8], tile: &mut Tile<T>) -> Result<(), Error> {
    check::<T>(format, 1, bytes.len())?;
    T::decode(format, bytes, tile);
    Ok(())
}

/// Whether `T` is for this format, and `got` bytes are as many as the tiles have.
pub(super) fn check<T: Element>(format: Format, tiles: usize, got: usize) -> Result<(), Error> {
    if T::FLOAT != format.is_float() {
        return Err(Error::Values { format, got: T::NAME });
    }
    let expected = tiles.saturating_mul(format.tile_bytes());
    if got != expected {
        return Err(Error::Bytes { format, expected, got });
    }
    Ok(())
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const FLOAT: bool = true;

    fn encode(format: Format, tile: &Tile, bytes: &mut [u8]) {
        match format {
            Format::Float32 => write(tile, bytes, |value| value.to_le_bytes()),
            Format::Bfloat16 => write(tile, bytes, |value| {
                let [_, _, low, high] = round_bf16(value).to_le_bytes();
                [low, high]
            }),
            Format::Float16 => {
                for (group, bytes) in bytes.as_chunks_mut::<{ 2 * FACE }>().0.iter_mut().enumerate() {
                    let mut halves = [f16::ZERO; FACE];
                    halves.convert_from_f32_slice(row(tile, group));
                    bytes.as_chunks_mut().0.iter_mut().zip(halves).for_each(|(to, v)| *to = v.to_le_bytes());
                }
            }
            Format::Bfloat8B => {
                let (exponents, codes) = bytes.split_at_mut(GROUPS);
                let groups = codes.as_chunks_mut::<FACE>().0;
                for (group, (exponent, codes)) in exponents.iter_mut().zip(groups).enumerate() {
                    (*exponent, *codes) = block::encode::<7>(row(tile, group));
                }
            }
            Format::Bfloat4B => {
                let (exponents, codes) = bytes.split_at_mut(GROUPS);
                let groups = codes.as_chunks_mut::<{ FACE / 2 }>().0;
                for (group, (exponent, pairs)) in exponents.iter_mut().zip(groups).enumerate() {
                    let (shared, codes) = block::encode::<3>(row(tile, group));
                    *exponent = shared;
                    *pairs = std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4);
                }
            }
            // `check` has refused them.
            Format::Int8 | Format::Int32 | Format::UInt16 | Format::UInt32 => {}
        }
    }

    fn decode(format: Format, bytes: &[u8], tile: &mut Tile) {
        match format {
            Format::Float32 => read(bytes, tile, f32::from_le_bytes),
            Format::Bfloat16 => read(bytes, tile, |[low, high]| f32::from_le_bytes([0, 0, low, high])),
            Format::Float16 => {
                for (group, bytes) in bytes.as_chunks::<{ 2 * FACE }>().0.iter().enumerate() {
                    let halves: [f16; FACE] =
                        std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
                    halves.convert_to_f32_slice(row_mut(tile, group));
                }
            }
            Format::Bfloat8B => {
                let (exponents, codes) = bytes.split_at(GROUPS);
                let groups = codes.as_chunks::<FACE>().0;
                for (group, (&exponent, codes)) in exponents.iter().zip(groups).enumerate() {
                    block::decode::<7>(exponent, codes, row_mut(tile, group));
                }
            }
            Format::Bfloat4B => {
                let (exponents, codes) = bytes.split_at(GROUPS);
                let groups = codes.as_chunks::<{ FACE / 2 }>().0;
                for (group, (&exponent, pairs)) in exponents.iter().zip(groups).enumerate() {
                    let codes = std::array::from_fn(|i| pairs[i / 2] >> (4 * (i % 2)) & 0xf);
                    block::decode::<3>(exponent, &codes, row_mut(tile, group));
                }
            }
            // `check` has refused them.
            Format::Int8 | Format::Int32 | Format::UInt16 | Format::UInt32 => {}
        }
    }
}

impl Element for i32 {
    const NAME: &'static str = "i32";
    const FLOAT: bool = false;

    fn encode(format: Format, tile: &Tile<i32>, bytes: &mut [u8]) {
        match format {
            Format::Int8 => write(tile, bytes, |value| (value.clamp(-128, 127) as i8).to_le_bytes()),
            Format::UInt16 => write(tile, bytes, |value| (value.clamp(0, 0xffff) as u16).to_le_bytes()),
            Format::Int32 | Format::UInt32 => write(tile, bytes, i32::to_le_bytes),
            // `check` has refused them.
            Format::Float32 | Format::Bfloat16 | Format::Float16 | Format::Bfloat8B | Format::Bfloat4B => {}
        }
    }

    fn decode(format: Format, bytes: &[u8], tile: &mut Tile<i32>) {
        match format {
            Format::Int8 => read(bytes, tile, |byte| i8::from_le_bytes(byte).into()),
            Format::UInt16 => read(bytes, tile, |pair| u16::from_le_bytes(pair).into()),
            Format::Int32 | Format::UInt32 => read(bytes, tile, i32::from_le_bytes),
            // `check` has refused them.
            Format::Float32 | Format::Bfloat16 | Format::Float16 | Format::Bfloat8B | Format::Bfloat4B => {}
        }
    }
}

/// Writes values of `N` bytes each, face by face.
#[inline(always)]
fn write<T, const N: usize>(tile: &Tile<T>, bytes: &mut [u8], to_bytes: impl Fn(T) -> [u8; N])
where
    T: Copy,
{
    for (group, bytes) in bytes.chunks_exact_mut(N * FACE).enumerate() {
        for (to, &value) in bytes.as_chunks_mut().0.iter_mut().zip(row(tile, group)) {
            *to = to_bytes(value);
        }
    }
}

/// Reads values of `N` bytes each, face by face.
#[inline(always)]
fn read<T, const N: usize>(bytes: &[u8], tile: &mut Tile<T>, from_bytes: impl Fn([u8; N]) -> T) {
    for (group, bytes) in bytes.chunks_exact(N * FACE).enumerate() {
        for (value, &from) in row_mut(tile, group).iter_mut().zip(bytes.as_chunks().0) {
            *value = from_bytes(from);
        }
    }
}

/// The `group`th row of a face, in their order in memory.
#[inline(always)]
fn row<T>(tile: &Tile<T>, group: usize) -> &[T; FACE] {
    &tile.as_chunks().0[place(group)]
}

/// As [`row`], to write.
#[inline(always)]
fn row_mut<T>(tile: &mut Tile<T>, group: usize) -> &mut [T; FACE] {
    &mut tile.as_chunks_mut().0[place(group)]
}

/// Which 16 values of a tile, counted row by row, are the `group`th row of a face.
#[inline(always)]
fn place(group: usize) -> usize {
    let (face, row) = (group / FACE, group % FACE);
    (face / 2 * FACE + row) * 2 + face % 2
}
