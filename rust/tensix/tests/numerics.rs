//! Formats and layouts against a model of their own, which knows float64 and integers only.

use std::num::FpCategory;

use proptest::prelude::*;
use prunus_tensix::numerics::*;

/// The value that bits of a floating-point format of so many exponent and mantissa bits mean; the first code beyond the
/// finite ones counts as the power of two that it would be.
fn value_of(code: u32, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let (field, mantissa) = (code >> mantissa_bits, f64::from(code & ((1 << mantissa_bits) - 1)));
    let bias = (1 << (exponent_bits - 1)) - 1;
    let fraction = mantissa / 2_f64.powi(mantissa_bits as i32);
    match field {
        0 => fraction * 2_f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2_f64.powi(field as i32 - bias),
    }
}

/// The code nearest to `value` by searching all of a 16-bit format; of two, the even one. None for NaN.
fn nearest(value: f32, exponent_bits: u32, mantissa_bits: u32) -> Option<u16> {
    if value.is_nan() {
        return None;
    }
    let of = |code| value_of(code, exponent_bits, mantissa_bits);
    let infinite = ((1_u32 << exponent_bits) - 1) << mantissa_bits;
    let magnitude = f64::from(value.abs());
    let (mut low, mut high) = (0, infinite);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if of(middle) <= magnitude { low = middle } else { high = middle }
    }
    let (below, above) = (magnitude - of(low), of(high) - magnitude);
    let code = if below < above || below == above && low % 2 == 0 { low } else { high };
    Some((code | u32::from(value.is_sign_negative()) << 15) as u16)
}

/// Bytes of 16 values in a block format: the exponent, and the codes.
fn block(values: &[f32], magnitude_bits: i32) -> (u8, Vec<u8>) {
    let clean = |&value: &f32| {
        let sign = if value.is_sign_negative() { -1.0 } else { 1.0 };
        match value.classify() {
            FpCategory::Subnormal | FpCategory::Zero => 0.0,
            FpCategory::Normal => f64::from(value),
            FpCategory::Infinite | FpCategory::Nan => sign * f64::from(f32::MAX),
        }
    };
    let clean: Vec<f64> = values.iter().map(clean).collect();
    let largest = clean.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    let mut exponent = 0;
    while largest > 0.0 && 2_f64.powi(exponent - 127 + 1) <= largest {
        exponent += 1;
    }
    let unit = 2_f64.powi(exponent - 127 - (magnitude_bits - 1));
    let code = |value: &f64| {
        let units = value.abs() / unit;
        let (floor, rest) = (units.floor(), units - units.floor());
        let up = rest > 0.5 || rest == 0.5 && floor % 2.0 == 1.0;
        let magnitude = (floor as u32 + u32::from(up)).min((1 << magnitude_bits) - 1);
        let negative = magnitude != 0 && value.is_sign_negative();
        (magnitude | u32::from(negative) << magnitude_bits) as u8
    };
    (exponent as u8, clean.iter().map(code).collect())
}

/// Row and column in a tile of the value that is `index`th in memory.
fn place(index: usize) -> usize {
    let (face, row, col) = (index / 256, index / 16 % 16, index % 16);
    (face / 2 * 16 + row) * 32 + face % 2 * 16 + col
}

/// Bytes of a tile; None for those of a NaN, which may be any.
fn encoded(format: Format, tile: &Tile) -> Vec<Option<u8>> {
    let values: Vec<f32> = (0..1024).map(|index| tile[place(index)]).collect();
    let wide = |code: Option<u16>| {
        let bytes = code.map(u16::to_le_bytes);
        [bytes.map(|bytes| bytes[0]), bytes.map(|bytes| bytes[1])]
    };
    let groups = |bits| values.chunks(16).map(move |values| block(values, bits));
    let exponents = |bits| groups(bits).map(|(exponent, _)| exponent);
    match format {
        Format::Float32 => values.iter().flat_map(|v| v.to_bits().to_le_bytes().map(Some)).collect(),
        Format::Bfloat16 => values.iter().flat_map(|&v| wide(nearest(v, 8, 7))).collect(),
        Format::Float16 => values.iter().flat_map(|&v| wide(nearest(v, 5, 10))).collect(),
        Format::Bfloat8B => exponents(7).chain(groups(7).flat_map(|(_, codes)| codes)).map(Some).collect(),
        Format::Bfloat4B => {
            let codes: Vec<u8> = groups(3).flat_map(|(_, codes)| codes).collect();
            let pairs = codes.chunks(2).map(|pair| pair[1] * 16 + pair[0]);
            exponents(3).chain(pairs).map(Some).collect()
        }
        _ => unreachable!("integers are tested apart"),
    }
}

