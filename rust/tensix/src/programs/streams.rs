//! Programs of many equal pieces of work: one text for the compute threads, and lists of pages for the others.
//!
//! A piece of work reads tiles from DRAM, computes by a text of verbs, and writes tiles to DRAM. The text has three parts:
//! what comes first, what is repeated (as often as the piece says: once for each tile that is summed, say), and what comes
//! last. Pieces are dealt to cores, which share nothing: operands are read by each core that needs them.

use std::rc::Rc;

use crate::error::Error;
use crate::kernel::{Api, kernel};
use crate::numerics::{Format, TILE};
use crate::program::{CircularBuffer, Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::{CoreId, Place, Verb};

use super::norms::{Norms, Reach};

/// A circular buffer of a program, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Its number.
    pub cb: u8,
    /// Format of its tiles.
    pub format: Format,
    /// Bytes of a page: those of a tile, but where no compute thread uses them.
    pub page_bytes: u32,
    /// Pages that it holds.
    pub pages: u32,
}

/// Pages of a buffer in DRAM that go to or come from a circular buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Number of the circular buffer.
    pub cb: u8,
    /// Number of the buffer in DRAM.
    pub buffer: u16,
    /// Bytes of a page that are moved.
    pub bytes: u32,
}

/// What the compute threads do for a piece of work.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Text {
    /// Once, at the beginning.
    pub first: Vec<Verb>,
    /// As often as the piece says.
    pub again: Vec<Verb>,
    /// Once, at the end.
    pub last: Vec<Verb>,
}

/// A piece of work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// How often the text's middle is repeated.
    pub repeats: u32,
    /// How often the whole text is.
    pub groups: u32,
    /// Number of a stream and page, in the order in which the text waits for them.
    pub reads: Vec<(u8, u32)>,
    /// The same of what is written, in the order in which it is packed.
    pub writes: Vec<(u8, u32)>,
}

/// A program of pieces.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    /// Circular buffers.
    pub buffers: Vec<Buffer>,
    /// What is read, and what is written.
    pub inputs: Vec<Stream>,
    /// What is written.
    pub outputs: Vec<Stream>,
    /// What is computed.
    pub text: Text,
    /// What is found of the values that are written, on their way out, and the circular buffer for it.
    pub norms: Option<(Norms, u8)>,
}

/// Pages that are read before their arrival is waited for, at most.
const CHUNK: usize = 8;

/// Where the pages of a circular buffer are, as a kernel counts them itself.
struct Ring {
    stream: Stream,
    start: u32,
    page: u32,
    pages: u32,
    count: u32,
}

impl Ring {
    fn next(&mut self) -> u32 {
        let at = self.start + self.count % self.pages * self.page;
        self.count += 1;
        at
    }
}

async fn rings(api: &Api, streams: &[Stream], buffers: &[Buffer], reads: bool) -> Vec<Ring> {
    let mut rings = Vec::with_capacity(streams.len());
    for stream in streams {
        let Some(buffer) = buffers.iter().find(|buffer| buffer.cb == stream.cb) else { continue };
        let start = match reads {
            true => api.get_write_ptr(stream.cb).await,
            false => api.get_read_ptr(stream.cb).await,
        };
        rings.push(Ring { stream: *stream, start, page: buffer.page_bytes, pages: buffer.pages, count: 0 });
    }
    rings
}

/// How many pages of each stream are in a chunk.
fn counts(streams: usize, chunk: &[(u8, u32)]) -> Vec<u32> {
    let mut counts = vec![0; streams];
    for (stream, _) in chunk {
        counts[usize::from(*stream)] += 1;
    }
    counts
}

async fn read(api: Api, all: Rc<Streams>, pieces: Rc<Vec<Piece>>) {
    let mut rings = rings(&api, &all.inputs, &all.buffers, true).await;
    for piece in pieces.iter() {
        for chunk in piece.reads.chunks(CHUNK) {
            let counts = counts(rings.len(), chunk);
            for (ring, count) in rings.iter().zip(&counts).filter(|(_, count)| **count > 0) {
                api.cb_reserve_back(ring.stream.cb, *count).await;
            }
            for (stream, page) in chunk {
                let ring = &mut rings[usize::from(*stream)];
                let place = Place::Dram { buffer: ring.stream.buffer, page: *page, offset: 0 };
                let to = ring.next();
                api.noc_async_read(place, to, ring.stream.bytes).await;
            }
            api.noc_async_read_barrier().await;
            for (ring, count) in rings.iter().zip(&counts).filter(|(_, count)| **count > 0) {
                api.cb_push_back(ring.stream.cb, *count).await;
            }
        }
    }
}

async fn write(api: Api, all: Rc<Streams>, pieces: Rc<Vec<Piece>>) {
    let mut rings = rings(&api, &all.outputs, &all.buffers, false).await;
    for piece in pieces.iter() {
        if let (Some((norms, cb)), Some(ring)) = (&all.norms, rings.first()) {
            // Norms reach over all tiles of the piece.
            let tiles = piece.writes.len() as u32;
            api.cb_wait_front(ring.stream.cb, tiles).await;
            let from = (0..tiles).map(|i| ring.start + (ring.count + i) % ring.pages * ring.page).collect();
            let first = piece.writes.first().map_or(0, |(_, page)| *page);
            let across = norms.columns.div_ceil(TILE as u32).max(1);
            norms.find(&api, &Reach { tiles: from, top: first / across, left: first % across }, *cb).await;
        }
        for chunk in piece.writes.chunks(CHUNK) {
            let counts = counts(rings.len(), chunk);
            for (ring, count) in rings.iter().zip(&counts).filter(|(_, count)| **count > 0) {
                api.cb_wait_front(ring.stream.cb, *count).await;
            }
            for (stream, page) in chunk {
                let ring = &mut rings[usize::from(*stream)];
                let place = Place::Dram { buffer: ring.stream.buffer, page: *page, offset: 0 };
                let from = ring.next();
                api.noc_async_write(from, place, ring.stream.bytes).await;
            }
            api.noc_async_write_barrier().await;
            for (ring, count) in rings.iter().zip(&counts).filter(|(_, count)| **count > 0) {
                api.cb_pop_front(ring.stream.cb, *count).await;
            }
        }
    }
}

