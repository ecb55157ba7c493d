//! `docs/limits.md` and the sources: each bound of the one is in the other, and each test that is named
//! exists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// Those of protocols and buffers, which nobody fills.
const NO_BOUNDS: [&str; 3] =
    ["src/sys/udp.rs MAX_MESSAGE", "src/sys/udp.rs MAX_SEGMENTS", "src/guest/relay.rs MAX_FRAME"];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below `directory`, as they are named from the repository's root.
///
/// Links are not followed: guests that other tests run have their `/proc` below `tests/guest/cache`.
fn sources(directory: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join(directory)).expect(directory) {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = path.strip_prefix(root()).unwrap().to_str().expect("UTF-8").to_owned();
        match entry.file_type().unwrap().is_dir() {
            true if name == "tests/guest/cache" => {}
            true => files.extend(sources(&name)),
            false if path.extension() == Some(Path::new("rs").as_os_str()) => files.push(name),
            false => {}
        }
    }
    files
}

/// The bounds of a table: file, name, value.
fn rows(text: &str) -> Vec<[String; 3]> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let parts = rows.map(|row| {
        let words: Vec<&str> = row.split('`').collect();
        let (name, value) = words[3].split_once(" = ").unwrap_or_else(|| panic!("{row}"));
        [words[1], name, value].map(str::to_owned)
    });
    parts.collect()
}

/// Name and value of a constant of a number that bounds something by its name.
fn bound(line: &str) -> Option<(&str, &str)> {
    let (_, constant) = line.trim_start().strip_suffix(';')?.split_once("const ")?;
    let (name, rest) = constant.split_once(": ")?;
    let (kind, value) = rest.split_once(" = ")?;
    let is_bound = name.starts_with("MAX_") || name.starts_with("MOST");
    (is_bound && kind.starts_with(['u', 'i'])).then_some((name, value))
}

#[test]
fn the_table_has_every_bound_as_it_is() {
    let rows = rows(&read("docs/limits.md"));
    assert!(rows.len() > 50, "{} rows", rows.len());
    for [path, name, value] in &rows {
        let is_there =
            |line: &str| line.contains(&format!("const {name}: ")) && line.ends_with(&format!("= {value};"));
        assert!(read(path).lines().any(is_there), "{path} has no {name} = {value}");
    }
    for path in ["src", "netstack/src", "qmp/src"].into_iter().flat_map(sources) {
        for line in read(&path).lines().take_while(|line| !line.starts_with("mod tests")) {
            let Some((name, value)) = bound(line) else { continue };
            let is_row = rows.iter().any(|[file, row, _]| (file, row.as_str()) == (&path, name));
            let is_exempt = NO_BOUNDS.contains(&format!("{path} {name}").as_str());
            assert!(is_row || is_exempt, "{path}: {name} = {value} is not in docs/limits.md");
        }
    }
}

#[test]
fn the_tests_that_it_names_exist() {
    let tests: String =
        ["src", "netstack", "qmp", "tests"].into_iter().flat_map(sources).map(|path| read(&path)).collect();
    for line in read("docs/limits.md").lines() {
        for word in line.split('`').skip(1).step_by(2) {
            let name = word.rsplit("::").next().unwrap_or_default();
            // A test's name is a sentence; other code that the text names is not.
            if name.matches('_').count() < 2
                || name.contains(['/', ' ', '.'])
                || name.starts_with(char::is_uppercase)
            {
                continue;
            }
            assert!(tests.contains(&format!("fn {name}(")), "there is no test {name}");
        }
    }
}