/// Values of a tile's bytes.
fn decoded(format: Format, bytes: &[u8]) -> Vec<f64> {
    let half = |index: usize| u32::from(bytes[2 * index]) + 256 * u32::from(bytes[2 * index + 1]);
    let of = |code: u32, exponent_bits, mantissa_bits| {
        let (negative, code) = (code >> 15 == 1, code & 0x7fff);
        let infinite = ((1_u32 << exponent_bits) - 1) << mantissa_bits;
        let magnitude = match code {
            _ if code > infinite => f64::NAN,
            _ if code == infinite => f64::INFINITY,
            _ => value_of(code, exponent_bits, mantissa_bits),
        };
        if negative { -magnitude } else { magnitude }
    };
    let block = |index: usize, code: u8, bits: i32| {
        let magnitude = f64::from(code % (1 << bits));
        let value = magnitude * 2_f64.powi(i32::from(bytes[index / 16]) - 127 - (bits - 1));
        let value = if value < 2_f64.powi(-126) { 0.0 } else { f64::from(value as f32) };
        if code >> bits == 1 { -value } else { value }
    };
    let value = |index: usize| match format {
        Format::Float32 => {
            f64::from(f32::from_bits(u32::from_le_bytes(bytes[4 * index..4 * index + 4].try_into().unwrap())))
        }
        Format::Bfloat16 => of(half(index), 8, 7),
        Format::Float16 => of(half(index), 5, 10),
        Format::Bfloat8B => block(index, bytes[64 + index], 7),
        Format::Bfloat4B => block(index, bytes[64 + index / 2] >> (index % 2 * 4) & 15, 3),
        _ => unreachable!("integers are tested apart"),
    };
    let mut tile = vec![0.0; 1024];
    (0..1024).for_each(|index| tile[place(index)] = value(index));
    tile
}

/// Values of any bits, and rows of similar exponents and few mantissa bits, where ties are frequent.
fn tile() -> impl Strategy<Value = Box<Tile>> {
    let shape =
        (0_u32..256, 1_u32..40, prop::sample::select(vec![0x7f_ffff, 0x7f_8000, 0x7f_0000, 0x78_0000]));
    let shape = prop_oneof![1 => Just(None), 4 => shape.prop_map(Some)];
    (shape, prop::collection::vec(any::<u32>(), 1024)).prop_map(|(shape, bits)| {
        let value = |bits: u32| match shape {
            None => bits,
            Some((first, spread, mask)) => {
                let exponent = (first + (bits >> 23 & 0xff) % spread).min(255);
                bits & (0x8000_0000 | mask) | exponent << 23
            }
        };
        Box::new(std::array::from_fn(|i| f32::from_bits(value(bits[i]))))
    })
}

fn floats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| format.is_float())
}

fn encode<T: Element>(format: Format, tile: &Tile<T>) -> Vec<u8> {
    let mut bytes = vec![0xa5; format.tile_bytes()];
    encode_tile(format, tile, &mut bytes).unwrap();
    bytes
}

fn decode<T: Element>(format: Format, bytes: &[u8]) -> Tile<T> {
    let mut tile = [T::default(); 1024];
    decode_tile(format, bytes, &mut tile).unwrap();
    tile
}

/// Encodes as the model does; encoding what was decoded gives the same bytes.
fn check_encode(format: Format, tile: &Tile) -> Result<(), TestCaseError> {
    let bytes = encode(format, tile);
    for (at, (got, expected)) in bytes.iter().zip(encoded(format, tile)).enumerate() {
        prop_assert_eq!(*got, expected.unwrap_or(*got), "byte {}", at);
    }
    let back = decode::<f32>(format, &bytes);
    if !format.block() {
        prop_assert!(back.iter().zip(tile).all(|(back, value)| back.is_nan() == value.is_nan()));
    }
    prop_assert_eq!(encode(format, &back), bytes);
    Ok(())
}

