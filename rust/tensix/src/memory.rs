//! L1 and DRAM: what is where, what has been written, and, where values are wanted, the bytes.

use crate::chip::ChipSpec;
use crate::error::Error;
use crate::mesh::{ChipId, Mesh};

/// Bytes that are marked as written together.
const GRAIN: u32 = 16;

/// Some memory of which each part must be written before it is read.
#[derive(Debug, Clone)]
pub(crate) struct Bytes {
    size: usize,
    /// As much of it as writes have reached: most programs use a small part.
    data: Vec<u8>,
    written: Vec<u64>,
}

impl Bytes {
    fn new(size: u32) -> Self {
        Self { size: size as usize, data: Vec::new(), written: Vec::new() }
    }

    pub(crate) fn write(&mut self, address: u32, bytes: &[u8]) {
        cover(&mut self.data, address + bytes.len() as u32);
        self.mark(address, bytes.len() as u32);
        self.data[address as usize..address as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// Notes that a range is written, whose bytes are elsewhere while a program runs.
    pub(crate) fn mark(&mut self, address: u32, bytes: u32) {
        if self.written.is_empty() {
            self.written = vec![0; self.size.div_ceil(GRAIN as usize).div_ceil(64)];
        }
        for (word, bits) in grains(address, bytes) {
            self.written[word] |= bits;
        }
    }

    /// Whether all of a range has been written; otherwise the first address that has not.
    pub(crate) fn check(&self, address: u32, bytes: u32) -> Result<(), u32> {
        for (word, bits) in grains(address, bytes) {
            let missing = bits & !self.written.get(word).copied().unwrap_or(0);
            if missing != 0 {
                let grain = word as u32 * 64 + missing.trailing_zeros();
                return Err((grain * GRAIN).max(address));
            }
        }
        Ok(())
    }

    /// The bytes of a range that has been written; or the first address that has not.
    pub(crate) fn read(&self, address: u32, bytes: u32) -> Result<&[u8], u32> {
        self.check(address, bytes)?;
        Ok(&self.data[address as usize..(address + bytes) as usize])
    }

    /// Hands the bytes to who changes them while a program runs.
    pub(crate) fn lend(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data)
    }

    /// Takes them back.
    pub(crate) fn restore(&mut self, data: Vec<u8>) {
        self.data = data;
    }
}

/// Has a memory's bytes reach up to an address.
pub(crate) fn cover(data: &mut Vec<u8>, end: u32) {
    /// Bytes by which they grow, so that writes one behind the other do not move them each time.
    const PART: usize = 1 << 16;
    if data.len() < end as usize {
        data.resize((end as usize).next_multiple_of(PART), 0);
    }
}

/// Words of the marks of a range, and the bits in each.
fn grains(address: u32, bytes: u32) -> impl Iterator<Item = (usize, u64)> {
    let (from, end) = (address / GRAIN, (address + bytes).div_ceil(GRAIN));
    (from / 64..end.div_ceil(64)).map(move |word| {
        let (first, last) = (from.max(word * 64) - word * 64, end.min(word * 64 + 64) - word * 64);
        (word as usize, u64::MAX.checked_shr(64 - (last - first)).unwrap_or(0) << first)
    })
}

/// A buffer in DRAM: pages one after the other over all channels.
#[derive(Debug, Clone)]
pub(crate) struct Buffer {
    pub(crate) page_bytes: u32,
    pub(crate) pages: u32,
    /// The chip in whose DRAM it is.
    pub(crate) chip: ChipId,
    /// The channel of all its pages, where they are not spread.
    pub(crate) channel: Option<u16>,
    /// Bytes of all pages, where values are wanted, and which pages have been written.
    pub(crate) data: Option<(Vec<u8>, Vec<bool>)>,
}

impl Buffer {
    pub(crate) fn range(&self, page: u32, offset: u32, bytes: u32) -> std::ops::Range<usize> {
        let from = page as usize * self.page_bytes as usize + offset as usize;
        from..from + bytes as usize
    }
}

/// What outlives a program: buffers in DRAM and tensors in L1.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) values: bool,
    pub(crate) l1: Vec<Bytes>,
    pub(crate) buffers: Vec<Buffer>,
    /// Where tensors in L1 begin; circular buffers of programs end there.
    pub(crate) tensors: u32,
    /// Bytes of buffers on each chip.
    dram_bytes: Vec<u64>,
}

impl Memory {
    pub(crate) fn new(spec: &ChipSpec, mesh: Mesh, values: bool) -> Self {
        let l1 = vec![Bytes::new(spec.l1.bytes); spec.cores() * usize::from(mesh.chips())];
        let dram_bytes = vec![0; usize::from(mesh.chips())];
        Self { values, l1, buffers: Vec::new(), tensors: spec.l1.bytes, dram_bytes }
    }

