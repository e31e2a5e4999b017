//! Traffic patterns of published measurements of the networks and of DRAM, as programs.
//!
//! Who moves what in which order is that of the programs that were measured
//! (tenstorrent/tt-metal: tests/tt_metal/tt_metal/data_movement/noc_estimator_tests).

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
    /// All cores write to all cores, themselves included.
    AllToAll,
    /// All cores read from all cores, themselves included.
    AllFromAll,
    /// The cores of a row write to all of them.
    RowToRow,
    /// A core writes to a column of others.
    OneToColumn,
    /// The cores of a column write to all of them.
    ColumnToColumn,
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
            "ROW_TO_ROW" => Self::RowToRow,
            "ONE_TO_COLUMN" => Self::OneToColumn,
            "COLUMN_TO_COLUMN" => Self::ColumnToColumn,
            _ => return None,
        })
    }

    fn reads(self) -> bool {
        matches!(self, Self::OneFromOne | Self::OneFromAll | Self::AllFromAll)
    }

    /// Every core of the target area sends.
    fn many(self) -> bool {
        matches!(self, Self::AllToAll | Self::AllFromAll | Self::RowToRow | Self::ColumnToColumn)
    }
}

/// One measurement of traffic from L1 to L1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pattern {
    /// Who with whom.
    pub traffic: Traffic,
    /// By multicast, where the pattern writes.
    pub multicast: bool,
    /// Multicasts that keep their path until the last of them.
    pub linked: bool,
    /// Transactions of a core, over all its partners.
    pub transactions: u32,
    /// Partners of a core, whether or not it is itself among them ([`targets`]); 0 where all are meant.
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

/// Columns and rows of cores that took part in the measurements (tt_metal/impl/experimental/noc_estimator), or all where
/// a pattern asks for more.
fn extent(spec: &ChipSpec, pattern: &Pattern) -> (u16, u16) {
    let (columns, rows) = (spec.workers.x.len() as u16, spec.workers.y.len() as u16);
    let measured = measured(spec);
    if pattern.partners > cells(area(pattern.traffic, measured)) { (columns, rows) } else { measured }
}

fn measured(spec: &ChipSpec) -> (u16, u16) {
    let (columns, rows) = (spec.workers.x.len() as u16, spec.workers.y.len() as u16);
    if spec.arch == "wormhole_b0" { (8.min(columns), 7.min(rows)) } else { (11.min(columns), 10.min(rows)) }
}

const FROM: u32 = 0;

/// Cycles of `noc_async_write_set_state` and its like (the first of 64 B transactions with state, against without).
const SET_STATE: f64 = 14.0;

/// Cycles until the next partner's coordinates are loaded and unpacked (noc_calibration: patterns with several partners
/// whose transactions are bound by their issue take 18 to 27 cycles a partner more).
const NEXT_PARTNER: f64 = 21.0;

/// Where transactions land: behind what is sent, aligned for any memory.
fn landing(bytes: u32) -> u32 {
    bytes.next_multiple_of(64)
}

async fn moves(api: Api, partners: Vec<CoreId>, pattern: Pattern) {
    let Pattern { traffic, transactions, stateful, bytes, .. } = pattern;
    let to = landing(bytes);
    let mut done = 0;
    for (i, core) in (1..).zip(&partners) {
        let core = *core;
        let several = if partners.len() > 1 { NEXT_PARTNER } else { 0.0 };
        api.cycles(several + if stateful { SET_STATE } else { 0.0 }).await;
        // One partner after the other: what is for all of them is divided by their number.
        let until = (u64::from(transactions) * i / partners.len() as u64) as u32;
        for _ in done..until {
            let verb = if traffic.reads() {
                Verb::NocAsyncRead { from: Place::L1 { core, address: FROM }, to, bytes, stateful }
            } else {
                Verb::NocAsyncWrite { from: FROM, to: Place::L1 { core, address: to }, bytes, stateful }
            };
            api.call(verb).await;
        }
        done = until;
    }
    if traffic.reads() {
        api.noc_async_read_barrier().await
    } else {
        api.noc_async_write_barrier().await
    };
}

async fn multicasts(api: Api, area: Area, pattern: Pattern) {
    for i in 1..=pattern.transactions {
        let linked = pattern.linked && i < pattern.transactions;
        api.noc_async_write_multicast(FROM, area, landing(pattern.bytes), pattern.bytes, linked).await;
    }
    api.noc_async_write_barrier().await;
}

/// The cores that take part, which lie from the first one on.
enum Targets {
    /// So many columns and rows.
    Area(u16, u16),
    /// So many, row by row of all.
    First(u32),
}

/// Columns and rows of all that can be partners.
fn area(traffic: Traffic, (columns, rows): (u16, u16)) -> (u16, u16) {
    match traffic {
        Traffic::OneToOne | Traffic::OneFromOne => (1, 1),
        Traffic::OneToRow | Traffic::RowToRow => (columns, 1),
        Traffic::OneToColumn | Traffic::ColumnToColumn => (1, rows),
        _ => (columns, rows),
    }
}

fn cells((across, down): (u16, u16)) -> u32 {
    u32::from(across) * u32::from(down)
}

