//! Lists of live tiles that data-movement kernels make of masks, as the kernels of a product take them.
//!
//! A list is a value that the threads of a core share; its place in L1, and what it costs to write and to read it there,
//! are those of the program.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use crate::kernel::Api;

use super::live::{Live, Part, Parts, Plan};
use super::scan::{BIT, CHANGE, Deal, LISTED, LISTS, MASK, ROW_VALID, WORD, find, gather, unite};

/// What the threads of a core tell each other.
#[derive(Default)]
pub(super) struct Notes {
    /// Own live tiles for each output block along M and block along K.
    own: OnceCell<Vec<Vec<Vec<Live>>>>,
    /// The whole lists.
    parts: OnceCell<Parts>,
}

impl Notes {
    pub(super) fn parts(&self) -> Parts {
        self.parts.get().cloned().unwrap_or_default()
    }
}

/// Live tiles of the own row of cores, row by row: row among its rows, and column.
async fn walk(api: &Api, deal: &Deal, plan: &Plan, base: u32) -> Vec<(u32, u32)> {
    let mut tiles = Vec::new();
    for x in 0..deal.grid.0 {
        let share = deal.share((x, plan.at.1));
        for word in 0..(share.len() as u32).div_ceil(32) {
            let mut bits = deal.word(api, base, (x, plan.at.1), word).await;
            api.cycles(WORD + BIT * f64::from(bits.count_ones())).await;
            while bits != 0 {
                let tile = share.start + 32 * word + bits.trailing_zeros();
                tiles.push((tile / deal.k, tile % deal.k));
                bits &= bits - 1;
            }
        }
    }
    tiles
}

/// Finds out and is told what is live in the own row of cores, makes the list of that, and notes it in `found`.
pub(super) async fn own(
    api: &Api,
    deal: &Deal,
    plan: &Plan,
    notes: &Notes,
    found: &RefCell<Vec<bool>>,
) -> Parts {
    find(api, deal, plan, true).await;
    api.noc_semaphore_wait(ROW_VALID, 1).await;
    let base = api.get_read_ptr(MASK).await;
    let tiles = walk(api, deal, plan, base).await;
    let first = u32::from(plan.at.1) * deal.per_core;
    let (kw, high) = (plan.shared.blocking.in0_block_w, deal.high);
    let mut live = vec![vec![Vec::new(); (deal.k / kw) as usize]; (deal.per_core / high) as usize];
    for (row, column) in &tiles {
        let page = (first + row) * deal.k + column;
        live[(row / high) as usize][(column / kw) as usize].push(Live {
            row: row % high,
            column: column % kw,
            page,
        });
        if plan.at.0 == 0 {
            found.borrow_mut()[page as usize] = true;
        }
    }
    // Entries are sorted by their block along K: one walk has counted those of each, another one over the same words puts
    // them into their places, where the next one comes behind.
    let words = f64::from((deal.per_core * deal.k).div_ceil(32));
    let each = CHANGE + BIT + deal.store + CHANGE;
    api.cycles((deal.load + WORD) * words + each * tiles.len() as f64).await;
    let list = api.get_write_ptr(LISTS).await;
    api.l1_store(list, tiles.len() as u32).await;
    let parts = live.iter().map(|blocks| {
        let some = blocks.iter().enumerate().filter(|(_, live)| !live.is_empty());
        some.map(|(block, live)| Part { block: block as u32, needed: vec![], live: live.clone() }).collect()
    });
    let parts = Rc::new(parts.collect());
    // Nobody else sets this.
    let _ = notes.own.set(live);
    api.noc_semaphore_set(LISTED, 1).await;
    parts
}

/// Finds out what is live, takes part in telling all, and makes the list of what is needed of `in1`.
pub(super) async fn needed(api: &Api, deal: &Deal, plan: &Plan, notes: &Notes) -> Parts {
    find(api, deal, plan, false).await;
    let base = api.get_read_ptr(MASK).await;
    gather(api, deal, plan, base).await;
    let leads = plan.core == plan.row_start;
    let tiles = if leads { walk(api, deal, plan, base).await } else { Vec::new() };
    let united = unite(api, deal, plan, base, &tiles).await;
    let live: u32 = united.iter().map(|word| word.count_ones()).sum();
    api.cycles(WORD * united.len() as f64 + (BIT + deal.store) * f64::from(live)).await;
    api.noc_semaphore_wait(LISTED, 1).await;
    let own = notes.own.get().map_or(&[][..], Vec::as_slice);
    let (kw, width) = (plan.shared.blocking.in0_block_w, deal.width());
    let is_needed =
        |i: usize, column: u32| united[i * width as usize + (column / 32) as usize] >> (column % 32) & 1 == 1;
    let part = |i: usize, block: usize, live: &Vec<Live>| {
        let first = block as u32 * kw;
        let needed: Vec<_> = (0..kw).filter(|column| is_needed(i, first + column)).collect();
        (!needed.is_empty()).then(|| Part { block: block as u32, needed, live: live.clone() })
    };
    let lists = own.iter().enumerate().map(|(i, blocks)| {
        blocks.iter().enumerate().filter_map(|(block, live)| part(i, block, live)).collect()
    });
    let parts: Parts = Rc::new(lists.collect());
    let _ = notes.parts.set(Rc::clone(&parts));
    api.cb_reserve_back(LISTS, 1).await;
    api.cb_push_back(LISTS, 1).await;
    parts
}
