//! The values of one core, and what is done to them.
//!
//! A value never steers time, but for the words that kernels load. So the machine checks each step when its time comes,
//! and only notes what it does to values; [`Pool`](super::pool::Pool) has that done later, for each core in order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use crate::memory;
use crate::numerics::{
    Accumulate, Error, Fidelity, Format, SrcA, SrcB, SrcInt8, Tile, decode_tile, encode_tile, matmul_block,
    matmul_block_i8,
};

pub(super) const EMPTY: Tile = [0.0; 1024];

/// The most bytes that a tile has.
const TILE_BYTES: u32 = 4096;

/// A tile in a core's L1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    /// The circular buffer that it is in.
    pub(super) cb: u8,
    pub(super) format: Format,
    pub(super) address: u32,
}

impl Source {
    fn key(self) -> (u32, u8) {
        (self.address, self.cb)
    }
}

/// Tiles of one circular buffer, so many bytes apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    pub(super) first: Source,
    pub(super) step: u32,
    pub(super) count: u32,
}

impl Tiles {
    fn each(self) -> impl Iterator<Item = Source> {
        let Source { cb, format, address } = self.first;
        (0..self.count).map(move |i| Source { cb, format, address: address + i * self.step })
    }
}

/// Where a tile is in the destination registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Register {
    pub(super) half: usize,
    pub(super) tile: u32,
}

/// What a step does to tiles.
type Work = Box<dyn FnOnce(&mut Values) -> Result<(), Error> + Send>;

/// Something that is done to the values of a core. All that could be wrong with it has been checked.
pub(super) enum Op {
    /// Bytes arrive in L1.
    Put { address: u32, data: Arc<Block> },
    /// A half of the destination registers, of so many tiles, begins with zeros.
    Clear { half: usize, tiles: u32 },
    /// What was made ready from a circular buffer is not used again.
    Drop { cb: u8 },
    /// A block of products.
    Multiply { in0: Tiles, in1: Tiles, to: Register, fidelity: Fidelity, sums: Accumulate },
    /// Whatever else is done to tiles.
    Apply(Work),
    /// Tiles of the registers to consecutive pages; `add` them to what is there.
    Pack { from: Register, to: Tiles, add: bool },
}

impl Op {
    /// Roughly, microseconds of work.
    pub(super) fn weight(&self) -> u32 {
        match self {
            Self::Put { data, .. } => 1 + data.bytes.len() as u32 / 4096,
            Self::Clear { .. } | Self::Drop { .. } => 1,
            Self::Multiply { in0, in1, .. } => 3 * in0.count * in1.count,
            Self::Apply(_) => 2,
            Self::Pack { to, .. } => to.count,
        }
    }
}

/// Tiles of a block as one of the source registers takes them, by their place in it.
type Shelf<T> = Mutex<Vec<((u32, Format), Arc<T>)>>;

/// Bytes on their way. All cores that get them use the same tiles, which are made ready for the matrix unit once.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    left: Shelf<SrcB>,
    right: Shelf<SrcA>,
}

impl Block {
    pub(super) fn new(bytes: &[u8]) -> Arc<Self> {
        Arc::new(Self { bytes: bytes.to_vec(), ..Self::default() })
    }
}

/// What one of the two source registers takes.
trait Operand: Sized {
    fn prepare(tile: &Tile) -> Self;
    fn shelf(block: &Block) -> &Shelf<Self>;
}

impl Operand for SrcB {
    fn prepare(tile: &Tile) -> Self {
        Self::new(tile)
    }

    fn shelf(block: &Block) -> &Shelf<Self> {
        &block.left
    }
}

impl Operand for SrcA {
    fn prepare(tile: &Tile) -> Self {
        Self::new(tile)
    }

    fn shelf(block: &Block) -> &Shelf<Self> {
        &block.right
    }
}

/// L1 of a core.
struct L1 {
    bytes: Vec<u8>,
    /// The blocks that its bytes came in and that nothing was written over; none of them overlap.
    blocks: BTreeMap<u32, Arc<Block>>,
}

/// The values of a tile's bytes.
fn decoded(format: Format, bytes: &[u8]) -> Result<Tile, Error> {
    let mut values = EMPTY;
    if format.is_float() {
        decode_tile(format, bytes, &mut values)?;
        return Ok(values);
    }
    let mut integers = [0_i32; 1024];
    decode_tile(format, bytes, &mut integers)?;
    Ok(integers.map(|value| f32::from_bits(value as u32)))
}

