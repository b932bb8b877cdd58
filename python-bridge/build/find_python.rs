// Which CPython is linked, and where its libpython lies. Included (`include!`) by the build scripts of every package
// that makes executables with Python in them: rpath is a property of the executable, not of the library that needs it.
//
// The choice itself is not made here: pyo3-ffi's own build script has already run with `PYO3_PYTHON` (the Makefile sets
// it from `python-bridge/find-python.sh`), so this asks the very same interpreter.

/// What the build needs to know about the interpreter.
struct FoundPython {
    /// `sys.base_prefix`.
    prefix: String,
    /// The folder of the shared libpython.
    libdir: String,
}

/// Asks the interpreter of `PYO3_PYTHON`, or `python3`.
///
/// Ends the build with a message when it is no CPython 3.13 or later, or has no shared libpython.
fn find_python() -> FoundPython {
    println!("cargo:rerun-if-env-changed=PYO3_PYTHON");
    println!("cargo:rerun-if-env-changed=PATH");
    let python = std::env::var("PYO3_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = "import sys, sysconfig as s; v = s.get_config_var; \
                  print(sys.base_prefix); print(v('LIBDIR')); print(v('Py_ENABLE_SHARED')); \
                  print(int(sys.version_info >= (3, 13)))";
    let output = std::process::Command::new(&python)
        .args(["-I", "-c", script])
        .output()
        .unwrap_or_else(|e| panic!("cannot run {python}: {e}; run python-bridge/find-python.sh for advice"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().map(str::to_owned);
    let mut next = || lines.next().unwrap_or_default();
    let (prefix, libdir, shared, recent) = (next(), next(), next(), next());
    assert!(recent == "1", "{python} is no CPython 3.13 or later; run python-bridge/find-python.sh for advice");
    assert!(shared == "1", "{python} has no shared libpython; run python-bridge/find-python.sh for advice");
    // A relocated build (uv) may still name the folder that it was made in.
    let libdir = if std::path::Path::new(&libdir).is_dir() { libdir } else { format!("{prefix}/lib") };
    FoundPython { prefix, libdir }
}

/// Lets executables of this package find libpython without `LD_LIBRARY_PATH`.
fn link_rpath(found: &FoundPython) {
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", found.libdir);
}
