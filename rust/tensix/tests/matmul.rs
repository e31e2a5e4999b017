//! Products as programs: values against double precision, and the same cycles with and without values.

use prunus_core::Never;
use prunus_tensix::numerics::{Fidelity, Format, Matrix, MatrixMut, tilize, untilize};
use prunus_tensix::programs::blocking::Request;
use prunus_tensix::programs::matmul::{Blocking, Handles, Operands, program};
use prunus_tensix::{ChipSpec, Options, Simulator};

/// Values of a matrix that repeat nowhere near, in bfloat16's range of small integers over 16.
fn values(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..rows * columns)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % 33) as f32 / 16.0 - 1.0
        })
        .collect()
}

/// Cycles, and the result with what it should be, where values are kept.
type Outcome = (f64, Option<(Vec<f32>, Vec<f64>)>);

struct Case {
    blocking: Blocking,
    format: Format,
    sharded: bool,
    wide: bool,
}

/// Runs a product on a chip; returns cycles, and the result where values are kept.
fn run(case: &Case, keep: bool) -> Outcome {
    let Case { blocking, format, sharded, wide } = *case;
    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), keep);
    let tile = format.tile_bytes() as u32;
    let (gx, gy) = (u32::from(blocking.grid.0), u32::from(blocking.grid.1));
    let (mt, nt, kt) = (blocking.per_core.0 * gy, blocking.per_core.1 * gx, blocking.k);
    let (m, n, k) = (mt as usize * 32, nt as usize * 32, kt as usize * 32);
    let (a, b) = (values(m, k, 1), values(k, n, 2));
    let in1 = chip.buffer(tile, kt * nt, None).expect("room");
    let (in0, out);
    let bytes = tilize(format, &Matrix::new(&a, m, k).expect("a matrix")).expect("tiles");
    if sharded {
        let shard = kt / gx;
        in0 = chip.tensor(blocking.per_core.0 * shard * tile).expect("room");
        out = chip.tensor(blocking.per_core.0 * blocking.per_core.1 * tile).expect("room");
        for y in 0..gy {
            for x in 0..gx {
                let core = chip.core(x as u16, y as u16);
                for row in 0..blocking.per_core.0 {
                    let from = ((y * blocking.per_core.0 + row) * kt + x * shard) as usize * tile as usize;
                    let line = &bytes[from..from + (shard * tile) as usize];
                    chip.write_l1(core, in0 + row * shard * tile, line).expect("room");
                }
            }
        }
    } else {
        in0 = u32::from(chip.buffer(tile, mt * kt, None).expect("room"));
        out = u32::from(chip.buffer(tile, mt * nt, None).expect("room"));
        if keep {
            chip.write_buffer(in0 as u16, &bytes).expect("its size");
        }
    }
    if keep {
        let bytes = tilize(format, &Matrix::new(&b, k, n).expect("a matrix")).expect("tiles");
        chip.write_buffer(in1, &bytes).expect("its size");
    }
    let operands = Operands { in0_sharded: sharded, out_sharded: sharded, format, packer_l1_acc: true };
    let handles = Handles { in0, in1, out };
    let program = program(&chip, &blocking, &operands, &handles, wide).expect("a program");
    let options = Options { fidelity: Fidelity::HiFi4, wide, ..Options::default() };
    let run = chip.run(program, options, &Never).expect("an end");
    if !keep {
        return (run.cycles(), None);
    }
    let mut result = vec![0.0; m * n];
    if sharded {
        // Each core holds its part subblock by subblock.
        let (h, w) = blocking.out_subblock;
        assert_eq!(h, 1, "rows of tiles follow each other then");
        for y in 0..gy {
            for x in 0..gx {
                let core = chip.core(x as u16, y as u16);
                let size = blocking.per_core.0 * blocking.per_core.1 * tile;
                let bytes = chip.read_l1(core, out, size).expect("written");
                for (i, page) in bytes.chunks(tile as usize).enumerate() {
                    let (i, across) = (i as u32, blocking.per_core.1);
                    let (block, within) = (i / w, i % w);
                    let row = y * blocking.per_core.0 + block / (across / w);
                    let column = x * across + block % (across / w) * w + within;
                    let start = (row as usize * 32) * n + column as usize * 32;
                    let mut to = MatrixMut::with_strides(&mut result[start..], 32, 32, n, 1).expect("a tile");
                    untilize(format, page, &mut to).expect("a tile");
                }
            }
        }
    } else {
        let bytes = chip.read_buffer(out as u16).expect("written").to_vec();
        let mut to = MatrixMut::new(&mut result, m, n).expect("a matrix");
        untilize(format, &bytes, &mut to).expect("tiles");
    }
    let mut want = vec![0.0; m * n];
    for i in 0..m {
        for l in 0..k {
            for j in 0..n {
                want[i * n + j] += f64::from(a[i * k + l]) * f64::from(b[l * n + j]);
            }
        }
    }
    (run.cycles(), Some((result, want)))
}

