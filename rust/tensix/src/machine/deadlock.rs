//! Who waits for what, when a program does not go on.

use super::compute::Pause;
use super::threads::Wait;
use super::{CoreId, Machine};

/// Threads that a message lists; the others are counted.
const LISTED: usize = 12;

impl Machine<'_> {
    /// A message that begins with `what` and says for each thread what it waits for.
    pub(super) fn explain(&self, what: &str) -> String {
        let mut lines = Vec::new();
        for thread in self.threads.iter().filter(|t| t.kernel.is_some()) {
            let why = match thread.wait {
                Wait::Timer => "runs".into(),
                Wait::Front { cb, pages } => self.pages(thread.core, cb, pages, true),
                Wait::Back { cb, pages } => self.pages(thread.core, cb, pages, false),
                Wait::Reads => format!("waits for {} reads", thread.reads),
                Wait::Writes => format!("waits for {} writes", thread.writes),
                Wait::Multicast { .. } => "waits for a multicast to leave".into(),
                Wait::Room { end } => format!("waits for room in {}", self.tile_of(end)),
                Wait::Departures => format!("waits for {} writes to leave", thread.departures),
                Wait::Semaphore { semaphore, value, at_least } => {
                    let is = self.cores[usize::from(thread.core)].semaphores[usize::from(semaphore)];
                    let least = if at_least { "at least " } else { "" };
                    format!("waits for semaphore {semaphore} to be {least}{value}, it is {is}")
                }
            };
            lines.push(format!("{} on core {} {why}", thread.name, self.describe(thread.core)));
        }
        for compute in self.computes.iter().filter(|c| !c.done()) {
            let pauses = [("unpack and math", compute.math_pause), ("pack", compute.pack_pause)];
            for (part, pause) in pauses {
                let why = match pause {
                    Pause::None | Pause::Timer => continue,
                    Pause::Front { cb, pages } => self.pages(compute.core, cb, pages, true),
                    Pause::Back { cb, pages } => self.pages(compute.core, cb, pages, false),
                    Pause::Registers if part == "pack" => "waits for tile_regs_commit".into(),
                    Pause::Registers => "waits for tile_regs_release".into(),
                };
                lines.push(format!(
                    "{} on core {} ({part}) {why}",
                    compute.name,
                    self.describe(compute.core)
                ));
            }
        }
        lines.extend(self.stuck());
        let more = lines.len().saturating_sub(LISTED);
        lines.truncate(LISTED);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        format!("{what}: {}", lines.join("; "))
    }

    fn pages(&self, core: CoreId, cb: u8, pages: u32, front: bool) -> String {
        let found = self.cores[usize::from(core)].cbs.get(usize::from(cb)).and_then(Option::as_ref);
        let (filled, free) = found.map_or((0, 0), |cb| (cb.filled(), cb.free()));
        if front {
            format!("waits for {pages} pages in circular buffer {cb}, which holds {filled}")
        } else {
            format!("waits for room for {pages} pages in circular buffer {cb}, which has room for {free}")
        }
    }
}
