//! `pylifecycle.h`, `initconfig.h`: the process's runtime and its interpreters.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pyo3_ffi as ffi;

use super::Py;

/// Initialises the runtime and its main interpreter, isolated from environment variables, command line and signals.
/// Once per process. The main interpreter's GIL is held by this thread afterwards. With `count_memory` what Python allocates
/// is counted ([`super::pymem`]); hashes have this seed, or a random one.
///
/// # Errors
/// What CPython said; without a usable home it would end the process, so `home` must have been checked.
pub fn initialize(home: &Path, count_memory: bool, hash_seed: Option<u32>) -> Result<Py, String> {
    let home = CString::new(home.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: the structs are plain data, filled by the Init functions before use; strings end with a zero and are
    // copied; errors come back as a status. Allocators are wrapped between the two steps, as documented.
    unsafe {
        let mut pre: ffi::PyPreConfig = std::mem::zeroed();
        ffi::PyPreConfig_InitIsolatedConfig(&mut pre);
        pre.utf8_mode = 1;
        check(ffi::Py_PreInitialize(&pre))?;
        if count_memory {
            super::pymem::install();
        }
        let mut config: ffi::PyConfig = std::mem::zeroed();
        ffi::PyConfig_InitIsolatedConfig(&mut config);
        config.install_signal_handlers = 0;
        config.site_import = 0;
        config.write_bytecode = 0;
        if let Some(seed) = hash_seed {
            (config.use_hash_seed, config.hash_seed) = (1, seed.into());
        }
        let home = ffi::PyConfig_SetBytesString(&mut config, &raw mut config.home, home.as_ptr());
        let result = check(home).and_then(|()| check(ffi::Py_InitializeFromConfig(&config)));
        ffi::PyConfig_Clear(&mut config);
        result?;
        Ok(Py::assume_attached())
    }
}

/// # Safety
/// A status that CPython returned.
unsafe fn check(status: ffi::PyStatus) -> Result<(), String> {
    // SAFETY: reads the status.
    if unsafe { ffi::PyStatus_Exception(status) } == 0 {
        return Ok(());
    }
    if status.err_msg.is_null() {
        return Err(format!("Python asked to exit with code {}", status.exitcode));
    }
    // SAFETY: error messages are static texts.
    Err(unsafe { CStr::from_ptr(status.err_msg) }.to_string_lossy().into_owned())
}

/// Lets go of the main interpreter after [`initialize`]; this thread is attached to nothing then.
pub fn release_main(_py: Py) {
    // SAFETY: `Py` witnesses the GIL; the thread state stays alive for ever, unused.
    unsafe { ffi::PyEval_SaveThread() };
}

/// Whether an interpreter's threads may be daemons.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum DaemonThreads {
    /// `threading.Thread(daemon=True)` works.
    Allowed,
    /// It raises RuntimeError.
    Refused,
}

/// Makes an interpreter with a GIL of its own and attaches this thread to it. One at a time in the process.
///
/// # Errors
/// What CPython said.
pub fn new_interpreter(daemons: DaemonThreads) -> Result<Py, String> {
    // 3.13 shares state between interpreters while they are being made (design, section 11).
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let config = ffi::PyInterpreterConfig {
        use_main_obmalloc: 0,
        allow_fork: 0,
        allow_exec: 0,
        allow_threads: 1,
        allow_daemon_threads: i32::from(daemons == DaemonThreads::Allowed),
        check_multi_interp_extensions: 1,
        gil: ffi::PyInterpreterConfig_OWN_GIL,
    };
    let mut state = std::ptr::null_mut();
    // SAFETY: the runtime is initialised (the caller has its runtime handle); this thread is attached to nothing; the
    // new state becomes current on this thread.
    unsafe {
        check(ffi::Py_NewInterpreterFromConfig(&mut state, &config))?;
        Ok(Py::assume_attached())
    }
}

/// `sys.version` of the libpython that is loaded.
pub fn version() -> String {
    // SAFETY: a static text, readable before initialisation.
    unsafe { CStr::from_ptr(ffi::Py_GetVersion()) }.to_string_lossy().into_owned()
}

/// The file that libpython was loaded from.
pub fn libpython_path() -> Option<PathBuf> {
    // SAFETY: fills one struct about the address of a function; the name in it is static.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(ffi::Py_GetVersion as *const libc::c_void, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(CStr::from_ptr(info.dli_fname).to_bytes())))
    }
}
