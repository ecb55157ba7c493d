//! The host's list of resolvers, resolv.conf(5).
//! Owns: nothing. Read next: `followed.rs`, which notices that the file changed.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

/// What a resolver library takes from the file, no more: three servers, 30 s, five attempts.
const MAX_SERVERS: usize = 3;
const MAX_TIMEOUT: u64 = 30;
const MAX_ATTEMPTS: u32 = 5;

/// How the host resolves names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// In the order in which they are asked; the port is 0.
    pub(super) servers: Vec<SocketAddr>,
    /// How long one server may take.
    pub(super) timeout: Duration,
    /// How often each is asked.
    pub(super) attempts: u32,
    /// Over TCP and nothing else.
    pub(super) use_vc: bool,
    /// Beginning with the next one at each question.
    pub(super) rotate: bool,
}

impl Default for ResolvConf {
    fn default() -> Self {
        let timeout = Duration::from_secs(5);
        Self { servers: Vec::new(), timeout, attempts: 2, use_vc: false, rotate: false }
    }
}

impl ResolvConf {
    /// Lines that are not understood count for nothing, as with every resolver library. Nor do options about
    /// what a query says or how names are completed (`edns0`, `trust-ad`, `ndots`): queries are the guest's
    /// own.
    pub(super) fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if conf.servers.len() < MAX_SERVERS => {
                    conf.servers.extend(words.next().and_then(parse_server));
                }
                Some("options") => words.for_each(|word| conf.set_option(word)),
                _ => {}
            }
        }
        conf
    }

    fn set_option(&mut self, option: &str) {
        match option.split_once(':').map(|(name, value)| (name, value.parse::<u64>())) {
            None if option == "use-vc" => self.use_vc = true,
            None if option == "rotate" => self.rotate = true,
            Some(("timeout", Ok(value))) => self.timeout = Duration::from_secs(value.clamp(1, MAX_TIMEOUT)),
            Some(("attempts", Ok(value))) => self.attempts = value.clamp(1, MAX_ATTEMPTS.into()) as u32,
            _ => {}
        }
    }
}

/// An address, link-local ones with the interface: `fe80::1%eth0`.
fn parse_server(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, 0).into());
    }
    let (address, _) = text.split_once('%')?;
    // Only such an address has a scope; for it the library looks up the interface, and asks nobody.
    address.parse().ok().filter(Ipv6Addr::is_unicast_link_local)?;
    (text, 0).to_socket_addrs().ok()?.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, servers: &[&str], timeout: u64, attempts: u32) {
        let servers = servers.iter().map(|address| address.parse().unwrap()).collect();
        let expected =
            ResolvConf { servers, timeout: Duration::from_secs(timeout), attempts, ..Default::default() };
        assert_eq!(ResolvConf::parse(text), expected, "{text:?}");
    }

    #[test]
    fn servers_are_taken_in_order() {
        check("", &[], 5, 2);
        check("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n", &["127.0.0.53:0"], 5, 2);
        check(
            "# nameserver 1.1.1.1\n;nameserver 1.1.1.2\r\n\tnameserver\t10.0.0.1 # near\r\nnameserver fd00::1\nnameserver 10.0.0.2",
            &["10.0.0.1:0", "[fd00::1]:0", "10.0.0.2:0"],
            5,
            2,
        );
    }

    #[test]
    fn what_is_no_server_is_passed_over() {
        check(
            "nameserver\nnameserver dns.example.com\nnameserver 10.0.0\nnameserver 10.0.0.1.\nname",
            &[],
            5,
            2,
        );
        check("nameserver fe80::1%no-such-interface\nnameserver x%lo\nnameserver ::1%lo", &[], 5, 2);
    }

    #[test]
    fn a_scoped_server_names_its_interface() {
        let conf = ResolvConf::parse("nameserver fe80::1%lo\n");
        assert!(matches!(conf.servers[..], [SocketAddr::V6(server)] if server.scope_id() > 0), "{conf:?}");
    }

    #[test]
    fn only_three_servers_count() {
        let text: String = (1..9).map(|n| format!("nameserver 10.0.0.{n}\n")).collect();
        check(&text, &["10.0.0.1:0", "10.0.0.2:0", "10.0.0.3:0"], 5, 2);
    }

    #[test]
    fn options_without_a_value() {
        let options = |text: &str| (ResolvConf::parse(text).use_vc, ResolvConf::parse(text).rotate);
        assert_eq!(options("options edns0 use-vc trust-ad"), (true, false));
        assert_eq!(options("options rotate timeout:2\noptions use-vc"), (true, true));
        assert_eq!(options("options rotate:1 use_vc no-rotate\n#options rotate"), (false, false));
    }

    #[test]
    fn options_are_bounded() {
        check("options timeout:1 attempts:3", &[], 1, 3);
        check("options timeout:0 attempts:0", &[], 1, 1);
        check("options timeout:99 attempts:99\noptions ndots:2", &[], 30, 5);
        check("options timeout:x attempts: timeout", &[], 5, 2);
        check("options timeout:99999999999999999999999", &[], 5, 2);
    }
}
