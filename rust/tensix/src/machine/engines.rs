//! How the queues of a core's compute side go on.

use crate::error::Error;
use crate::time::{Time, cycles};
use crate::timeline::{About, Lane};

use super::cb::Cb;
use super::compute::{Pause, Step};
use super::{Event, Machine, STILL};

/// Verbs that a kernel may be ahead of its queues.
const AHEAD: usize = 1 << 16;
/// Verbs that are read for the pack thread while the others wait.
const LOOK: usize = 1 << 12;

impl Machine<'_> {
    /// Whether a paused queue's condition holds now.
    pub(super) fn can_go_on(&self, id: u32) -> bool {
        let compute = &self.computes[id as usize];
        let core = &self.cores[usize::from(compute.core)];
        let of = |cb: u8| core.cbs.get(usize::from(cb)).and_then(Option::as_ref);
        [compute.math_pause, compute.pack_pause].iter().any(|pause| match *pause {
            Pause::Front { cb, pages } => of(cb).is_some_and(|cb| cb.filled() >= pages),
            Pause::Back { cb, pages } => of(cb).is_some_and(|cb| cb.free() >= pages),
            _ => false,
        })
    }

    /// Lets both queues go on as far as they can.
    pub(super) fn compute(&mut self, id: u32) -> Result<(), Error> {
        loop {
            let before = {
                let compute = &self.computes[id as usize];
                (compute.committed, compute.released)
            };
            self.run_math(id)?;
            // While unpack and math wait, the pack thread goes on with what is its own further down the text.
            loop {
                while self.looks_ahead(id) && self.feed(id)? {}
                let steps = self.computes[id as usize].pack.len();
                self.run_pack(id)?;
                if steps == 0 || !self.computes[id as usize].pack.is_empty() {
                    break;
                }
            }
            let compute = &self.computes[id as usize];
            let registers = compute.math_pause == Pause::Registers || compute.pack_pause == Pause::Registers;
            if (compute.committed, compute.released) == before || !registers {
                return Ok(());
            }
        }
    }

    fn looks_ahead(&self, id: u32) -> bool {
        let compute = &self.computes[id as usize];
        let waits = matches!(compute.math_pause, Pause::Front { .. } | Pause::Registers);
        waits && compute.pack.is_empty() && compute.math.len() < LOOK
    }

    /// Takes the next verb of the kernel; false at its end, and while it waits for a word.
    fn feed(&mut self, id: u32) -> Result<bool, Error> {
        // The text is read ahead of time: without a wait in it the clock of events stands still.
        if cycles(self.computes[id as usize].end()) > self.options.limit {
            return Err(Error::Endless(self.explain(&format!("after {} cycles", self.options.limit))));
        }
        let compute = &mut self.computes[id as usize];
        let clock = compute.end();
        compute.idle = if clock > compute.clock { 0 } else { compute.idle + 1 };
        compute.clock = clock;
        if compute.idle > STILL {
            let who = self.who(id);
            return Err(Error::Endless(format!("{who} asks for {STILL} things in a row that take no time")));
        }
        if compute.asked {
            return Ok(false);
        }
        let reply = std::mem::take(&mut compute.reply);
        let Some(kernel) = &mut compute.kernel else { return Ok(false) };
        let Some(verb) = kernel.step(reply)? else {
            compute.kernel = None;
            return Ok(false);
        };
        if let Err(verb) = compute.deal(verb) {
            let who = self.who(id);
            return Err(Error::Misused(format!("{who} calls {verb:?}, which compute kernels do not")));
        }
        if compute.pack.len() > AHEAD {
            let who = self.who(id);
            return Err(Error::Misused(format!("{who} packs {AHEAD} times without any math")));
        }
        Ok(true)
    }

    pub(super) fn who(&self, id: u32) -> String {
        let compute = &self.computes[id as usize];
        format!("kernel {} on core {}", compute.name, self.describe(compute.core))
    }

    /// A circular buffer of a compute kernel's core.
    pub(super) fn compute_cb(&mut self, id: u32, cb: u8) -> Result<&mut Cb, Error> {
        let core = self.computes[id as usize].core;
        if self.cb(core, cb).is_none() {
            return Err(self.no_cb(&self.who(id), core, cb));
        }
        self.cb(core, cb).ok_or_else(|| Error::Misused(format!("no circular buffer {cb}")))
    }

    pub(super) fn page_bytes(&mut self, id: u32, cb: u8) -> Result<u32, Error> {
        self.compute_cb(id, cb).map(|cb| cb.page_bytes)
    }

    /// Checks pages against a buffer's size.
    fn check_pages(&mut self, id: u32, cb: u8, pages: u32) -> Result<(), Error> {
        let all = self.compute_cb(id, cb)?.pages;
        if pages > all {
            let who = self.who(id);
            return Err(Error::Misused(format!(
                "{who} asks for {pages} pages of circular buffer {cb}, which has {all}"
            )));
        }
        Ok(())
    }

    fn run_math(&mut self, id: u32) -> Result<(), Error> {
        loop {
            let now = self.queue.now();
            let Some(step) = self.computes[id as usize].math.front().cloned() else {
                self.computes[id as usize].math_pause = Pause::None;
                if self.feed(id)? {
                    continue;
                }
                return Ok(());
            };
            let core = self.computes[id as usize].core;
            match step {
                Step::WaitFront { cb, pages } => {
                    let compute = &mut self.computes[id as usize];
                    if compute.unpack_at > now {
                        if compute.math_pause != Pause::Timer {
                            compute.math_pause = Pause::Timer;
                            self.queue.at(compute.unpack_at, Event::Compute(id));
                        }
                        return Ok(());
                    }
                    let held =
                        self.cores[usize::from(core)].cbs.get(usize::from(cb)).and_then(Option::as_ref);
                    if held.is_none_or(|held| held.filled() < pages) {
                        self.check_pages(id, cb, pages)?;
                        self.computes[id as usize].math_pause = Pause::Front { cb, pages };
                        return Ok(());
                    }
                    let cost = self.costs.cb_wait;
                    let compute = &mut self.computes[id as usize];
                    let since = compute.unpack_at;
                    if matches!(compute.math_pause, Pause::Front { .. }) {
                        compute.waits[0] += now - since;
                        compute.unpack_at = now;
                    }
                    let start = compute.unpack_at;
                    compute.unpack_at += cost;
                    self.note_compute(
                        id,
                        Lane::Unpack,
                        ("cb_wait_front", About::Cb(cb)),
                        (since, start, start + cost),
                    );
                }
                Step::PopFront { cb, pages } => {
                    let cost = self.costs.cb_pop;
                    let buffer = self.compute_cb(id, cb)?;
                    let filled = buffer.filled();
                    if pages > filled {
                        return Err(Error::Misused(format!(
                            "{} pops {pages} pages of circular buffer {cb}, which holds {filled}",
                            self.who(id)
                        )));
                    }
                    buffer.read += u64::from(pages);
                    self.popped_values(id, cb);
                    let compute = &mut self.computes[id as usize];
                    let at = compute.unpack_at.max(compute.units.unpacked_at());
                    compute.unpack_at = at + cost;
                    self.note_compute(id, Lane::Unpack, ("cb_pop_front", About::Cb(cb)), (at, at, at + cost));
                    self.queue.at(at + cost, Event::Pop { core, cb, pages });
                }
                Step::Acquire => {
                    let cost = self.costs.tile_regs;
                    let compute = &mut self.computes[id as usize];
                    if compute.acquired {
                        let who = self.who(id);
                        return Err(Error::Misused(format!("{who} acquires registers that it has")));
                    }
                    if compute.committed - compute.released >= 2 {
                        compute.math_pause = Pause::Registers;
                        return Ok(());
                    }
                    let free =
                        if compute.committed >= 2 { compute.releases.pop_front().unwrap_or(0) } else { 0 };
                    let ready = compute.math_at.max(compute.units.math_at);
                    compute.waits[1] += free.saturating_sub(ready);
                    let start = ready.max(free);
                    compute.math_at = start + cost;
                    compute.acquired = true;
                    self.note_compute(
                        id,
                        Lane::Math,
                        ("tile_regs_acquire", About::None),
                        (ready, start, start + cost),
                    );
                    self.clear_registers(id);
                }
                Step::Commit => {
                    let cost = self.costs.tile_regs;
                    let compute = &mut self.computes[id as usize];
                    if !compute.acquired {
                        let who = self.who(id);
                        return Err(Error::Misused(format!(
                            "{who} commits registers that it has not acquired"
                        )));
                    }
                    compute.acquired = false;
                    let start = compute.math_at.max(compute.units.math_at);
                    compute.math_at = start + cost;
                    compute.commits.push_back(compute.math_at);
                    compute.committed += 1;
                    self.note_compute(
                        id,
                        Lane::Math,
                        ("tile_regs_commit", About::None),
                        (start, start, start + cost),
                    );
                }
                Step::Load { address } => {
                    let compute = &mut self.computes[id as usize];
                    if compute.unpack_at > now {
                        if compute.math_pause != Pause::Timer {
                            compute.math_pause = Pause::Timer;
                            self.queue.at(compute.unpack_at, Event::Compute(id));
                        }
                        return Ok(());
                    }
                    let cost = self.costs.load;
                    let (unpack, math) = (compute.unpack_at, compute.math_at);
                    compute.unpack_at += cost;
                    compute.math_at += cost;
                    compute.asked = false;
                    let what = ("l1_load", About::None);
                    self.note_compute(id, Lane::Unpack, what, (unpack, unpack, unpack + cost));
                    self.note_compute(id, Lane::Math, what, (math, math, math + cost));
                    let word = self.word_of(|machine| machine.who(id), core, address)?;
                    self.computes[id as usize].reply = word;
                }
                Step::Cycles(work) => {
                    // All RISC-V cores of the compute side run the same text.
                    let compute = &mut self.computes[id as usize];
                    let (unpack, math) = (compute.unpack_at, compute.math_at);
                    compute.unpack_at += work;
                    compute.math_at += work;
                    let what = ("cycles", About::None);
                    self.note_compute(id, Lane::Unpack, what, (unpack, unpack, unpack + work));
                    self.note_compute(id, Lane::Math, what, (math, math, math + work));
                }
                other => self.calculate(id, &other)?,
            }
            let compute = &mut self.computes[id as usize];
            compute.math.pop_front();
            compute.math_pause = Pause::None;
        }
    }

    /// Checks that pages that are packed to are free, and lie before the buffer's end.
    fn check_pack(&mut self, id: u32, (dst, cb, tile, tiles): (u32, u8, u32, u32)) -> Result<(), Error> {
        let half = self.rates.dst_tiles / if self.computes[id as usize].wide { 2 } else { 1 };
        if u64::from(dst) + u64::from(tiles) > u64::from(half) {
            let who = self.who(id);
            return Err(Error::Misused(format!(
                "{who} packs tile {dst} and {tiles} in all of destination registers, half of them holds {half}"
            )));
        }
        let buffer = self.compute_cb(id, cb)?;
        let (free, all) = (u64::from(buffer.free()), u64::from(buffer.pages));
        let last = u64::from(tile) + u64::from(tiles);
        let end = buffer.written % all + last;
        if last > free {
            let who = self.who(id);
            return Err(Error::Misused(format!(
                "{who} packs {last} pages to circular buffer {cb}, which has room for {free}"
            )));
        }
        if end > all {
            let who = self.who(id);
            return Err(Error::Undefined(format!("{who} packs across the end of circular buffer {cb}")));
        }
        Ok(())
    }

    fn run_pack(&mut self, id: u32) -> Result<(), Error> {
        loop {
            let now = self.queue.now();
            let Some(step) = self.computes[id as usize].pack.front().cloned() else {
                self.computes[id as usize].pack_pause = Pause::None;
                return Ok(());
            };
            let core = self.computes[id as usize].core;
            match step {
                Step::Wait => {
                    let cost = self.costs.tile_regs;
                    let compute = &mut self.computes[id as usize];
                    let Some(committed) = compute.commits.pop_front() else {
                        compute.pack_pause = Pause::Registers;
                        return Ok(());
                    };
                    let (since, start) = (compute.pack_at, compute.pack_at.max(committed));
                    compute.pack_at = start + cost;
                    compute.waited = true;
                    self.note_compute(
                        id,
                        Lane::Pack,
                        ("tile_regs_wait", About::None),
                        (since, start, start + cost),
                    );
                }
                Step::ReserveBack { cb, pages } => {
                    let compute = &mut self.computes[id as usize];
                    if compute.pack_at > now {
                        if compute.pack_pause != Pause::Timer {
                            compute.pack_pause = Pause::Timer;
                            self.queue.at(compute.pack_at, Event::Compute(id));
                        }
                        return Ok(());
                    }
                    let held =
                        self.cores[usize::from(core)].cbs.get(usize::from(cb)).and_then(Option::as_ref);
                    if held.is_none_or(|held| held.free() < pages) {
                        self.check_pages(id, cb, pages)?;
                        self.computes[id as usize].pack_pause = Pause::Back { cb, pages };
                        return Ok(());
                    }
                    let cost = self.costs.cb_reserve;
                    let compute = &mut self.computes[id as usize];
                    let since = compute.pack_at;
                    if matches!(compute.pack_pause, Pause::Back { .. }) {
                        compute.waits[2] += now - since;
                        compute.pack_at = now;
                    }
                    let start = compute.pack_at;
                    compute.pack_at += cost;
                    self.note_compute(
                        id,
                        Lane::Pack,
                        ("cb_reserve_back", About::Cb(cb)),
                        (since, start, start + cost),
                    );
                }
                Step::PushBack { cb, pages } => {
                    let cost = self.costs.cb_push;
                    let buffer = self.compute_cb(id, cb)?;
                    let free = buffer.free();
                    if pages > free {
                        return Err(Error::Misused(format!(
                            "{} pushes {pages} pages to circular buffer {cb}, which has room for {free}",
                            self.who(id)
                        )));
                    }
                    buffer.written += u64::from(pages);
                    let compute = &mut self.computes[id as usize];
                    let start = compute.pack_at;
                    compute.pack_at += cost;
                    self.queue.at(start + cost, Event::Push { core, cb, pages });
                    self.note_compute(
                        id,
                        Lane::Pack,
                        ("cb_push_back", About::Cb(cb)),
                        (start, start, start + cost),
                    );
                }
                Step::Pack { dst, cb, tile, tiles } => {
                    self.check_pack(id, (dst, cb, tile, tiles))?;
                    if !self.computes[id as usize].waited {
                        let who = self.who(id);
                        return Err(Error::Misused(format!(
                            "{who} packs registers that it has not waited for"
                        )));
                    }
                    let bytes = self.page_bytes(id, cb)?;
                    let compute = &mut self.computes[id as usize];
                    let work = Time::from(tiles) * self.rates.pack(bytes, compute.accumulate);
                    let start = compute.pack_at;
                    compute.pack_at += work;
                    compute.pack_busy += work;
                    compute.pack_bytes += u64::from(bytes) * u64::from(tiles);
                    self.note_compute(
                        id,
                        Lane::Pack,
                        ("pack_tile", About::Cb(cb)),
                        (start, start, start + work),
                    );
                    if self.memory.values {
                        self.pack_values(id, &step)?;
                    }
                }
                Step::Release => {
                    let cost = self.costs.tile_regs;
                    let compute = &mut self.computes[id as usize];
                    if !compute.waited {
                        let who = self.who(id);
                        return Err(Error::Misused(format!(
                            "{who} releases registers that it has not waited for"
                        )));
                    }
                    compute.waited = false;
                    let start = compute.pack_at;
                    compute.pack_at += cost;
                    compute.releases.push_back(compute.pack_at);
                    compute.released += 1;
                    self.note_compute(
                        id,
                        Lane::Pack,
                        ("tile_regs_release", About::None),
                        (start, start, start + cost),
                    );
                }
                Step::Accumulate(on) => self.computes[id as usize].accumulate = on,
                _ => {}
            }
            let compute = &mut self.computes[id as usize];
            compute.pack.pop_front();
            compute.pack_pause = Pause::None;
        }
    }
}
