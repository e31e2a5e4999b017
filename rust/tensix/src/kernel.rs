//! Kernels: programs of one thread of a core, that ask the machine for one thing after the other.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::error::Error;
use crate::mesh::ChipId;
use crate::verbs::{Along, Area, Binary, Broadcast, CoreId, Place, Reply, Unary, Verb};

/// A program of one thread.
pub trait Kernel {
    /// Goes on with what the last verb returned, up to the next verb; `None` at the end.
    ///
    /// # Errors
    /// Whatever the kernel itself meets.
    fn step(&mut self, reply: Reply) -> Result<Option<Verb>, Error>;
}

#[derive(Default)]
struct Mail {
    verb: Cell<Option<Verb>>,
    reply: Cell<Reply>,
}

/// What a kernel written in Rust calls: verbs are awaited.
#[derive(Clone)]
pub struct Api(Rc<Mail>);

/// A verb under way.
pub struct Call<'a> {
    mail: &'a Mail,
    verb: Option<Verb>,
}

impl Future for Call<'_> {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Reply> {
        match self.verb.take() {
            Some(verb) => {
                self.mail.verb.set(Some(verb));
                Poll::Pending
            }
            None => Poll::Ready(self.mail.reply.get()),
        }
    }
}

struct Written {
    mail: Rc<Mail>,
    body: Pin<Box<dyn Future<Output = ()>>>,
}

impl Kernel for Written {
    fn step(&mut self, reply: Reply) -> Result<Option<Verb>, Error> {
        self.mail.reply.set(reply);
        match self.body.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(()) => Ok(None),
            Poll::Pending => Ok(self.mail.verb.take()),
        }
    }
}

/// A kernel from an asynchronous function of the API.
pub fn kernel<F: Future<Output = ()> + 'static>(body: impl FnOnce(Api) -> F) -> Box<dyn Kernel> {
    let mail = Rc::new(Mail::default());
    let body = Box::pin(body(Api(Rc::clone(&mail))));
    Box::new(Written { mail, body })
}

