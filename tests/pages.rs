//! Manual pages, completions, and the tables of docs/ are what the tables of flags and keys make. `make
//! pages` writes them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use gvproxy::cli::manual::GVPROXY;
use gvproxy::cli::pages::{self, Program};
use gvproxy::docker_sock::manual::DOCKER_SOCK;
use gvproxy::guest::manual::GVFORWARDER;

/// The programs, each with its page in docs/.
const PROGRAMS: &[(Program, &str)] =
    &[(GVPROXY, "cli.md"), (DOCKER_SOCK, "docker-sock.md"), (GVFORWARDER, "gvforwarder.md")];

/// Each file that is made as a whole, and what is to be in it.
fn files() -> Vec<(String, String)> {
    let manual = |(program, _): &(Program, _)| (format!("man/man1/{}.1", program.name), pages::man(program));
    let mut files: Vec<_> = PROGRAMS.iter().map(manual).collect();
    for (program, commands) in [(GVPROXY, &[DOCKER_SOCK][..]), (GVFORWARDER, &[])] {
        let name = program.name;
        files.extend([
            (format!("bash-completion/completions/{name}"), pages::bash(&program, commands)),
            (format!("zsh/site-functions/_{name}"), pages::zsh(&program, commands)),
            (format!("fish/vendor_completions.d/{name}.fish"), pages::fish(&program, commands)),
        ]);
    }
    files.into_iter().map(|(name, text)| (format!("share/{name}"), text)).collect()
}

/// Each table that stands in a file written by hand: the file, the table's name there, and the table.
fn tables() -> Vec<(String, &'static str, String)> {
    let mut tables = vec![("docs/config.md".to_owned(), "keys", gvproxy::config::keys::markdown())];
    for (program, page) in PROGRAMS {
        let page = format!("docs/{page}");
        tables.push((page.clone(), "flags", pages::flags_table(program.flags)));
        tables.push((page.clone(), "exit status", pages::table(["status", "when"], program.statuses)));
        tables.push((page, "environment", pages::table(["variable", "meaning"], program.environment)));
    }
    tables
}

/// `page` with `table` between its marks.
fn with_table(page: &str, name: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(&format!("<!-- made by make pages: {name} -->\n"))?;
    let (_, after) = rest.split_once("<!-- end -->\n")?;
    Some(format!("{before}<!-- made by make pages: {name} -->\n{table}<!-- end -->\n{after}"))
}

#[test]
fn pages_are_what_the_tables_make() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = std::env::var_os("UPDATE_PAGES").is_some();
    let mut wanted = files();
    for (name, mark, table) in tables() {
        let known = wanted.iter().position(|(file, _)| *file == name).unwrap_or_else(|| {
            wanted.push((name.clone(), fs::read_to_string(root.join(&name)).unwrap()));
            wanted.len() - 1
        });
        let page = with_table(&wanted[known].1, mark, &table);
        wanted[known].1 = page.unwrap_or_else(|| panic!("{name} has no marks of the table {mark:?}"));
    }
    for (name, page) in wanted {
        let path = root.join(&name);
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &page).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == page, "{name} is stale: make pages");
    }
}

/// bash is everywhere; what it completes is tried.
#[test]
fn bash_completes_flags_and_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("some.yaml"), "").unwrap();
    let script = dir.path().join("completion");
    fs::write(&script, pages::bash(&GVPROXY, &[DOCKER_SOCK])).unwrap();
    let completed = |words: &str| {
        let line = format!(
            ". {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _gvproxy; echo \
             \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let mut bash = Command::new("bash");
        let output = bash.args(["-c", &line]).current_dir(dir.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(completed("gvproxy -forward-s"), "-forward-sock");
    assert_eq!(completed("gvproxy dock"), "docker-sock");
    assert_eq!(completed("gvproxy -debug dock"), "");
    assert_eq!(completed("gvproxy -config so"), "some.yaml");
    assert_eq!(completed("gvproxy -mtu so"), "");
    assert_eq!(completed("gvproxy -subnet so"), "");
    // As bash cuts -config=so.
    assert_eq!(completed("gvproxy -config = so"), "some.yaml");
    assert_eq!(completed("gvproxy docker-sock st"), "status");
    assert_eq!(completed("gvproxy docker-sock install -s"), "-socket");
    assert_eq!(completed("gvproxy docker-sock install -socket so"), "some.yaml");
    fs::write(dir.path().join("with a space.yaml"), "").unwrap();
    assert_eq!(completed("gvproxy -config with"), "with a space.yaml");
    // A newer word of bash than macOS has.
    assert!(!pages::bash(&GVPROXY, &[DOCKER_SOCK]).contains("mapfile"));
}