/// Decodes as the model does, signs of zeros included.
fn check_decode(format: Format, bytes: &[u8]) -> Result<(), TestCaseError> {
    let bytes = &bytes[..format.tile_bytes()];
    for (got, expected) in decode::<f32>(format, bytes).into_iter().zip(decoded(format, bytes)) {
        let same = f64::from(got).to_bits() == expected.to_bits();
        prop_assert!(same || got.is_nan() && expected.is_nan(), "{} instead of {}", got, expected);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn float32(tile in tile()) { check_encode(Format::Float32, &tile)? }
    #[test]
    fn bfloat16(tile in tile()) { check_encode(Format::Bfloat16, &tile)? }
    #[test]
    fn float16(tile in tile()) { check_encode(Format::Float16, &tile)? }
    #[test]
    fn bfloat8_b(tile in tile()) { check_encode(Format::Bfloat8B, &tile)? }
    #[test]
    fn bfloat4_b(tile in tile()) { check_encode(Format::Bfloat4B, &tile)? }

    #[test]
    fn any_bytes_decode(bytes in prop::collection::vec(any::<u8>(), 4096)) {
        for format in floats() {
            check_decode(format, &bytes)?;
        }
    }

    #[test]
    fn integers(values in prop::collection::vec(prop_oneof![any::<i32>(), -300..300, -70_000..70_000], 1024)) {
        let tile: Tile<i32> = values.try_into().unwrap();
        let range = |format| match format {
            Format::Int8 => (-128, 127),
            Format::UInt16 => (0, 65_535),
            _ => (i32::MIN, i32::MAX),
        };
        for format in Format::ALL.into_iter().filter(|format| !format.is_float()) {
            let (bytes, (least, most)) = (encode(format, &tile), range(format));
            let size = format.bits() / 8;
            for (index, bytes) in bytes.chunks(size).enumerate() {
                let expected = i64::from(tile[place(index)]).clamp(least.into(), most.into());
                prop_assert_eq!(bytes, &expected.to_le_bytes()[..size]);
            }
            let back = decode::<i32>(format, &bytes);
            prop_assert_eq!(back, tile.map(|value| value.clamp(least, most)));
        }
    }

    #[test]
    fn roundings_of_values(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        if value.is_nan() {
            prop_assert!(round_bf16(value).is_nan() && to_tf32(value).is_nan() && flush_denormal(value).is_nan());
        } else {
            prop_assert_eq!(round_bf16(value).to_bits(), u32::from(nearest(value, 8, 7).unwrap()) << 16);
            prop_assert_eq!(to_tf32(value).to_bits(), bits / 8192 * 8192);
            let flushed = if value.is_subnormal() || value == 0.0 { 0 } else { bits };
            prop_assert_eq!(flush_denormal(value).to_bits(), flushed);
        }
    }

    #[test]
    fn matrices_become_tiles_and_matrices_again(
        rows in 0_usize..80, cols in 0_usize..80, gap in 0_usize..5, transposed in any::<bool>(),
    ) {
        let (wide, high) = if transposed { (rows + gap, cols) } else { (cols + gap, rows) };
        let (row_stride, col_stride) = if transposed { (1, wide) } else { (wide, 1) };
        let data: Vec<f32> = (0..wide * high).map(|i| i as f32 + 1.0).collect();
        let matrix = Matrix::with_strides(&data, rows, cols, row_stride, col_stride).unwrap();
        let bytes = tilize(Format::Float32, &matrix).unwrap();
        let (down, across) = tile_grid(rows, cols);
        prop_assert_eq!((down, across), (rows.div_ceil(32), cols.div_ceil(32)));
        prop_assert_eq!(bytes.len(), down * across * 4096);
        for (index, value) in bytes.chunks(4).enumerate() {
            let (tile, place) = (index / 1024, place(index % 1024));
            let (i, j) = (tile / across * 32 + place / 32, tile % across * 32 + place % 32);
            let expected = if i < rows && j < cols { data[i * row_stride + j * col_stride] } else { 0.0 };
            prop_assert_eq!(f32::from_le_bytes(value.try_into().unwrap()), expected);
        }
        // What lies between the rows stays as it is.
        let mut back = vec![-1.0; data.len()];
        let mut matrix = MatrixMut::with_strides(&mut back, rows, cols, row_stride, col_stride).unwrap();
        untilize(Format::Float32, &bytes, &mut matrix).unwrap();
        let inside = |at: usize| at % wide < wide - gap;
        let expected: Vec<f32> = (0..data.len()).map(|at| if inside(at) { data[at] } else { -1.0 }).collect();
        prop_assert_eq!(back, expected);
    }
}

#[test]
fn sizes_and_names() {
    let bytes = [4096, 2048, 2048, 1088, 576, 1024, 4096, 2048, 4096];
    for (format, bytes) in Format::ALL.into_iter().zip(bytes) {
        assert_eq!(format.tile_bytes(), bytes, "{}", format.name());
        assert_eq!(Format::from_name(format.name()), Some(format));
    }
    assert_eq!(Format::from_name("bfloat2_b"), None);
    assert!(Fidelity::ALL.into_iter().all(|fidelity| Fidelity::from_name(fidelity.name()) == Some(fidelity)));
    assert!(Accumulate::ALL.into_iter().all(|kind| Accumulate::from_name(kind.name()) == Some(kind)));
    assert_eq!(Fidelity::ALL.map(Fidelity::phases), [1, 2, 3, 4]);
}

/// The first row of a face has these values, all others are zero.
fn row(values: &[f32]) -> Tile {
    std::array::from_fn(|i| if i < 16 { values.get(i).copied().unwrap_or(0.0) } else { 0.0 })
}

#[test]
fn special_values_in_blocks() {
    let codes = |values: &[f32]| {
        let bytes = encode(Format::Bfloat8B, &row(values));
        (bytes[0], bytes[64..64 + values.len()].to_vec())
    };
    assert_eq!(codes(&[0.0, -0.0, 1e-40, -1e-40]), (0, vec![0, 0, 0, 0]));
    assert_eq!(codes(&[1.0, -1.0, 1.984375, 1.0 / 64.0]), (127, vec![64, 64 | 128, 127, 1]));
    // Ties go to even magnitudes; what rounds beyond the largest stays there, and what rounds to zero has no sign.
    assert_eq!(
        codes(&[1.0 + 1.0 / 128.0, 1.0 + 3.0 / 128.0, 1.999, -1.0 / 128.0]),
        (127, vec![64, 66, 127, 0])
    );
    // Infinities and NaNs are the largest values, and take the others' bits away.
    assert_eq!(codes(&[f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, 1.0]), (254, vec![127, 255, 255, 0]));
    let largest = decode::<f32>(Format::Bfloat8B, &encode(Format::Bfloat8B, &row(&[f32::INFINITY])))[0];
    assert_eq!(largest, 127.0 * 2_f32.powi(121));
    // The smallest normal number survives; next to a larger one it does not.
    assert_eq!(codes(&[f32::MIN_POSITIVE]), (1, vec![64]));
    let bytes = encode(Format::Bfloat4B, &row(&[1.0, -0.5, 3.0, -3.5]));
    assert_eq!((bytes[0], &bytes[64..66]), (128, &[0x92, 0xf6][..]));
}

#[test]
fn canonical_codes_survive() {
    // All 16-bit codes but those of NaNs that are not quiet.
    for (format, infinite, quiet) in [(Format::Bfloat16, 0x7f80, 0x40), (Format::Float16, 0x7c00, 0x200)] {
        let codes: Vec<u16> = (0..=u16::MAX).filter(|x| x & 0x7fff <= infinite || x & quiet != 0).collect();
        for codes in codes.chunks(1024) {
            let mut bytes: Vec<u8> = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
            bytes.resize(2048, 0);
            assert_eq!(encode(format, &decode::<f32>(format, &bytes)), bytes);
        }
    }
    // All block codes, in groups whose largest magnitude has its highest bit: no code is a sign alone.
    for (format, bits) in [(Format::Bfloat8B, 7), (Format::Bfloat4B, 3)] {
        for exponent in bits..=254 {
            let (mut bytes, top) = (vec![exponent; 64], 1_u16 << (bits - 1));
            let codes: Vec<u8> = (0..1024_u16)
                .map(|i| if i % 16 == 0 { top } else { i / 16 * 15 + i % 16 } % (2 << bits))
                .map(|code| if code == 1 << bits { 0 } else { code as u8 })
                .collect();
            match format {
                Format::Bfloat8B => bytes.extend(codes),
                _ => bytes.extend(codes.chunks(2).map(|pair| pair[1] * 16 + pair[0])),
            }
            assert_eq!(encode(format, &decode::<f32>(format, &bytes)), bytes);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut bytes, mut tile) = (vec![0; 2048], [0.0; 1024]);
    assert_eq!(encode_tile(Format::Bfloat16, &tile, &mut bytes), Ok(()));
    let error = encode_tile(Format::Bfloat8B, &tile, &mut bytes).unwrap_err();
    assert_eq!(error.to_string(), "bfloat8_b: expected 1088 bytes, got 2048");
    let error = decode_tile(Format::UInt16, &bytes, &mut tile).unwrap_err();
    assert_eq!(error.to_string(), "uint16: expected i32 values, got f32");
    assert!(decode_tile(Format::Float16, &bytes, &mut [0; 1024]).is_err());
    let data = [0.0; 100];
    assert!(Matrix::new(&data, 10, 10).is_ok() && Matrix::new(&data, 11, 10).is_err());
    assert!(Matrix::new(&data, usize::MAX, usize::MAX).is_err() && Matrix::new(&data, 0, usize::MAX).is_ok());
    assert!(
        Matrix::with_strides(&data, 10, 5, 10, 2).is_ok()
            && Matrix::with_strides(&data, 10, 6, 10, 2).is_err()
    );
    let huge = Matrix::with_strides(&data, usize::MAX, 100, 0, 1).unwrap();
    assert!(matches!(tilize(Format::Float32, &huge), Err(Error::TooLarge { .. })));
    let mut data = [0.0; 100];
    let mut matrix = MatrixMut::new(&mut data, 10, 10).unwrap();
    assert!(untilize(Format::Bfloat16, &bytes[..2046], &mut matrix).is_err());
    assert!(untilize(Format::Bfloat16, &bytes, &mut matrix).is_ok());
}
