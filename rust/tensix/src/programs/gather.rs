//! Matrices whose pages lie spread over the chips of a line become whole on each of them.
//!
//! Each chip has a buffer with room for all pages, and its own ones in it. They go both ways along the line, from chip to
//! chip: what comes from one neighbour is written to DRAM, read from there and sent to the other one, so that each page
//! passes each link once. For each way and link a core reads and sends, page by page; what has come is counted by a
//! semaphore of the core that sends it on, or, at the end of the line, of one that only waits.

use std::rc::Rc;

use crate::error::Error;
use crate::kernel::{Api, kernel};
use crate::mesh::{ChipId, Way};
use crate::numerics::Format;
use crate::program::{CircularBuffer, Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::{CoreId, Place};

/// What a chip has of a matrix at first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Its buffer, with room for all pages of the line.
    pub buffer: u16,
    /// Its own pages.
    pub pages: Vec<u32>,
}

/// A matrix for each line of chips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gather {
    /// Lines are rows of chips, or columns of them.
    pub along_rows: bool,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Each chip's part.
    pub parts: Vec<Part>,
}

/// Circular buffer and semaphore of each core that sends.
const PAGES: u8 = 0;
const COME: u8 = 0;
/// Pages that are read before they are waited for, and that a flag tells of.
const CHUNK: usize = 8;

/// What a core sends: parts in order, its own chip's first.
struct Sends {
    /// Numbers of pages of each part, those of one of the links.
    parts: Vec<Vec<u32>>,
    from: u16,
    /// The next chip, if there is one, and its buffer.
    to: Option<(ChipId, u16)>,
    core: CoreId,
    link: u8,
    page_bytes: u32,
}

impl Sends {
    /// Chunks of pages, with how many pages must have come before each can be read.
    fn chunks(&self) -> impl Iterator<Item = (u32, &[u32])> {
        let mut come = 0;
        self.parts
            .iter()
            .enumerate()
            .flat_map(move |(number, part)| {
                part.chunks(CHUNK).map(move |chunk| (number, chunk)).collect::<Vec<_>>()
            })
            .map(move |(number, chunk)| {
                if number > 0 {
                    come += chunk.len() as u32;
                }
                (come, chunk)
            })
    }
}

async fn read(api: Api, all: Rc<Sends>) {
    for (come, chunk) in all.chunks() {
        if come > 0 {
            api.noc_semaphore_wait_min(COME, come).await;
        }
        // Short chunks take whole ones' room, so that none begins at the buffer's end and goes on at its start.
        api.cb_reserve_back(PAGES, CHUNK as u32).await;
        let mut to = api.get_write_ptr(PAGES).await;
        for page in chunk {
            let place = Place::Dram { buffer: all.from, page: *page, offset: 0 };
            api.noc_async_read(place, to, all.page_bytes).await;
            to += all.page_bytes;
        }
        api.noc_async_read_barrier().await;
        api.cb_push_back(PAGES, CHUNK as u32).await;
    }
}

async fn send(api: Api, all: Rc<Sends>) {
    let Some((chip, buffer)) = all.to else { return };
    for (_, chunk) in all.chunks() {
        api.cb_wait_front(PAGES, CHUNK as u32).await;
        let mut from = api.get_read_ptr(PAGES).await;
        for (number, page) in chunk.iter().enumerate() {
            let place = Place::Dram { buffer, page: *page, offset: 0 };
            if number + 1 == chunk.len() {
                let flag = (all.core, COME, chunk.len() as u32);
                api.fabric_unicast_noc_fused_unicast_with_atomic_inc(
                    from,
                    (chip, place),
                    all.page_bytes,
                    flag,
                    Some(all.link),
                )
                .await;
            } else {
                api.fabric_unicast_noc_unicast_write(from, chip, place, all.page_bytes, Some(all.link)).await;
            }
            from += all.page_bytes;
        }
        api.noc_async_writes_flushed().await;
        api.cb_pop_front(PAGES, CHUNK as u32).await;
    }
}

/// At the end of a line: waits until all has come.
async fn wait(api: Api, pages: u32) {
    api.noc_semaphore_wait_min(COME, pages).await;
}

/// The program that makes matrices whole, all at once; nothing for chips alone in their lines.
///
/// # Errors
/// If there is not a part for each chip.
pub fn program(simulator: &Simulator, gathers: &[Gather]) -> Result<Program, Error> {
    let (mesh, spec) = (simulator.chips(), simulator.spec());
    let mut program = Program { semaphores: vec![0], ..Program::default() };
    let mut core: CoreId = 0;
    for gather in gathers {
        if gather.parts.len() != usize::from(mesh.chips()) {
            return Err(Error::Misused(format!(
                "parts of a matrix on {} chips, the mesh has {}",
                gather.parts.len(),
                mesh.chips()
            )));
        }
        let ways = if gather.along_rows { [Way::East, Way::West] } else { [Way::South, Way::North] };
        for way in ways {
            let links = spec.ethernet.as_ref().map_or(0, |ethernet| ethernet.tiles(way).len());
            for link in 0..links {
                if usize::from(core) >= spec.cores() {
                    return Err(Error::Unsupported(format!(
                        "links of {} need a core each to send, it has {}",
                        spec.name,
                        spec.cores()
                    )));
                }
                for chip in 0..mesh.chips() {
                    // Its own part, then those behind it, the nearest one first: as they come.
                    let mut parts = Vec::new();
                    let mut behind = Some(chip);
                    while let Some(at) = behind {
                        let pages = gather.parts[usize::from(at)].pages.iter();
                        parts.push(pages.skip(link).step_by(links).copied().collect::<Vec<_>>());
                        behind = mesh.next(at, way.opposite());
                    }
                    let to = mesh.next(chip, way).map(|next| (next, gather.parts[usize::from(next)].buffer));
                    let from = gather.parts[usize::from(chip)].buffer;
                    let (link, page_bytes) = (link as u8, gather.page_bytes);
                    let sends = Rc::new(Sends { parts, from, to, core, link, page_bytes });
                    add(&mut program, simulator.first_core(chip) + core, sends);
                }
                core += 1;
            }
        }
    }
    Ok(program)
}

/// Adds a core's kernels, where it has something to do.
fn add(program: &mut Program, core: CoreId, sends: Rc<Sends>) {
    let mut launch = |role, noc, name: &str, kernel| {
        program.launches.push(Launch { core, role, noc, name: name.into(), kernel });
    };
    if sends.to.is_none() {
        let come = sends.parts.iter().skip(1).map(Vec::len).sum::<usize>() as u32;
        if come > 0 {
            launch(Role::DataMovement1, 0, "gather_wait", kernel(move |api| wait(api, come)));
        }
        return;
    }
    if sends.parts.iter().all(Vec::is_empty) {
        return;
    }
    let (reader, page_bytes) = (Rc::clone(&sends), sends.page_bytes);
    launch(Role::DataMovement1, 0, "gather_read", kernel(move |api| read(api, reader)));
    launch(Role::DataMovement0, 1, "gather_send", kernel(move |api| send(api, sends)));
    program.buffers.push(CircularBuffer {
        id: PAGES,
        cores: vec![core],
        format: Format::Bfloat16,
        page_bytes,
        pages: 2 * CHUNK as u32,
        address: None,
        shares: None,
    });
}
