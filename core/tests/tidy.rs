//! House rules that a machine can check, read from the files of the workspace.
//!
//! Invariants, each one test: the crates depend on each other only along the edges of the design; the runtime stays
//! behind its door and CPython behind its own; crates that need no `unsafe` forbid it; every dependency is used and
//! justified; every source file says at its top what it is; nothing is left marked as unfinished; sources are ASCII
//! outside of literals; no path of anybody's machine is in the repository; the top level holds only what the layout
//! names.
//!
//! What this is *not*: a Rust parser. [`Parts`] tells code, comments and literals apart, which is all that is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Folders that the layout allows at the top, besides those that start with a dot and cargo's own `target`.
const TOP_LEVEL: [&str; 7] = ["benches", "core", "docs", "loadtest", "python-bridge", "server", "shards"];

/// Which workspace packages a member may depend on, by folder.
const EDGES: [(&str, &[&str]); 6] = [
    ("core", &[]),
    ("shards", &["saltus-core"]),
    ("python-bridge", &["saltus-core"]),
    ("server", &["saltus-core", "saltus-python", "saltus-shards"]),
    ("benches", &["saltus", "saltus-core", "saltus-python", "saltus-shards"]),
    ("loadtest", &[]),
];

#[test]
fn crates_depend_on_each_other_only_along_the_designs_edges() {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.into();
    let members = members();
    assert_eq!(
        members.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        allowed.keys().copied().collect(),
        "the members of the workspace are not those of the layout"
    );
    let mut problems = Vec::new();
    for member in &members {
        let dependencies = dependencies(member);
        for name in dependencies.keys().filter(|name| *name == "saltus" || name.starts_with("saltus-")) {
            if !allowed[member.as_str()].contains(&name.as_str()) {
                problems.push(format!("{member} must not depend on {name}"));
            }
        }
        // Versions live in the root manifest only.
        for (name, value) in &dependencies {
            if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                problems.push(format!("{member}/Cargo.toml: {name} must say `workspace = true`"));
            }
        }
    }
    report(&problems);
}

#[test]
fn the_runtime_is_named_only_behind_its_door() {
    let mut problems = Vec::new();
    for file in sources("rs") {
        let path = relative(&file);
        let allowed = path.starts_with("shards/src/io/") || path == "shards/src/executor.rs";
        if !allowed && words(&Parts::of(&read(&file)).code).contains("glommio") {
            problems.push(format!("{path} names glommio; only shards/src/io/ and shards/src/executor.rs may"));
        }
    }
    report(&problems);
}

#[test]
fn cpython_is_named_only_behind_its_door() {
    let mut problems = Vec::new();
    for file in sources("rs") {
        let path = relative(&file);
        if path.starts_with("python-bridge/src/ffi/") || path == "python-bridge/src/ffi.rs" {
            continue;
        }
        let code = Parts::of(&read(&file)).code;
        let words = words(&code);
        if words.contains("pyo3_ffi") {
            problems.push(format!("{path} names pyo3_ffi; only python-bridge/src/ffi/ may"));
        }
        let system = path == "python-bridge/src/process/system.rs";
        if path.starts_with("python-bridge/src/") && !system && words.contains("unsafe") {
            problems
                .push(format!("{path} holds unsafe code; in this crate only src/ffi/ and src/process/system.rs may"));
        }
    }
    report(&problems);
}

#[test]
fn crates_that_need_no_unsafe_code_forbid_it() {
    let mut problems = Vec::new();
    for root in ["core/src/lib.rs", "server/src/main.rs", "loadtest/src/main.rs"] {
        if !read(&workspace().join(root)).contains("#![forbid(unsafe_code)]") {
            problems.push(format!("{root} must say #![forbid(unsafe_code)]"));
        }
    }
    report(&problems);
}

