//! The host's DNS search list, which the guest gets by DHCP. Owns: nothing. Read next: `../config.rs`.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::disk::files;

/// More of a `resolv.conf` is not read, in bytes.
const FILE_MAX: u64 = 64 * 1024;
/// How long the file may hold up the start.
const READ_TIME: Duration = Duration::from_secs(1);
/// More domains are left out; option 119 has to fit a DHCP message with everything else.
pub(super) const DOMAINS_MAX: usize = 32;

/// The search list in the file at `path`, as resolv.conf(5) describes it.
pub(super) fn domains(path: &Path) -> io::Result<Vec<String>> {
    let text = files::read_within(path, FILE_MAX, READ_TIME)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// The last `search` or `domain` line counts; `domain` has one entry.
fn parse(text: &str) -> Vec<String> {
    let list = text.lines().rev().find_map(|line| {
        let words = |rest: &'_ str| rest.starts_with([' ', '\t']).then(|| rest.to_owned());
        match (line.strip_prefix("search").and_then(words), line.strip_prefix("domain").and_then(words)) {
            (Some(rest), _) => Some((rest, DOMAINS_MAX)),
            (None, Some(rest)) => Some((rest, 1)),
            (None, None) => None,
        }
    });
    let Some((words, most)) = list else { return Vec::new() };
    words.split_whitespace().filter_map(domain).take(most).collect()
}

/// `text` as a domain, if it is one. One final dot is part of the notation, so `.` alone is an empty domain.
pub(super) fn domain(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    (is_domain(name) && !name.contains(char::is_whitespace)).then(|| name.to_owned())
}

/// RFC 1035, 2.3.4: labels of 1 to 63 octets, 255 on the wire in all.
fn is_domain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn search_lists() {
        let label = "a".repeat(64);
        for (text, domains) in [
            ("", &[][..]),
            ("nameserver 1.1.1.1\nsearch a.example b.example\n", &["a.example", "b.example"]),
            ("search\ta\t b  \n", &["a", "b"]),
            ("search a\r\n", &["a"]),
            ("search a\nsearch b c", &["b", "c"]),
            ("search a b\ndomain c d\n", &["c"]),
            ("domain c\nsearch a b\n", &["a", "b"]),
            ("search a\nsearch\n", &["a"]),
            ("search a\nsearch \n", &[]),
            (" search a\n#search b\n;search c\nsearchd e\n", &[]),
            ("search .\n", &[]),
            ("search a. .b c..d e\n", &["a", "e"]),
            (&format!("search {label} b"), &["b"]),
        ] {
            assert_eq!(parse(text), domains, "{text:?}");
        }
    }

    #[test]
    fn the_list_is_bounded() {
        let text = format!("search {}", "a ".repeat(10_000));
        assert_eq!(parse(&text).len(), DOMAINS_MAX);
    }

    #[test]
    fn a_file_is_read_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        assert_eq!(domains(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, b"search a.example\n\xff\n").unwrap();
        assert_eq!(domains(&path).unwrap(), ["a.example"]);
    }

    proptest! {
        #[test]
        fn whatever_stands_there_gives_domains(text in "(search|domain|[a-z. \\t\\n]){0,40}|\\PC*") {
            for name in parse(&text) {
                prop_assert!(is_domain(&name) && !name.contains(char::is_whitespace), "{name}");
            }
        }
    }
}
