//! Products of chosen tiles: each core computes groups of output tiles, each from a list of pairs of operands.
//!
//! Any product of blocks is one of these: sparse or dense on either side, or at chosen places of the result. Cores share
//! nothing, so every operand is read from DRAM by each core that needs it.

use std::rc::Rc;

use crate::error::Error;
use crate::kernel::{Api, kernel};
use crate::numerics::Format;
use crate::program::{CircularBuffer, Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::{Place, Unary, Verb};

/// Some neighbouring output tiles and what they are sums of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Pages of the output, row by row: as many rows as columns divide them.
    pub out: Vec<u32>,
    /// For each step the pages of `in0` (one for each row) and those of `in1` (one for each column).
    pub steps: Vec<u32>,
}

/// What all groups have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Rows and columns of tiles of a group.
    pub group: (u32, u32),
    /// Formats of operands and of the output.
    pub formats: (Format, Format, Format),
    /// Buffers in DRAM of operands and of the output.
    pub buffers: (u16, u16, u16),
    /// What is done to sums before they are packed.
    pub activation: Option<Unary>,
}

const IN0: u8 = 0;
const IN1: u8 = 1;
const OUT: u8 = 16;
/// Steps that are read at once.
const CHUNK: u32 = 4;
/// Chunks that circular buffers hold.
const DEPTH: u32 = 2;

/// Reads the pages `which` of each step.
async fn reads(
    api: Api,
    groups: Rc<Vec<Group>>,
    cb: u8,
    buffer: u16,
    tile: u32,
    each: usize,
    which: std::ops::Range<usize>,
) {
    let count = which.len() as u32;
    for group in groups.iter() {
        for chunk in group.steps.chunks(each * CHUNK as usize) {
            // Whole chunks, so that none wraps around the buffer's end.
            api.cb_reserve_back(cb, CHUNK * count).await;
            let mut to = api.get_write_ptr(cb).await;
            for step in chunk.chunks(each) {
                for page in &step[which.clone()] {
                    api.noc_async_read(Place::Dram { buffer, page: *page, offset: 0 }, to, tile).await;
                    to += tile;
                }
            }
            api.noc_async_read_barrier().await;
            api.cb_push_back(cb, CHUNK * count).await;
        }
    }
}

async fn writes(api: Api, groups: Rc<Vec<Group>>, buffer: u16, tile: u32) {
    for group in groups.iter() {
        let pages = group.out.len() as u32;
        api.cb_wait_front(OUT, pages).await;
        let mut from = api.get_read_ptr(OUT).await;
        for page in &group.out {
            api.noc_async_write(from, Place::Dram { buffer, page: *page, offset: 0 }, tile).await;
            from += tile;
        }
        api.noc_async_write_barrier().await;
        api.cb_pop_front(OUT, pages).await;
    }
}

async fn compute(api: Api, groups: Rc<Vec<Group>>, shape: Shape) {
    let (h, w) = shape.group;
    for group in groups.iter() {
        api.tile_regs_acquire().await;
        for chunk in group.steps.chunks(((h + w) * CHUNK) as usize) {
            api.cb_wait_front(IN0, CHUNK * h).await;
            api.cb_wait_front(IN1, CHUNK * w).await;
            for step in 0..chunk.len() as u32 / (h + w) {
                let (in0, in1) = (step * h, step * w);
                api.call(Verb::MatmulBlock {
                    in0_cb: IN0,
                    in1_cb: IN1,
                    in0,
                    in1,
                    dst: 0,
                    h,
                    w,
                    in0_stride: 1,
                })
                .await;
            }
            api.cb_pop_front(IN0, CHUNK * h).await;
            api.cb_pop_front(IN1, CHUNK * w).await;
        }
        if let Some(op) = shape.activation {
            for dst in 0..h * w {
                api.unary_tile(op, dst).await;
            }
        }
        api.tile_regs_commit().await;
        api.cb_reserve_back(OUT, h * w).await;
        api.tile_regs_wait().await;
        api.pack_tiles(0, OUT, 0, h * w).await;
        api.tile_regs_release().await;
        api.cb_push_back(OUT, h * w).await;
    }
}

