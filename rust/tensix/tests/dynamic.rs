//! Products whose left operand is pruned as the program runs, against double precision.

use proptest::prelude::*;
use prunus_core::Never;
use prunus_tensix::numerics::{Fidelity, Format, Matrix, MatrixMut, tilize, untilize};
use prunus_tensix::programs::dynamic::{Decide, Pruning, cut, program, statistics};
use prunus_tensix::programs::epilogue::Epilogue;
use prunus_tensix::programs::matmul::Blocking;
use prunus_tensix::programs::sparse::{self, TilePattern};
use prunus_tensix::report::Run;
use prunus_tensix::{ChipSpec, Error, Options, Simulator};

/// Tiles of small integers, those that are dead as `dead` says: every sum is exact.
struct Case {
    chip: &'static str,
    blocking: Blocking,
    rows: u32,
    wide: bool,
    tau: f32,
}

fn plain(rows: u32) -> Case {
    let blocking = Blocking {
        grid: (2, 2),
        k: 8,
        per_core: (2, 2),
        in0_block_w: 2,
        out_block: (2, 2),
        out_subblock: (1, 2),
    };
    Case { chip: "n150", blocking, rows, wide: true, tau: 0.0 }
}

fn value(i: usize, seed: usize) -> f32 {
    ((i * 7 + i / 5 + seed * 3) % 3) as f32 - 1.0
}

impl Case {
    fn options(&self) -> Options {
        Options { fidelity: Fidelity::HiFi4, wide: self.wide, ..Options::default() }
    }

    fn columns(&self) -> u32 {
        u32::from(self.blocking.grid.0) * self.blocking.per_core.1
    }

    fn left(&self, live: &[bool], dead: f32) -> Vec<f32> {
        let (m, k) = (self.rows as usize * 32, self.blocking.k as usize * 32);
        let is_live = |at: usize| live[at / k / 32 * (k / 32) + at % k / 32];
        (0..m * k).map(|at| if is_live(at) { value(at, 1) } else { dead * value(at, 3) }).collect()
    }

    fn buffers(&self, chip: &mut Simulator) -> (u16, u16, u16) {
        let k = self.blocking.k;
        (
            chip.buffer(2048, self.rows * k, None).expect("room"),
            chip.buffer(2048, k * self.columns(), None).expect("room"),
            chip.buffer(4096, self.rows * self.columns(), None).expect("room"),
        )
    }

    fn decide(&self, chip: &mut Simulator, by: &str) -> Decide {
        let (bytes, pages) = statistics(&self.blocking);
        match by {
            "host" => Decide::Host { statistics: chip.buffer(bytes, pages, None).expect("room") },
            "known" => Decide::Known,
            _ => Decide::Scan,
        }
    }

    /// Runs on values; returns what is found to be live and the product too.
    fn run(&self, a: &[f32], by: &str, known: Option<&[bool]>) -> (Run, Vec<bool>, Vec<f32>) {
        let mut chip = Simulator::new(ChipSpec::named(self.chip).expect("shipped"), true);
        let format = Format::Bfloat16;
        let (m, k, n) =
            (self.rows as usize * 32, self.blocking.k as usize * 32, self.columns() as usize * 32);
        let b: Vec<f32> = (0..k * n).map(|at| value(at, 2)).collect();
        let buffers = self.buffers(&mut chip);
        chip.write_buffer(buffers.0, &tilize(format, &Matrix::new(a, m, k).expect("a")).expect("a"))
            .expect("a");
        chip.write_buffer(buffers.1, &tilize(format, &Matrix::new(&b, k, n).expect("b")).expect("b"))
            .expect("b");
        let decide = self.decide(&mut chip, by);
        let pruning = Pruning { decide, tau: self.tau, mask: known, rows: self.rows };
        let formats = (format, format, Format::Float32);
        let (program, found) =
            program(&chip, &self.blocking, &pruning, formats, buffers, self.wide, Epilogue::default())
                .expect("a program");
        let run = chip.run(program, self.options(), &Never).expect("an end");
        let mut got = vec![0.0_f32; m * n];
        let bytes = chip.read_buffer(buffers.2).expect("all written").to_vec();
        untilize(Format::Float32, &bytes, &mut MatrixMut::new(&mut got, m, n).expect("c")).expect("tiles");
        (run, found.mask(), got)
    }

