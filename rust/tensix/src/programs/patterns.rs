//! Traffic patterns of published measurements of the networks and of DRAM, as programs.

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::kernel::{Api, kernel};
use crate::program::{Launch, Program, Role};
use crate::simulator::Simulator;
use crate::verbs::{Area, CoreId, Place, Verb};

/// Who moves data to or from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// A core writes to one other.
    OneToOne,
    /// A core reads from one other.
    OneFromOne,
    /// A core writes to a row of others.
    OneToRow,
    /// A core writes to all others.
    OneToAll,
    /// A core reads from all others.
    OneFromAll,
    /// All cores write to all others.
    AllToAll,
    /// All cores read from all others.
    AllFromAll,
}

impl Traffic {
    /// The pattern of a name in files of measurements.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "ONE_TO_ONE" => Self::OneToOne,
            "ONE_FROM_ONE" => Self::OneFromOne,
            "ONE_TO_ROW" => Self::OneToRow,
            "ONE_TO_ALL" => Self::OneToAll,
            "ONE_FROM_ALL" => Self::OneFromAll,
            "ALL_TO_ALL" => Self::AllToAll,
            "ALL_FROM_ALL" => Self::AllFromAll,
            _ => return None,
        })
    }
}

/// One measurement of traffic from L1 to L1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pattern {
    /// Who with whom.
    pub traffic: Traffic,
    /// By multicast, where the pattern writes.
    pub multicast: bool,
    /// Transactions of a core, over all its partners.
    pub transactions: u32,
    /// Partners of a core.
    pub partners: u32,
    /// The partner is in the same column.
    pub same_axis: bool,
    /// With registers set before.
    pub stateful: bool,
    /// The sender receives its own multicasts.
    pub loopback: bool,
    /// Network.
    pub noc: u8,
    /// Bytes of a transaction.
    pub bytes: u32,
}

/// Columns and rows of cores that took part in the measurements (tt_metal/impl/experimental/noc_estimator).
fn extent(spec: &ChipSpec) -> (u16, u16) {
    let (columns, rows) = (spec.workers.x.len() as u16, spec.workers.y.len() as u16);
    if spec.arch == "wormhole_b0" { (8.min(columns), 7.min(rows)) } else { (11.min(columns), 10.min(rows)) }
}

const FROM: u32 = 0;

/// Cycles of `noc_async_write_set_state` and its like (the first of 64 B transactions with state, against without).
const SET_STATE: f64 = 14.0;

/// Where transactions land: behind what is sent, aligned for any memory.
fn landing(bytes: u32) -> u32 {
    bytes.next_multiple_of(64)
}

async fn moves(api: Api, partners: Vec<CoreId>, pattern: Pattern, write: bool) {
    let Pattern { transactions, stateful, bytes, .. } = pattern;
    let to = landing(bytes);
    if stateful {
        // Registers are set for each partner.
        api.cycles(SET_STATE * partners.len() as f64).await;
    }
    for i in 0..transactions {
        let core = partners[i as usize % partners.len()];
        let verb = if write {
            Verb::NocAsyncWrite { from: FROM, to: Place::L1 { core, address: to }, bytes, stateful }
        } else {
            Verb::NocAsyncRead { from: Place::L1 { core, address: FROM }, to, bytes, stateful }
        };
        api.call(verb).await;
    }
    if write {
        api.noc_async_write_barrier().await
    } else {
        api.noc_async_read_barrier().await
    };
}

async fn multicasts(api: Api, area: Area, pattern: Pattern) {
    for _ in 0..pattern.transactions {
        api.noc_async_write_multicast(FROM, area, landing(pattern.bytes), pattern.bytes, false).await;
    }
    api.noc_async_write_barrier().await;
}

