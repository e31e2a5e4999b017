//! Several chips in a mesh: which there are, which way leads from one to another, and over which tiles.
//!
//! Chips lie in rows and columns, lines without an end that meets the beginning. What goes to another chip first goes
//! along its column and then along the row, as Tenstorrent's fabric has it
//! (tenstorrent/tt-metal:tt_metal/fabric/routing_table_generator.cpp): no ring of chips can wait for itself.

use crate::chip::{ChipSpec, Ethernet};
use crate::error::Error;
use crate::verbs::CoreId;

/// Number of a chip in its mesh: `row * columns + column`.
pub type ChipId = u16;

/// Chips at most: nodes of all of them have numbers of 16 bits.
const MOST: usize = 1 << 16;

/// Which neighbour of a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    West = 0,
    East = 1,
    North = 2,
    South = 3,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::West, Self::East, Self::North, Self::South];

    /// The way back.
    pub(crate) fn opposite(self) -> Self {
        match self {
            Self::West => Self::East,
            Self::East => Self::West,
            Self::North => Self::South,
            Self::South => Self::North,
        }
    }
}

impl Ethernet {
    /// The tiles whose links lead one way.
    pub(crate) fn tiles(&self, way: Way) -> &[[u16; 2]] {
        match way {
            Way::West => &self.west,
            Way::East => &self.east,
            Way::North => &self.north,
            Way::South => &self.south,
        }
    }

    pub(crate) fn check(&self, spec: &ChipSpec) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Spec(format!("chip {:?}: {what}", spec.name)));
        for (one, other, a, b) in
            [("west", "east", &self.west, &self.east), ("north", "south", &self.north, &self.south)]
        {
            if a.len() != b.len() || a.len() > 16 {
                return wrong(format!(
                    "ethernet.{one} has {} tiles and ethernet.{other} {}: as many, up to 16",
                    a.len(),
                    b.len()
                ));
            }
        }
        let all: Vec<_> = Way::ALL.into_iter().flat_map(|way| self.tiles(way)).collect();
        if all.is_empty() {
            return wrong("ethernet has no tiles: leave it out".into());
        }
        for [x, y] in &all {
            if *x >= spec.grid.columns || *y >= spec.grid.rows {
                let (columns, rows) = (spec.grid.columns, spec.grid.rows);
                return wrong(format!(
                    "ethernet has a tile at ({x}, {y}), outside of the {columns} x {rows} grid"
                ));
            }
            if all.iter().filter(|at| ***at == [*x, *y]).count() > 1 {
                return wrong(format!("ethernet has the tile ({x}, {y}) twice"));
            }
            if spec.workers.x.contains(x) && spec.workers.y.contains(y) {
                return wrong(format!("ethernet has a tile at ({x}, {y}), where a worker is"));
            }
            if spec.dram.channels.contains(&[*x, *y]) {
                return wrong(format!("ethernet has a tile at ({x}, {y}), where a channel of DRAM is"));
            }
        }
        if !(self.gb_per_s.is_finite() && self.gb_per_s > 0.0) {
            return wrong(format!("ethernet.gb_per_s must be positive, got {}", self.gb_per_s));
        }
        let times = [
            ("packet_ns", self.packet_ns),
            ("latency_ns", self.latency_ns),
            ("pj_per_byte", self.pj_per_byte),
        ];
        if let Some((name, value)) = times.iter().find(|(_, v)| !(v.is_finite() && (0.0..=1e9).contains(v))) {
            return wrong(format!("ethernet.{name} must be 0 to 1e9, got {value}"));
        }
        if self.payload_bytes == 0 || self.overhead_bytes > 1 << 20 {
            return wrong(format!(
                "ethernet.payload_bytes must be positive and ethernet.overhead_bytes at most 2^20, got {} and {}",
                self.payload_bytes, self.overhead_bytes
            ));
        }
        let (packet, header) = (self.packet_bytes, self.header_bytes);
        let unit = spec.l1.alignment.max(spec.dram.alignment);
        if packet == 0
            || packet % unit != 0
            || u64::from(packet) + u64::from(header) > u64::from(spec.packet_bytes())
        {
            return wrong(format!(
                "ethernet.packet_bytes {packet} must be a multiple of {unit}, and with its header of {header} B at most \
                 the {} B of a packet of the NoC",
                spec.packet_bytes()
            ));
        }
        // A packet of the NoC that has less is one of those that slip past others.
        if header < 8 {
            return wrong(format!("ethernet.header_bytes must be at least 8, got {header}"));
        }
        if self.buffer_bytes < packet || self.buffer_bytes > 1 << 28 {
            return wrong(format!(
                "ethernet.buffer_bytes {} must be at least a packet of {packet} B, and at most 2^28",
                self.buffer_bytes
            ));
        }
        Ok(())
    }
}

/// Chips in rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    rows: u16,
    columns: u16,
}

impl Mesh {
    /// A chip alone.
    pub const ONE: Self = Self { rows: 1, columns: 1 };