    /// Runs without values.
    fn time(&self, live: &[bool], by: &str) -> Run {
        let mut chip = Simulator::new(ChipSpec::named(self.chip).expect("shipped"), false);
        let buffers = self.buffers(&mut chip);
        let decide = self.decide(&mut chip, by);
        let pruning = Pruning { decide, tau: self.tau, mask: Some(live), rows: self.rows };
        let formats = (Format::Bfloat16, Format::Bfloat16, Format::Float32);
        let (program, found) =
            program(&chip, &self.blocking, &pruning, formats, buffers, self.wide, Epilogue::default())
                .expect("a program");
        let run = chip.run(program, self.options(), &Never).expect("an end");
        assert_eq!(found.mask(), live);
        run
    }

    /// The product of live tiles, exact.
    fn check(&self, a: &[f32], live: &[bool], got: &[f32]) {
        let (m, k, n) =
            (self.rows as usize * 32, self.blocking.k as usize * 32, self.columns() as usize * 32);
        for i in 0..m {
            for j in 0..n {
                let parts = (0..k).filter(|l| live[i / 32 * (k / 32) + l / 32]);
                let want: f64 = parts.map(|l| f64::from(a[i * k + l]) * f64::from(value(l * n + j, 2))).sum();
                // Sums in 16 bits are rounded whenever they are stored.
                let bound = if self.wide { 0.0 } else { 2.0 + want.abs() / 64.0 };
                let is = f64::from(got[i * n + j]);
                assert!((is - want).abs() <= bound, "{is} for {want} at {i}, {j}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn what_is_live_is_found_and_multiplied(
        grid in prop::sample::select(vec![(1, 1), (2, 2), (3, 2), (1, 3), (4, 1)]),
        kw in 1_u32..4,
        k_blocks in 1_u32..5,
        high in prop::sample::select(vec![1_u32, 2]),
        missing in 0_u32..2,
        bits in proptest::collection::vec(0_u8..100, 12 * 18),
        density in prop::sample::select(vec![0_u8, 5, 30, 70, 100]),
        wide in any::<bool>(),
        chip in prop::sample::select(vec!["n150", "p150"]),
        by in prop::sample::select(vec!["scan", "host", "known"]),
    ) {
        let blocking = Blocking {
            grid,
            k: kw * k_blocks,
            per_core: (2, 4),
            in0_block_w: kw,
            out_block: (high, 4),
            out_subblock: (1, 2),
        };
        let rows = 2 * u32::from(grid.1) - missing;
        let case = Case { chip, blocking, rows, wide, tau: 0.0 };
        let live: Vec<bool> =
            bits.iter().take((rows * blocking.k) as usize).map(|bit| *bit < density).collect();
        let a = case.left(&live, 0.0);
        let (run, found, got) = case.run(&a, by, (by == "known").then_some(&live[..]));
        prop_assert_eq!(&found, &live);
        case.check(&a, &live, &got);
        // Without values, but with the mask, it takes the same time and moves the same bytes.
        prop_assert_eq!(case.time(&live, by), run);
    }
}

#[test]
fn a_tile_is_live_unless_its_norm_is_at_most_the_threshold() {
    let case = Case { tau: 0.5, ..plain(4) };
    let mut live = vec![true; 32];
    for dead in [0, 5, 9, 31] {
        live[dead] = false;
    }
    // Magnitudes of 0.5 are not above it, and those of -0.5 are not either.
    let a = case.left(&live, 0.5);
    let (_, found, got) = case.run(&a, "scan", None);
    assert_eq!(found, live);
    case.check(&a, &live, &got);
    // One value decides, and its sign does not.
    let mut a = case.left(&[false; 32], 0.5);
    a[8 * 32 * 40 + 3 * 32 + 7] = -0.75;
    let (_, found, _) = case.run(&a, "scan", None);
    let mut one = [false; 32];
    one[8 + 3] = true;
    assert_eq!(found, one);
}

#[test]
fn nan_and_infinity_are_live() {
    for (odd, tau) in
        [(f32::NAN, 0.0), (-f32::NAN, 1e30), (f32::INFINITY, f32::MAX), (f32::NAN, f32::INFINITY)]
    {
        let case = Case { tau, ..plain(4) };
        let mut a = case.left(&[false; 32], 0.0);
        a[8 * 32 * 32] = odd;
        let (_, found, got) = case.run(&a, "scan", None);
        let mut one = [false; 32];
        one[8] = true;
        assert_eq!(found, one, "{odd} beside {tau}");
        assert!(!got[case.columns() as usize * 32 * 32].is_finite());
    }
}

#[test]
fn the_smallest_values_are_live_beside_a_threshold_of_zero() {
    let case = plain(4);
    let mut a = case.left(&[false; 32], 0.0);
    a[0] = f32::MIN_POSITIVE;
    // A denormal is above zero, though products take it for that; what bfloat16 rounds to zero is zero.
    (a[32], a[64]) = (f32::MIN_POSITIVE / 64.0, f32::MIN_POSITIVE / 256.0);
    let (_, found, _) = case.run(&a, "scan", None);
    let live: Vec<_> = (0..found.len()).filter(|tile| found[*tile]).collect();
    assert_eq!(live, [0, 1]);
}

#[test]
fn what_is_dead_is_read_once_and_not_again() {
    let case = plain(4);
    let bytes = |live: &[bool], by: &str| -> u64 {
        let written = 4 * 4 * 4096;
        case.time(live, by).channels.iter().map(|(_, bytes, _)| bytes).sum::<u64>() - written
    };
    let scan = 32 * 2048;
    assert_eq!(bytes(&[true; 32], "known"), (32 + 8 * 4) * 2048);
    assert_eq!(bytes(&[true; 32], "scan"), scan + (32 + 8 * 4) * 2048);
    let mut one = [false; 32];
    one[3] = true;
    // One tile of in0 asks for one row of tiles of in1.
    assert_eq!(bytes(&one, "scan"), scan + (1 + 4) * 2048);
    assert_eq!(bytes(&[false; 32], "scan"), scan);
    assert_eq!(bytes(&[false; 32], "known"), 0);
    // A word of statistics for each tile goes to the host.
    assert_eq!(bytes(&[false; 32], "host"), scan + 32 * 4);
}

#[test]
fn finding_out_takes_time_and_asking_the_host_takes_more() {
    let case = plain(4);
    let live: Vec<bool> = (0..32).map(|tile| tile % 3 == 0).collect();
    let [known, scan, host] = ["known", "scan", "host"].map(|by| case.time(&live, by).cycles());
    assert!(known < scan && scan < host, "{known} {scan} {host}");
    let spec = ChipSpec::named("n150").expect("shipped");
    assert!(host - scan > spec.host.round_trip_us * 1e3 * spec.clock_ghz);
    assert_eq!(case.time(&live, "scan"), case.time(&live, "scan"));
}

#[test]
fn lists_of_what_is_live_are_paid_for() {
    // One core: nobody to tell, so that what a known mask costs more than a known pattern are its lists.
    let blocking = Blocking {
        grid: (1, 1),
        k: 64,
        per_core: (4, 1),
        out_block: (4, 1),
        out_subblock: (1, 1),
        ..plain(4).blocking
    };
    let case = Case { blocking, ..plain(4) };
    let tiles = 4 * 64;
    let masked = case.time(&vec![true; tiles], "known").cycles();
    let mut chip = Simulator::new(ChipSpec::named(case.chip).expect("shipped"), false);
    let buffers = case.buffers(&mut chip);
    let pattern = TilePattern {
        columns: (0..tiles as u32).map(|tile| tile % 64).collect(),
        starts: (0..5).map(|row| row * 64).collect(),
    };
    let formats = (Format::Bfloat16, Format::Bfloat16, Format::Float32);
    let plain = Epilogue::default();
    let listed = sparse::program(&chip, &blocking, &pattern, formats, buffers, case.wide, plain, false);
    let listed = listed.expect("a program");
    let listed = chip.run(listed, case.options(), &Never).expect("an end").cycles();
    // Two walks over the bits, of 12 cycles each; two changes of a counter, of 4; and an entry is stored, in 5.
    let least = (2.0 * 12.0 + 2.0 * 4.0 + 5.0) * tiles as f64;
    assert!(masked - listed >= least, "{masked} cycles, {listed} with lists, which take {least}");
    assert!(masked - listed < 1.2 * least, "{masked} cycles, {listed} with lists, which take {least}");
}

#[test]
fn a_row_of_cores_with_all_the_work_holds_up_the_others() {
    let case = plain(4);
    let (mut even, mut one_row) = ([false; 32], [false; 32]);
    for tile in 0..16 {
        one_row[tile] = true;
        even[2 * tile] = true;
    }
    let [even, one_row] = [even, one_row].map(|live| case.time(&live, "known").cycles());
    assert!(one_row > even, "{one_row} {even}");
}

#[test]
fn what_does_not_fit_is_said() {
    let case = plain(4);
    let refused = |values: bool, pruning: Pruning<'_>, format: Format| -> Error {
        let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), values);
        let buffers = case.buffers(&mut chip);
        let made = program(
            &chip,
            &case.blocking,
            &pruning,
            (format, format, format),
            buffers,
            false,
            Epilogue::default(),
        );
        made.err().expect("refused")
    };
    let mask = [true; 32];
    let pruning = Pruning { decide: Decide::Scan, tau: 0.0, mask: Some(&mask), rows: 4 };
    let bf16 = Format::Bfloat16;
    let said = |error: Error, what: &str| assert!(error.to_string().contains(what), "{error}");
    said(refused(true, pruning, bf16), "finds the mask by itself");
    said(refused(false, Pruning { mask: None, ..pruning }, bf16), "a mask is needed");
    said(refused(true, Pruning { mask: None, decide: Decide::Known, ..pruning }, bf16), "a mask is needed");
    said(refused(false, Pruning { mask: Some(&mask[1..]), ..pruning }, bf16), "31 tiles for 4 x 8");
    said(refused(false, Pruning { tau: f32::NAN, ..pruning }, bf16), "no number");
    said(refused(false, Pruning { rows: 5, ..pruning }, bf16), "5 rows of tiles");
    said(refused(false, pruning, Format::Int8), "tiles of int8");
}

