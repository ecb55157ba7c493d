//! The host's own table of names, hosts(5).
//! Owns: nothing. Read next: `followed.rs`, which notices that the file changed.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

/// Names in lower case without the final dot, and their IPv4 addresses in the order of the file.
#[derive(Debug, Default)]
pub(super) struct HostsFile(HashMap<String, Vec<Ipv4Addr>>);

impl HostsFile {
    /// Lines that are not understood count for nothing.
    pub(super) fn parse(text: &str) -> Self {
        let mut names: HashMap<String, Vec<Ipv4Addr>> = HashMap::new();
        for line in text.lines() {
            let line = line.split_once('#').map_or(line, |(line, _)| line);
            let mut words = line.split_ascii_whitespace();
            let Some(address) = words.next().and_then(parse_address) else { continue };
            for name in words {
                let name = name.strip_suffix('.').unwrap_or(name);
                // COMPAT(gvproxy): a name of one label is never found there, so `localhost` stays the guest's
                // own.
                if !name.contains('.') {
                    continue;
                }
                let addresses = names.entry(name.to_ascii_lowercase()).or_default();
                if let IpAddr::V4(address) = address {
                    addresses.push(address);
                }
            }
        }
        Self(names)
    }

    /// The addresses of a name with its final dot, in any case. A name that has IPv6 addresses alone is found
    /// without one.
    pub(super) fn find(&self, name: &str) -> Option<&[Ipv4Addr]> {
        self.0.get(&name.strip_suffix('.')?.to_ascii_lowercase()).map(Vec::as_slice)
    }
}

/// An address, link-local ones with the interface.
fn parse_address(text: &str) -> Option<IpAddr> {
    let (address, scope) = text.split_once('%').unwrap_or((text, ""));
    address.parse().ok().filter(|address: &IpAddr| scope.is_empty() || address.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the original was seen to answer for this file.
    #[test]
    fn names_are_found_as_the_original_finds_them() {
        let hosts = HostsFile::parse(
            "127.0.0.1 localhost\n\
             10.1.2.3 Multi.Test.Example alias.test.example single\n\
             10.1.2.4\tdotted.example. tabbed.example # comment.example\n\
             fd00::7 sixonly.example\n\
             fe80::1%eth0 scoped.example\n\
             10.1.2.5 multi.test.example\r\n\
             \x20 10.1.2.6 indented.example\n\
             10.1.2.7 underscored_name.example\n\
             010.1.2.9 octal.example\n\
             10.1.2.10#x hash.example\n\
             10.1.2.11%eth0 odd.example\n\
             lonely.example",
        );
        let ip = |last| Ipv4Addr::new(10, 1, 2, last);
        for (name, expected) in [
            ("multi.test.example.", Some(&[ip(3), ip(5)][..])),
            ("MULTI.test.example.", Some(&[ip(3), ip(5)])),
            ("alias.test.example.", Some(&[ip(3)])),
            ("dotted.example.", Some(&[ip(4)])),
            ("tabbed.example.", Some(&[ip(4)])),
            ("indented.example.", Some(&[ip(6)])),
            ("underscored_name.example.", Some(&[ip(7)])),
            ("sixonly.example.", Some(&[])),
            ("scoped.example.", Some(&[])),
            ("localhost.", None),
            ("single.", None),
            ("comment.example.", None),
            ("octal.example.", None),
            ("hash.example.", None),
            ("odd.example.", None),
            ("lonely.example.", None),
            (".", None),
        ] {
            assert_eq!(hosts.find(name), expected, "{name}");
        }
    }
}