async fn compute(api: Api, all: Rc<Streams>, pieces: Rc<Vec<Piece>>) {
    for piece in pieces.iter().flat_map(|piece| (0..piece.groups).map(move |_| piece)) {
        for verb in &all.text.first {
            api.call(verb.clone()).await;
        }
        for _ in 0..piece.repeats {
            for verb in &all.text.again {
                api.call(verb.clone()).await;
            }
        }
        for verb in &all.text.last {
            api.call(verb.clone()).await;
        }
    }
}

/// Pieces for each core, so that all read about the same number of tiles: in turn, the longest first.
#[must_use]
pub fn spread(mut pieces: Vec<Piece>, cores: usize) -> Vec<Vec<Piece>> {
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.reads.len()));
    let mut parts = vec![Vec::new(); cores.max(1)];
    let mut loads = std::collections::BinaryHeap::new();
    loads.extend((0..parts.len()).map(|core| std::cmp::Reverse((0_u64, core))));
    for piece in pieces {
        if let Some(std::cmp::Reverse((load, core))) = loads.pop() {
            // A piece that reads nothing still writes its zeros.
            loads.push(std::cmp::Reverse((load + piece.reads.len() as u64 + 1, core)));
            parts[core].push(piece);
        }
    }
    parts
}

impl Streams {
    /// # Errors
    /// If a piece names a stream that there is not, or circular buffers do not hold what is asked of them at once.
    fn check(&self, parts: &[Vec<Piece>]) -> Result<(), Error> {
        let pages = |stream: &Stream| {
            let found = self.buffers.iter().find(|buffer| buffer.cb == stream.cb);
            found.map(|buffer| buffer.pages).ok_or_else(|| {
                Error::Misused(format!(
                    "a stream of circular buffer {}, which the program has not",
                    stream.cb
                ))
            })
        };
        let room = |streams: &[Stream]| streams.iter().map(pages).collect::<Result<Vec<_>, _>>();
        let (into, out) = (room(&self.inputs)?, room(&self.outputs)?);
        for piece in parts.iter().flatten() {
            for (list, room) in [(&piece.reads, &into), (&piece.writes, &out)] {
                if let Some((stream, _)) = list.iter().find(|(stream, _)| usize::from(*stream) >= room.len())
                {
                    let has = room.len();
                    return Err(Error::Misused(format!("a piece uses stream {stream} of {has}")));
                }
                for chunk in list.chunks(CHUNK) {
                    let counts = counts(room.len(), chunk);
                    if let Some((count, room)) = counts.iter().zip(room).find(|(count, room)| count > room) {
                        return Err(Error::Misused(format!(
                            "{count} pages in a row of a stream whose circular buffer holds {room}"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// The program of pieces on a chip's compute grid, in as many parts as there are cores for them.
    ///
    /// # Errors
    /// If there are more parts than cores, or pieces do not fit the streams.
    pub fn program(self, simulator: &Simulator, parts: Vec<Vec<Piece>>) -> Result<Program, Error> {
        let [columns, rows] = simulator.spec().workers.compute_grid;
        let all: Vec<CoreId> = (0..rows)
            .flat_map(|y| (0..columns).map(move |x| (x, y)))
            .map(|(x, y)| simulator.core(x, y))
            .collect();
        if parts.len() > all.len() {
            let has = all.len();
            return Err(Error::Misused(format!("{} parts of a program on {has} cores", parts.len())));
        }
        self.check(&parts)?;
        let mut program = Program::default();
        let busy: Vec<_> =
            all.iter().zip(&parts).filter(|(_, part)| !part.is_empty()).map(|(core, _)| *core).collect();
        for buffer in &self.buffers {
            program.buffers.push(CircularBuffer {
                id: buffer.cb,
                cores: busy.clone(),
                format: buffer.format,
                page_bytes: buffer.page_bytes,
                pages: buffer.pages,
                address: None,
                shares: None,
            });
        }
        let shared = Rc::new(self);
        for (core, pieces) in all.into_iter().zip(parts).filter(|(_, pieces)| !pieces.is_empty()) {
            let pieces = Rc::new(pieces);
            let mut launch = |role, noc, name: &str, body| {
                program.launches.push(Launch { core, role, noc, name: name.into(), kernel: body });
            };
            let one = || (Rc::clone(&shared), Rc::clone(&pieces));
            let (all, list) = one();
            launch(Role::DataMovement1, 0, "reader", kernel(move |api| read(api, all, list)));
            let (all, list) = one();
            launch(Role::DataMovement0, 1, "writer", kernel(move |api| write(api, all, list)));
            let (all, list) = one();
            launch(Role::Compute, 0, "compute", kernel(move |api| compute(api, all, list)));
        }
        Ok(program)
    }
}