fn check(case: &Case, bound: f64) {
    let (cycles, found) = run(case, true);
    let (result, want) = found.expect("values");
    let largest = want.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    for (at, (got, want)) in result.iter().zip(&want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= bound * largest, "value {at}: {got} for {want}");
    }
    assert_eq!(run(case, false).0, cycles, "values take no time");
    assert_eq!(run(case, true).0, cycles, "every run is the same");
}

#[test]
fn operands_in_dram() {
    let blocking = Blocking {
        grid: (4, 2),
        k: 12,
        per_core: (4, 4),
        in0_block_w: 3,
        out_block: (4, 2),
        out_subblock: (2, 2),
    };
    check(&Case { blocking, format: Format::Bfloat16, sharded: false, wide: false }, 0.02);
    check(&Case { blocking, format: Format::Float32, sharded: false, wide: true }, 1e-3);
    check(&Case { blocking, format: Format::Bfloat8B, sharded: false, wide: false }, 0.03);
}

#[test]
fn operands_in_l1() {
    let blocking = Blocking {
        grid: (4, 3),
        k: 16,
        per_core: (2, 4),
        in0_block_w: 2,
        out_block: (2, 4),
        out_subblock: (1, 4),
    };
    check(&Case { blocking, format: Format::Bfloat16, sharded: true, wide: false }, 0.02);
    let one = Blocking { in0_block_w: 4, out_subblock: (1, 2), ..blocking };
    check(&Case { blocking: one, format: Format::Bfloat16, sharded: true, wide: false }, 0.02);
}

#[test]
fn one_block_and_one_core() {
    let blocking = Blocking {
        grid: (1, 1),
        k: 2,
        per_core: (2, 2),
        in0_block_w: 2,
        out_block: (2, 2),
        out_subblock: (2, 2),
    };
    check(&Case { blocking, format: Format::Bfloat16, sharded: false, wide: false }, 0.01);
}

#[test]
fn a_long_product_is_not_cut_into_slivers() {
    // 2048 x 8192 x 4096: with the library's widest blocks along K a core has room for few tiles of the output, gets
    // its operands many times over and waits for them.
    let operands =
        Operands { in0_sharded: false, out_sharded: false, format: Format::Bfloat16, packer_l1_acc: true };
    let cycles = |tuned| {
        let spec = ChipSpec::named("n150").expect("shipped");
        let request = Request { tiles: (64, 256, 128), grid: (8, 8), operands, wide: false, tuned };
        let blocking = request.choose(&spec).expect("it fits");
        run(&Case { blocking, format: Format::Bfloat16, sharded: false, wide: false }, false).0
    };
    let (library, tuned) = (cycles(false), cycles(true));
    assert!(tuned < 0.85 * library, "{tuned} cycles, {library} as the library cuts it");
}
