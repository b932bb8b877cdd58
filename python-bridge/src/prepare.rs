//! What is found out about a plugin's code before it runs: it is compiled once per version, and checked.
//!
//! # Mechanism
//! One thread lives in the main interpreter, where no plugin runs, and takes jobs from a bounded queue. What it finds is
//! kept by content hash and shared by all shards; each interpreter makes its own code object from the marshalled one.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam::channel::{self, Receiver, Sender};
use saltus_core::ports::{PluginCode, PluginError};

use crate::ffi::pystate::InterpreterId;
use crate::ffi::{Object, Py, PyResult};
use crate::interpreter::{failure, plain_error};
use crate::runtime::{Priority, Scheduling};

/// Versions kept; beyond it the collection starts again.
const KEPT_MAX: usize = 4096;
/// Jobs that may wait.
const QUEUE_MAX: usize = 1024;

/// One version of a plugin.
pub struct Prepared {
    /// What `marshal` makes of its code object, or why it does not compile.
    pub code: Result<Vec<u8>, PluginError>,
    /// Nobody can tell kept globals from fresh ones.
    pub reusable: bool,
    /// Nothing against the inline lane, or what.
    pub inline: Result<(), Arc<str>>,
    /// The modules that it imports by statement.
    pub imports: Vec<String>,
}

type Done = Box<dyn FnOnce(Arc<Prepared>) + Send>;

struct Job {
    code: Arc<PluginCode>,
    file_name: String,
    done: Done,
}

/// The thread that prepares, and what it has prepared.
pub struct Preparer {
    known: Arc<ArcSwap<HashMap<u64, Arc<Prepared>>>>,
    jobs: Sender<Job>,
}

impl Preparer {
    /// Starts it in the main interpreter, to which nobody may be attached for good.
    ///
    /// # Errors
    /// What the system said about a new thread.
    pub fn start(main: InterpreterId, scheduling: Scheduling) -> Result<Self, PluginError> {
        let known = Arc::new(ArcSwap::from_pointee(HashMap::new()));
        let (jobs, queue) = channel::bounded(QUEUE_MAX);
        let kept = known.clone();
        std::thread::Builder::new()
            .name("saltus-py-prep".to_owned())
            .spawn(move || {
                scheduling.apply(Priority::Short);
                live(main, &queue, &kept);
            })
            .map_err(|e| failure("OSError", &format!("cannot start the thread that compiles plugins: {e}")))?;
        Ok(Preparer { known, jobs })
    }

    /// What is known of a version. Never waits.
    pub fn known(&self, hash: u64) -> Option<Arc<Prepared>> {
        self.known.load().get(&hash).cloned()
    }

    /// Prepares a version and waits for it. Not on a shard's thread, and not with a GIL that others want.
    pub fn prepare(&self, code: &Arc<PluginCode>, file_name: &str) -> Arc<Prepared> {
        if let Some(known) = self.known(code.hash) {
            return known;
        }
        let (tell, told) = channel::bounded(1);
        let done = Box::new(move |prepared| drop(tell.send(prepared)));
        let sent = self.jobs.send(Job { code: code.clone(), file_name: file_name.to_owned(), done });
        let prepared = sent.ok().and_then(|()| told.recv().ok());
        prepared.unwrap_or_else(|| {
            Arc::new(Prepared::failed(failure("RuntimeError", "the thread that compiles plugins died")))
        })
    }

    /// Has a version prepared; `done` is called on the preparing thread. Never waits; false if the queue is full.
    pub fn ask(&self, code: &Arc<PluginCode>, file_name: &str, done: impl FnOnce() + Send + 'static) -> bool {
        let job = Job { code: code.clone(), file_name: file_name.to_owned(), done: Box::new(move |_| done()) };
        self.jobs.try_send(job).is_ok()
    }
}

impl Prepared {
    fn failed(error: PluginError) -> Self {
        Prepared { code: Err(error), reusable: false, inline: Err("it does not compile".into()), imports: Vec::new() }
    }
}

fn live(main: InterpreterId, jobs: &Receiver<Job>, known: &ArcSwap<HashMap<u64, Arc<Prepared>>>) {
    let py = Py::attach(main);
    while let Ok(Job { code, file_name, done }) = py.detach(|| jobs.recv()) {
        let before = known.load().get(&code.hash).cloned();
        let prepared = before.unwrap_or_else(|| {
            let found = look_at(py, &code, &file_name).map_err(|raised| plain_error(py, raised));
            let prepared = Arc::new(found.unwrap_or_else(Prepared::failed));
            let mut all = HashMap::clone(&known.load());
            if all.len() >= KEPT_MAX {
                all.clear();
            }
            all.insert(code.hash, prepared.clone());
            known.store(Arc::new(all));
            prepared
        });
        py.detach(|| done(prepared));
    }
}

fn look_at(py: Py, code: &PluginCode, file_name: &str) -> PyResult<Prepared> {
    let prepare = Object::import(py, "saltus._prepare")?.getattr(py, "prepare")?;
    let (source, name) = (Object::text(py, &code.source)?, Object::text(py, file_name)?);
    let found = prepare.call(py, [&source, &name, &Object::bool(py, code.directory.is_some())])?;
    let found = found.sequence_items(py)?;
    if !found[0].is_none() {
        return Ok(Prepared::failed(error_of(py, &found[0])?));
    }
    let inline = match found[3].is_none() {
        true => Ok(()),
        false => Err(found[3].extract_str(py, "a reason")?.into()),
    };
    let imports = found[4].sequence_items(py)?;
    Ok(Prepared {
        code: Ok(found[1].as_bytes(py).unwrap_or_default().to_vec()),
        reusable: found[2].truthy(py)?,
        inline,
        imports: imports.iter().map(|name| name.extract_str(py, "a module")).collect::<PyResult<_>>()?,
    })
}

/// The three parts that `saltus._report.describe` gives.
pub fn error_of(py: Py, parts: &Object) -> PyResult<PluginError> {
    let parts = parts.sequence_items(py)?;
    let text = |at: usize| parts[at].extract_str(py, "a part of a report");
    Ok(PluginError { kind: text(0)?, message: text(1)?, traceback: text(2)? })
}