impl L1 {
    /// Bytes to write.
    fn room(&mut self, address: u32, bytes: u32) -> &mut [u8] {
        memory::cover(&mut self.bytes, address + bytes);
        while let Some((&at, block)) = self.blocks.range(..address + bytes).next_back()
            && at + block.bytes.len() as u32 > address
        {
            self.blocks.remove(&at);
        }
        &mut self.bytes[address as usize..(address + bytes) as usize]
    }

    fn tile(&self, source: Source) -> Result<Tile, Error> {
        let from = source.address as usize;
        decoded(source.format, &self.bytes[from..from + source.format.tile_bytes()])
    }

    /// A tile of which only the first bytes are read, and the rest is 0.
    fn beginning(&self, source: Source, bytes: u32) -> Result<Tile, Error> {
        let from = source.address as usize;
        let mut padded = self.bytes[from..from + bytes as usize].to_vec();
        padded.resize(source.format.tile_bytes(), 0);
        decoded(source.format, &padded)
    }

    /// A tile as a source register takes it; the same one for all cores that got it in one block.
    fn operand<T: Operand>(&self, source: Source) -> Result<Arc<T>, Error> {
        let end = source.address + source.format.tile_bytes() as u32;
        let whole = self.blocks.range(..=source.address).next_back();
        let Some((at, block)) = whole.filter(|(at, block)| **at + block.bytes.len() as u32 >= end) else {
            return Ok(Arc::new(T::prepare(&self.tile(source)?)));
        };
        let place = (source.address - at, source.format);
        let mut shelf = T::shelf(block).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ready)) = shelf.iter().find(|(other, _)| *other == place) {
            return Ok(Arc::clone(ready));
        }
        let ready = Arc::new(T::prepare(&self.tile(source)?));
        shelf.push((place, Arc::clone(&ready)));
        Ok(ready)
    }
}

/// Tiles that a source register takes, by address and circular buffer, each with its bytes in L1.
struct Ready<T>(BTreeMap<(u32, u8), (u32, Arc<T>)>);

impl<T: Operand> Ready<T> {
    /// Lets go of what was made from a range of L1 that is written now.
    fn forget(&mut self, address: u32, bytes: u32) {
        let near = (address.saturating_sub(TILE_BYTES - 1), 0)..(address + bytes, 0);
        while let Some(key) =
            self.0.range(near.clone()).find(|((at, _), (size, _))| at + size > address).map(|(key, _)| *key)
        {
            self.0.remove(&key);
        }
    }

    /// Makes those of some tiles ready that are not, and returns all.
    fn hold(&mut self, l1: &L1, tiles: Tiles) -> Result<Vec<&T>, Error> {
        for source in tiles.each() {
            if let Entry::Vacant(place) = self.0.entry(source.key()) {
                place.insert((source.format.tile_bytes() as u32, l1.operand(source)?));
            }
        }
        Ok(tiles.each().filter_map(|source| self.0.get(&source.key()).map(|(_, tile)| &**tile)).collect())
    }
}

/// Half of the destination registers.
#[derive(Default)]
struct Half {
    tiles: Vec<Tile>,
    /// Tiles that count as zeros, whatever they hold.
    clear: Vec<bool>,
}

impl Half {
    fn get(&mut self, first: u32, count: u32) -> &mut [Tile] {
        let range = first as usize..(first + count) as usize;
        for (tile, clear) in self.tiles[range.clone()].iter_mut().zip(&mut self.clear[range.clone()]) {
            if std::mem::take(clear) {
                *tile = EMPTY;
            }
        }
        &mut self.tiles[range]
    }
}

/// L1 and the registers of a core. Destination registers hold `f32`; of integers they hold the bits of `i32`.
pub(super) struct Values {
    l1: L1,
    halves: [Half; 2],
    left: Ready<SrcB>,
    right: Ready<SrcA>,
}