#[test]
fn every_dependency_is_justified_and_used() {
    let manifest = read(&workspace().join("Cargo.toml"));
    let used: BTreeSet<String> = members().iter().flat_map(|member| dependencies(member).into_keys()).collect();
    let mut problems = Vec::new();
    let section = manifest.split("[workspace.dependencies]").nth(1).expect("the root manifest lists dependencies");
    for line in section.lines().take_while(|line| !line.starts_with('[')) {
        let Some((name, value)) = line.split_once('=') else { continue };
        let name = name.trim();
        if name.starts_with('#') || value.contains("path =") {
            continue;
        }
        if line.rsplit_once('#').is_none_or(|(_, reason)| reason.trim().len() < 4) {
            problems.push(format!("Cargo.toml: {name} has no reason beside it"));
        }
        if !used.contains(name) {
            problems.push(format!("Cargo.toml: no member uses {name}"));
        }
    }
    report(&problems);
}

#[test]
fn every_source_file_says_at_its_top_what_it_is() {
    let mut problems = Vec::new();
    for (extension, openings) in [("rs", ["//!", "// "]), ("py", ["\"\"\"", "# "]), ("sh", ["# ", "#: "])] {
        for file in sources(extension) {
            let text = read(&file);
            let mut lines = text.lines().skip_while(|line| line.starts_with("#!/") || line.is_empty());
            if !lines.next().is_some_and(|first| openings.iter().any(|opening| first.starts_with(opening))) {
                problems.push(format!("{} does not start with a header", relative(&file)));
            }
        }
    }
    report(&problems);
}

#[test]
fn nothing_is_left_marked_as_unfinished() {
    let markers = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut problems = Vec::new();
    for file in ["rs", "py", "sh", "toml"].into_iter().flat_map(sources) {
        for (index, line) in read(&file).lines().enumerate() {
            let words = words(line);
            for marker in markers.iter().filter(|marker| words.contains(marker.as_str())) {
                problems.push(format!("{}:{}: {marker}", relative(&file), index + 1));
            }
        }
    }
    report(&problems);
}

#[test]
fn sources_are_ascii_outside_of_literals() {
    let mut problems = Vec::new();
    for file in sources("rs") {
        let parts = Parts::of(&read(&file));
        for text in [parts.code, parts.comments] {
            if let Some(line) = text.lines().find(|line| !line.is_ascii()) {
                problems.push(format!("{}: {}", relative(&file), line.trim()));
            }
        }
    }
    report(&problems);
}

#[test]
fn no_path_of_a_machine_is_in_the_repository() {
    let prefixes = [["/ro", "ot/"].concat(), ["/wo", "rk/"].concat()];
    let mut problems = Vec::new();
    for file in ["rs", "py", "sh", "toml", "md"].into_iter().flat_map(sources) {
        for (index, line) in read(&file).lines().enumerate() {
            if prefixes.iter().any(|prefix| line.contains(prefix.as_str())) {
                problems.push(format!("{}:{}: {}", relative(&file), index + 1, line.trim()));
            }
        }
    }
    report(&problems);
}

#[test]
fn the_top_level_holds_only_the_layouts_folders() {
    /// What cargo and `make loadtest` leave; git ignores them.
    const LEFT: [&str; 2] = ["target", "loadtest-results"];
    let mut problems = Vec::new();
    for entry in std::fs::read_dir(workspace()).expect("the workspace can be listed") {
        let entry = entry.expect("the workspace can be listed");
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_folder = entry.path().is_dir();
        if is_folder && !name.starts_with('.') && !LEFT.contains(&name.as_str()) && !TOP_LEVEL.contains(&name.as_str())
        {
            problems.push(format!("{name}/ is not in the layout"));
        }
    }
    report(&problems);
}

#[test]
fn the_reader_tells_code_comments_and_literals_apart() {
    let parts = Parts::of(
        "let a = \"in // text\"; // one\nlet b = r#\"raw \"quoted\" text\"#; /* two /* deep */ */ let c: &'a str = '\"';",
    );
    assert_eq!(parts.code.trim(), "let a = ; \nlet b = ;  let c: &'a str = ;");
    assert!(parts.comments.contains("// one") && parts.comments.contains("deep"), "{}", parts.comments);
    assert!(!parts.comments.contains("in //"), "{}", parts.comments);
}