    /// Chips of a kind in so many rows and columns.
    ///
    /// # Errors
    /// If there are none, more than their nodes have numbers for, or the board has no links that way.
    pub fn new(spec: &ChipSpec, rows: u16, columns: u16) -> Result<Self, Error> {
        let chips = usize::from(rows) * usize::from(columns);
        if chips == 0 {
            return Err(Error::Misused(format!("a mesh of {rows} x {columns} chips: each is at least 1")));
        }
        let nodes = usize::from(spec.grid.columns) * usize::from(spec.grid.rows);
        if chips * nodes >= MOST {
            return Err(Error::Misused(format!(
                "a mesh of {rows} x {columns} chips with {nodes} nodes each: up to {} chips of {} can be simulated",
                (MOST - 1) / nodes,
                spec.name
            )));
        }
        let mesh = Self { rows, columns };
        if chips == 1 {
            return Ok(mesh);
        }
        let Some(ethernet) = &spec.ethernet else {
            return Err(Error::Unsupported(format!(
                "a mesh of {rows} x {columns} chips: {} has no Ethernet links to other chips",
                spec.name
            )));
        };
        for (length, tiles, axis) in [(columns, &ethernet.east, "rows"), (rows, &ethernet.south, "columns")] {
            if length > 1 && tiles.is_empty() {
                return Err(Error::Unsupported(format!(
                    "a mesh of {rows} x {columns} chips: {} has no links along {axis} of chips",
                    spec.name
                )));
            }
        }
        Ok(mesh)
    }

    /// Rows of chips.
    #[must_use]
    pub fn rows(&self) -> u16 {
        self.rows
    }

    /// Chips in a row.
    #[must_use]
    pub fn columns(&self) -> u16 {
        self.columns
    }

    /// How many chips there are.
    #[must_use]
    pub fn chips(&self) -> u16 {
        self.rows * self.columns
    }

    /// Row and column of a chip.
    #[must_use]
    pub fn place(&self, chip: ChipId) -> (u16, u16) {
        (chip / self.columns, chip % self.columns)
    }

    /// The number of the chip in a row and column.
    ///
    /// # Errors
    /// If there is none.
    pub fn chip(&self, row: u32, column: u32) -> Result<ChipId, Error> {
        if row >= u32::from(self.rows) || column >= u32::from(self.columns) {
            return Err(Error::Misused(format!(
                "chip ({row}, {column}): the mesh has {} x {}",
                self.rows, self.columns
            )));
        }
        Ok(row as u16 * self.columns + column as u16)
    }

    /// The first step from a chip to another one.
    pub(crate) fn way(&self, from: ChipId, to: ChipId) -> Option<Way> {
        let ((row, column), (end, last)) = (self.place(from), self.place(to));
        match (row.cmp(&end), column.cmp(&last)) {
            (std::cmp::Ordering::Greater, _) => Some(Way::North),
            (std::cmp::Ordering::Less, _) => Some(Way::South),
            (_, std::cmp::Ordering::Less) => Some(Way::East),
            (_, std::cmp::Ordering::Greater) => Some(Way::West),
            _ => None,
        }
    }

    /// The neighbour of a chip.
    pub(crate) fn next(&self, chip: ChipId, way: Way) -> Option<ChipId> {
        let (row, column) = self.place(chip);
        let there = match way {
            Way::West => column.checked_sub(1).map(|column| (row, column)),
            Way::East => Some((row, column + 1)).filter(|(_, column)| *column < self.columns),
            Way::North => row.checked_sub(1).map(|row| (row, column)),
            Way::South => Some((row + 1, column)).filter(|(row, _)| *row < self.rows),
        };
        there.map(|(row, column)| row * self.columns + column)
    }

    /// The chip of a core whose number counts over all chips, and its number there.
    pub(crate) fn split(spec: &ChipSpec, core: CoreId) -> (ChipId, CoreId) {
        let each = spec.cores() as CoreId;
        (core / each, core % each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_lead_to_every_chip_along_its_column_first() {
        let mesh = Mesh { rows: 3, columns: 4 };
        for from in 0..12 {
            for to in 0..12 {
                let (mut at, mut steps, mut turned) = (from, 0, false);
                while let Some(way) = mesh.way(at, to) {
                    let along_row = matches!(way, Way::West | Way::East);
                    assert!(
                        along_row || !turned,
                        "a column after a row: rings of chips could wait for themselves"
                    );
                    turned |= along_row;
                    let next = mesh.next(at, way).expect("within the mesh");
                    assert_eq!(mesh.next(next, way.opposite()), Some(at));
                    (at, steps) = (next, steps + 1);
                }
                let ((a, b), (c, d)) = (mesh.place(from), mesh.place(to));
                assert_eq!((at, steps), (to, a.abs_diff(c) + b.abs_diff(d)));
            }
        }
    }

    #[test]
    fn boards_without_links_are_refused_by_name() {
        for (name, rows, columns, what) in [
            ("e150", 1, 2, "e150 has no Ethernet"),
            ("p100", 2, 2, "p100 has no Ethernet"),
            ("n150", 2, 2, "n150 has no links along columns"),
            ("n300", 0, 2, "each is at least 1"),
            ("p150", 100, 100, "can be simulated"),
        ] {
            let spec = ChipSpec::named(name).expect("shipped");
            let error = Mesh::new(&spec, rows, columns).expect_err(name).to_string();
            assert!(error.contains(what), "{error}");
        }
        for (name, rows, columns) in [("n150", 1, 3), ("n300", 4, 8), ("p150", 2, 4), ("e150", 1, 1)] {
            assert!(Mesh::new(&ChipSpec::named(name).expect("shipped"), rows, columns).is_ok());
        }
    }
}
