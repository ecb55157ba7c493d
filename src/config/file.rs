//! The YAML file of `-config`. Owns: its schema, which is the original's, and where in the file each value
//! stands.
//! May not: judge values. Read next: `asked.rs`, where it meets the flags; `stack.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_path_to_error::{Path as KeyPath, Segment};
use serde_saphyr::{Spanned, UserMessageFormatter};

use crate::text::reason;

/// A larger file is none, in bytes.
const MAX_LEN: u64 = 1 << 20;

/// A scalar as it is written, with its place; `None` for a missing or an empty value.
pub(super) type Text = Option<Spanned<String>>;
/// Keys with scalars. Their order is of no account.
pub(super) type Map = BTreeMap<String, Spanned<Option<String>>>;

/// The whole file. A key that is not here is ignored, as the original does.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct File {
    #[serde(deserialize_with = "nullable")]
    pub(super) listen: Vec<Spanned<String>>,
    pub(super) services: Text,
    pub(super) log_level: Text,
    pub(super) log_file: Text,
    pub(super) pid_file: Text,
    pub(super) notification: Text,
    pub(super) agent_secret_file: Text,
    pub(super) api_token_file: Text,
    #[serde(deserialize_with = "nullable")]
    pub(super) api_token_gateway: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) gateway_expose_all_protocols: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) ec2_metadata_access: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) qmp: Vec<Spanned<String>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) qmp_keep_device: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) exit_with_vm: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) interfaces: Interfaces,
    #[serde(deserialize_with = "nullable")]
    pub(super) forwards: Vec<Spanned<Forward>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) reverse: Vec<Spanned<Reverse>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) stack: Stack,
    #[serde(deserialize_with = "nullable")]
    pub(super) guest: Guest,
}

/// What guests may do at the host. The original has no such thing, so that a key which is none is a mistake:
/// left out, it would allow.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Guest {
    pub(super) expose_addresses: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) expose_privileged_ports: Option<bool>,
}

/// Where virtual machines are taken from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Interfaces {
    pub(super) bess: Text,
    pub(super) qemu: Text,
    pub(super) stdio: Text,
    pub(super) vfkit: Text,
    pub(super) vpnkit: Text,
}

/// A unix socket that leads to one in the guest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Forward {
    pub(super) socket: Text,
    pub(super) dest: Text,
    pub(super) user: Text,
    pub(super) identity: Text,
}

/// A socket in the guest that leads to one of the host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Reverse {
    pub(super) socket: Text,
    pub(super) dest: Text,
    pub(super) identity: Text,
}

/// The virtual network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Stack {
    pub(super) debug: Option<Spanned<bool>>,
    #[serde(rename = "capture-file")]
    pub(super) capture_file: Text,
    pub(super) mtu: Option<Spanned<Int>>,
    pub(super) subnet: Text,
    #[serde(rename = "gatewayIP")]
    pub(super) gateway_ip: Text,
    #[serde(rename = "deviceIP")]
    pub(super) device_ip: Text,
    #[serde(rename = "hostIP")]
    pub(super) host_ip: Text,
    pub(super) gateway_mac_address: Text,
    #[serde(deserialize_with = "nullable")]
    pub(super) dns: Vec<Zone>,
    #[serde(deserialize_with = "nullable")]
    pub(super) dns_search_domains: Vec<Spanned<String>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) forwards: Map,
    #[serde(deserialize_with = "nullable")]
    pub(super) nat: Map,
    #[serde(rename = "gatewayVirtualIPs", deserialize_with = "nullable")]
    pub(super) gateway_virtual_ips: Vec<Spanned<String>>,
    #[serde(deserialize_with = "nullable")]
    pub(super) dhcp_static_leases: Map,
    #[serde(rename = "vpnKitUUIDMacAddresses", deserialize_with = "nullable")]
    pub(super) vpnkit_uuid_mac_addresses: Map,
    #[serde(rename = "ec2MetadataAccess", deserialize_with = "nullable")]
    pub(super) ec2_metadata_access: bool,
    pub(super) tcp_max_in_flight: Option<Spanned<Int>>,
    pub(super) tcp_connect_timeout: Text,
}

/// A DNS zone.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Zone {
    pub(super) name: Text,
    #[serde(deserialize_with = "nullable")]
    pub(super) records: Vec<Record>,
    #[serde(rename = "defaultIP")]
    pub(super) default_ip: Text,
    #[serde(deserialize_with = "nullable")]
    pub(super) protected: bool,
}