#[test]
fn what_is_cut_fits() {
    let spec = ChipSpec::named("n150").expect("shipped");
    let formats = (Format::Bfloat16, Format::Bfloat16, Format::Bfloat16);
    for (tiles, grid, wide) in
        [((128, 128, 128), (8, 8), false), ((9, 30, 17), (6, 3), true), ((1, 1, 1), (1, 1), false)]
    {
        let blocking = cut(&spec, tiles, grid, formats, wide, &Epilogue::default()).expect("fits");
        let mut chip = Simulator::new(spec.clone(), false);
        let n = u32::from(grid.0) * blocking.per_core.1;
        let buffers = (
            chip.buffer(2048, tiles.0 * tiles.1, None).expect("room"),
            chip.buffer(2048, tiles.1 * n, None).expect("room"),
            chip.buffer(2048, tiles.0 * n, None).expect("room"),
        );
        let mask: Vec<bool> = (0..tiles.0 * tiles.1).map(|tile| tile % 7 == 0).collect();
        let (bytes, pages) = statistics(&blocking);
        let statistics = chip.buffer(bytes, pages, None).expect("room");
        let pruning =
            Pruning { decide: Decide::Host { statistics }, tau: 0.0, mask: Some(&mask), rows: tiles.0 };
        let (program, _) = program(&chip, &blocking, &pruning, formats, buffers, wide, Epilogue::default())
            .expect("a program");
        let options = Options { wide, ..Options::default() };
        chip.run(program, options, &Never).expect("fits L1");
    }
}
