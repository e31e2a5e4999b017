//! Chips as data: what a chip has, how fast each part is, and where each figure comes from (`chips/*.toml`).

use serde::Deserialize;

use crate::error::Error;

/// Everything the machine knows about a chip. Cycles are of the chip's clock, rates are per cycle.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipSpec {
    /// What `pr.device("tensix:NAME")` calls it.
    pub name: String,
    /// The family: decides nothing by itself, reports and files of measurements name it.
    pub arch: String,
    /// Clock of cores and NoC, in GHz.
    pub clock_ghz: f64,
    /// Size of the NoC.
    pub grid: Grid,
    /// Where Tensix cores are.
    pub workers: Workers,
    /// A core's memory.
    pub l1: L1,
    /// Networks on chip.
    pub noc: Noc,
    /// What the RISC-V cores spend on calls of the kernel API.
    pub software: Software,
    /// Memory beside the mesh.
    pub dram: Dram,
    /// The matrix unit and its destination registers.
    pub matrix: Matrix,
    /// From L1 to the matrix unit.
    pub unpack: Unpack,
    /// From the destination registers to L1.
    pub pack: Pack,
    /// The way to the host.
    pub host: Host,
    /// What parts take, for estimates.
    pub energy: Energy,
    /// Links to other chips, where the board has some.
    pub ethernet: Option<Ethernet>,
}

/// Nodes of the NoC.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Columns, x.
    pub columns: u16,
    /// Rows, y.
    pub rows: u16,
}

/// Tensix cores: every x with every y, in this order; logical coordinates are positions in these lists.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    /// NoC columns.
    pub x: Vec<u16>,
    /// NoC rows.
    pub y: Vec<u16>,
    /// Logical columns and rows that products use when no grid is asked for.
    pub compute_grid: [u16; 2],
}

/// A core's memory.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L1 {
    /// Bytes that programs can use.
    pub bytes: u32,
    /// Bytes at its start that firmware and arguments take.
    pub reserved: u32,
    /// Source and destination of a NoC transfer agree modulo this.
    pub alignment: u32,
}

/// One of two equal networks: a torus of directed links with dimension-order routes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noc {
    /// Bytes a link moves in a cycle.
    pub flit_bytes: u32,
    /// Data flits in a packet at most; a header flit comes first.
    pub max_packet_flits: u32,
    /// From router to router.
    pub hop_cycles: f64,
    /// From a network interface into its router, and from a router into the interface.
    pub interface_cycles: f64,
    /// From the last flit of a write at its target to the acknowledgement's departure.
    pub write_turnaround_cycles: f64,
    /// From a read request at its target to the first flit's departure.
    pub read_turnaround_cycles: f64,
    /// Flits a cycle that an interface sends of a write's data.
    pub write_rate: f64,
    /// Flits a cycle that an interface sends of data that was asked for.
    pub read_rate: f64,
    /// A multicast reserves its path before it leaves: cycles for each hop around the rings it travels.
    pub multicast_reserve_hop_cycles: f64,
    /// Flits that a router buffers for each virtual channel of an input.
    pub buffer_flits: u32,
}

/// Cycles that a RISC-V core spends on a call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// `noc_async_read`, for each packet asked for.
    pub read: f64,
    /// The same with all registers but addresses set before (`noc_async_read_one_packet_with_state`).
    pub read_stateful: f64,
    /// `noc_async_write`, for each packet.
    pub write: f64,
    /// The same with state.
    pub write_stateful: f64,
    /// `noc_async_write_multicast`, for each packet.
    pub multicast: f64,
    /// Channel and address of a page of an interleaved buffer.
    pub page_address: f64,
    /// `noc_async_read_barrier` and `noc_async_write_barrier`, after the last reply.
    pub barrier: f64,
    /// `noc_semaphore_inc` of another core.
    pub semaphore_inc: f64,
    /// `noc_semaphore_set`.
    pub semaphore_set: f64,
    /// `noc_semaphore_wait`, after the value is there.
    pub semaphore_wait: f64,
    /// `cb_reserve_back`.
    pub cb_reserve: f64,
    /// `cb_push_back`.
    pub cb_push: f64,
    /// `cb_wait_front`.
    pub cb_wait: f64,
    /// `cb_pop_front`.
    pub cb_pop: f64,
    /// Acquire, commit, wait and release of destination registers.
    pub tile_regs: f64,
    /// Products wait until a multicast has left before they say that it is there.
    pub multicast_flush: bool,
    /// Load of a word from the core's own L1.
    pub l1_load: f64,
    /// Store of a word to the core's own L1.
    pub l1_store: f64,
}

