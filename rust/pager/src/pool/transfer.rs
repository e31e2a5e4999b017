//! Pages on their way between files and frames. Requests are put together under the lock and submitted after it.

use std::io;
use std::sync::Arc;

use super::call::{Call, Outcome, copy};
use super::shared::Shared;
use super::state::State;
use super::table::Phase;
use crate::io::{Op, Piece, Request, is_abandoned};
use crate::{DiskFile, Error, SECTOR};

/// Neighbouring pages go into one request up to so many bytes.
pub(crate) const COALESCE: usize = 256 << 10;

/// Pages to read with one request.
struct Load {
    /// Numbers and the call's tags.
    pages: Vec<(u32, u32)>,
    next: u64,
    offset: u64,
    bytes: usize,
    pieces: Vec<Piece>,
}

/// Requests of one call for pages of one layout.
pub(crate) struct Batch {
    layout: u32,
    call: Option<Arc<Call>>,
    loads: Vec<Load>,
}

impl Batch {
    pub(crate) fn new(layout: u32, call: Option<Arc<Call>>) -> Self {
        Self { layout, call, loads: Vec::new() }
    }

    /// Requests so far.
    pub(crate) fn len(&self) -> usize {
        self.loads.len()
    }

    /// Adds a page that is to be read, to the last request if it continues that.
    pub(crate) fn add(&mut self, shared: &Shared, state: &State, id: u32, tag: u32) {
        let page = state.table.page(id);
        let layout = &state.layouts[self.layout];
        let sectors = layout.sectors(page.index);
        let bytes = (sectors.end - sectors.start) as usize;
        let piece = Piece { ptr: shared.frame(page.frame), len: bytes };
        match self.loads.last_mut() {
            Some(load)
                if layout.exact
                    && load.next == page.index
                    && load.offset + load.bytes as u64 == sectors.start
                    && load.bytes + bytes <= COALESCE =>
            {
                load.next += 1;
                load.bytes += bytes;
                load.pages.push((id, tag));
                load.pieces.push(piece);
            }
            _ => self.loads.push(Load {
                pages: vec![(id, tag)],
                next: page.index + 1,
                offset: sectors.start,
                bytes,
                pieces: vec![piece],
            }),
        }
    }

    /// Sends the requests off. Not under the lock.
    pub(crate) fn submit(&mut self, shared: &Arc<Shared>, file: &Arc<DiskFile>) {
        let requests: Vec<Request> = self
            .loads
            .drain(..)
            .map(|load| {
                let Load { pages, offset, bytes, pieces, .. } = load;
                let (pool, call, file_) = (Arc::clone(shared), self.call.clone(), Arc::clone(file));
                let layout = self.layout;
                let done = Box::new(move |result| {
                    arrived(&pool, call.as_deref(), &file_, layout, &pages, offset, bytes, result);
                });
                file.request(Op::Read, offset, pieces, Arc::clone(shared) as _, done)
            })
            .collect();
        if !requests.is_empty() {
            file.submit(requests);
        }
    }
}