/// Where partners lie. Files count them with the core itself or without it, so all of a row, a column or all cores may be
/// one fewer. Square numbers lie in squares.
fn targets(pattern: &Pattern, (columns, rows): (u16, u16)) -> Result<Targets, Error> {
    let Pattern { traffic, multicast, partners, .. } = *pattern;
    let (across, down) = area(traffic, (columns, rows));
    let all = cells((across, down));
    if partners > all {
        return Err(Error::Misused(format!("{traffic:?} with {partners} partners: there is room for {all}")));
    }
    if partners == 0 || partners + 1 >= all {
        return Ok(Targets::Area(across, down));
    }
    let square = |of: u32| of.isqrt() * of.isqrt() == of && of.isqrt() <= u32::from(columns.min(rows));
    if across > 1 && down > 1 {
        let cores = [partners, partners + u32::from(multicast)].into_iter().find(|cores| square(*cores));
        if let Some(side) = cores.map(|cores| cores.isqrt() as u16) {
            return Ok(Targets::Area(side, side));
        }
    }
    // Fewer than all of a line: those who write or read alone are one more.
    let few = (partners + u32::from(!multicast && !traffic.many())) as u16;
    match (across, down) {
        (_, 1) => Ok(Targets::Area(few, 1)),
        (1, _) => Ok(Targets::Area(1, few)),
        _ if multicast => Err(Error::Unsupported(format!(
            "{traffic:?} by multicast with {partners} partners: expected all {all}, or as many as a square has"
        ))),
        _ => Ok(Targets::First(u32::from(few))),
    }
}

/// The program of a pattern.
///
/// # Errors
/// If the chip has not as many cores, or there is no such pattern.
pub fn traffic(simulator: &Simulator, pattern: &Pattern) -> Result<Program, Error> {
    let (columns, rows) = extent(simulator.spec(), pattern);
    if columns < 2 || rows < 2 || pattern.transactions == 0 || pattern.bytes == 0 {
        return Err(Error::Misused("a pattern needs 2 x 2 cores, transactions and bytes".into()));
    }
    let pattern = *pattern;
    let targets = targets(&pattern, (columns, rows))?;
    let (across, down, whole) = match targets {
        Targets::Area(across, down) => (across, down, (across, down) == (columns, rows)),
        // Who is alone is the first of them.
        Targets::First(_) => (columns, rows, true),
    };
    let cores = || -> Vec<(u16, u16)> {
        match targets {
            Targets::Area(..) => (0..across).flat_map(|x| (0..down).map(move |y| (x, y))).collect(),
            Targets::First(count) => {
                (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y))).take(count as usize).collect()
            }
        }
    };
    // A single sender is the first core, or, where it is none of the targets, the next one beside them.
    let outside = match pattern.traffic {
        Traffic::OneToRow => (0, 1),
        Traffic::OneToAll | Traffic::OneToColumn if across < columns => (across, 0),
        _ => (0, 0),
    };
    let mut program = Program::default();
    let mut launch = |(x, y): (u16, u16), body| {
        let (core, role, name) = (simulator.core(x, y), Role::DataMovement0, "traffic".into());
        program.launches.push(Launch { core, role, noc: pattern.noc, name, kernel: body });
    };
    if pattern.multicast {
        if pattern.traffic.reads()
            || pattern.traffic == Traffic::OneToOne
            || pattern.traffic == Traffic::AllToAll
        {
            return Err(Error::Unsupported(format!("{:?} by multicast", pattern.traffic)));
        }
        let place = |x, y| simulator.place(simulator.core(x, y));
        let area = Area { from: place(0, 0), to: place(across - 1, down - 1), own: pattern.loopback };
        let single = [if pattern.loopback { (0, 0) } else { outside }];
        let senders: Vec<_> = if pattern.traffic.many() { cores() } else { single.to_vec() };
        for at in senders {
            launch(at, kernel(move |api| multicasts(api, area, pattern)));
        }
        return Ok(program);
    }
    let number = |(x, y)| simulator.core(x, y);
    match pattern.traffic {
        Traffic::OneToOne | Traffic::OneFromOne => {
            let partner = if pattern.same_axis { (0, 1) } else { (1, 1) };
            launch((0, 0), kernel(move |api| moves(api, vec![number(partner)], pattern)));
        }
        one if !one.many() => {
            let squared = matches!(one, Traffic::OneToAll | Traffic::OneFromAll) && !whole;
            let at = if squared { outside } else { (0, 0) };
            let partners = cores().into_iter().filter(|core| *core != at).map(number).collect();
            launch(at, kernel(move |api| moves(api, partners, pattern)));
        }
        _ => {
            for at in cores() {
                let partners = cores().into_iter().map(number).collect();
                launch(at, kernel(move |api| moves(api, partners, pattern)));
            }
        }
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

async fn streams(api: Api, buffer: u16, core: u32, slots: u32, pattern: DramPattern) {
    let DramPattern { transactions, bytes, write, .. } = pattern;
    for i in 0..transactions {
        // Each core begins one page further, so that they do not all ask the same channel first.
        let page = core * transactions + (i + core) % transactions;
        let place = Place::Dram { buffer, page, offset: 0 };
        if write {
            api.call(Verb::NocAsyncWrite { from: FROM, to: place, bytes, stateful: true }).await;
        } else {
            let to = i % slots * bytes.next_multiple_of(64);
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
    // What is read lands in turn in as many places as L1 has room for.
    let room = u64::from(simulator.spec().l1.bytes) / u64::from(pattern.bytes).next_multiple_of(64);
    let slots = room.clamp(1, 16) as u32;
    let mut program = Program::default();
    for i in 0..pattern.cores {
        let core = simulator.core((i % columns) as u16, (i / columns) as u16);
        let pattern = *pattern;
        program.launches.push(Launch {
            core,
            role: Role::DataMovement0,
            noc: 0,
            name: "stream".into(),
            kernel: kernel(move |api| streams(api, buffer, i, slots, pattern)),
        });
    }
    Ok(program)
}