/// Memory beside the mesh, behind NoC nodes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dram {
    /// NoC coordinates of each channel's endpoint.
    pub channels: Vec<[u16; 2]>,
    /// Bytes a cycle that a channel delivers.
    pub read_bytes_per_cycle: f64,
    /// Bytes a cycle that a channel takes.
    pub write_bytes_per_cycle: f64,
    /// From a request at the endpoint to its first byte.
    pub latency_cycles: f64,
    /// Bytes of requests that a channel takes before it holds the network up.
    pub queue_bytes: u32,
    /// Addresses of transfers are multiples of this.
    pub alignment: u32,
    /// Bytes of a channel.
    pub channel_bytes: u64,
    /// Published bandwidth of all channels, in GB/s.
    pub nominal_gb_per_s: f64,
}

/// The matrix unit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// MVMUL instructions of a product of two tiles in one fidelity phase, a cycle each.
    pub tile_cycles: f64,
    /// Cycles that start a phase.
    pub phase_cycles: f64,
    /// Cycles that end a product of two tiles.
    pub product_cycles: f64,
    /// From a product's last instruction to its operands' registers being free.
    pub latency_cycles: f64,
    /// Tiles that half of the destination registers hold, with 16 bits a value; 32-bit values take two places.
    pub dst_tiles: u32,
    /// A tile from a source register to the destination.
    pub copy_cycles: f64,
    /// Element-wise operation on a tile by the vector unit.
    pub vector_cycles: f64,
    /// Formats of tiles that the chip knows.
    pub formats: Vec<String>,
}

/// Unpackers: one for each source register of the matrix unit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpack {
    /// Bytes a cycle of one unpacker while the other one rests.
    pub bytes_per_cycle: f64,
    /// Bytes a cycle of both together.
    pub joint_bytes_per_cycle: f64,
    /// Two tiles of the held operand are used with each tile of the other one.
    pub pairs: bool,
}

/// Packers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// Bytes a cycle written to L1.
    pub bytes_per_cycle: f64,
    /// The same while they add to what L1 holds.
    pub accumulate_bytes_per_cycle: f64,
    /// Cycles that start a tile.
    pub tile_cycles: f64,
}

/// The way to the host, by PCIe.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// From a core that tells the host something to its having the answer, beside what the bytes take.
    pub round_trip_us: f64,
    /// Bytes, in 10^9 a second, either way.
    pub gb_per_s: f64,
}

/// Energy that parts take, in picojoules: estimates.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Energy {
    /// A product of two tiles with the phases of LoFi, HiFi2, HiFi3 and HiFi4.
    pub product_pj: [f64; 4],
    /// A byte read from or written to a core's L1.
    pub l1_pj_per_byte: f64,
    /// A byte on a link between routers.
    pub noc_pj_per_byte_hop: f64,
    /// A byte to or from DRAM.
    pub dram_pj_per_byte: f64,
    /// Power of the chip whatever it does.
    pub static_watts: f64,
}

/// Links to other chips of a mesh, each from one Ethernet tile to another. Times are of the wall clock.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ethernet {
    /// NoC coordinates of the tiles whose links lead to the chip before in a row of chips: link i of it is connected
    /// with link i of that chip's `east`. Empty where the board has none.
    pub west: Vec<[u16; 2]>,
    /// The same of links to the next chip of a row.
    pub east: Vec<[u16; 2]>,
    /// The same of links to the chip before in a column of chips, which has them in `south`.
    pub north: Vec<[u16; 2]>,
    /// The same of links to the next chip of a column.
    pub south: Vec<[u16; 2]>,
    /// Bytes of a link, in 10^9 a second each way; what a wire's packets carry beside data takes its part.
    pub gb_per_s: f64,
    /// Bytes of data in a packet on the wire at most.
    pub payload_bytes: u32,
    /// Bytes that each packet on the wire has beside its data.
    pub overhead_bytes: u32,
    /// Bytes of data that a tile is given, and sends, at once; the wire cuts them up.
    pub packet_bytes: u32,
    /// Bytes that tell tiles where a packet goes: they travel over the NoC with its data.
    pub header_bytes: u32,
    /// Nanoseconds between two packets that a tile sends: the work of its RISC-V core.
    pub packet_ns: f64,
    /// Nanoseconds from a packet's being in a tile to its being in the next one, beside its time on the wire.
    pub latency_ns: f64,
    /// Bytes of packets that a tile has room for: of its own chip's, of those that pass through, and of those that
    /// came by its link, so many each.
    pub buffer_bytes: u32,
    /// A byte on a link, in picojoules: for estimates.
    pub pj_per_byte: f64,
}

const SHIPPED: [(&str, &str); 5] = [
    ("n150", include_str!("../chips/n150.toml")),
    ("n300", include_str!("../chips/n300.toml")),
    ("p150", include_str!("../chips/p150.toml")),
    ("p100", include_str!("../chips/p100.toml")),
    ("e150", include_str!("../chips/e150.toml")),
];

