//! The Python that is built in: version, library, global interpreter lock, debug build, optimisation, packages.

use std::path::{Path, PathBuf};

use saltus_python::PythonRuntime;

use super::host::{names, text};
use super::{Check, Finding, Subject};

const PYTHON: Check = Check {
    name: "python",
    why: "plugins run in interpreters with a lock of their own, one per shard, which need CPython 3.13 or newer as a shared library.",
};
const BUILD: Check = Check {
    name: "python build",
    why: "a debug build, and one without profile-guided optimisation, runs plugins slower than they need to be.",
};
const PACKAGES: Check = Check {
    name: "python packages",
    why: "packages of another Python series cannot be imported, and their plugins fail at their first run.",
};

/// Version and library, build, virtual environment.
pub(super) fn examine(subject: &Subject) -> Vec<Finding> {
    let version = PythonRuntime::build_text();
    let maps = subject.host.proc("self/maps");
    let library = maps.as_deref().and_then(library);
    let mut findings = vec![runtime(&version, library.as_deref(), maps.is_some()), build(&version, library.as_deref())];
    if let Some(venv) = &subject.virtual_env {
        findings.push(packages(venv, &PythonRuntime::python_series()));
    }
    findings
}

fn runtime(version: &str, library: Option<&Path>, looked: bool) -> Finding {
    let short = version.split(" (").next().unwrap_or(version);
    let rebuild = "PYTHON_CONFIGURE_OPTS=\"--enable-shared --enable-optimizations --with-lto\" pyenv install 3.13; then build the server with it";
    if version.contains("free-threading") {
        return PYTHON.fail(format!("{short}: a free-threaded build, without a lock per interpreter"), rebuild);
    }
    match library {
        Some(library) => PYTHON.ok(format!("{short}, with a lock per interpreter, from {}", library.display())),
        None if looked => PYTHON.warn(
            format!("{short}, built into the program: packages with C extensions may not find their symbols"),
            rebuild,
        ),
        None => PYTHON.ok(format!("{short}, with a lock per interpreter")),
    }
}

/// The path of libpython among the process's mappings.
fn library(maps: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    paths
        .map(Path::new)
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libpython3.")))
        .map(Path::to_owned)
}

fn build(version: &str, library: Option<&Path>) -> Finding {
    let name = library.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let rebuild = "PYTHON_CONFIGURE_OPTS=\"--enable-shared --enable-optimizations --with-lto\" pyenv install --force 3.13; then build the server with it";
    let settings = library.and_then(|library| settings(library, &PythonRuntime::python_series()));
    let says = |key: &str| settings.as_ref().is_some_and(|text| text.contains(&format!("'{key}': 1")));
    // 3.13d in the name of the library is how distributions mark it.
    let marked = name.split(".so").next().is_some_and(|stem| stem.ends_with('d'));
    if says("Py_DEBUG") || marked {
        return BUILD.warn(format!("a debug build ({name})"), rebuild);
    }
    let Some(settings) = settings else { return BUILD.unseen(format_args!("_sysconfigdata of {version}")) };
    let pgo = settings.contains("--enable-optimizations") || settings.contains("-fprofile-use");
    let lto = settings.contains("--with-lto") || settings.contains("-flto");
    match (pgo, lto) {
        (true, true) => BUILD.ok("release, with profile-guided and link-time optimisation"),
        (true, false) => BUILD.ok("release, with profile-guided optimisation"),
        (false, _) => BUILD.warn("release, without profile-guided optimisation", rebuild),
    }
}

/// What this Python was configured with, if its library of modules is beside it.
fn settings(library: &Path, series: &str) -> Option<String> {
    let folders = library
        .ancestors()
        .skip(1)
        .take(3)
        .flat_map(|folder| [folder.join(format!("python{series}")), folder.join(format!("lib/python{series}"))]);
    folders.into_iter().find_map(|folder| {
        let name = names(&folder).into_iter().find(|name| name.starts_with("_sysconfigdata_"))?;
        text(&folder.join(name))
    })
}

fn packages(venv: &Path, series: &str) -> Finding {
    if venv.join(format!("lib/python{series}/site-packages")).is_dir() {
        return PACKAGES.ok(format!("{} is of Python {series}", venv.display()));
    }
    let there: Vec<String> = names(&venv.join("lib")).into_iter().filter(|name| name.starts_with("python")).collect();
    PACKAGES.warn(
        format!(
            "{} is of {}, the server has Python {series}",
            venv.display(),
            if there.is_empty() { "no Python".to_owned() } else { there.join(", ") }
        ),
        format!("python{series} -m venv --clear {}", venv.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::Made;
    use super::*;

    #[test]
    fn the_library_tells_how_it_was_built() {
        let series = PythonRuntime::python_series();
        let made = Made::new(&[0], &[]);
        let lib = made.subject.host.sys.join("lib");
        let library = lib.join(format!("libpython{series}.so.1.0"));
        made.put("proc/self/maps", &format!("7f00-7f01 r-xp 0000 08:01 12 {}\n", library.display()));
        assert_eq!(made.one(examine, "python build").outcome, Outcome::Unseen);
        let config = format!("sys/lib/python{series}/_sysconfigdata__linux_x86_64-linux-gnu.py");
        made.put(
            &config,
            "{'CONFIG_ARGS': \"'--enable-shared' '--enable-optimizations' '--with-lto'\", 'Py_DEBUG': 0}",
        );
        assert!(made.one(examine, "python build").found.contains("link-time"));
        made.put(&config, "{'CONFIG_ARGS': \"'--enable-shared'\", 'Py_DEBUG': 0}");
        assert_eq!(made.one(examine, "python build").outcome, Outcome::Warn);
        made.put(&config, "{'CONFIG_ARGS': '', 'Py_DEBUG': 1}");
        assert!(made.one(examine, "python build").found.starts_with("a debug build"));
        let found = made.one(examine, "python");
        assert!(found.outcome == Outcome::Ok && found.found.contains("libpython3."), "{found:?}");
        assert_eq!(runtime("3.13.0 experimental free-threading build (main)", None, true).outcome, Outcome::Fail);
    }

    #[test]
    fn an_environment_of_another_series_is_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("lib/python3.9/site-packages")).unwrap();
        let found = packages(folder.path(), "3.13");
        assert!(found.outcome == Outcome::Warn && found.found.contains("is of python3.9"), "{found:?}");
        std::fs::create_dir_all(folder.path().join("lib/python3.13/site-packages")).unwrap();
        assert_eq!(packages(folder.path(), "3.13").outcome, Outcome::Ok);
    }
}
