//! The files in which a machine shows itself; their roots are parameters, so that a made folder is a machine as well.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::parse;

/// Where sysfs and procfs are.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// `/sys`.
    pub(crate) sys: PathBuf,
    /// `/proc`.
    pub(crate) proc: PathBuf,
}

impl Host {
    /// The trimmed text of a file below `/sys`; `None` if it is not there or not readable.
    pub(crate) fn sys(&self, path: impl AsRef<Path>) -> Option<String> {
        text(&self.sys.join(path))
    }

    /// Likewise below `/proc`.
    pub(crate) fn proc(&self, path: impl AsRef<Path>) -> Option<String> {
        text(&self.proc.join(path))
    }

    /// A list of cores in a file below `/sys`; an empty file is an empty list.
    pub(crate) fn cpu_list(&self, path: impl AsRef<Path>) -> Option<Vec<usize>> {
        self.sys(path).and_then(|text| cpu_list(&text))
    }

    /// Cores that are online.
    pub(crate) fn online(&self) -> Option<Vec<usize>> {
        self.cpu_list("devices/system/cpu/online")
    }

    /// The NUMA node of a core.
    pub(crate) fn node_of_cpu(&self, cpu: usize) -> Option<usize> {
        let nodes = names(&self.sys.join("devices/system/node"));
        nodes.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).find(|node: &usize| {
            self.cpu_list(format!("devices/system/node/node{node}/cpulist")).is_some_and(|cpus| cpus.contains(&cpu))
        })
    }
}

/// The trimmed text of a file.
pub(crate) fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Names in a folder, sorted; none if it cannot be read.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A list of cores as the kernel writes it.
pub(crate) fn cpu_list(text: &str) -> Option<Vec<usize>> {
    match text.trim() {
        "" | "(null)" => Some(Vec::new()),
        text => parse::cpus(text).ok(),
    }
}

/// Cores as the kernel and `--cpus` take them: `0,2-5`.
pub(crate) fn ranges(cpus: impl IntoIterator<Item = usize>) -> String {
    let cpus: Vec<usize> = cpus.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let mut parts = Vec::new();
    for run in cpus.chunk_by(|a, b| a + 1 == *b) {
        parts.push(match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => continue,
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_go_both_ways() {
        assert_eq!(ranges([5, 0, 2, 3, 4]), "0,2-5");
        assert_eq!(ranges([]), "");
        assert_eq!(cpu_list("0,2-5"), Some(vec![0, 2, 3, 4, 5]));
        assert_eq!(cpu_list("\n"), Some(vec![]));
        assert_eq!(cpu_list("x"), None);
    }
}
