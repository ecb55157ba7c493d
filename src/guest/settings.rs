//! gvforwarder's flags and what they mean. Owns: the table that its usage text and its pages are made from.
//! May not: look at the system. Read next: `../cli/mod.rs`, which reads argv by the table.

use std::ffi::OsString;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};

use super::agent;
use super::endpoint::Endpoint;
use crate::addr::{self, ListenAddress, ensure_guest_path};
use crate::agent::SharedSecret;
use crate::cli::table::{Flag, Kind, flag, flags};
use crate::cli::{Read, Values, read};
use crate::config::Token;
use crate::text::quote;

/// Linux's `IFNAMSIZ` without the final zero (netdevice(7)).
const NAME_MAX: usize = 15;

flags! {
    /// Exactly what was typed, with the defaults of the flags that were not.
    pub struct RawArgs {
        agent: bool = flag(
            "agent", Kind::Bool, "",
            "Serve the sockets of -agent-allow and -agent-offer to gvproxy on the host. No tap is made \
             then, unless -url is given",
        ),
        agent_allow: Vec<OsString> = flag(
            "agent-allow", Kind::List, "PATH",
            "Absolute path of a unix socket that the host may connect to",
        ),
        agent_from: OsString = flag(
            "agent-from", Kind::Text(""), "ADDRESS",
            "IPv4 address that TCP connections to the agent must come from. The default is the gateway of \
             the default route",
        ),
        agent_offer: Vec<OsString> = flag(
            "agent-offer", Kind::List, "PATH|URL",
            "Unix socket that the agent may make here for the host, which serves its clients. It is an \
             absolute path, or unix:///PATH?mode=0660&owner=NAME&group=NAME",
        ),
        agent_port: i64 = flag(
            "agent-port", Kind::Int(crate::agent::PORT as i64), "PORT",
            "TCP and vsock port of the agent",
        ),
        agent_secret_file: Option<OsString> = flag(
            "agent-secret-file", Kind::Text(""), "FILE",
            "File of mode 0600 with a secret of 16 to 4096 bytes. Give the same secret to gvproxy on the \
             host. Over TCP, host and agent then prove to each other that they have it",
        ),
        api_token_file: Option<OsString> = flag(
            "api-token-file", Kind::Text(""), "FILE",
            "File of mode 0600 with the token of the host's gvproxy, if it has one. Without this flag, \
             the token is the value of GVISOR_API_TOKEN",
        ),
        debug: bool = flag("debug", Kind::Bool, "", "Log at debug level"),
        iface: OsString = flag("iface", Kind::Text("tap0"), "NAME", "Name of the tap interface"),
        mac: OsString = flag(
            "mac", Kind::Text("5a:94:ef:e4:0c:ee"), "ADDRESS",
            "Hardware address of the interface. An empty value leaves the one that it has",
        ),
        mtu: i64 = flag(
            "mtu", Kind::Int(0), "BYTES",
            "Upper limit of the MTU, at least 68. 0 stands for what DHCP offers",
        ),
        preexisting: bool = flag(
            "preexisting", Kind::Bool, "",
            "Use a tap that another program configures. Set neither hardware address nor IP address",
        ),
        stop_if_exist: OsString = flag(
            "stop-if-exist", Kind::Text("eth0,ens3,enp0s1"), "NAME,...",
            "Make no tap if one of these interfaces exists. An empty value stands for none",
        ),
        url: OsString = flag(
            "url", Kind::Text("vsock://2:1024/connect"), "URL",
            "URL of the host's /connect: vsock://CID:PORT/connect, unix:///SOCKET, \
             tcp://HOST:PORT/connect, or stdio:PROGRAM?FLAG=VALUE",
        ),
        version: bool = flag("version", Kind::Bool, "", "Print the version and exit"),
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// To run.
    Run(Box<RawArgs>),
    /// To print the usage on standard error and to succeed.
    Help(String),
    /// Nothing that can be done: what to print on standard error before exiting with 2.
    Usage(String),
}

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// What was typed, understood.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) endpoint: Endpoint,
    pub(super) token: Option<Token>,
    pub(super) interface: String,
    /// `None` leaves the one that the interface has.
    pub(super) mac: Option<Mac>,
    /// In bytes.
    pub(super) mtu_limit: Option<u16>,
    pub(super) preexisting: bool,
}

/// Reads a whole argv, the program's name first.
pub fn parse(argv: &[OsString]) -> Parsed {
    match read(argv, "gvforwarder", FLAGS) {
        Read::Values(values) => Parsed::Run(Box::new(RawArgs::new(values))),
        Read::Help(text) => Parsed::Help(text),
        Read::Usage(text) => Parsed::Usage(text),
    }
}

