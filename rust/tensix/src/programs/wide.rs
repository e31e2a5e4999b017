//! Norms of branches that are wider than a core's L1: found in tiles as they pass, of a result that lies in DRAM.
//!
//! A core takes a row of tiles, or a branch of one where branches begin with tiles, and reads it tile by tile; largest values
//! and sums of squares go on from tile to tile. Branches that turn out to be dead are read again and cleared.

use std::rc::Rc;

use crate::error::Error;
use crate::kernel::{Api, kernel};
use crate::numerics::TILE;
use crate::program::{CircularBuffer, Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::{CoreId, Place};

use super::norms::{DECIDE, Norms, Reach, Sum};

const IN: u8 = 0;
const FOUND: u8 = 1;
const CLEARED: u8 = 2;
/// Tiles that are read before their arrival is waited for.
const CHUNK: u32 = 8;

/// A result in DRAM whose branches' norms are wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Wide {
    /// What is found; its buffer has a page of 32 words for each row of tiles and each branch.
    pub norms: Norms,
    /// Buffer of the result's tiles, row of tiles by row of tiles.
    pub result: u16,
}

/// A row of tiles, and the branches of it that a core takes.
#[derive(Debug, Clone)]
struct Item {
    top: u32,
    branches: std::ops::Range<u32>,
}

impl Wide {
    fn across(&self) -> u32 {
        self.norms.columns.div_ceil(TILE as u32)
    }

    fn branches(&self) -> u32 {
        self.norms.columns.div_ceil(self.norms.branch)
    }

    /// Bytes of a page of norms, and how many there are.
    #[must_use]
    pub fn pages(branch: u32, columns: u32, rows: u32) -> (u32, u32) {
        (4 * TILE as u32, rows.div_ceil(TILE as u32) * columns.div_ceil(branch.max(1)))
    }

    /// Columns of a branch.
    fn columns(&self, branch: u32) -> std::ops::Range<u32> {
        branch * self.norms.branch..((branch + 1) * self.norms.branch).min(self.norms.columns)
    }

    /// Parts of a row of tiles that hold a branch: tiles, and of the first one's columns those that are of the branch.
    fn chunks(
        &self,
        branch: u32,
    ) -> impl Iterator<Item = (std::ops::Range<u32>, std::ops::Range<u32>)> + use<> {
        let (columns, tile) = (self.columns(branch), TILE as u32);
        let (first, end) = (columns.start / tile, columns.end.div_ceil(tile));
        (first..end).step_by(CHUNK as usize).map(move |from| {
            let to = (from + CHUNK).min(end);
            let start = columns.start.max(from * tile) - from * tile;
            (from..to, start..columns.end.min(to * tile) - from * tile)
        })
    }

    fn items(&self) -> Vec<Item> {
        let rows = 0..self.norms.rows.div_ceil(TILE as u32);
        // Tiles that two branches share are cleared by one core.
        if self.norms.branch.is_multiple_of(TILE as u32) {
            let each = |top| (0..self.branches()).map(move |at| Item { top, branches: at..at + 1 });
            rows.flat_map(each).collect()
        } else {
            rows.map(|top| Item { top, branches: 0..self.branches() }).collect()
        }
    }