/// Fails with one line per problem.
fn report(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// The folder of the root manifest.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member lies in the workspace").to_owned()
}

fn relative(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap_or(path).to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
}

fn manifest(path: &str) -> toml::Table {
    read(&workspace().join(path)).parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The folders of the workspace's members.
fn members() -> Vec<String> {
    let root = manifest("Cargo.toml");
    let members = root["workspace"]["members"].as_array().expect("members are a list");
    members.iter().map(|member| member.as_str().expect("a member is a path").to_owned()).collect()
}

/// All dependencies of a member: normal, of tests and of the build, of every target.
fn dependencies(member: &str) -> BTreeMap<String, toml::Value> {
    let manifest = manifest(&format!("{member}/Cargo.toml"));
    let targets = manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(|table| table.values());
    let tables = targets.filter_map(toml::Value::as_table).chain([&manifest]);
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    tables
        .flat_map(|table| kinds.into_iter().filter_map(|kind| table.get(kind)?.as_table()))
        .flat_map(|table| table.iter().map(|(name, value)| (name.clone(), value.clone())))
        .collect()
}

/// All files with an extension, build outputs and folders that start with a dot (except `.ci`) left out.
fn sources(extension: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let hidden = name.starts_with('.') && name != ".ci";
            if hidden || matches!(name.as_str(), "target" | "__pycache__" | "node_modules" | "corpus" | "vendor") {
                continue;
            }
            if path.is_dir() {
                walk(&path, extension, found);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&workspace(), extension, &mut found);
    found.sort();
    assert!(extension != "rs" || found.len() > 10, "only {} sources found: the search is broken", found.len());
    found
}

/// The identifiers of a text.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').collect()
}

/// A Rust source taken apart; literals are in neither part.
#[derive(Default)]
struct Parts {
    code: String,
    comments: String,
}

impl Parts {
    fn of(source: &str) -> Self {
        let mut parts = Self::default();
        let mut rest = source;
        while let Some(first) = rest.chars().next() {
            let after_word = parts.code.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_');
            let taken = if rest.starts_with("//") {
                let length = rest.find('\n').unwrap_or(rest.len());
                parts.comments.push_str(&rest[..length]);
                parts.comments.push('\n');
                length
            } else if rest.starts_with("/*") {
                let length = block_comment(rest);
                parts.comments.push_str(&rest[..length]);
                length
            } else if let Some(length) = raw_string(rest).filter(|_| !after_word) {
                length
            } else if first == '"' {
                quoted(rest, '"')
            } else if first == '\'' && is_char(rest) {
                quoted(rest, '\'')
            } else {
                parts.code.push(first);
                first.len_utf8()
            };
            rest = &rest[taken..];
        }
        parts
    }
}

/// Bytes of the (nested) block comment at the start of `text`.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut position = 0;
    while position < text.len() {
        let rest = &text.as_bytes()[position..];
        if rest.starts_with(b"/*") {
            depth += 1;
            position += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            position += 2;
            if depth == 0 {
                return position;
            }
        } else {
            position += 1;
        }
    }
    text.len()
}

/// Bytes of the raw string at the start of `text`, if there is one.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |position| position + end.len());
    Some(text.len() - body.len() + length)
}

/// Bytes of the literal at the start of `text`, its quotes included.
fn quoted(text: &str, quote: char) -> usize {
    let mut letters = text.char_indices().skip(1);
    while let Some((position, letter)) = letters.next() {
        if letter == '\\' {
            letters.next();
        } else if letter == quote {
            return position + letter.len_utf8();
        }
    }
    text.len()
}

/// Tells a character literal from a lifetime.
fn is_char(text: &str) -> bool {
    let mut letters = text.chars().skip(1);
    letters.next() == Some('\\') || letters.next() == Some('\'')
}
