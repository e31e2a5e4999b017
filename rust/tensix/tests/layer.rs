//! Products of layers by multicast against exact sums, and how they are cut.

use proptest::prelude::*;
use prunus_core::Never;
use prunus_tensix::numerics::{Fidelity, Format, Matrix, MatrixMut, tilize, untilize};
use prunus_tensix::programs::cut::Request;
use prunus_tensix::programs::epilogue::{Bias, Epilogue, Source};
use prunus_tensix::programs::layer::{Layer, Spread};
use prunus_tensix::programs::matmul::Blocking;
use prunus_tensix::verbs::Unary;
use prunus_tensix::{ChipSpec, Options, Simulator};

const F32: Format = Format::Float32;
const BF16: Format = Format::Bfloat16;

fn values(rows: usize, columns: usize, seed: usize) -> Vec<f32> {
    (0..rows * columns).map(|at| ((at * 7 + at / 5 + seed * 3) % 5) as f32 - 2.0).collect()
}

/// What a layer's product has beside its operands.
#[derive(Debug, Clone, Copy)]
struct With {
    add: bool,
    row: bool,
    column: bool,
    relu: bool,
    scale: bool,
    mask: bool,
}

/// Runs `relu(a @ b + add + bias) * scale`, masked, of small integers; every value is exact. Returns cycles.
fn run(blocking: &Blocking, spread: Spread, with: With, out: Format, keep: bool) -> f64 {
    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), keep);
    let (gx, gy) = (u32::from(blocking.grid.0), u32::from(blocking.grid.1));
    let (mt, nt, kt) = (gy * blocking.per_core.0, gx * blocking.per_core.1, blocking.k);
    let (m, n, k) = (mt as usize * 32, nt as usize * 32, kt as usize * 32);
    let mut put = |values: &[f32], rows: usize, columns: usize, format: Format| {
        let tiles = tilize(format, &Matrix::new(values, rows, columns).expect("whole")).expect("tiles");
        let count = (rows * columns / 1024) as u32;
        let buffer = chip.buffer(format.tile_bytes() as u32, count, None).expect("room");
        if keep {
            chip.write_buffer(buffer, &tiles).expect("fits");
        }
        buffer
    };
    let (a, b) = (values(m, k, 1), values(k, n, 2));
    let (in0, in1) = (put(&a, m, k, F32), put(&b, k, n, BF16));
    let (add, scale) = (values(m, n, 3), values(m, n, 4));
    let mask: Vec<f32> = values(m, n, 5).iter().map(|value| f32::from(u8::from(*value > 0.0))).collect();
    let bias = values(1, n.max(m), 6);
    let mut first = vec![0.0; m.max(n) * 32];
    let mut epilogue = Epilogue { activation: with.relu.then_some(Unary::Relu), ..Epilogue::default() };
    let source = |buffer, format| Source { buffer, format };
    if with.add {
        epilogue.add = Some(source(put(&add, m, n, F32), F32));
    }
    if with.scale {
        epilogue.scale = Some(source(put(&scale, m, n, F32), F32));
    }
    if with.mask {
        epilogue.mask = Some(source(put(&mask, m, n, BF16), BF16));
    }
    if with.row {
        first[..n].copy_from_slice(&bias[..n]);
        epilogue.bias = Some(Bias::Row(source(put(&first[..n * 32], 32, n, F32), F32)));
    } else if with.column {
        for (at, value) in bias.iter().enumerate().take(m) {
            first[at * 32] = *value;
        }
        epilogue.bias = Some(Bias::Column(source(put(&first[..m * 32], m, 32, F32), F32)));
    }
    let result = chip.buffer(out.tile_bytes() as u32, mt * nt, None).expect("room");
    let layer = Layer {
        blocking: *blocking,
        spread,
        formats: (F32, BF16, out),
        buffers: (in0, in1, result),
        extent: (mt, nt),
        epilogue,
    };
    let program = layer.program(&chip, true).expect("a program");
    let options = Options { fidelity: Fidelity::HiFi4, wide: true, ..Options::default() };
    let cycles = chip.run(program, options, &Never).expect("an end").cycles();
    if keep {
        let bytes = chip.read_buffer(result).expect("all written").to_vec();
        let mut got = vec![0.0_f32; m * n];
        untilize(out, &bytes, &mut MatrixMut::new(&mut got, m, n).expect("c")).expect("tiles");
        for i in 0..m {
            for j in 0..n {
                let mut want: f32 = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
                want += if with.add { add[i * n + j] } else { 0.0 };
                want += match (with.row, with.column) {
                    (true, _) => bias[j],
                    (_, true) => bias[i],
                    _ => 0.0,
                };
                want = if with.relu { want.max(0.0) } else { want };
                want *= if with.scale { scale[i * n + j] } else { 1.0 };
                want *= if with.mask { mask[i * n + j] } else { 1.0 };
                let want = if out == BF16 { half::bf16::from_f32(want).to_f32() } else { want };
                assert_eq!(got[i * n + j], want, "{i}, {j} of {blocking:?} {spread:?} {with:?}");
            }
        }
    }
    cycles
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn values_and_cycles(
        way in prop::sample::select(vec![
            (Spread::Grid, (1, 1)),
            (Spread::Grid, (3, 2)),
            (Spread::Across(2, 2), (4, 1)),
            // Cores of the rectangle without a part.
            (Spread::Across(3, 2), (4, 1)),
            (Spread::Down(2, 2), (1, 3)),
        ]),
        kw in 1_u32..4,
        k_blocks in 1_u32..5,
        blocks in prop::sample::select(vec![((2, 4), (2, 2)), ((2, 4), (1, 4)), ((1, 2), (1, 2)), ((2, 2), (2, 1))]),
        bits in 0_u8..64,
        narrow in any::<bool>(),
    ) {
        let (spread, grid) = way;
        let (out_block, out_subblock) = blocks;
        let blocking = Blocking { grid, k: kw * k_blocks, per_core: (2, 4), in0_block_w: kw, out_block, out_subblock };
        let bit = |at: u8| bits >> at & 1 == 1;
        let with = With { add: bit(0), row: bit(1), column: bit(2), relu: bit(3), scale: bit(4), mask: bit(5) };
        let out = if narrow { BF16 } else { F32 };
        let full = run(&blocking, spread, with, out, true);
        prop_assert_eq!(full, run(&blocking, spread, with, out, false));
    }
}

