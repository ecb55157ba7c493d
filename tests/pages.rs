//! The manual pages and completions in share/ are what the tables of flags make. `make pages` writes them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use gvproxy::cli::pages::{self, GVPROXY, Program};

#[cfg(target_os = "linux")]
const PROGRAMS: [Program; 2] = [GVPROXY, gvproxy::guest::settings::GVFORWARDER];
#[cfg(not(target_os = "linux"))]
const PROGRAMS: [Program; 1] = [GVPROXY];

/// Each page's file below share/, and what is to be in it.
fn all() -> Vec<(String, String)> {
    let of = |program: &Program| {
        let name = program.name;
        [
            (format!("man/man1/{name}.1"), pages::man(program)),
            (format!("bash-completion/completions/{name}"), pages::bash(program)),
            (format!("zsh/site-functions/_{name}"), pages::zsh(program)),
            (format!("fish/vendor_completions.d/{name}.fish"), pages::fish(program)),
        ]
    };
    PROGRAMS.iter().flat_map(of).collect()
}

#[test]
fn the_pages_are_those_of_the_tables() {
    let share = Path::new(env!("CARGO_MANIFEST_DIR")).join("share");
    let update = std::env::var_os("UPDATE_PAGES").is_some();
    for (name, page) in all() {
        let path = share.join(&name);
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &page).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == page, "share/{name} is stale: make pages");
    }
}

/// bash is everywhere; what it completes is tried.
#[test]
fn bash_completes_flags_and_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("some.yaml"), "").unwrap();
    let script = dir.path().join("completion");
    fs::write(&script, pages::bash(&GVPROXY)).unwrap();
    let completed = |words: &str| {
        let line = format!(
            ". {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _gvproxy; echo \"${{COMPREPLY[@]}}\"",
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
    // As bash cuts -config=so.
    assert_eq!(completed("gvproxy -config = so"), "some.yaml");
    fs::write(dir.path().join("with a space.yaml"), "").unwrap();
    assert_eq!(completed("gvproxy -config with"), "with a space.yaml");
    // A newer word of bash than macOS has.
    assert!(!pages::bash(&GVPROXY).contains("mapfile"));
}