/// A record of a zone.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    pub(super) name: Text,
    pub(super) ip: Text,
    pub(super) regexp: Text,
}

impl File {
    /// # Errors
    /// The file cannot be read, or it is not YAML of this schema: then with line and key.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| {
            anyhow!("failed to read config file: open {}: {}", path.display(), reason(&error))
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_LEN + 1), &mut bytes)
            .map_err(failed)?;
        let wrong = || format!("failed to parse configuration: {}", path.display());
        anyhow::ensure!(bytes.len() as u64 <= MAX_LEN, "{}: larger than {MAX_LEN} bytes", wrong());
        let text = decode(&bytes).with_context(wrong)?;
        Self::parse(&text).with_context(wrong)
    }

    fn parse(text: &str) -> Result<Self> {
        // Go's numbers: 010 is eight.
        let options = serde_saphyr::options! { with_snippet: false, legacy_octal_numbers: true };
        let mut key = String::new();
        let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
            serde_path_to_error::deserialize::<_, Option<Self>>(yaml).map_err(|error| {
                key = shown(error.path());
                error.into_inner()
            })
        });
        parsed.map(Option::unwrap_or_default).map_err(|error: serde_saphyr::Error| {
            let line = error.location().map_or_else(String::new, |at| format!("line {}: ", at.line()));
            let message = error.without_snippet().render_with_formatter(&UserMessageFormatter);
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            anyhow!("{line}{key}{message}")
        })
    }
}

/// What a file says by its byte order mark, which editors of Windows write; without one it is UTF-8 (YAML
/// 1.2.2, 5.2).
fn decode(bytes: &[u8]) -> Result<String> {
    let (units, order): (_, fn([u8; 2]) -> u16) = match bytes {
        [0xff, 0xfe, rest @ ..] => (rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => (rest, u16::from_be_bytes),
        _ => {
            let text = std::str::from_utf8(bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes));
            // Half of UTF-16 is zeros.
            let text = text.ok().filter(|text| !text.contains('\0')).map(str::to_owned);
            return text.context("neither UTF-8, nor UTF-16 with a byte order mark");
        }
    };
    let (units, rest) = units.as_chunks();
    let text = char::decode_utf16(units.iter().map(|unit| order(*unit))).collect::<Result<_, _>>();
    text.ok().filter(|_| rest.is_empty()).context("its byte order mark is UTF-16's, but the text is not")
}

/// `stack.dns[0].name: `
fn shown(path: &KeyPath) -> String {
    let mut out = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => out.push_str(&format!("[{index}]")),
            // A value with its place is a map of its own to the parser.
            Segment::Map { key } if key != "value" => {
                let dot = if out.is_empty() { "" } else { "." };
                out.push_str(&format!("{dot}{key}"));
            }
            Segment::Map { .. } | Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    if out.is_empty() { out } else { out + ": " }
}