fn cut(chip: &str, tiles: (u32, u32, u32), epilogue: &Epilogue) -> (Spread, f64, f64) {
    let spec = ChipSpec::named(chip).expect("shipped");
    let request =
        Request { tiles, formats: (BF16, BF16, BF16), wide: true, fidelity: Fidelity::HiFi4, epilogue };
    let found = request.choose(&spec).expect("it fits");
    let lists = request.lists(&spec, f64::from(tiles.0) * f64::from(tiles.2));
    // What it is predicted to take is near what it takes.
    let mut chip = Simulator::new(spec, false);
    let Blocking { grid, per_core, k, .. } = found.blocking;
    let (rows, columns) = (per_core.0 * u32::from(grid.1), per_core.1 * u32::from(grid.0));
    let mut buffer = |pages| chip.buffer(2048, pages, None).expect("room");
    let buffers = (buffer(rows * k), buffer(k * columns), buffer(rows * columns));
    let layer = Layer {
        blocking: found.blocking,
        spread: found.spread,
        formats: (BF16, BF16, BF16),
        buffers,
        extent: (tiles.0, tiles.2),
        epilogue: epilogue.clone(),
    };
    let program = layer.program(&chip, true).expect("a program");
    let options = Options { fidelity: Fidelity::HiFi4, wide: true, ..Options::default() };
    let took = chip.run(program, options, &Never).expect("an end").cycles();
    assert!((0.6..1.5).contains(&(found.cycles / took)), "{tiles:?}: {} for {took}", found.cycles);
    (found.spread, took, lists)
}

#[test]
fn tall_and_flat_products_lie_on_a_line_and_others_on_a_grid() {
    let plain = Epilogue::default();
    for chip in ["n150", "p150"] {
        let across = cut(chip, (1, 128, 128), &plain);
        let down = cut(chip, (128, 128, 1), &plain);
        let square = cut(chip, (64, 64, 64), &plain);
        assert_eq!(square.0, Spread::Grid);
        assert!(matches!(down.0, Spread::Down(..)), "{down:?}");
        if chip == "n150" {
            assert!(matches!(across.0, Spread::Across(..)), "{across:?}");
        }
        assert!(square.1 < square.2, "lists are slower: {square:?}");
    }
    let spec = ChipSpec::named("p150").expect("shipped");
    let (tiles, formats) = ((512, 512, 512), (BF16, BF16, BF16));
    let large = Request { tiles, formats, wide: true, fidelity: Fidelity::HiFi4, epilogue: &plain };
    assert!(large.line(&spec).expect("sizes").is_none());
    // Tiles of one operand of 32 rows are read once: not much more than that takes.
    let (_, took, _) = cut("n150", (1, 128, 128), &plain);
    let rate = 12.0 * 22.1;
    assert!(took < 1.25 * 128.0 * 128.0 * 2048.0 / rate);
}

#[test]
fn what_fits_no_core_is_refused() {
    let spec = ChipSpec::named("n150").expect("shipped");
    let epilogue = Epilogue::default();
    let request = |tiles| Request {
        tiles,
        formats: (F32, F32, F32),
        wide: true,
        fidelity: Fidelity::HiFi4,
        epilogue: &epilogue,
    };
    assert!(request((0, 4, 4)).choose(&spec).is_err_and(|error| error.to_string().contains("at least 1")));
    let mut small = spec.clone();
    small.l1.bytes = 16384;
    let error = request((64, 64, 64)).choose(&small).expect_err("too small");
    assert!(error.to_string().contains("L1 overflow"), "{error}");
}