    pub(crate) fn buffer(
        &mut self,
        spec: &ChipSpec,
        chip: ChipId,
        page_bytes: u32,
        pages: u32,
        channel: Option<u16>,
    ) -> Result<u16, Error> {
        let channels = spec.dram.channels.len() as u64;
        if page_bytes == 0 || pages == 0 {
            return Err(Error::Misused(format!("a buffer of {pages} pages of {page_bytes} B holds nothing")));
        }
        if let Some(channel) = channel.filter(|c| u64::from(*c) >= channels) {
            return Err(Error::Misused(format!("channel {channel}: {} has {channels}", spec.name)));
        }
        let bytes = u64::from(page_bytes) * u64::from(pages);
        let Some(used) = self.dram_bytes.get_mut(usize::from(chip)) else {
            return Err(Error::Misused(format!("a buffer on chip {chip}, which there is not")));
        };
        let all = *used + bytes;
        if all > spec.dram.channel_bytes * channels || self.buffers.len() == usize::from(u16::MAX) {
            return Err(Error::Misused(format!(
                "{all} B of buffers, {} has {} B of DRAM",
                spec.name,
                spec.dram.channel_bytes * channels
            )));
        }
        *used = all;
        let data = self.values.then(|| (vec![0; bytes as usize], vec![false; pages as usize]));
        self.buffers.push(Buffer { page_bytes, pages, chip, channel, data });
        Ok((self.buffers.len() - 1) as u16)
    }

    /// Buffers in DRAM that there are.
    pub(crate) fn count(&self) -> usize {
        self.buffers.len()
    }

    /// Gives all buffers in DRAM back but the first ones.
    pub(crate) fn keep(&mut self, count: usize) {
        for buffer in self.buffers.drain(count.min(self.buffers.len())..) {
            self.dram_bytes[usize::from(buffer.chip)] -=
                u64::from(buffer.page_bytes) * u64::from(buffer.pages);
        }
    }

    /// Writes a whole buffer.
    pub(crate) fn fill(&mut self, buffer: u16, bytes: &[u8]) -> Result<(), Error> {
        let Some(found) = self.buffers.get_mut(usize::from(buffer)) else {
            return Err(Error::Misused(format!("there is no buffer {buffer} in DRAM")));
        };
        let Some((data, written)) = &mut found.data else {
            return Err(Error::Misused(format!("buffer {buffer} holds no values: the chip keeps only time")));
        };
        if data.len() != bytes.len() {
            return Err(Error::Misused(format!(
                "buffer {buffer} of {} pages of {} B: got {} B",
                found.pages,
                found.page_bytes,
                bytes.len()
            )));
        }
        data.copy_from_slice(bytes);
        written.fill(true);
        Ok(())
    }

    /// Writes some pages of a buffer, whose bytes follow each other.
    pub(crate) fn fill_pages(&mut self, buffer: u16, pages: &[u32], bytes: &[u8]) -> Result<(), Error> {
        let Some(found) = self.buffers.get_mut(usize::from(buffer)) else {
            return Err(Error::Misused(format!("there is no buffer {buffer} in DRAM")));
        };
        let (size, count) = (found.page_bytes as usize, found.pages);
        if bytes.len() != size * pages.len() || pages.iter().any(|page| *page >= count) {
            return Err(Error::Misused(format!(
                "buffer {buffer} of {count} pages of {size} B: got {} pages up to {} with {} B",
                pages.len(),
                pages.iter().max().copied().unwrap_or(0),
                bytes.len()
            )));
        }
        let Some((data, written)) = &mut found.data else {
            return Err(Error::Misused(format!("buffer {buffer} holds no values: the chip keeps only time")));
        };
        for (page, from) in pages.iter().zip(bytes.chunks_exact(size)) {
            data[*page as usize * size..][..size].copy_from_slice(from);
            written[*page as usize] = true;
        }
        Ok(())
    }

    /// The bytes of a whole buffer, all of whose pages have been written.
    pub(crate) fn contents(&self, buffer: u16) -> Result<&[u8], Error> {
        let Some(found) = self.buffers.get(usize::from(buffer)) else {
            return Err(Error::Misused(format!("there is no buffer {buffer} in DRAM")));
        };
        let Some((data, written)) = &found.data else {
            return Err(Error::Misused(format!("buffer {buffer} holds no values: the chip keeps only time")));
        };
        match written.iter().position(|page| !page) {
            None => Ok(data),
            Some(page) => Err(Error::Undefined(format!("page {page} of buffer {buffer} was never written"))),
        }
    }

    /// Room for a tensor at the same address of every core's L1.
    pub(crate) fn tensor(&mut self, spec: &ChipSpec, bytes: u32) -> Result<u32, Error> {
        let wanted = bytes.checked_next_multiple_of(64);
        match wanted
            .and_then(|wanted| self.tensors.checked_sub(wanted))
            .filter(|address| *address >= spec.l1.reserved)
        {
            Some(address) => {
                self.tensors = address;
                Ok(address)
            }
            None => Err(Error::Misused(format!(
                "L1 overflow: a tensor of {bytes} B on each core, {} B are left of {} B",
                self.tensors - spec.l1.reserved,
                spec.l1.bytes
            ))),
        }
    }
}
