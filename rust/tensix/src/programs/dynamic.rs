//! Products whose left operand is pruned as the program runs: which tiles are live is found by the cores.
//!
//! `in0` lies in DRAM with all its tiles. What is live is found out and told ([`super::scan`]), each core makes its lists
//! of it ([`super::lists`]), and then dead tiles are neither read nor sent nor multiplied, as in [`super::sparse`], but
//! that rows of tiles stay where they are: rows of cores that have more live tiles hold up the others.

use std::cell::RefCell;
use std::rc::Rc;

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::kernel::kernel;
use crate::numerics::Format;
use crate::program::{CircularBuffer, Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::Area;

use super::blocking;
use super::epilogue::Epilogue;
use super::lists::{Notes, needed, own};
use super::live::{Layout, Plan, compute, in0_and_out, in1};
use super::matmul::Blocking;
pub use super::scan::Decide;
use super::scan::{Deal, LISTS, MAGNITUDES, MASK, MORE_SEMAPHORES, NORMS, TILES, norms};
use super::sparse::as_they_lie;

/// What is to be pruned, and by whom.
#[derive(Debug, Clone, Copy)]
pub struct Pruning<'a> {
    /// Who says what is live.
    pub decide: Decide,
    /// A tile is live unless its largest magnitude is at most this.
    pub tau: f32,
    /// What is live, row of tiles by row of tiles: on a chip without values, and where the operation before knows.
    pub mask: Option<&'a [bool]>,
    /// Rows of tiles of `in0`.
    pub rows: u32,
}

/// What a program has found to be live.
pub struct Found(Rc<RefCell<Vec<bool>>>);

impl Found {
    /// Row of tiles by row of tiles, once the program has run.
    #[must_use]
    pub fn mask(&self) -> Vec<bool> {
        self.0.borrow().clone()
    }
}

/// Cuts a product whose left operand is pruned as it runs: as a sparse one ([`blocking::sparse`]), but that L1 holds
/// masks, lists and what a scan needs too.
///
/// # Errors
/// If the product is empty, or not even single tiles fit.
pub fn cut(
    spec: &ChipSpec,
    tiles: (u32, u32, u32),
    grid: (u16, u16),
    formats: (Format, Format, Format),
    wide: bool,
    epilogue: &Epilogue,
) -> Result<Blocking, Error> {
    let (m, k, _) = tiles;
    let (columns, rows) = (u64::from(grid.0).max(1), u64::from(grid.1).max(1));
    let (per_core, k) = (u64::from(m).div_ceil(rows), u64::from(k));
    let norm = if wide { Format::Float32 } else { Format::Bfloat16 };
    let batch = u64::from(spec.matrix.dst_tiles / if wide { 2 } else { 1 });
    let scan = 2 * batch * (formats.0.tile_bytes() + 2 * norm.tile_bytes()) as u64;
    // Lists, then masks and what is needed, which no output block of a single row exceeds; statistics of a host.
    let share = (per_core * k).div_ceil(columns);
    let lists = 64 + (2 * per_core * k + per_core * k).next_multiple_of(64);
    let masks = columns * (share.div_ceil(8) + 64) + (rows + 1) * (per_core * k.div_ceil(32) * 4 + 64);
    blocking::sparse_beside(spec, tiles, grid, formats, wide, epilogue, scan + lists + masks + 4 * share + 64)
}

/// Bytes of a page and pages of the buffer that statistics go to by [`Decide::Host`].
#[must_use]
pub fn statistics(blocking: &Blocking) -> (u32, u32) {
    let (columns, rows) = blocking.grid;
    let most = (blocking.per_core.0 * blocking.k).div_ceil(u32::from(columns).max(1));
    ((4 * most).next_multiple_of(64), u32::from(columns) * u32::from(rows))
}

fn check(
    simulator: &Simulator,
    blocking: &Blocking,
    pruning: &Pruning<'_>,
    format: Format,
) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::Misused(format!("pruning as a product runs: {what}")));
    let tiles = u64::from(pruning.rows) * u64::from(blocking.k);
    let room = u64::from(blocking.grid.1) * u64::from(blocking.per_core.0);
    if u64::from(pruning.rows) > room {
        return wrong(format!("{} rows of tiles, cores have {room}", pruning.rows));
    }
    if pruning.tau.is_nan() {
        return wrong("the threshold is no number".into());
    }
    if !format.is_float() {
        return Err(Error::Unsupported(format!("pruning as a product runs: tiles of {}", format.name())));
    }
    let found = simulator.keeps_values() && pruning.decide != Decide::Known;
    match pruning.mask {
        Some(_) if found => wrong("the chip keeps values, so it finds the mask by itself".into()),
        None if !found => wrong("a mask is needed: there are no values, or they are not looked at".into()),
        Some(mask) if mask.len() as u64 != tiles => {
            wrong(format!("a mask of {} tiles for {} x {}", mask.len(), pruning.rows, blocking.k))
        }
        _ => Ok(()),
    }
}