/// Some pages of a request came, or what kept them.
#[allow(clippy::too_many_arguments)]
fn arrived(
    shared: &Shared,
    call: Option<&Call>,
    file: &DiskFile,
    layout: u32,
    pages: &[(u32, u32)],
    offset: u64,
    bytes: usize,
    result: io::Result<usize>,
) {
    let lost = result.as_ref().is_err_and(is_abandoned);
    let result =
        result.map_err(|source| Arc::new(file.error(format!("read {bytes} bytes at {offset}"), source)));
    let mut state = shared.lock();
    let mut outcomes = Vec::with_capacity(pages.len());
    for &(id, tag) in pages {
        let index = state.table.page(id).index;
        let here = &state.layouts[layout];
        let end = here.start + index * here.page as u64 + here.bytes(index) as u64;
        let fault = match &result {
            Err(error) => Some(Arc::clone(error)),
            Ok(got) if offset + (*got as u64) < end => Some(Arc::new(Error::Short {
                path: file.path().to_owned(),
                offset,
                expected: end - offset,
                got: *got as u64,
            })),
            Ok(_) => None,
        };
        let stale = state.table.page(id).stale;
        let outcome = match fault {
            None if !stale => {
                state.ready(id);
                Outcome::Ready
            }
            None => {
                state.drop_page(id);
                Outcome::Again
            }
            Some(error) => {
                if std::mem::take(&mut state.table.page_mut(id).awaited) {
                    for (other, tag, _) in state.waiting.remove(&id).unwrap_or_default() {
                        other.deliver([(tag, Outcome::Failed(Arc::clone(&error)))], 0);
                    }
                }
                if lost {
                    state.lose_page(id);
                } else {
                    state.drop_page(id);
                }
                Outcome::Failed(error)
            }
        };
        outcomes.push((tag, outcome));
    }
    shared.tell(&mut state);
    drop(state);
    if let Some(call) = call {
        call.deliver(outcomes, 1);
    }
}

/// Neighbouring dirty pages on their way to the file.
pub(crate) struct WriteBack {
    file: Arc<DiskFile>,
    layout: u32,
    ids: Vec<u32>,
    next: u64,
    offset: u64,
    bytes: usize,
    pieces: Vec<Piece>,
    /// The part of the last page's last sector that is the layout's.
    tail: Option<(u64, Piece)>,
}

impl State {
    /// Takes dirty pages that may be written, oldest first, up to `most` bytes: those of one file if one is given,
    /// that became dirty until `until`. They are [`Phase::Writing`] afterwards.
    pub(crate) fn write_back(
        &mut self,
        shared: &Shared,
        most: usize,
        file: Option<&Arc<DiskFile>>,
        until: u64,
    ) -> Vec<WriteBack> {
        let (mut chosen, mut bytes) = (Vec::new(), 0);
        for _ in 0..self.dirty.len() {
            if bytes >= most {
                break;
            }
            let Some(id) = self.dirty.pop_front() else { break };
            let page = *self.table.page(id);
            if page.phase != Phase::Dirty || !page.listed {
                continue;
            }
            let wanted = file.is_none_or(|file| Arc::ptr_eq(file, &self.layouts[page.layout].file));
            // a panel under way to the same bytes is older
            let going = || {
                !self.passages.is_empty() && self.is_going(page.layout, &self.range(page.layout, page.index))
            };
            if page.writers > 0 || page.failed || !wanted || page.dirtied > until || going() {
                self.dirty.push_back(id);
                continue;
            }
            let size = self.frames.size(self.frames.class_of(page.frame));
            self.dirty_bytes -= size;
            self.writing_bytes += size;
            bytes += size;
            let page = self.table.page_mut(id);
            page.phase = Phase::Writing;
            page.listed = false;
            chosen.push(id);
        }
        chosen.sort_unstable_by_key(|&id| {
            let page = self.table.page(id);
            (page.layout, page.index)
        });
        let mut jobs: Vec<WriteBack> = Vec::new();
        for id in chosen {
            let page = self.table.page(id);
            let layout = &self.layouts[page.layout];
            let (offset, valid) = (layout.sectors(page.index).start, layout.bytes(page.index));
            let whole = valid / SECTOR * SECTOR;
            let ptr = shared.frame(page.frame);
            let piece = Piece { ptr, len: whole };
            // SAFETY: within the frame.
            let tail = Piece { ptr: unsafe { ptr.add(whole) }, len: valid - whole };
            let tail = (tail.len > 0).then_some((offset + whole as u64, tail));
            match jobs.last_mut() {
                Some(job)
                    if job.layout == page.layout
                        && job.next == page.index
                        && job.bytes + whole <= COALESCE =>
                {
                    job.ids.push(id);
                    job.next += 1;
                    job.bytes += whole;
                    job.pieces.extend((whole > 0).then_some(piece));
                    job.tail = tail;
                }
                _ => jobs.push(WriteBack {
                    file: Arc::clone(&layout.file),
                    layout: page.layout,
                    ids: vec![id],
                    next: page.index + 1,
                    offset,
                    bytes: whole,
                    pieces: (whole > 0).then_some(piece).into_iter().collect(),
                    tail,
                }),
            }
        }
        jobs
    }
}

