//! The matrix unit against a model of its own that knows integers only, and its levels against each other.

use proptest::prelude::*;

use super::kernel::{Bfloat16Sum, Float32Sum, Int32Sum, Level, Pair, Rows, Sum};
use super::*;

/// A number `±mantissa · 2^exponent`, exact.
#[derive(Clone, Copy)]
struct Exact {
    negative: bool,
    mantissa: u128,
    exponent: i32,
}

impl Exact {
    fn of(value: f32) -> Self {
        let (bits, negative) = (value.to_bits(), value.is_sign_negative());
        let field = (bits >> 23 & 0xff) as i32;
        assert_ne!(field, 255, "finite numbers only");
        let hidden = u128::from(field != 0) << 23;
        Self { negative, mantissa: hidden | u128::from(bits & 0x7f_ffff), exponent: field.max(1) - 150 }
    }

    fn add(self, other: Self) -> Self {
        if self.mantissa == 0 && other.mantissa == 0 {
            return Self { negative: self.negative && other.negative, ..self };
        }
        let top = |x: Self| {
            if x.mantissa == 0 { i32::MIN } else { x.exponent + 128 - x.mantissa.leading_zeros() as i32 }
        };
        let (large, small) = if top(self) >= top(other) { (self, other) } else { (other, self) };
        let room = large.mantissa.leading_zeros() - 10;
        let (mantissa, exponent) = (large.mantissa << room, large.exponent - room as i32);
        let shift = small.exponent - exponent;
        // What is lost of the smaller number is far below any rounding, but for its being there.
        let aligned = match shift {
            0.. => small.mantissa << if small.mantissa == 0 { 0 } else { shift },
            -127..0 => small.mantissa >> -shift | u128::from(small.mantissa << (128 + shift) != 0),
            _ => u128::from(small.mantissa != 0),
        };
        if large.negative == small.negative {
            return Self { negative: large.negative, mantissa: mantissa + aligned, exponent };
        }
        let rest = mantissa.abs_diff(aligned);
        Self { negative: rest != 0 && large.negative == (mantissa > aligned), mantissa: rest, exponent }
    }

    /// The nearest number of so many bits whose exponent is no lower than `least`; ties to even.
    fn round(self, bits: u32, least: i32) -> Self {
        let width = (128 - self.mantissa.leading_zeros()) as i32;
        let drop = (width - bits as i32).max(least - self.exponent);
        if drop <= 0 || self.mantissa == 0 {
            return self;
        }
        let exponent = self.exponent + drop;
        if drop > 127 {
            return Self { mantissa: 0, exponent, ..self };
        }
        let (kept, lost, half) =
            (self.mantissa >> drop, self.mantissa & ((1 << drop) - 1), 1_u128 << (drop - 1));
        let up = lost > half || lost == half && kept & 1 == 1;
        Self { mantissa: kept + u128::from(up), exponent, ..self }
    }

    /// Nothing below the normal numbers.
    fn flush(self) -> Self {
        let width = 128 - self.mantissa.leading_zeros() as i32;
        if self.mantissa == 0 || self.exponent + width < -125 {
            return Self { negative: false, mantissa: 0, exponent: 0 };
        }
        self
    }

    fn to_f64(self) -> f64 {
        let magnitude = self.mantissa as f64 * 2_f64.powi(self.exponent);
        if self.negative { -magnitude } else { magnitude }
    }
}

/// The bits of an operand that a phase multiplies: of the 11 bits of a tf32, high and low `(drop, count)` from below.
fn part(value: f32, drop: u32, count: u32) -> Exact {
    let exact = Exact::of(value);
    let normal = value.is_normal();
    let tf32 = if normal { exact.mantissa >> 13 } else { 0 };
    let mantissa = (tf32 >> drop & ((1 << count) - 1)) << drop;
    Exact { mantissa, exponent: exact.exponent + 13, ..exact }
}

fn reference(in0: &Tile, in1: &Tile, dst: &mut Tile, fidelity: Fidelity, accumulate: Accumulate) {
    for phase in 0..fidelity.phases() {
        let (of_a, of_b) = ([(6, 5), (1, 5)][phase & 1], [(4, 7), (0, 4)][phase >> 1]);
        for half in 0..2 {
            for (place, dst) in dst.iter_mut().enumerate() {
                let (i, j) = (place / 32, place % 32);
                let mut sum = Exact { negative: false, mantissa: 0, exponent: 0 };
                for k in half * 16..half * 16 + 16 {
                    let a = part(in1[k * 32 + j], of_a.0, of_a.1);
                    let b = part(in0[i * 32 + k], of_b.0, of_b.1);
                    let product = Exact {
                        negative: a.negative != b.negative,
                        mantissa: a.mantissa * b.mantissa,
                        exponent: a.exponent + b.exponent,
                    };
                    sum = sum.add(product).round(24, -149);
                }
                sum = sum.add(Exact::of(*dst)).round(24, -149);
                if accumulate == Accumulate::Bfloat16 {
                    sum = sum.round(8, -133);
                }
                *dst = sum.flush().to_f64() as f32;
            }
        }
    }
}