impl Values {
    /// Values of a core whose L1 begins with these bytes.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self {
            l1: L1 { bytes, blocks: BTreeMap::new() },
            halves: Default::default(),
            left: Ready(BTreeMap::new()),
            right: Ready(BTreeMap::new()),
        }
    }

    /// Bytes of L1.
    pub(super) fn bytes(&self, address: u32, bytes: u32) -> &[u8] {
        &self.l1.bytes[address as usize..(address + bytes) as usize]
    }

    /// Gives all of L1 back.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.l1.bytes)
    }

    pub(super) fn apply(&mut self, op: Op) -> Result<(), Error> {
        match op {
            Op::Put { address, data } => {
                self.room(address, data.bytes.len() as u32).copy_from_slice(&data.bytes);
                self.l1.blocks.insert(address, data);
            }
            Op::Clear { half, tiles } => {
                let half = &mut self.halves[half];
                half.tiles.resize(tiles as usize, EMPTY);
                half.clear.clear();
                half.clear.resize(tiles as usize, true);
            }
            Op::Drop { cb } => {
                self.left.0.retain(|(_, of), _| *of != cb);
                self.right.0.retain(|(_, of), _| *of != cb);
            }
            Op::Multiply { in0, in1, to, fidelity, sums } if in0.first.format.is_float() => {
                let (left, right) = (self.left.hold(&self.l1, in0)?, self.right.hold(&self.l1, in1)?);
                let into = self.halves[to.half].get(to.tile, in0.count * in1.count);
                matmul_block(&left, &right, into, left.len(), right.len(), fidelity, sums)?;
            }
            Op::Multiply { in0, in1, to, .. } => self.multiply_integers(in0, in1, to)?,
            Op::Apply(work) => work(self)?,
            Op::Pack { from, to, add } => self.pack(from, to, add)?,
        }
        Ok(())
    }

    /// Bytes of L1 to write; what was made ready from there is made ready again.
    fn room(&mut self, address: u32, bytes: u32) -> &mut [u8] {
        self.left.forget(address, bytes);
        self.right.forget(address, bytes);
        self.l1.room(address, bytes)
    }

    /// A tile in L1.
    pub(super) fn tile(&self, source: Source) -> Result<Tile, Error> {
        self.l1.tile(source)
    }

    /// A tile in L1 of which only the first bytes are read, and the rest is 0.
    pub(super) fn beginning(&self, source: Source, bytes: u32) -> Result<Tile, Error> {
        self.l1.beginning(source, bytes)
    }

    /// A tile of the destination registers.
    pub(super) fn register(&mut self, at: Register) -> &mut Tile {
        &mut self.halves[at.half].get(at.tile, 1)[0]
    }

    fn multiply_integers(&mut self, in0: Tiles, in1: Tiles, to: Register) -> Result<(), Error> {
        let bits = |tile: &Tile| tile.map(|value| value.to_bits() as i32);
        let load = |source| self.tile(source).map(|tile| SrcInt8::new(&bits(&tile)));
        let left: Vec<_> = in0.each().map(load).collect::<Result<_, _>>()?;
        let right: Vec<_> = in1.each().map(load).collect::<Result<_, _>>()?;
        let into = self.halves[to.half].get(to.tile, in0.count * in1.count);
        let mut whole: Vec<_> = into.iter().map(bits).collect();
        matmul_block_i8(&left, &right, &mut whole, left.len(), right.len())?;
        for (to, from) in into.iter_mut().zip(whole) {
            *to = from.map(|value| f32::from_bits(value as u32));
        }
        Ok(())
    }

    fn pack(&mut self, from: Register, to: Tiles, add: bool) -> Result<(), Error> {
        for (i, place) in (0..).zip(to.each()) {
            let format = place.format;
            self.left.forget(place.address, format.tile_bytes() as u32);
            self.right.forget(place.address, format.tile_bytes() as u32);
            let values = &mut self.halves[from.half].get(from.tile + i, 1)[0];
            if !format.is_float() {
                let integers = values.map(|value| value.to_bits() as i32);
                encode_tile(format, &integers, self.l1.room(place.address, format.tile_bytes() as u32))?;
                continue;
            }
            let sum = if add {
                let mut sum = self.l1.tile(place)?;
                for (sum, value) in sum.iter_mut().zip(&*values) {
                    *sum += value;
                }
                Some(sum)
            } else {
                None
            };
            let bytes = self.l1.room(place.address, format.tile_bytes() as u32);
            encode_tile(format, sum.as_ref().unwrap_or(values), bytes)?;
        }
        Ok(())
    }
}