/// The program of `in0 @ in1`, where `in0` is dense in its buffer and what is live of it is found as the program runs;
/// and what it will have found.
///
/// # Errors
/// If the blocking does not fit the chip, or the pruning what the chip keeps.
pub fn program(
    simulator: &Simulator,
    blocking: &Blocking,
    pruning: &Pruning<'_>,
    formats: (Format, Format, Format),
    buffers: (u16, u16, u16),
    wide: bool,
    epilogue: Epilogue,
) -> Result<(Program, Found), Error> {
    let spec = simulator.spec();
    blocking.check(spec, wide)?;
    check(simulator, blocking, pruning, formats.0)?;
    let ((columns, rows), k) = (blocking.grid, blocking.k);
    let cores: Vec<_> = (0..rows).flat_map(|y| (0..columns).map(move |x| simulator.core(x, y))).collect();
    let order = as_they_lie(pruning.rows as usize, usize::from(rows) * blocking.per_core.0 as usize);
    let layout = Layout { blocking, formats, buffers, wide, order, epilogue, rank: spec.software.l1_load };
    let (mut program, shared) = layout.program(simulator)?;
    let bytes = 4.0 * f64::from(pruning.rows) * f64::from(k) * (1.0 + 1.0 / 32.0);
    let last = simulator.core(columns - 1, rows - 1);
    let deal = Rc::new(Deal {
        grid: blocking.grid,
        rows: pruning.rows,
        per_core: blocking.per_core.0,
        k,
        high: blocking.out_block.0,
        decide: pruning.decide,
        tau: pruning.tau,
        given: pruning.mask.map(<[bool]>::to_vec),
        timing: !simulator.keeps_values(),
        batch: spec.matrix.dst_tiles / if wide { 2 } else { 1 },
        norm: if wide { Format::Float32 } else { Format::Bfloat16 },
        exchange: (spec.host.round_trip_us * 1e3 + bytes / spec.host.gb_per_s) * spec.clock_ghz,
        load: spec.software.l1_load,
        store: spec.software.l1_store,
        grain: spec.l1.alignment.div_ceil(4),
        others: Area { from: simulator.place(simulator.core(0, 0)), to: simulator.place(last), own: false },
        root: simulator.core(0, 0),
    });
    let lists = spec.l1.reserved.next_multiple_of(64);
    let mut more = vec![
        // Where compute kernels, which have no pointers, know it to be.
        (LISTS, Format::Bfloat16, deal.list_bytes(), 1, Some(lists)),
        (MASK, Format::Bfloat16, deal.bytes(), 1, None),
    ];
    if deal.decide != Decide::Known {
        for (id, format) in [(TILES, formats.0), (MAGNITUDES, deal.norm), (NORMS, deal.norm)] {
            more.push((id, format, format.tile_bytes() as u32, 2 * deal.batch, None));
        }
    }
    let more = more.into_iter().map(|(id, format, page_bytes, pages, address)| {
        let cores = cores.clone();
        CircularBuffer { id, cores, format, page_bytes, pages, address, shares: None }
    });
    program.buffers.splice(0..0, more);
    program.semaphores.extend([0; MORE_SEMAPHORES]);
    let found = Rc::new(RefCell::new(vec![false; (pruning.rows * k) as usize]));
    for plan in Plan::all(simulator, &shared) {
        let mut launch = |role, noc, name: &str, body| {
            program.launches.push(Launch { core: plan.core, role, noc, name: name.into(), kernel: body });
        };
        let notes = Rc::new(Notes::default());
        let swap = u8::from(plan.swap);
        let with = || (plan.clone(), Rc::clone(&deal), Rc::clone(&notes));
        let ((one, two, three), found) = ((with(), with(), with()), Rc::clone(&found));
        launch(
            Role::DataMovement1,
            1 - swap,
            "in0",
            kernel(move |api| async move {
                let (plan, deal, notes) = one;
                let parts = own(&api, &deal, &plan, &notes, &found).await;
                in0_and_out(api, plan, parts).await;
            }),
        );
        launch(
            Role::DataMovement0,
            swap,
            "in1",
            kernel(move |api| async move {
                let (plan, deal, notes) = two;
                let parts = needed(&api, &deal, &plan, &notes).await;
                in1(api, plan, parts).await;
            }),
        );
        launch(
            Role::Compute,
            0,
            "compute",
            kernel(move |api| async move {
                let (plan, deal, notes) = three;
                norms(&api, &deal, &plan).await;
                api.cb_wait_front(LISTS, 1).await;
                // What the kernel does from here on depends on the list: it goes on when it has its first word.
                api.l1_load(lists).await;
                let parts = notes.parts();
                compute(api, plan, parts).await;
            }),
        );
    }
    Ok((program, Found(found)))
}
