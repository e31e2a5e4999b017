//! Tiles reduced by the matrix unit, and compute kernels that load words.

use prunus_core::Never;
use prunus_tensix::kernel::kernel;
use prunus_tensix::numerics::{Fidelity, Format, Matrix, MatrixMut, tilize, untilize};
use prunus_tensix::program::{CircularBuffer, Launch, Program, Role};
use prunus_tensix::verbs::{Along, Binary, Place};
use prunus_tensix::{ChipSpec, Error, Options, Simulator};

fn launch(program: &mut Program, core: u16, role: Role, body: Box<dyn prunus_tensix::kernel::Kernel>) {
    program.launches.push(Launch { core, role, noc: 0, name: format!("{role:?}"), kernel: body });
}

fn buffer(program: &mut Program, id: u8, format: Format, address: Option<u32>) {
    let page_bytes = format.tile_bytes() as u32;
    let cores = vec![0];
    program.buffers.push(CircularBuffer { id, cores, format, page_bytes, pages: 1, address, shares: None });
}

/// Reduces a tile; returns the result, and the cycles that the matrix unit worked.
fn reduce(values: &[f32], op: Binary, along: Along, fidelity: Fidelity) -> (Vec<f32>, f64) {
    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), true);
    let format = Format::Float32;
    let (from, to) = (chip.buffer(4096, 1, None).expect("room"), chip.buffer(4096, 1, None).expect("room"));
    let bytes = tilize(format, &Matrix::new(values, 32, 32).expect("a tile")).expect("a tile");
    chip.write_buffer(from, &bytes).expect("a tile");
    let mut program = Program::default();
    for id in [0, 16] {
        buffer(&mut program, id, format, None);
    }
    let reader = kernel(move |api| async move {
        api.cb_reserve_back(0, 1).await;
        let at = api.get_write_ptr(0).await;
        api.noc_async_read(Place::Dram { buffer: from, page: 0, offset: 0 }, at, 4096).await;
        api.noc_async_read_barrier().await;
        api.cb_push_back(0, 1).await;
    });
    let compute = kernel(move |api| async move {
        api.cb_wait_front(0, 1).await;
        api.tile_regs_acquire().await;
        api.reduce_tile(op, along, 0, 0, 0).await;
        api.tile_regs_commit().await;
        api.cb_reserve_back(16, 1).await;
        api.tile_regs_wait().await;
        api.pack_tiles(0, 16, 0, 1).await;
        api.tile_regs_release().await;
        api.cb_push_back(16, 1).await;
    });
    let writer = kernel(move |api| async move {
        api.cb_wait_front(16, 1).await;
        let at = api.get_read_ptr(16).await;
        api.noc_async_write(at, Place::Dram { buffer: to, page: 0, offset: 0 }, 4096).await;
        api.noc_async_write_barrier().await;
    });
    launch(&mut program, 0, Role::DataMovement1, reader);
    launch(&mut program, 0, Role::Compute, compute);
    launch(&mut program, 0, Role::DataMovement0, writer);
    let run =
        chip.run(program, Options { fidelity, wide: true, ..Options::default() }, &Never).expect("an end");
    let mut got = vec![0.0; 1024];
    let bytes = chip.read_buffer(to).expect("written").to_vec();
    untilize(format, &bytes, &mut MatrixMut::new(&mut got, 32, 32).expect("a tile")).expect("a tile");
    (got, run.cores[0].math_busy as f64 / prunus_tensix::time::TICKS as f64)
}

#[test]
fn rows_columns_and_all() {
    let values: Vec<f32> = (0..1024).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
    for op in [Binary::Max, Binary::Add] {
        let of = |values: &mut dyn Iterator<Item = f32>| match op {
            Binary::Max => values.fold(f32::NEG_INFINITY, f32::max),
            _ => values.sum(),
        };
        for along in [Along::Row, Along::Column, Along::Both] {
            let mut want = vec![0.0; 1024];
            match along {
                Along::Row => {
                    (0..32).for_each(|i| want[32 * i] = of(&mut values[32 * i..][..32].iter().copied()))
                }
                Along::Column => {
                    (0..32).for_each(|j| want[j] = of(&mut values.iter().copied().skip(j).step_by(32)));
                }
                Along::Both => want[0] = of(&mut values.iter().copied()),
            }
            assert_eq!(reduce(&values, op, along, Fidelity::HiFi4).0, want, "{op:?} {along:?}");
        }
    }
}

#[test]
fn sums_take_the_fidelitys_phases_and_maxima_do_not() {
    let values = vec![1.0; 1024];
    let cycles = |op, fidelity| reduce(&values, op, Along::Both, fidelity).1;
    // Five pools, eleven moves, and three waits of five cycles.
    assert!((cycles(Binary::Max, Fidelity::LoFi) - 31.0).abs() < 0.1);
    assert_eq!(cycles(Binary::Max, Fidelity::HiFi4), cycles(Binary::Max, Fidelity::LoFi));
    assert_eq!(cycles(Binary::Add, Fidelity::HiFi4), cycles(Binary::Add, Fidelity::LoFi) + 15.0);
}

/// A data-movement kernel leaves a word, and a compute kernel packs as many tiles as that says.
fn counted(word: u32, values: bool) -> Result<(), Error> {
    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), values);
    let mut program = Program::default();
    buffer(&mut program, 0, Format::Bfloat16, Some(4096));
    buffer(&mut program, 16, Format::Bfloat16, None);
    let writer = kernel(move |api| async move {
        api.cycles(1000.0).await;
        api.l1_store(4096, word).await;
        api.cb_push_back(0, 1).await;
        for _ in 0..word {
            api.cb_wait_front(16, 1).await;
            api.cb_pop_front(16, 1).await;
        }
    });
    let compute = kernel(move |api| async move {
        api.cb_wait_front(0, 1).await;
        for _ in 0..api.l1_load(4096).await {
            api.tile_regs_acquire().await;
            api.tile_regs_commit().await;
            api.cb_reserve_back(16, 1).await;
            api.tile_regs_wait().await;
            api.pack_tiles(0, 16, 0, 1).await;
            api.tile_regs_release().await;
            api.cb_push_back(16, 1).await;
        }
    });
    launch(&mut program, 0, Role::DataMovement0, writer);
    launch(&mut program, 0, Role::Compute, compute);
    chip.run(program, Options::default(), &Never).map(drop)
}

#[test]
fn a_compute_kernel_acts_on_a_word_that_another_thread_writes_later() {
    for word in [0, 1, 5] {
        counted(word, true).expect("as many tiles as are waited for");
    }
    // Without values a load returns 0, so nothing is packed.
    assert!(matches!(counted(2, false), Err(Error::Deadlock(_))));
}

#[test]
fn a_compute_kernel_may_not_load_what_was_never_written() {
    for (address, what) in
        [(8192, "nothing was written"), (4097, "no multiple of 4"), (1 << 28, "of L1, which has")]
    {
        let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), true);
        let mut program = Program::default();
        let body = kernel(move |api| async move {
            api.l1_load(address).await;
        });
        launch(&mut program, 0, Role::Compute, body);
        let error = chip.run(program, Options::default(), &Never).expect_err("refused");
        assert!(error.to_string().contains(what), "{error}");
    }
}