/// Groups for each core, so that all have about the same number of steps: in turn, the longest first.
#[must_use]
pub fn spread(mut groups: Vec<Group>, cores: usize) -> Vec<Vec<Group>> {
    groups.sort_by_key(|group| std::cmp::Reverse(group.steps.len()));
    let mut parts = vec![Vec::new(); cores.max(1)];
    let mut loads = std::collections::BinaryHeap::new();
    loads.extend((0..parts.len()).map(|core| std::cmp::Reverse((0_u64, core))));
    for group in groups {
        if let Some(std::cmp::Reverse((load, core))) = loads.pop() {
            // A group without steps still writes its zeros.
            loads.push(std::cmp::Reverse((load + group.steps.len() as u64 + 1, core)));
            parts[core].push(group);
        }
    }
    parts
}

/// The program of some groups on a chip's compute grid, those of each core as given.
///
/// # Errors
/// If there are more parts than cores, or groups do not fit their shape.
pub fn program(
    simulator: &Simulator,
    parts: Vec<Vec<Group>>,
    shape: &Shape,
    wide: bool,
) -> Result<Program, Error> {
    let spec = simulator.spec();
    let [columns, rows] = spec.workers.compute_grid;
    let all: Vec<_> = (0..rows)
        .flat_map(|y| (0..columns).map(move |x| (x, y)))
        .map(|(x, y)| simulator.core(x, y))
        .collect();
    if parts.len() > all.len() {
        let has = all.len();
        return Err(Error::Misused(format!("{} parts of a product on {has} cores", parts.len())));
    }
    let (h, w) = shape.group;
    let most = spec.matrix.dst_tiles / if wide { 2 } else { 1 };
    if h == 0 || w == 0 || h * w > most {
        return Err(Error::Misused(format!("groups of {h} x {w} tiles, registers hold {most}")));
    }
    let mut program = Program::default();
    let busy: Vec<_> =
        all.iter().zip(&parts).filter(|(_, part)| !part.is_empty()).map(|(core, _)| *core).collect();
    let (f0, f1, fo) = shape.formats;
    for (id, format, pages) in
        [(IN0, f0, CHUNK * h * DEPTH), (IN1, f1, CHUNK * w * DEPTH), (OUT, fo, h * w * DEPTH)]
    {
        let page_bytes = format.tile_bytes() as u32;
        let cores = busy.clone();
        program.buffers.push(CircularBuffer {
            id,
            cores,
            format,
            page_bytes,
            pages,
            address: None,
            shares: None,
        });
    }
    for (core, groups) in all.into_iter().zip(parts).filter(|(_, groups)| !groups.is_empty()) {
        let each = (h + w) as usize;
        let fits =
            |group: &Group| group.out.len() == (h * w) as usize && group.steps.len().is_multiple_of(each);
        if !groups.iter().all(fits) {
            return Err(Error::Misused(format!(
                "a group does not have {h} x {w} tiles and {each} pages a step"
            )));
        }
        let groups = Rc::new(groups);
        let (b0, b1, bo) = shape.buffers;
        let [t0, t1, to] = [f0, f1, fo].map(|format| format.tile_bytes() as u32);
        let shape = *shape;
        let mut launch = |role, noc, name: &str, body| {
            program.launches.push(Launch { core, role, noc, name: name.into(), kernel: body });
        };
        let (left, right, sums) = (groups.clone(), groups.clone(), groups);
        let rows = h as usize;
        launch(Role::DataMovement1, 0, "in1", {
            kernel(move |api| reads(api, right, IN1, b1, t1, each, rows..each))
        });
        launch(Role::DataMovement0, 1, "in0 and out", {
            kernel(move |api| async move {
                // What is written waits for what is read before it: both are this thread's.
                for group in left.iter() {
                    let one = Rc::new(vec![group.clone()]);
                    reads(api.clone(), one.clone(), IN0, b0, t0, each, 0..rows).await;
                    writes(api.clone(), one, bo, to).await;
                }
            })
        });
        launch(Role::Compute, 0, "compute", kernel(move |api| compute(api, sums, shape)));
    }
    Ok(program)
}