/// The program of a pattern.
///
/// # Errors
/// If the chip has not as many cores, or the pattern has no partners.
pub fn traffic(simulator: &Simulator, pattern: &Pattern) -> Result<Program, Error> {
    let spec = simulator.spec();
    let (columns, rows) = extent(spec);
    let mut program = Program::default();
    let mut launch = |core, body| {
        let name = "traffic".into();
        program.launches.push(Launch {
            core,
            role: Role::DataMovement0,
            noc: pattern.noc,
            name,
            kernel: body,
        });
    };
    if columns < 2 || rows < 2 || pattern.transactions == 0 || pattern.bytes == 0 {
        return Err(Error::Misused("a pattern needs 2 x 2 cores, transactions and bytes".into()));
    }
    let first = simulator.core(0, 0);
    let all: Vec<_> = (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y))).collect();
    let others = |own: (u16, u16)| -> Vec<CoreId> {
        all.iter().filter(|at| **at != own).map(|(x, y)| simulator.core(*x, *y)).collect()
    };
    let row = if pattern.multicast && pattern.loopback { 0 } else { 1 };
    if pattern.multicast {
        let (from, to) = match pattern.traffic {
            Traffic::OneToRow => ((0, row), (columns - 1, row)),
            Traffic::OneToAll => ((0, 0), (columns - 1, rows - 1)),
            other => return Err(Error::Unsupported(format!("{other:?} by multicast"))),
        };
        let place = |(x, y)| simulator.place(simulator.core(x, y));
        let area = Area { from: place(from), to: place(to), own: pattern.loopback };
        let pattern = *pattern;
        launch(first, kernel(move |api| multicasts(api, area, pattern)));
        return Ok(program);
    }
    let write = matches!(
        pattern.traffic,
        Traffic::OneToOne | Traffic::OneToRow | Traffic::OneToAll | Traffic::AllToAll
    );
    let senders: Vec<((u16, u16), Vec<CoreId>)> = match pattern.traffic {
        Traffic::OneToOne | Traffic::OneFromOne => {
            let partner = if pattern.same_axis { simulator.core(0, 1) } else { simulator.core(1, 1) };
            vec![((0, 0), vec![partner])]
        }
        Traffic::OneToRow => {
            let count = (pattern.partners as u16).clamp(1, columns);
            vec![((0, 0), (columns - count..columns).map(|x| simulator.core(x, row)).collect())]
        }
        Traffic::OneToAll | Traffic::OneFromAll => vec![((0, 0), others((0, 0)))],
        Traffic::AllToAll | Traffic::AllFromAll => all.iter().map(|at| (*at, others(*at))).collect(),
    };
    for ((x, y), partners) in senders {
        let pattern = *pattern;
        let core = simulator.core(x, y);
        // Nobody begins with the same partner as its neighbour.
        let turn = usize::from(core) % partners.len();
        let turned: Vec<_> = partners[turn..].iter().chain(&partners[..turn]).copied().collect();
        launch(core, kernel(move |api| moves(api, turned, pattern, write)));
    }
    Ok(program)
}

/// One measurement of DRAM: cores that read or write, and where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DramPattern {
    /// All in one channel, or each transaction in the next one.
    pub one_channel: bool,
    /// From cores to DRAM.
    pub write: bool,
    /// Cores that take part.
    pub cores: u32,
    /// Transactions of each core.
    pub transactions: u32,
    /// Bytes of a transaction.
    pub bytes: u32,
}

async fn streams(api: Api, buffer: u16, start: u32, pattern: DramPattern) {
    let DramPattern { transactions, bytes, write, .. } = pattern;
    for i in 0..transactions {
        let place = Place::Dram { buffer, page: start + i, offset: 0 };
        if write {
            api.call(Verb::NocAsyncWrite { from: FROM, to: place, bytes, stateful: true }).await;
        } else {
            let to = i % 16 * bytes.next_multiple_of(64);
            api.call(Verb::NocAsyncRead { from: place, to, bytes, stateful: true }).await;
        }
    }
    if write {
        api.noc_async_write_barrier().await
    } else {
        api.noc_async_read_barrier().await
    };
}

/// The program of a pattern of DRAM.
///
/// # Errors
/// If the chip has not as many cores.
pub fn dram(simulator: &mut Simulator, pattern: &DramPattern) -> Result<Program, Error> {
    let columns = simulator.spec().workers.x.len() as u32;
    if pattern.cores == 0 || pattern.cores as usize > simulator.spec().cores() {
        let has = simulator.spec().cores();
        return Err(Error::Misused(format!("{} readers, the chip has {has} cores", pattern.cores)));
    }
    let pages = pattern.cores * pattern.transactions;
    let buffer = simulator.buffer(pattern.bytes, pages, pattern.one_channel.then_some(0))?;
    let mut program = Program::default();
    for i in 0..pattern.cores {
        let core = simulator.core((i % columns) as u16, (i / columns) as u16);
        let pattern = *pattern;
        program.launches.push(Launch {
            core,
            role: Role::DataMovement0,
            noc: 0,
            name: "stream".into(),
            kernel: kernel(move |api| streams(api, buffer, i * pattern.transactions, pattern)),
        });
    }
    Ok(program)
}