#[allow(missing_docs, reason = "each method is the verb of its name")]
impl Api {
    /// Asks for any verb.
    pub fn call(&self, verb: Verb) -> Call<'_> {
        Call { mail: &self.0, verb: Some(verb) }
    }

    pub fn cb_reserve_back(&self, cb: u8, pages: u32) -> Call<'_> {
        self.call(Verb::CbReserveBack { cb, pages })
    }

    pub fn cb_push_back(&self, cb: u8, pages: u32) -> Call<'_> {
        self.call(Verb::CbPushBack { cb, pages })
    }

    pub fn cb_wait_front(&self, cb: u8, pages: u32) -> Call<'_> {
        self.call(Verb::CbWaitFront { cb, pages })
    }

    pub fn cb_pop_front(&self, cb: u8, pages: u32) -> Call<'_> {
        self.call(Verb::CbPopFront { cb, pages })
    }

    pub fn get_write_ptr(&self, cb: u8) -> Call<'_> {
        self.call(Verb::GetWritePtr { cb })
    }

    pub fn get_read_ptr(&self, cb: u8) -> Call<'_> {
        self.call(Verb::GetReadPtr { cb })
    }

    pub fn noc_async_read(&self, from: Place, to: u32, bytes: u32) -> Call<'_> {
        self.call(Verb::NocAsyncRead { from, to, bytes, stateful: false })
    }

    pub fn noc_async_read_barrier(&self) -> Call<'_> {
        self.call(Verb::NocAsyncReadBarrier)
    }

    pub fn noc_async_write(&self, from: u32, to: Place, bytes: u32) -> Call<'_> {
        self.call(Verb::NocAsyncWrite { from, to, bytes, stateful: false })
    }

    pub fn noc_async_write_barrier(&self) -> Call<'_> {
        self.call(Verb::NocAsyncWriteBarrier)
    }

    pub fn noc_async_writes_flushed(&self) -> Call<'_> {
        self.call(Verb::NocAsyncWritesFlushed)
    }

    pub fn noc_async_write_multicast(
        &self,
        from: u32,
        area: Area,
        to: u32,
        bytes: u32,
        linked: bool,
    ) -> Call<'_> {
        self.call(Verb::NocAsyncWriteMulticast { from, area, to, bytes, linked })
    }

    pub fn noc_semaphore_inc(&self, core: CoreId, semaphore: u8, by: u32) -> Call<'_> {
        self.call(Verb::NocSemaphoreInc { core, semaphore, by })
    }

    pub fn noc_semaphore_set(&self, semaphore: u8, value: u32) -> Call<'_> {
        self.call(Verb::NocSemaphoreSet { semaphore, value })
    }

    pub fn noc_semaphore_set_multicast(&self, from: u8, semaphore: u8, area: Area) -> Call<'_> {
        self.call(Verb::NocSemaphoreSetMulticast { from, semaphore, area })
    }

    pub fn noc_semaphore_wait(&self, semaphore: u8, value: u32) -> Call<'_> {
        self.call(Verb::NocSemaphoreWait { semaphore, value, at_least: false })
    }

    pub fn noc_semaphore_wait_min(&self, semaphore: u8, value: u32) -> Call<'_> {
        self.call(Verb::NocSemaphoreWait { semaphore, value, at_least: true })
    }

    pub fn fabric_unicast_noc_unicast_write(
        &self,
        from: u32,
        chip: ChipId,
        to: Place,
        bytes: u32,
        link: Option<u8>,
    ) -> Call<'_> {
        self.call(Verb::FabricUnicastNocUnicastWrite { from, chip, to, bytes, link })
    }

    pub fn fabric_unicast_noc_fused_unicast_with_atomic_inc(
        &self,
        from: u32,
        (chip, to): (ChipId, Place),
        bytes: u32,
        (core, semaphore, by): (CoreId, u8, u32),
        link: Option<u8>,
    ) -> Call<'_> {
        self.call(Verb::FabricUnicastNocFusedUnicastWithAtomicInc {
            from,
            chip,
            to,
            bytes,
            core,
            semaphore,
            by,
            link,
        })
    }

    pub fn fabric_unicast_noc_unicast_atomic_inc(
        &self,
        chip: ChipId,
        core: CoreId,
        semaphore: u8,
        by: u32,
        link: Option<u8>,
    ) -> Call<'_> {
        self.call(Verb::FabricUnicastNocUnicastAtomicInc { chip, core, semaphore, by, link })
    }

    pub fn l1_load(&self, address: u32) -> Call<'_> {
        self.call(Verb::L1Load { address })
    }

    pub fn l1_store(&self, address: u32, value: u32) -> Call<'_> {
        self.call(Verb::L1Store { address, value })
    }

    pub fn cycles(&self, cycles: f64) -> Call<'_> {
        self.call(Verb::Cycles(cycles))
    }

    pub fn tile_regs_acquire(&self) -> Call<'_> {
        self.call(Verb::TileRegsAcquire)
    }

    pub fn tile_regs_commit(&self) -> Call<'_> {
        self.call(Verb::TileRegsCommit)
    }

    pub fn tile_regs_wait(&self) -> Call<'_> {
        self.call(Verb::TileRegsWait)
    }

    pub fn tile_regs_release(&self) -> Call<'_> {
        self.call(Verb::TileRegsRelease)
    }

    pub fn copy_tile(&self, cb: u8, tile: u32, dst: u32) -> Call<'_> {
        self.call(Verb::CopyTile { cb, tile, dst })
    }

    pub fn binary_tiles(
        &self,
        op: Binary,
        (in0_cb, in1_cb): (u8, u8),
        in0: u32,
        in1: u32,
        dst: u32,
    ) -> Call<'_> {
        self.call(Verb::BinaryTiles { op, broadcast: Broadcast::None, in0_cb, in1_cb, in0, in1, dst })
    }

    pub fn unary_tile(&self, op: Unary, dst: u32) -> Call<'_> {
        self.call(Verb::UnaryTile { op, dst })
    }

    pub fn reduce_tile(&self, op: Binary, along: Along, cb: u8, tile: u32, dst: u32) -> Call<'_> {
        self.call(Verb::ReduceTile { op, along, cb, tile, dst })
    }

    pub fn pack_tiles(&self, dst: u32, cb: u8, tile: u32, tiles: u32) -> Call<'_> {
        self.call(Verb::PackTile { dst, cb, tile, tiles })
    }

    pub fn pack_reconfig_l1_acc(&self, on: bool) -> Call<'_> {
        self.call(Verb::PackReconfigL1Acc { on })
    }
}