impl RawArgs {
    /// What the agent is to do, if there is to be one.
    ///
    /// # Errors
    /// A value that cannot be meant.
    pub fn agent(&self) -> Result<Option<agent::Settings>> {
        if !self.agent {
            ensure!(self.agent_allow.is_empty(), "-agent-allow is of no use without -agent");
            ensure!(self.agent_offer.is_empty(), "-agent-offer is of no use without -agent");
            ensure!(self.agent_secret_file.is_none(), "-agent-secret-file is of no use without -agent");
            return Ok(None);
        }
        let allow = "-agent-allow /run/podman/podman.sock";
        ensure!(
            !self.agent_allow.is_empty() || !self.agent_offer.is_empty(),
            "-agent serves nothing: add what the host may reach, as in {allow}"
        );
        for path in &self.agent_allow {
            let bytes = path.as_encoded_bytes();
            ensure!(
                bytes.starts_with(b"/"),
                "-agent-allow {}: an absolute path is needed, as in {allow}",
                shown(path)
            );
            ensure_guest_path(bytes).map_err(|why| anyhow!("-agent-allow {}: {why}", shown(path)))?;
        }
        let port = u16::try_from(self.agent_port).ok().filter(|&port| port > 0);
        let port = port.with_context(|| format!("-agent-port {}: between 1 and 65535", self.agent_port))?;
        let from = match self.agent_from.to_str() {
            Some("") => None,
            text => {
                let address = text.and_then(|text| text.parse().ok());
                Some(address.with_context(|| {
                    format!("-agent-from {}: not an IPv4 address", shown(&self.agent_from))
                })?)
            }
        };
        let allow = self.agent_allow.iter().map(|path| path.as_encoded_bytes().to_vec()).collect();
        let offer = self.agent_offer.iter().map(|text| {
            let source = ListenAddress::parse(text).and_then(|source| {
                let path = source.path().map(|path| path.as_os_str().as_encoded_bytes());
                let path = path.context("a unix socket with a path is needed")?;
                ensure!(path.starts_with(b"/"), "an absolute path is needed, as in /run/host/ssh-agent.sock");
                ensure_guest_path(path).map_err(Error::msg)?;
                Ok(source)
            });
            source.with_context(|| format!("-agent-offer {}", shown(text)))
        });
        let offer = offer.collect::<Result<_>>()?;
        let secret = SharedSecret::find(self.agent_secret_file.as_deref())?;
        Ok(Some(agent::Settings { allow, offer, port, from, secret }))
    }

    /// Whether there is to be a tap.
    pub fn has_tap(&self) -> bool {
        !self.agent || self.typed.contains(&"url")
    }

    /// Names of interfaces that leave nothing to do.
    pub fn stops(&self) -> impl Iterator<Item = &str> {
        self.stop_if_exist.to_str().unwrap_or_default().split(',')
    }
}

impl Settings {
    /// # Errors
    /// A value that cannot be meant.
    pub fn resolve(raw: &RawArgs) -> Result<Self> {
        let endpoint = Endpoint::parse(&raw.url).with_context(|| format!("-url {}", shown(&raw.url)))?;
        let interface = raw.iface.to_str().unwrap_or_default();
        let good = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%';
        ensure!(
            (1..=NAME_MAX).contains(&interface.len()) && interface.bytes().all(good),
            "-iface {}: not the name of an interface",
            shown(&raw.iface)
        );
        let mac = match raw.mac.to_str() {
            Some("") => None,
            Some(text) => Some(mac(text).with_context(|| format!("-mac {}", quote(text)))?),
            None => bail!("-mac {}: not a hardware address", shown(&raw.mac)),
        };
        let mtu_limit = match u16::try_from(raw.mtu) {
            Ok(0) => None,
            Ok(mtu @ 68..) => Some(mtu),
            _ => bail!("-mtu {}: between 68 and 65535, or 0", raw.mtu),
        };
        let (token, preexisting) = (Token::find(raw.api_token_file.as_deref())?, raw.preexisting);
        Ok(Self { endpoint, token, interface: interface.into(), mac, mtu_limit, preexisting })
    }
}

fn shown(text: &OsString) -> String {
    quote(text.as_encoded_bytes())
}