/// Sends dirty pages off. Not under the lock, and on no engine's thread, as ends of sectors are waited for.
pub(crate) fn launch(shared: &Arc<Shared>, jobs: Vec<WriteBack>) {
    let mut jobs = jobs.into_iter().peekable();
    while let Some(first) = jobs.next() {
        let file = Arc::clone(&first.file);
        let mut requests = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            requests.extend(start(shared, job));
            next = jobs.next_if(|job| Arc::ptr_eq(&job.file, &file));
        }
        if !requests.is_empty() {
            file.submit(requests);
        }
    }
}

fn start(shared: &Arc<Shared>, job: WriteBack) -> Option<Request> {
    let WriteBack { file, layout, ids, offset, bytes, pieces, tail, .. } = job;
    if let Some((offset, tail)) = tail {
        // SAFETY: the frame's; nobody writes to it in this phase.
        let data = unsafe { std::slice::from_raw_parts(tail.ptr, tail.len) };
        if let Err(error) = file.write_all(offset, data) {
            finished(shared, layout, &ids, Some(error), false);
            return None;
        }
    }
    if pieces.is_empty() {
        finished(shared, layout, &ids, None, false);
        return None;
    }
    let (pool, file_) = (Arc::clone(shared), Arc::clone(&file));
    let done = Box::new(move |result: io::Result<usize>| {
        let what = || format!("write {bytes} bytes at {offset}");
        let lost = result.as_ref().is_err_and(is_abandoned);
        let fault = match result {
            Ok(written) if written == bytes => None,
            Ok(_) => Some(file_.error(what(), io::ErrorKind::WriteZero.into())),
            Err(source) => Some(file_.error(what(), source)),
        };
        finished(&pool, layout, &ids, fault, lost);
    });
    Some(file.request(Op::Write, offset, pieces, Arc::clone(shared) as _, done))
}

/// Pages are in the file, or what kept them: then they stay dirty, and a flush says so. `lost`: the system may still
/// write them.
fn finished(shared: &Shared, layout: u32, ids: &[u32], fault: Option<Error>, lost: bool) {
    let mut state = shared.lock();
    for &id in ids {
        let size = state.frames.size(state.frames.class_of(state.table.page(id).frame));
        state.writing_bytes -= size;
        if fault.is_some() {
            state.dirty_bytes += size;
            state.failed_bytes += size;
            state.dirty.push_back(id);
        }
        let page = state.table.page_mut(id);
        debug_assert_eq!(page.phase, Phase::Writing);
        page.phase = if fault.is_some() { Phase::Dirty } else { Phase::Clean };
        page.failed = fault.is_some();
        page.listed = fault.is_some();
        // pinned for good: another page's bytes in this frame could end up in this one's place
        page.pins += u32::from(lost);
        state.wake(id);
    }
    if let Some(error) = fault {
        let layout = &mut state.layouts[layout];
        layout.fault.get_or_insert_with(|| Arc::new(error));
    }
    shared.tell(&mut state);
}

impl Shared {
    /// The kept error of a file's write-backs.
    pub(crate) fn kept_fault(state: &State, file: Option<&Arc<DiskFile>>) -> Option<Error> {
        state
            .layouts
            .iter()
            .filter(|layout| file.is_none_or(|file| Arc::ptr_eq(file, &layout.file)))
            .find_map(|layout| layout.fault.as_deref().map(copy))
    }
}
