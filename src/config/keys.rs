//! The keys of the file of `-config`, for docs/config.md. Owns: what is said of keys that have no flag; the
//! table of flags has the others. Read next: `file.rs`, the schema; `tests/pages.rs`.

use crate::cli::pages::row;
use crate::cli::table::{FLAGS, Kind};

/// Key, value, meaning. `[]` stands for each entry of a list.
const WITHOUT_FLAG: &[(&str, &str, &str)] = &[
    (
        "forwards",
        "list",
        "Sockets to make on the host, and where they lead. Each entry has the four keys below",
    ),
    ("forwards[].dest", "PATH|URL", "Target of the forward, as `-forward-dest`"),
    ("forwards[].identity", "FILE", "Private key for SSH, as `-forward-identity`"),
    ("forwards[].socket", "PATH|URL", "Socket to make, as `-forward-sock`"),
    ("forwards[].user", "USER", "User for SSH, as `-forward-user`"),
    (
        "guest.exposeAddresses",
        "list of ADDRESS",
        "Addresses of the host at which guests may expose ports. `0.0.0.0`, which `podman run -p 8080:80` \
         asks for, is an address of its own. Without the key, all are allowed",
    ),
    (
        "guest.exposePrivilegedPorts",
        "boolean",
        "Whether guests may expose ports below 1024. The default is `true`",
    ),
    (
        "log-level",
        "LEVEL",
        "`error`, `warn`, `info`, `debug` or `trace`, which logs every frame. The default is `info`",
    ),
    (
        "reverse",
        "list",
        "Sockets to make in the guest, and where they lead. Each entry has the three keys below",
    ),
    ("reverse[].dest", "PATH|URL", "Target on the host, as `-reverse-dest`"),
    ("reverse[].identity", "FILE", "Private key for SSH, if `socket` is an `ssh://` URL without one"),
    ("reverse[].socket", "PATH|URL", "Socket to make, as `-reverse-sock`"),
    ("stack.debug", "boolean", "Log the first hundred frames of every five seconds, at any log level"),
    (
        "stack.dhcpStaticLeases",
        "map",
        "IPv4 addresses of the subnet, and the hardware address that each is reserved for",
    ),
    ("stack.dns", "list", "DNS zones that the gateway answers for by itself. Each has the keys below"),
    (
        "stack.dns[].defaultIP",
        "ADDRESS",
        "IPv4 address of every other name in the zone. Without it these names do not exist",
    ),
    ("stack.dns[].name", "NAME", "Name of the zone, with the last dot"),
    ("stack.dns[].protected", "boolean", "Whether the API refuses to change the zone"),
    ("stack.dns[].records", "list", "Records of the zone. Each has the keys below"),
    ("stack.dns[].records[].ip", "ADDRESS", "IPv4 address of the record"),
    ("stack.dns[].records[].name", "NAME", "Name of the record, without the name of the zone"),
    ("stack.dns[].records[].regexp", "REGEXP", "Regular expression for names, in place of `name`"),
    ("stack.dnsSearchDomains", "list of NAME", "Search domains that DHCP offers, 32 at most"),
    ("stack.ec2MetadataAccess", "boolean", "As `ec2-metadata-access`"),
    (
        "stack.forwards",
        "map",
        "Ports of the host, and the port of a guest that each leads to: `ADDRESS:PORT` or `:PORT` to \
         `ADDRESS:PORT`. With `udp:` before it, the port is a UDP port",
    ),
    (
        "stack.gatewayMacAddress",
        "ADDRESS",
        "Hardware address of the gateway. The default is `5a:94:ef:e4:0c:dd`",
    ),
    (
        "stack.gatewayVirtualIPs",
        "list of ADDRESS",
        "Other IPv4 addresses that the gateway answers ARP for. The default is that of `stack.hostIP`",
    ),
    (
        "stack.nat",
        "map",
        "IPv4 addresses of the virtual network, and the address that each is for the host. By default that \
         of `stack.hostIP` is 127.0.0.1",
    ),
    (
        "stack.tcpConnectTimeout",
        "TIME",
        "How long a connection attempt of a guest may take, such as `30s`. The default is no limit",
    ),
    (
        "stack.tcpMaxInFlight",
        "number",
        "How many connection attempts of guests may be under way. The default is no limit",
    ),
    (
        "stack.vpnKitUUIDMacAddresses",
        "map",
        "UUIDs of VPNKit clients, and the hardware address that each is told",
    ),
];

/// The key that stands for `flag`; empty if there is none.
pub(super) fn of_flag(flag: &str) -> &'static str {
    FLAGS.iter().find(|known| known.name == flag).map_or("", |flag| flag.key)
}

/// The table of all keys, by name.
pub fn markdown() -> String {
    let mut rows: Vec<_> = WITHOUT_FLAG
        .iter()
        .map(|(key, value, meaning)| (*key, (*value).to_owned(), String::new(), *meaning))
        .collect();
    for flag in FLAGS.iter().filter(|flag| !flag.key.is_empty()) {
        let value = match flag.kind {
            Kind::Bool => "boolean".to_owned(),
            Kind::Int(_) => "number".to_owned(),
            Kind::Text(_) => flag.value.to_owned(),
            Kind::List => format!("list of {}", flag.value),
        };
        rows.push((flag.key, value, format!("`-{}`", flag.name), flag.help));
    }
    rows.sort_unstable_by_key(|(key, ..)| key.replace("[]", ""));
    let mut out = format!("{}|---|---|---|---|\n", row(&["key", "value", "flag", "meaning"]));
    out.extend(
        rows.iter().map(|(key, value, flag, meaning)| row(&[&format!("`{key}`"), value, flag, meaning])),
    );
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::de::value::Error;
    use serde::de::{Deserialize, Deserializer, Error as _, Visitor};

    use super::super::file::{File, Forward, Guest, Interfaces, Record, Reverse, Stack, Zone};
    use super::*;

    /// Stands for a file, and learns which keys its schema has.
    struct Schema(&'static [&'static str]);

    impl<'de> Deserializer<'de> for &mut Schema {
        type Error = Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            keys: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Error> {
            self.0 = keys;
            Err(Error::custom("learnt"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn keys<T: for<'de> Deserialize<'de>>(before: &str) -> Vec<String> {
        let mut schema = Schema(&[]);
        assert!(T::deserialize(&mut schema).is_err() && !schema.0.is_empty(), "{before}");
        schema.0.iter().map(|key| format!("{before}{key}")).collect()
    }

    #[test]
    fn every_key_of_the_schema_has_its_line() {
        let mut schema: BTreeSet<String> = [
            keys::<File>(""),
            keys::<Interfaces>("interfaces."),
            keys::<Forward>("forwards[]."),
            keys::<Reverse>("reverse[]."),
            keys::<Stack>("stack."),
            keys::<Zone>("stack.dns[]."),
            keys::<Record>("stack.dns[].records[]."),
            keys::<Guest>("guest."),
        ]
        .concat()
        .into_iter()
        .collect();
        for group in ["interfaces", "stack", "guest"] {
            assert!(schema.remove(group), "{group}");
        }
        let named = WITHOUT_FLAG.iter().map(|(key, ..)| *key);
        let of_flags = FLAGS.iter().map(|flag| flag.key).filter(|key| !key.is_empty());
        let lines: Vec<_> = named.chain(of_flags).map(str::to_owned).collect();
        assert_eq!(lines.len(), schema.len(), "{lines:#?}");
        assert_eq!(lines.into_iter().collect::<BTreeSet<_>>(), schema);
    }
}