    /// The program, on a chip's compute grid.
    ///
    /// # Errors
    /// If there is nothing to find.
    pub fn program(self, simulator: &Simulator) -> Result<Program, Error> {
        if self.norms.rows == 0 || self.norms.columns == 0 || self.norms.branch == 0 {
            return Err(Error::Misused("norms of nothing".into()));
        }
        let [columns, rows] = simulator.spec().workers.compute_grid;
        let items = self.items();
        let count = items.len().min(usize::from(columns) * usize::from(rows));
        let all = (0..rows).flat_map(|y| (0..columns).map(move |x| simulator.core(x, y)));
        let cores: Vec<CoreId> = all.take(count).collect();
        let tile = self.norms.format.tile_bytes() as u32;
        let mut program = Program::default();
        let page = Self::pages(self.norms.branch, self.norms.columns, self.norms.rows).0;
        for (id, page_bytes, pages) in [(IN, tile, 2 * CHUNK), (FOUND, page, 1), (CLEARED, tile, CHUNK)] {
            let (cores, format) = (cores.clone(), self.norms.format);
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
        let shared = Rc::new(self);
        for (number, core) in cores.into_iter().enumerate() {
            let own: Rc<Vec<Item>> = Rc::new(items.iter().skip(number).step_by(count).cloned().collect());
            let (all, list) = (Rc::clone(&shared), Rc::clone(&own));
            program.launches.push(Launch {
                core,
                role: Role::DataMovement1,
                noc: 0,
                name: "reader".into(),
                kernel: kernel(move |api| read(api, all, list)),
            });
            let (all, list) = (Rc::clone(&shared), own);
            program.launches.push(Launch {
                core,
                role: Role::DataMovement0,
                noc: 1,
                name: "norms".into(),
                kernel: kernel(move |api| find(api, all, list)),
            });
        }
        Ok(program)
    }
}

async fn fetch(api: &Api, all: &Wide, top: u32, tiles: std::ops::Range<u32>, mut to: u32) {
    let tile = all.norms.format.tile_bytes() as u32;
    for column in tiles {
        let place = Place::Dram { buffer: all.result, page: top * all.across() + column, offset: 0 };
        api.noc_async_read(place, to, tile).await;
        to += tile;
    }
    api.noc_async_read_barrier().await;
}

async fn read(api: Api, all: Rc<Wide>, items: Rc<Vec<Item>>) {
    for item in items.iter() {
        for branch in item.branches.clone() {
            for (tiles, _) in all.chunks(branch) {
                // Whole chunks, so that none lies across the buffer's end.
                api.cb_reserve_back(IN, CHUNK).await;
                let to = api.get_write_ptr(IN).await;
                fetch(&api, &all, item.top, tiles, to).await;
                api.cb_push_back(IN, CHUNK).await;
            }
        }
    }
}

async fn find(api: Api, all: Rc<Wide>, items: Rc<Vec<Item>>) {
    let norms = &all.norms;
    let tile = norms.format.tile_bytes() as u32;
    for item in items.iter() {
        let top = item.top * TILE as u32;
        let rows = (norms.rows - top).min(TILE as u32);
        for branch in item.branches.clone() {
            let mut sums = vec![Sum::default(); rows as usize];
            for (tiles, columns) in all.chunks(branch) {
                api.cb_wait_front(IN, CHUNK).await;
                let reach = reach(&all, item.top, tiles, api.get_read_ptr(IN).await);
                for (row, sum) in (0..).zip(&mut sums) {
                    norms.add(&api, &reach, row, columns.clone(), sum).await;
                }
                api.cb_pop_front(IN, CHUNK).await;
            }
            api.cb_reserve_back(FOUND, 1).await;
            let page = api.get_write_ptr(FOUND).await;
            let mut dead = Vec::new();
            for (row, sum) in (0..).zip(&sums) {
                let norm = sum.norm(norms.squares);
                api.l1_store(page + row * 4, norm.to_bits()).await;
                if let Some(threshold) = norms.threshold {
                    api.cycles(DECIDE).await;
                    let known = norms
                        .live
                        .as_ref()
                        .and_then(|live| live.get(((top + row) * all.branches() + branch) as usize).copied());
                    // NaN is not below anything, and so is live.
                    if known.map_or(f64::from(norm) <= threshold, |live| !live) {
                        dead.push(row);
                    }
                }
            }
            api.cb_push_back(FOUND, 1).await;
            api.cb_wait_front(FOUND, 1).await;
            let place =
                Place::Dram { buffer: norms.buffer, page: item.top * all.branches() + branch, offset: 0 };
            api.noc_async_write(page, place, (rows * 4).next_multiple_of(16)).await;
            api.noc_async_write_barrier().await;
            api.cb_pop_front(FOUND, 1).await;
            if dead.is_empty() {
                continue;
            }
            let to = api.get_write_ptr(CLEARED).await;
            for (tiles, columns) in all.chunks(branch) {
                fetch(&api, &all, item.top, tiles.clone(), to).await;
                let reach = reach(&all, item.top, tiles.clone(), to);
                for row in &dead {
                    norms.clear(&api, &reach, *row, columns.clone()).await;
                }
                for (column, from) in tiles.zip((to..).step_by(tile as usize)) {
                    let page = item.top * all.across() + column;
                    api.noc_async_write(from, Place::Dram { buffer: all.result, page, offset: 0 }, tile)
                        .await;
                }
                api.noc_async_write_barrier().await;
            }
        }
    }
}

/// Tiles side by side at an address of L1.
fn reach(all: &Wide, top: u32, tiles: std::ops::Range<u32>, from: u32) -> Reach {
    let tile = all.norms.format.tile_bytes() as u32;
    let left = tiles.start;
    Reach { tiles: tiles.map(|column| from + (column - left) * tile).collect(), top, left }
}