/// Tiles of finite values whose exponents lie in a window, some zero, some with few bits.
fn tile(exponents: core::ops::Range<u32>) -> impl Strategy<Value = Box<Tile>> {
    let window =
        (exponents, 1_u32..30, prop::sample::select(vec![0x7f_ffff, 0x7f_0000, 0x7c_0000, 0x60_0000]));
    let values = prop::collection::vec(any::<u32>(), TILE_VALUES);
    (window, values).prop_map(|((first, spread, mask), values)| {
        Box::new(core::array::from_fn(|i| {
            let bits = values[i];
            let exponent = if bits & 31 == 0 { 0 } else { (first + (bits >> 5) % spread).min(254) };
            f32::from_bits(bits & 0x8000_0000 | exponent << 23 | bits.rotate_left(9) & mask)
        }))
    })
}

/// Tiles of any bits, most of them numbers of a moderate size.
fn any_tile() -> impl Strategy<Value = Box<Tile>> {
    let value =
        prop_oneof![30 => -100.0_f32..100.0, 1 => any::<u32>().prop_map(f32::from_bits), 1 => Just(-0.0)];
    prop::collection::vec(value, TILE_VALUES).prop_map(|values| Box::new(core::array::from_fn(|i| values[i])))
}

fn choices() -> impl Strategy<Value = (Fidelity, Accumulate)> {
    (prop::sample::select(Fidelity::ALL.to_vec()), prop::sample::select(Accumulate::ALL.to_vec()))
}

fn bits(tile: &Tile) -> Vec<u32> {
    tile.iter().map(|value| value.to_bits()).collect()
}