/// That of an interface.
fn mac(text: &str) -> Result<Mac> {
    let mac = addr::mac(text).map_err(|_| anyhow!("not a hardware address"))?.0;
    ensure!(mac[0] & 1 == 0, "a multicast address is no interface's");
    ensure!(mac != [0; 6], "not an interface's");
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(line: &str) -> RawArgs {
        let argv: Vec<OsString> =
            std::iter::once("gvforwarder").chain(line.split_whitespace()).map(Into::into).collect();
        match parse(&argv) {
            Parsed::Run(raw) => *raw,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn error(line: &str) -> String {
        format!("{:#}", Settings::resolve(&raw(line)).unwrap_err())
    }

    #[test]
    fn defaults_are_the_originals() {
        let raw = raw("");
        assert_eq!((raw.iface.to_str(), raw.mac.to_str()), (Some("tap0"), Some("5a:94:ef:e4:0c:ee")));
        assert_eq!(raw.url, "vsock://2:1024/connect");
        assert_eq!(raw.stops().collect::<Vec<_>>(), ["eth0", "ens3", "enp0s1"]);
        let settings = Settings::resolve(&raw).unwrap();
        assert_eq!(settings.mac, Some([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]));
        assert_eq!((settings.mtu_limit, settings.preexisting), (None, false));
    }

    #[test]
    fn flags_are_sorted() {
        assert!(FLAGS.is_sorted_by(|a, b| a.name < b.name));
        assert!(FLAGS.iter().all(|flag| flag.value.is_empty() == (flag.kind == Kind::Bool)));
    }

    #[test]
    fn hardware_addresses() {
        for text in ["5a:94:EF:e4:0c:ee", "5a-94-ef-e4-0c-ee", "5a94.efe4.0cee"] {
            assert_eq!(mac(text).unwrap(), [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee], "{text}");
        }
        for text in [
            "5a:94:ef:e4:0c",
            "5a:94:ef:e4:0c:e",
            "5a:94:ef:e4:0c-ee",
            "5a94efe40cee",
            "5a:94:ef:e4:0c:ee:00",
            "5a:94:ef:e4:0c:+e",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "zz:94:ef:e4:0c:ee",
            "5a94.efe4:0cee",
        ] {
            assert!(mac(text).is_err(), "{text}");
        }
        assert_eq!(Settings::resolve(&raw("-mac=")).unwrap().mac, None);
        assert_eq!(error("-mac zz"), r#"-mac "zz": not a hardware address"#);
    }

    #[test]
    fn values_that_cannot_be_meant() {
        assert_eq!(
            error("-iface aaaaaaaaaaaaaaaa"),
            r#"-iface "aaaaaaaaaaaaaaaa": not the name of an interface"#
        );
        assert!(Settings::resolve(&raw("-iface aaaaaaaaaaaaaaa")).is_ok());
        for line in ["-iface=", "-iface a/b", "-mtu 67", "-mtu -1", "-mtu 65536"] {
            error(line);
        }
        assert_eq!(Settings::resolve(&raw("-mtu 0x5dc")).unwrap().mtu_limit, Some(1500));
    }

    #[test]
    fn an_agent_says_what_it_serves() {
        let agent = |line: &str| raw(line).agent().map_err(|error| format!("{error:#}"));
        let settings = agent("-agent -agent-allow /run/a -agent-allow=/run/b").unwrap().unwrap();
        assert_eq!(
            (settings.allow, settings.port, settings.from),
            (vec![b"/run/a".to_vec(), b"/run/b".into()], 846, None)
        );
        let settings =
            agent("-agent -agent-allow /a -agent-port 8460 -agent-from 10.0.2.2").unwrap().unwrap();
        assert_eq!((settings.port, settings.from), (8460, Some("10.0.2.2".parse().unwrap())));
        let settings = agent("-agent -agent-offer unix:///run/a?mode=0660").unwrap().unwrap();
        let offered = settings.offer.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!((settings.allow.len(), offered), (0, vec!["unix:///run/a?mode=0660".to_owned()]));
        for (line, text) in [
            (
                "-agent",
                "-agent serves nothing: add what the host may reach, as in -agent-allow /run/podman/podman.sock",
            ),
            ("-agent-allow /a", "-agent-allow is of no use without -agent"),
            ("-agent-offer /a", "-agent-offer is of no use without -agent"),
            ("-agent-secret-file /a", "-agent-secret-file is of no use without -agent"),
            ("-agent -agent-allow /a -agent-secret-file=", "agent-secret-file is empty"),
            (
                "-agent -agent-allow /a -agent-secret-file /none/a",
                r#"agent secret file "/none/a": no such file"#,
            ),
            ("-agent -agent-offer a", "an absolute path is needed"),
            ("-agent -agent-offer tcp://:1", "a unix socket with a path is needed"),
            ("-agent -agent-offer unix:///a?mode=9", "-agent-offer \"unix:///a?mode=9\""),
            ("-agent -agent-allow a", "an absolute path is needed"),
            ("-agent -agent-allow=", "an absolute path is needed"),
            ("-agent -agent-allow /a -agent-port 0", "-agent-port 0: between 1 and 65535"),
            ("-agent -agent-allow /a -agent-port 65536", "between 1 and 65535"),
            ("-agent -agent-allow /a -agent-from gateway", r#"-agent-from "gateway": not an IPv4 address"#),
        ] {
            let error = agent(line).unwrap_err();
            assert!(error.contains(text), "{line}: {error}");
        }
        assert!(agent("").unwrap().is_none());
        for (line, tap) in [("", true), ("-agent", false), ("-agent -url vsock://2:1024/connect", true)] {
            assert_eq!(raw(line).has_tap(), tap, "{line}");
        }
    }
}