impl ChipSpec {
    /// Names of the chips that come with the package.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// The text of a shipped chip.
    ///
    /// # Errors
    /// If there is no chip of that name.
    pub fn text(name: &str) -> Result<&'static str, Error> {
        SHIPPED.iter().find(|(known, _)| *known == name).map(|(_, text)| *text).ok_or_else(|| {
            let known: Vec<_> = Self::names().collect();
            Error::Spec(format!("no chip {name:?}: there are {}", known.join(", ")))
        })
    }

    /// A shipped chip.
    ///
    /// # Errors
    /// If there is no chip of that name.
    pub fn named(name: &str) -> Result<Self, Error> {
        Self::parse(Self::text(name)?)
    }

    /// A chip from TOML with all its fields.
    ///
    /// # Errors
    /// If the text is no such description, or its figures contradict each other.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let spec: Self = toml::from_str(text).map_err(|error| Error::Spec(error.to_string()))?;
        spec.check()?;
        Ok(spec)
    }

    /// Number of Tensix cores.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.workers.x.len() * self.workers.y.len()
    }

    /// Bytes of data that a packet carries at most.
    #[must_use]
    pub fn packet_bytes(&self) -> u32 {
        self.noc.flit_bytes * self.noc.max_packet_flits
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Spec(format!("chip {:?}: {what}", self.name)));
        let (columns, rows) = (self.grid.columns, self.grid.rows);
        if columns == 0 || rows == 0 || u32::from(columns) * u32::from(rows) > 4096 {
            return wrong(format!("a grid has 1 to 4096 nodes, got {columns} x {rows}"));
        }
        for (axis, places, end) in [("x", &self.workers.x, columns), ("y", &self.workers.y, rows)] {
            if places.is_empty() || places.windows(2).any(|two| two[0] >= two[1]) {
                return wrong(format!("workers.{axis} must be ascending and not empty, got {places:?}"));
            }
            if let Some(outside) = places.iter().find(|at| **at >= end) {
                return wrong(format!("workers.{axis} has {outside}, the grid ends at {}", end - 1));
            }
        }
        let [across, down] = self.workers.compute_grid;
        if across == 0
            || down == 0
            || usize::from(across) > self.workers.x.len()
            || usize::from(down) > self.workers.y.len()
        {
            let all = (self.workers.x.len(), self.workers.y.len());
            return wrong(format!(
                "workers.compute_grid {across} x {down} is not within the {all:?} workers"
            ));
        }
        if self.dram.channels.is_empty() {
            return wrong("dram.channels is empty".into());
        }
        for [x, y] in &self.dram.channels {
            if *x >= columns || *y >= rows {
                return wrong(format!(
                    "dram.channels has ({x}, {y}), outside of the {columns} x {rows} grid"
                ));
            }
            if self.dram.channels.iter().filter(|at| **at == [*x, *y]).count() > 1 {
                return wrong(format!("dram.channels has ({x}, {y}) twice"));
            }
            if self.workers.x.contains(x) && self.workers.y.contains(y) {
                return wrong(format!("dram.channels has ({x}, {y}), where a worker is"));
            }
        }
        self.check_figures()?;
        self.ethernet.as_ref().map_or(Ok(()), |ethernet| ethernet.check(self))
    }

    fn check_figures(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Spec(format!("chip {:?}: {what}", self.name)));
        let positive = [
            ("clock_ghz", self.clock_ghz),
            ("noc.write_rate", self.noc.write_rate),
            ("noc.read_rate", self.noc.read_rate),
            ("dram.read_bytes_per_cycle", self.dram.read_bytes_per_cycle),
            ("dram.write_bytes_per_cycle", self.dram.write_bytes_per_cycle),
            ("dram.nominal_gb_per_s", self.dram.nominal_gb_per_s),
            ("matrix.tile_cycles", self.matrix.tile_cycles),
            ("unpack.bytes_per_cycle", self.unpack.bytes_per_cycle),
            ("unpack.joint_bytes_per_cycle", self.unpack.joint_bytes_per_cycle),
            ("pack.bytes_per_cycle", self.pack.bytes_per_cycle),
            ("pack.accumulate_bytes_per_cycle", self.pack.accumulate_bytes_per_cycle),
            ("host.gb_per_s", self.host.gb_per_s),
        ];
        if let Some((name, value)) = positive.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return wrong(format!("{name} must be positive, got {value}"));
        }
        let software = &self.software;
        let counted = [
            ("noc.hop_cycles", self.noc.hop_cycles),
            ("noc.interface_cycles", self.noc.interface_cycles),
            ("noc.write_turnaround_cycles", self.noc.write_turnaround_cycles),
            ("noc.read_turnaround_cycles", self.noc.read_turnaround_cycles),
            ("noc.multicast_reserve_hop_cycles", self.noc.multicast_reserve_hop_cycles),
            ("dram.latency_cycles", self.dram.latency_cycles),
            ("matrix.phase_cycles", self.matrix.phase_cycles),
            ("matrix.product_cycles", self.matrix.product_cycles),
            ("matrix.latency_cycles", self.matrix.latency_cycles),
            ("matrix.copy_cycles", self.matrix.copy_cycles),
            ("matrix.vector_cycles", self.matrix.vector_cycles),
            ("pack.tile_cycles", self.pack.tile_cycles),
            ("host.round_trip_us", self.host.round_trip_us),
            ("software.read", software.read),
            ("software.read_stateful", software.read_stateful),
            ("software.write", software.write),
            ("software.write_stateful", software.write_stateful),
            ("software.multicast", software.multicast),
            ("software.page_address", software.page_address),
            ("software.barrier", software.barrier),
            ("software.semaphore_inc", software.semaphore_inc),
            ("software.semaphore_set", software.semaphore_set),
            ("software.semaphore_wait", software.semaphore_wait),
            ("software.cb_reserve", software.cb_reserve),
            ("software.cb_push", software.cb_push),
            ("software.cb_wait", software.cb_wait),
            ("software.cb_pop", software.cb_pop),
            ("software.tile_regs", software.tile_regs),
            ("software.l1_load", software.l1_load),
            ("software.l1_store", software.l1_store),
            ("energy.product_pj", self.energy.product_pj[0]),
            ("energy.product_pj", self.energy.product_pj[1]),
            ("energy.product_pj", self.energy.product_pj[2]),
            ("energy.product_pj", self.energy.product_pj[3]),
            ("energy.l1_pj_per_byte", self.energy.l1_pj_per_byte),
            ("energy.noc_pj_per_byte_hop", self.energy.noc_pj_per_byte_hop),
            ("energy.dram_pj_per_byte", self.energy.dram_pj_per_byte),
            ("energy.static_watts", self.energy.static_watts),
        ];
        if let Some((name, value)) = counted.iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return wrong(format!("{name} must not be negative, got {value}"));
        }
        for (name, value) in [("noc.write_rate", self.noc.write_rate), ("noc.read_rate", self.noc.read_rate)]
        {
            if value > 1.0 {
                return wrong(format!("{name} is {value} flits a cycle, a link moves one"));
            }
        }
        if self.unpack.bytes_per_cycle > self.unpack.joint_bytes_per_cycle {
            return wrong(format!(
                "one unpacker moves {} B a cycle and both together only {}",
                self.unpack.bytes_per_cycle, self.unpack.joint_bytes_per_cycle
            ));
        }
        let total = self.dram.read_bytes_per_cycle * self.dram.channels.len() as f64 * self.clock_ghz;
        if total > 1.02 * self.dram.nominal_gb_per_s {
            return wrong(format!(
                "{} channels of {} B a cycle are {total:.1} GB/s, more than dram.nominal_gb_per_s = {}",
                self.dram.channels.len(),
                self.dram.read_bytes_per_cycle,
                self.dram.nominal_gb_per_s
            ));
        }
        if let Some((name, value)) = counted.iter().find(|(_, v)| *v > 1e9) {
            return wrong(format!("{name} is {value}, more than any part takes"));
        }
        if u64::from(self.noc.flit_bytes) * u64::from(self.noc.max_packet_flits) > 1 << 24 {
            return wrong("a packet of noc.max_packet_flits flits has more than 16 MiB".into());
        }
        if self.dram.channel_bytes == 0 || self.dram.channel_bytes > 1 << 48 {
            return wrong(format!("dram.channel_bytes must be 1 to 2^48, got {}", self.dram.channel_bytes));
        }
        if self.l1.bytes > 1 << 28 {
            return wrong(format!("l1.bytes must be at most 2^28, got {}", self.l1.bytes));
        }
        if self.l1.reserved >= self.l1.bytes {
            return wrong(format!("l1.reserved {} leaves nothing of {} B", self.l1.reserved, self.l1.bytes));
        }
        for (name, value) in [("l1.alignment", self.l1.alignment), ("dram.alignment", self.dram.alignment)] {
            if !value.is_power_of_two() {
                return wrong(format!("{name} must be a power of two, got {value}"));
            }
        }
        let counts = [
            ("noc.flit_bytes", self.noc.flit_bytes),
            ("noc.max_packet_flits", self.noc.max_packet_flits),
            ("noc.buffer_flits", self.noc.buffer_flits),
            ("matrix.dst_tiles", self.matrix.dst_tiles),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, v)| *v == 0 || *v > 1 << 20) {
            return wrong(format!("{name} must be 1 to 1048576"));
        }
        if let Some(format) =
            self.matrix.formats.iter().find(|f| crate::numerics::Format::from_name(f).is_none())
        {
            return wrong(format!("matrix.formats has {format:?}, which no tile has"));
        }
        Ok(())
    }
}