fn rows(tile: &Tile) -> Rows {
    Rows(core::array::from_fn(|i| core::array::from_fn(|j| tile[i * 32 + j])))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn is_the_integer_model(
        in0 in tile(0..160), in1 in tile(0..120), start in tile(0..200), choices in choices(),
    ) {
        let (fidelity, accumulate) = choices;
        let mut got = *start;
        if accumulate == Accumulate::Bfloat16 {
            got = got.map(round_bf16);
        }
        let mut expected = got;
        matmul_tile(&in0, &in1, &mut got, fidelity, accumulate);
        reference(&in0, &in1, &mut expected, fidelity, accumulate);
        prop_assert_eq!(bits(&got), bits(&expected));
    }

    #[test]
    fn levels_agree(in0 in any_tile(), in1 in any_tile(), start in any_tile()) {
        fn run<S: Sum>(level: Level, phases: &[Pair<'_>], start: &Tile<S::Value>) -> Tile<S::Value> {
            let mut dst = *start;
            level.add_product::<S>(phases, &mut dst);
            dst
        }
        // Products of two tf32 are exact, as those of their parts are.
        let (a, b) = (rows(&in1.map(to_tf32)), rows(&in0.map(to_tf32)));
        let phases = [(&a, &b), (&b, &a)];
        let ints = start.map(|value| value.to_bits() as i32);
        let int8 = rows(&in0.map(|value| if value.is_finite() { value.clamp(-128.0, 127.0).round() } else { 0.0 }));
        for &level in Level::ALL.iter().filter(|level| level.is_available()) {
            let plain = Level::Portable;
            prop_assert_eq!(
                bits(&run::<Float32Sum>(level, &phases, &start)), bits(&run::<Float32Sum>(plain, &phases, &start))
            );
            prop_assert_eq!(
                bits(&run::<Bfloat16Sum>(level, &phases, &start)), bits(&run::<Bfloat16Sum>(plain, &phases, &start))
            );
            let phases = [(&int8, &int8)];
            prop_assert_eq!(run::<Int32Sum>(level, &phases, &ints), run::<Int32Sum>(plain, &phases, &ints));
        }
    }

    #[test]
    fn phases_that_are_left_out_change_nothing(
        in0 in any_tile(), in1 in any_tile(), start in any_tile(), narrow in 0..3, choices in choices(),
    ) {
        // One operand, or both, of 3 bits: their low parts are zero.
        let few = |tile: &Tile| tile.map(|value| f32::from_bits(value.to_bits() & 0xffe0_0000));
        let in0 = if narrow == 1 { *in0 } else { few(&in0) };
        let in1 = if narrow == 0 { *in1 } else { few(&in1) };
        let (a, b) = (SrcA::new(&in1).0, SrcB::new(&in0).0);
        prop_assert!(a.low.is_none() || b.low.is_none());
        let zero = Rows::ZERO;
        let (a_low, b_low) = (a.low.as_deref().unwrap_or(&zero), b.low.as_deref().unwrap_or(&zero));
        let all = [(&*a.high, &*b.high), (a_low, b.finite()), (a.finite(), b_low), (a_low, b_low)];
        let (fidelity, accumulate) = choices;
        let (mut got, mut expected) = (*start, *start);
        matmul_tile(&in0, &in1, &mut got, fidelity, accumulate);
        let all = &all[..fidelity.phases()];
        match accumulate {
            Accumulate::Float32 => Level::Portable.add_product::<Float32Sum>(all, &mut expected),
            Accumulate::Bfloat16 => Level::Portable.add_product::<Bfloat16Sum>(all, &mut expected),
        }
        prop_assert_eq!(bits(&got), bits(&expected));
    }
}

/// Values that look random, from -1 to 1.
fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn noise_tile(seed: u32) -> Tile {
    let values = noise(seed, TILE_VALUES);
    core::array::from_fn(|i| round_bf16(values[i]))
}

#[test]
fn errors_are_within_bounds() {
    // Of bfloat16 operands, relative to the sum of the products' magnitudes: what the phases leave out of each product
    // (of SrcA 7 units of 2^-7, of SrcB one), and the roundings of 8 sums of 16.
    let left_out = |fidelity| match fidelity {
        Fidelity::LoFi => 8.0 / 128.0,
        Fidelity::HiFi2 => 1.0 / 128.0,
        Fidelity::HiFi3 => 7.0 / 128.0 / 128.0,
        Fidelity::HiFi4 => 0.0,
    };
    for fidelity in Fidelity::ALL {
        for accumulate in Accumulate::ALL {
            let rounded = match accumulate {
                Accumulate::Float32 => 1.5e-6,
                Accumulate::Bfloat16 => 8.0 / 256.0,
            };
            for seed in 0..8 {
                let (in0, in1, mut dst) = (noise_tile(seed), noise_tile(seed + 100), [0.0; TILE_VALUES]);
                matmul_tile(&in0, &in1, &mut dst, fidelity, accumulate);
                for (place, &got) in dst.iter().enumerate() {
                    let products = (0..32)
                        .map(|k| f64::from(in0[place / 32 * 32 + k]) * f64::from(in1[k * 32 + place % 32]));
                    let (exact, size) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                    let error = (f64::from(got) - exact).abs() / size;
                    assert!(error <= left_out(fidelity) + rounded, "{fidelity:?} {accumulate:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn a_block_is_its_tiles() {
    let (height, width, depth) = (9_u32, 2, 11);
    let tiles = |seed: u32, len: u32| (0..len).map(|i| noise_tile(seed + i)).collect::<Vec<_>>();
    let (in0, in1) = (tiles(1, height * depth), tiles(1000, depth * width));
    let (b, a): (Vec<_>, Vec<_>) = (in0.iter().map(SrcB::new).collect(), in1.iter().map(SrcA::new).collect());
    let (height, width, depth) = (height as usize, width as usize, depth as usize);
    for accumulate in Accumulate::ALL {
        let mut got = vec![[0.5; TILE_VALUES]; height * width];
        let mut expected = got.clone();
        matmul_block(&b, &a, &mut got, height, width, Fidelity::HiFi3, accumulate).unwrap();
        for (place, dst) in expected.iter_mut().enumerate() {
            for k in 0..depth {
                let (x, y) = (&in0[place / width * depth + k], &in1[k * width + place % width]);
                matmul_tile(x, y, dst, Fidelity::HiFi3, accumulate);
            }
        }
        assert_eq!(got, expected);
    }
    let mut dst = vec![[0.0; TILE_VALUES]; 4];
    let mut refused = |in0, in1, height, width| {
        matmul_block(&b[..in0], &a[..in1], &mut dst, height, width, Fidelity::LoFi, Accumulate::Float32)
            .is_err()
    };
    assert!(!refused(6, 6, 2, 2) && !refused(0, 0, 2, 2));
    assert!(refused(5, 6, 2, 2) && refused(6, 5, 2, 2) && refused(6, 6, 2, 3) && refused(6, 6, 0, 2));
    assert!(refused(6, 6, usize::MAX, 2) && refused(0, 1, 2, 2));
    let message =
        matmul_block(&b[..1], &a[..2], &mut [], 1, 2, Fidelity::LoFi, Accumulate::Float32).unwrap_err();
    assert_eq!(message.to_string(), "blocks of 1 x k, k x 2 and 1 x 2 tiles: got 1, 2 and 0 tiles");
}

#[test]
fn special_values_are_those_of_ieee() {
    let one = |value: f32| {
        let mut tile = [0.0; TILE_VALUES];
        // One more value, so that neither operand is without low parts.
        (tile[0], tile[33], tile[66]) = (value, 1.0, 1.0 + 1.0 / 128.0);
        tile
    };
    for fidelity in Fidelity::ALL {
        for accumulate in Accumulate::ALL {
            let product = |x, y| {
                let mut dst = [0.0; TILE_VALUES];
                matmul_tile(&one(x), &one(y), &mut dst, fidelity, accumulate);
                dst
            };
            assert_eq!(product(f32::INFINITY, 1.5)[0], f32::INFINITY);
            assert_eq!(product(-1.5, f32::INFINITY)[0], f32::NEG_INFINITY);
            assert_eq!(product(f32::NEG_INFINITY, f32::INFINITY)[0], f32::NEG_INFINITY);
            for (x, y) in [(f32::INFINITY, 0.0), (f32::NAN, 1.0), (1.0, -f32::from_bits(0x7f80_0001))] {
                assert_eq!(product(x, y)[0].to_bits(), 0x7fc0_0000);
            }
            assert_eq!(product(3e38, 1.0)[33], 1.0);
            assert_eq!(product(3e38, 3e38)[0], f32::INFINITY);
            // Denormal operands, a denormal result, and negative zero.
            assert_eq!(product(1e-39, 1e30)[0].to_bits(), 0);
            assert_eq!(product(-1e-30, 1e-10)[0].to_bits(), 0);
        }
    }
}

#[test]
fn int8_is_exact_and_saturates() {
    let tile = |seed: usize| core::array::from_fn(|i| ((i * 7919 + seed * 104_729) % 256) as i32 - 128);
    let (in0, in1): (Tile<i32>, Tile<i32>) = (tile(1), tile(2));
    let mut got = [-7; TILE_VALUES];
    matmul_tile_i8(&in0, &in1, &mut got);
    for (place, &got) in got.iter().enumerate() {
        let sum: i32 = (0..32).map(|k| in0[place / 32 * 32 + k] * in1[k * 32 + place % 32]).sum();
        assert_eq!(got, sum - 7);
    }
    // Beyond int8, values are its largest; beyond int32 sums stay where they are.
    for (factor, start, end) in [(1000, i32::MAX - 1, i32::MAX), (-1000, 5 - i32::MAX, -i32::MAX)] {
        let mut dst = [start; TILE_VALUES];
        matmul_tile_i8(&[factor; TILE_VALUES], &[1; TILE_VALUES], &mut dst);
        assert_eq!(dst, [end; TILE_VALUES]);
    }
    let mut dst = [0; TILE_VALUES];
    matmul_tile_i8(&[1000; TILE_VALUES], &[-1000; TILE_VALUES], &mut dst);
    assert_eq!(dst, [-127 * 128 * 32; TILE_VALUES]);
    let source = [SrcInt8::new(&in0), SrcInt8::new(&in1)];
    let mut block = [[-7; TILE_VALUES]];
    matmul_block_i8(&source[..1], &source[1..], &mut block, 1, 1).unwrap();
    assert_eq!(block, [got]);
    assert!(matmul_block_i8(&source, &source, &mut block, 1, 1).is_ok());
    assert!(matmul_block_i8(&source, &source[1..], &mut block, 1, 1).is_err());
}

/// `cargo test --release -p prunus-tensix --lib -- --ignored --nocapture` prints seconds of a product of 1024^3.
#[test]
#[ignore = "a timing, not a check"]
fn seconds() {
    let tiles = |seed: u32| (0..1024).map(move |i| noise_tile(seed + i));
    let b: Vec<_> = tiles(1).map(|tile| SrcB::new(&tile)).collect();
    let a: Vec<_> = tiles(5000).map(|tile| SrcA::new(&tile)).collect();
    let least = |run: &mut dyn FnMut()| {
        let once = |_| {
            let start = std::time::Instant::now();
            run();
            start.elapsed().as_secs_f64()
        };
        (0..7).map(once).fold(f64::INFINITY, f64::min)
    };
    let mut dst = vec![[0.0; TILE_VALUES]; 1024];
    for accumulate in Accumulate::ALL {
        for fidelity in Fidelity::ALL {
            let time = least(&mut || matmul_block(&b, &a, &mut dst, 32, 32, fidelity, accumulate).unwrap());
            println!("{} {} {time:.3} s", accumulate.name(), fidelity.name());
        }
    }
    let int8: Vec<_> = (0..1024).map(|i| SrcInt8::new(&[i % 100; TILE_VALUES])).collect();
    let mut dst = vec![[0; TILE_VALUES]; 1024];
    let time = least(&mut || matmul_block_i8(&int8, &int8, &mut dst, 32, 32).unwrap());
    println!("int8 {time:.3} s");
}