/// A null is the same as no value.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// An integer, also one that is written like `1400.0`; a text is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Int(pub(super) i64);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Int;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Int, E> {
                Ok(Int(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Int, E> {
                i64::try_from(number).map(Int).map_err(|_| E::custom("number out of range"))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Int, E> {
                let whole = number.fract() == 0.0 && number.abs() < 9e15;
                if whole {
                    Ok(Int(number as i64))
                } else {
                    Err(E::custom("invalid type: expected an integer"))
                }
            }
        }
        from.deserialize_any(Number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_so_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gvproxy.yaml");
        let read = |len| {
            std::fs::write(&path, "#".repeat(len)).unwrap();
            File::read(&path).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(read(1 << 20), Ok(()));
        let said = read((1 << 20) + 1).unwrap_err();
        assert!(said.ends_with("gvproxy.yaml: larger than 1048576 bytes"), "{said}");
    }

    #[test]
    fn encodings_of_editors() {
        let text = "stack:\n  gatewayIP: é😀\n";
        let utf16 = |order: fn(u16) -> [u8; 2]| {
            std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(order).collect::<Vec<u8>>()
        };
        let marked = format!("\u{feff}{text}").into_bytes();
        for bytes in [text.into(), marked, utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)] {
            assert_eq!(decode(&bytes).unwrap(), text, "{bytes:?}");
        }
        assert_eq!(decode(b"").unwrap(), "");
        let unmarked = &utf16(u16::to_le_bytes)[2..];
        for (bytes, why) in [
            (&b"a\0:\0"[..], "neither UTF-8, nor UTF-16 with a byte order mark"),
            (unmarked, "neither UTF-8, nor UTF-16 with a byte order mark"),
            (b"\xff\xfea", "its byte order mark is UTF-16's, but the text is not"),
            (b"\xff\xfe\0\xd8", "its byte order mark is UTF-16's, but the text is not"),
        ] {
            assert_eq!(decode(bytes).unwrap_err().to_string(), why);
        }
    }

    fn error(yaml: &str) -> String {
        let error = format!("{:#}", File::parse(yaml).unwrap_err());
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn mistakes_have_line_and_key() {
        for (yaml, start) in [
            ("stack:\n  mtu: abc\n", "line 2: stack.mtu: "),
            ("stack:\n  mtu: \"1400\"\n", "line 2: stack.mtu: "),
            ("stack:\n  mtu: 1.5\n", "line 2: stack.mtu: "),
            ("stack:\n  mtu: 99999999999999999999\n", "line 2: stack.mtu: "),
            ("stack:\n  debug: 1\n", "line 2: stack.debug: "),
            ("stack: [1]\n", "line 1: stack: "),
            ("listen: foo\n", "line 1: listen: "),
            ("listen: [a, [b]]\n", "line 1: listen[1]: "),
            ("forwards: [{user: []}]\n", "line 1: forwards[0].user: "),
            ("stack:\n  dns:\n  - {}\n  - records:\n    - ip: {}\n", "line 5: stack.dns[1].records[0].ip: "),
            ("stack:\n  nat:\n    1.2.3.4: [a]\n", "line 3: stack.nat.1.2.3.4: "),
            ("stack:\n  mtu: 1\n  mtu: 2\n", "line 3: stack: duplicate mapping key `mtu`"),
            ("bogus: 1\nbogus: 2\n", "line 2: duplicate mapping key `bogus`"),
            ("stack:\n\tmtu: 1\n", "line 2: "),
            ("guest:\n  exposePriviledgedPorts: false\n", "line 2: guest.exposePriviledgedPorts: "),
            ("guest:\n  exposeAddresses: ::1\n", "line 2: guest.exposeAddresses: "),
            ("foo\n", "line 1: "),
        ] {
            let error = error(yaml);
            assert!(error.starts_with(start), "{yaml:?}: want {start:?}, got {error:?}");
        }
    }

    #[test]
    fn scalars_are_read_as_go_reads_them() {
        for (yaml, mtu) in [
            ("1400", Some(1400)),
            ("+1400", Some(1400)),
            ("1400.0", Some(1400)),
            ("1.4e3", Some(1400)),
            ("1_400", Some(1400)),
            ("0x5dc", Some(1500)),
            ("0b11", Some(3)),
            ("0o17", Some(15)),
            ("017", Some(15)),
            ("-5", Some(-5)),
            ("~", None),
            ("", None),
        ] {
            let file = File::parse(&format!("stack:\n  mtu: {yaml}\n")).unwrap();
            assert_eq!(file.stack.mtu.map(|mtu| mtu.value.0), mtu, "{yaml}");
        }
        for (yaml, debug) in [
            ("true", true),
            ("yes", true),
            ("On", true),
            ("off", false),
            ("FALSE", false),
            ("\"true\"", true),
        ] {
            let file = File::parse(&format!("stack:\n  debug: {yaml}\n")).unwrap();
            assert_eq!(file.stack.debug.map(|debug| debug.value), Some(debug), "{yaml}");
        }
        for (yaml, text) in [("10", "10"), ("1.0", "1.0"), ("off", "off"), ("'a b'", "a b"), ("0x10", "0x10")]
        {
            let file = File::parse(&format!("log-level: {yaml}\n")).unwrap();
            assert_eq!(file.log_level.map(|level| level.value).as_deref(), Some(text));
        }
    }

    #[test]
    fn nothing_is_a_file_too() {
        for yaml in
            ["", "# only words\n", "---\n", "stack:\ninterfaces: ~\nforwards:\nlisten:\n", "Stack: 7\n"]
        {
            let file = File::parse(yaml).unwrap();
            assert!(file.listen.is_empty() && file.stack.subnet.is_none(), "{yaml:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*|([a-z]{1,3}:|[-:&*?|>{}\\[\\], \\n\"'#%@`~0-9]){0,60}") {
            let _ = File::parse(&text);
        }
    }
}
