//! A generator as a kernel, and the watch that stops one which never yields.

use std::cell::RefCell;
use std::ffi::c_long;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prunus_tensix::Error;
use prunus_tensix::kernel::Kernel;
use prunus_tensix::verbs::{Reply, Verb as Asked};
use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::iterator::PySendResult;
use pyo3::types::{PyIterator, PyNone};

use super::context::KernelContext;
use super::errors::{misused, raise};
use super::verb::Verb;

/// What the kernels of a run have in common.
pub(super) struct Shared {
    /// What a kernel raised: the simulator's own error only says that one did.
    pub(super) raised: RefCell<Option<PyErr>>,
    pub(super) watch: Option<Watch>,
}

/// A kernel written in Python.
pub(super) struct Written {
    pub(super) generator: Py<PyIterator>,
    pub(super) context: Py<KernelContext>,
    pub(super) shared: Rc<Shared>,
    answers: bool,
}

impl Written {
    pub(super) fn new(generator: Py<PyIterator>, context: Py<KernelContext>, shared: Rc<Shared>) -> Self {
        Self { generator, context, shared, answers: false }
    }

    fn go_on(&mut self, py: Python<'_>, reply: Reply) -> PyResult<Option<Asked>> {
        let context = self.context.get();
        let value = match self.answers {
            true => reply.into_pyobject(py)?.into_any(),
            false => PyNone::get(py).to_owned().into_any(),
        };
        let sent = match &self.shared.watch {
            None => self.generator.bind(py).send(&value),
            Some(watch) => {
                watch.enter();
                let sent = self.generator.bind(py).send(&value);
                if watch.leave() {
                    let late = format!(
                        "not finished: {} ran for {} s without a yield",
                        context.whose(),
                        watch.shared.patience.as_secs_f64()
                    );
                    let late = raise(py, "EndlessError", &late);
                    late.set_cause(py, sent.err());
                    return Err(late);
                }
                sent
            }
        };
        let PySendResult::Next(item) = sent? else {
            context.check_yielded(py, "its end")?;
            return Ok(None);
        };
        let Ok(verb) = item.cast::<Verb>() else {
            return Err(PyTypeError::new_err(format!(
                "{} yielded {}: a kernel yields what methods of its context return",
                context.whose(),
                item.repr().map_or_else(|_| item.get_type().to_string(), |text| text.to_string())
            )));
        };
        let verb = verb.get();
        verb.yielded.store(true, Ordering::Relaxed);
        context.check_yielded(py, verb.name)?;
        self.answers = verb.answers();
        Ok(Some(verb.asked.clone()))
    }
}

impl Kernel for Written {
    fn step(&mut self, reply: Reply) -> Result<Option<Asked>, Error> {
        Python::attach(|py| {
            self.go_on(py, reply).map_err(|raised| {
                *self.shared.raised.borrow_mut() = Some(raised);
                Error::Kernel(format!("in {}", self.context.get().whose()))
            })
        })
    }
}

/// Adds where an exception came from. Signals are not the kernel's.
pub(super) fn annotate(py: Python<'_>, raised: PyErr, place: &str) -> PyErr {
    if raised.is_instance_of::<PyException>(py) {
        // An exception that takes no notes is raised without one.
        let _ = raised.value(py).call_method1("add_note", (place,));
    }
    raised
}

/// Refuses what is no generator.
pub(super) fn generator_of(object: &Bound<'_, PyAny>, whose: &str) -> PyResult<Py<PyIterator>> {
    let py = object.py();
    let class = py.import("collections.abc")?.getattr("Generator")?;
    if !object.is_instance(&class)? {
        return Err(PyTypeError::new_err(format!(
            "{whose} must be a generator function: its call returned {}, and it needs a yield for each verb",
            object.get_type().name()?
        )));
    }
    object
        .cast::<PyIterator>()
        .map(|found| found.to_owned().unbind())
        .map_err(|_| misused(py, &format!("{whose}: {} cannot be iterated", object.get_type())))
}

struct WatchState {
    patience: Duration,
    /// Odd while a kernel runs.
    turn: AtomicU64,
    /// The kernel that runs was told to stop.
    fired: AtomicBool,
    thread: c_long,
    over: Mutex<bool>,
    bell: Condvar,
}

/// A thread that raises an exception in a kernel that does not come back.
///
/// Both sides change the state with the GIL held: an exception can only be set while the kernel runs.
pub(super) struct Watch {
    shared: Arc<WatchState>,
    helper: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches kernels that run on the calling thread.
    pub(super) fn start(py: Python<'_>, patience: Duration) -> PyResult<Self> {
        let thread = py.import("threading")?.call_method0("get_ident")?.extract::<u64>()?;
        let class = py.import("prunus.tensix.errors")?.getattr("Overtime")?.unbind();
        let shared = Arc::new(WatchState {
            patience,
            turn: AtomicU64::new(0),
            fired: AtomicBool::new(false),
            thread: thread as c_long,
            over: Mutex::new(false),
            bell: Condvar::new(),
        });
        let seen = Arc::clone(&shared);
        let helper = std::thread::Builder::new()
            .name("prunus-watch".into())
            .spawn(move || seen.look(&class))
            .map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))?;
        Ok(Self { shared, helper: Some(helper) })
    }

    fn enter(&self) {
        self.shared.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the kernel that came back had been told to stop; if so, nothing of that is left.
    fn leave(&self) -> bool {
        self.shared.turn.fetch_add(1, Ordering::Relaxed);
        let fired = self.shared.fired.swap(false, Ordering::Relaxed);
        if fired {
            set_exception(self.shared.thread, std::ptr::null_mut());
        }
        fired
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.shared.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.bell.notify_all();
        if let Some(helper) = self.helper.take() {
            // The helper may be waiting for the GIL.
            Python::attach(|py| py.detach(|| helper.join().ok()));
        }
    }
}

impl WatchState {
    fn look(&self, class: &Py<PyAny>) {
        let pause = (self.patience / 8).clamp(Duration::from_millis(1), Duration::from_millis(500));
        let mut seen = (0, Instant::now());
        loop {
            let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.bell.wait_timeout_while(over, pause, |over| !*over);
            if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                return;
            }
            let turn = self.turn.load(Ordering::Relaxed);
            if turn.is_multiple_of(2) || turn != seen.0 {
                seen = (turn, Instant::now());
            } else if seen.1.elapsed() >= self.patience {
                Python::try_attach(|_| {
                    if self.turn.load(Ordering::Relaxed) == turn {
                        self.fired.store(true, Ordering::Relaxed);
                        set_exception(self.thread, class.as_ptr());
                    }
                });
                seen.1 = Instant::now();
            }
        }
    }
}

/// Has a thread raise an exception at its next instruction, or no longer raise one that it has not met. Called with
/// the GIL held.
fn set_exception(thread: c_long, class: *mut ffi::PyObject) {
    // SAFETY: the GIL is held; the class is alive or null, and a number that is no thread's changes nothing.
    unsafe { ffi::PyThreadState_SetAsyncExc(thread, class) };
}
