//! Puts a report into a page of the documentation: between two marks, with everything that people wrote around them left alone.

use std::path::Path;

use anyhow::{Context, ensure};

use super::files::save;

/// Where the generated part begins.
const BEGIN: &str = "<!-- loadtest: begin -->";
/// Where it ends.
const END: &str = "<!-- loadtest: end -->";

/// What a run has for a page.
pub struct Results<'a> {
    /// Goes between the marks.
    pub report: &'a str,
    /// The folder of its files.
    pub folder: &'a Path,
    /// Those of this run.
    pub names: &'a [String],
    /// Its lines of JSON.
    pub lines: &'a [String],
}

/// Replaces what is between the marks of `page`, and puts plots and raw files into the folder of the same name beside it.
///
/// # Errors
/// No such page, no marks in it, or files that cannot be copied.
pub fn publish(page: &Path, results: &Results<'_>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let text = between_marks(&text, results.report).with_context(|| page.display().to_string())?;
    let folder = page.with_extension("");
    if folder.exists() {
        // What an earlier run left and this one has not is of no machine that the page names.
        std::fs::remove_dir_all(&folder).with_context(|| format!("clearing {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    // Pictures are there as SVG; what is counted from send is in the lines of JSON.
    let wanted = |name: &&String| {
        let ends = |ending: &str| name.ends_with(ending);
        (ends(".svg") || ends(".hgrm")) && !ends("-from-send.hgrm")
    };
    for name in results.names.iter().filter(wanted) {
        std::fs::copy(results.folder.join(name), folder.join(name)).with_context(|| format!("copying {name}"))?;
    }
    save(&folder.join("results.jsonl"), format!("{}\n", results.lines.join("\n")).as_bytes())?;
    save(page, text.as_bytes())
}

/// The folder of a page's plots, as the page itself names it.
pub fn plots_of(page: &Path) -> String {
    page.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn between_marks(text: &str, report: &str) -> anyhow::Result<String> {
    let marks = || format!("there must be the lines {BEGIN} and {END}, in this order, for the report to go between");
    let (before, rest) = text.split_once(BEGIN).with_context(marks)?;
    let (_, after) = rest.split_once(END).with_context(marks)?;
    ensure!(!before.contains(END) && !after.contains(BEGIN), marks());
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", report.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("# A\n\nprose\n\n{BEGIN}\nold\n{END}\n\nmore\n");
        let once = between_marks(&page, "new\n").unwrap();
        assert_eq!(once, format!("# A\n\nprose\n\n{BEGIN}\n\nnew\n\n{END}\n\nmore\n"));
        assert_eq!(between_marks(&once, "new").unwrap(), once);
        assert!(between_marks("# A\n", "new").unwrap_err().to_string().contains(BEGIN));
        assert!(between_marks(&format!("{END}{BEGIN}"), "new").is_err());
    }

    #[test]
    fn plots_and_raw_files_go_beside_the_page_and_old_ones_away() {
        let folder = tempfile::tempdir().unwrap();
        let (page, results) = (folder.path().join("b.md"), folder.path().join("results"));
        std::fs::create_dir_all(folder.path().join("b")).unwrap();
        std::fs::create_dir(&results).unwrap();
        std::fs::write(folder.path().join("b/old.svg"), "").unwrap();
        let names = ["x.svg", "x.png", "x.hgrm", "x-from-send.hgrm"].map(str::to_owned);
        for name in names.iter().map(String::as_str).chain(["y.svg"]) {
            std::fs::write(results.join(name), "").unwrap();
        }
        std::fs::write(&page, format!("{BEGIN}{END}")).unwrap();
        let lines = ["{}".to_owned(), "{}".to_owned()];
        publish(&page, &Results { report: "report", folder: &results, names: &names, lines: &lines }).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(folder.path().join("b"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["results.jsonl", "x.hgrm", "x.svg"]);
        assert_eq!(plots_of(&page), "b");
    }
}
