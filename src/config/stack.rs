//! The virtual network as the file of `-config` describes it: what only stands there, and has no flag. Owns:
//! nothing.
//! May not: look at the flags. Read next: `file.rs`, the schema.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use netstack::dns::{Record, Zone};
use netstack::{Mac, Subnet};
use regex::Regex;
use serde_saphyr::Spanned;

use super::asked::Asked;
use super::file::{self, Map, Stack, Text};
use super::search;
use super::{ConnectLimits, Exposed, GuestPolicy, Protocol};
use crate::addr;
use crate::text::quote;

/// The first port that every user may listen on.
const UNPRIVILEGED: u16 = 1024;

/// What stands in `stack`, checked.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) gateway_mac: Option<Mac>,
    /// Empty for the default.
    pub(super) nat: Vec<(IpAddr, IpAddr)>,
    /// Empty for the default.
    pub(super) gateway_virtual_ips: Vec<Ipv4Addr>,
    pub(super) static_leases: Vec<(Ipv4Addr, Mac)>,
    pub(super) zones: Vec<Zone>,
    pub(super) search_domains: Vec<String>,
    pub(super) port_forwards: Vec<Exposed>,
    pub(super) vpnkit_macs: Vec<(String, Mac)>,
    pub(super) connects: ConnectLimits,
}

impl Settings {
    /// # Errors
    /// The first mistake, with its line and key.
    pub(super) fn new(asked: &Asked, stack: &Stack, subnet: Subnet) -> Result<Self> {
        let at = |line: &Spanned<String>, key: &str, error| asked.wrong(line.referenced.line(), key, error);
        let gateway_mac = match filled(&stack.gateway_mac_address) {
            Some(text) => Some(mac(&text.value).map_err(|e| at(text, "stack.gatewayMacAddress", e))?),
            None => None,
        };
        let mut gateway_virtual_ips = Vec::new();
        for text in &stack.gateway_virtual_ips {
            gateway_virtual_ips.push(ipv4(&text.value).map_err(|e| at(text, "stack.gatewayVirtualIPs", e))?);
        }
        let lease = |ip: &str, mac_text: &str| {
            let ip = ipv4(ip)?;
            ensure!(subnet.contains(ip), "{ip} is not in the subnet");
            Ok((ip, mac(mac_text)?))
        };
        let mut search_domains = Vec::new();
        for text in &stack.dns_search_domains {
            let domain =
                search::domain(&text.value).ok_or_else(|| anyhow!("no domain: {}", quote(&text.value)));
            search_domains.push(domain.map_err(|e| at(text, "stack.dnsSearchDomains", e))?);
        }
        if let Some(text) = stack.dns_search_domains.get(search::DOMAINS_MAX) {
            return Err(at(text, "stack.dnsSearchDomains", anyhow!("more than {}", search::DOMAINS_MAX)));
        }
        Ok(Self {
            gateway_mac,
            nat: entries(asked, &stack.nat, "stack.nat", |from, to| {
                Ok((IpAddr::V4(ipv4(from)?), IpAddr::V4(ipv4(to)?)))
            })?,
            gateway_virtual_ips,
            static_leases: entries(asked, &stack.dhcp_static_leases, "stack.dhcpStaticLeases", lease)?,
            zones: zones(asked, &stack.dns)?,
            search_domains,
            port_forwards: entries(asked, &stack.forwards, "stack.forwards", port_forward)?,
            vpnkit_macs: entries(
                asked,
                &stack.vpnkit_uuid_mac_addresses,
                "stack.vpnKitUUIDMacAddresses",
                |uuid, text| Ok((uuid.to_owned(), mac(text)?)),
            )?,
            connects: connect_limits(asked, stack)?,
        })
    }
}

/// Zero is no limit, as no key.
fn connect_limits(asked: &Asked, stack: &Stack) -> Result<ConnectLimits> {
    let max = match &stack.tcp_max_in_flight {
        Some(Spanned { value: file::Int(number), referenced, .. }) => {
            let max = usize::try_from(*number).map_err(|_| anyhow!("{number} is negative"));
            max.map_err(|error| asked.wrong(referenced.line(), "stack.tcpMaxInFlight", error))?
        }
        None => 0,
    };
    let timeout = match filled(&stack.tcp_connect_timeout) {
        Some(text) => duration(&text.value)
            .map_err(|error| asked.wrong(text.referenced.line(), "stack.tcpConnectTimeout", error))?,
        None => Duration::ZERO,
    };
    Ok(ConnectLimits {
        max: Some(max).filter(|&max| max > 0),
        timeout: Some(timeout).filter(|time| !time.is_zero()),
    })
}

/// As Go's `time.ParseDuration`, but without signs: `1.5s`, `1m30s`, `0`.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || anyhow!("invalid duration {}: want 30s, 1m30s or 500ms", quote(text));
    let (mut rest, mut seconds) = (text, 0.0);
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    while !rest.is_empty() {
        let (number, behind) =
            rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic() || c == 'µ').ok_or_else(wrong)?);
        let (unit, behind) =
            behind.split_at(behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len()));
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        seconds += number.parse::<f64>().ok().filter(|_| plain).ok_or_else(wrong)? * scale;
        rest = behind;
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty()).ok_or_else(wrong)
}

/// What the file says of guests.
pub(super) fn guest_policy(asked: &Asked) -> Result<GuestPolicy> {
    let all_protocols = asked.args.gateway_expose_all_protocols;
    let mut policy = GuestPolicy { all_protocols, ..GuestPolicy::default() };
    let Some(file) = asked.file() else { return Ok(policy) };
    if file.guest.expose_privileged_ports == Some(false) {
        policy.lowest_port = UNPRIVILEGED;
    }
    let key = "guest.exposeAddresses";
    if let Some(Spanned { value: addresses, referenced, .. }) = &file.guest.expose_addresses {
        if addresses.is_empty() {
            let error = anyhow!("no address at all: leave the key out to allow every one");
            return Err(asked.wrong(referenced.line(), key, error));
        }
        for text in addresses {
            let address =
                text.value.parse().map_err(|_| anyhow!("invalid IP address: {}", quote(&text.value)));
            let address = address.map_err(|error| asked.wrong(text.referenced.line(), key, error))?;
            policy.addresses.push(address);
        }
    }
    Ok(policy)
}

/// A value that is there and not empty.
fn filled(text: &Text) -> Option<&Spanned<String>> {
    text.as_ref().filter(|text| !text.value.is_empty())
}

fn entries<T>(asked: &Asked, map: &Map, key: &str, read: impl Fn(&str, &str) -> Result<T>) -> Result<Vec<T>> {
    map.iter()
        .map(|(name, text)| {
            let value = text.value.as_deref().unwrap_or_default();
            read(name, value).map_err(|e| asked.wrong(text.referenced.line(), &format!("{key}.{name}"), e))
        })
        .collect()
}

fn ipv4(text: &str) -> Result<Ipv4Addr> {
    Ipv4Addr::from_str(text).map_err(|_| anyhow!("invalid IPv4 address: {}", quote(text)))
}

fn mac(text: &str) -> Result<Mac> {
    addr::mac(text).with_context(|| format!("address {}", quote(text)))
}

fn zones(asked: &Asked, zones: &[file::Zone]) -> Result<Vec<Zone>> {
    let mut out = Vec::new();
    for (z, zone) in zones.iter().enumerate() {
        let address = |text: &Text, key: &str| match filled(text) {
            Some(text) => ipv4(&text.value)
                .map(Some)
                .map_err(|e| asked.wrong(text.referenced.line(), &format!("stack.dns[{z}].{key}"), e)),
            None => Ok(None),
        };
        let mut records = Vec::new();
        for (r, record) in zone.records.iter().enumerate() {
            let key = format!("stack.dns[{z}].records[{r}].regexp");
            let regexp = match filled(&record.regexp) {
                Some(text) => Some(
                    Regex::new(&text.value)
                        .map_err(|error| asked.wrong(text.referenced.line(), &key, regexp_error(&error)))?,
                ),
                None => None,
            };
            records.push(Record {
                name: record.name.as_ref().map(|name| name.value.clone()).unwrap_or_default(),
                ip: address(&record.ip, &format!("records[{r}].ip"))?,
                regexp,
            });
        }
        out.push(Zone {
            name: zone.name.as_ref().map(|name| name.value.clone()).unwrap_or_default(),
            records,
            default_ip: address(&zone.default_ip, "defaultIP")?,
            protected: zone.protected,
        });
    }
    Ok(out)
}

/// The last line of what may be a drawing of the mistake.
fn regexp_error(error: &regex::Error) -> Error {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    anyhow!("error parsing regexp: {line}")
}

/// UDP where the key says so, else TCP.
fn port_forward(key: &str, remote: &str) -> Result<Exposed> {
    let (protocol, local) = match key.strip_prefix("udp:") {
        Some(local) => (Protocol::Udp, local),
        None => (Protocol::Tcp, key),
    };
    let wanted = Exposed { local: local.to_owned(), remote: remote.to_owned(), protocol };
    wanted.check().map_err(Error::msg)?;
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in
            ["", "30", "s", "-1s", "+1s", "1 s", "1e3s", "1d", "infs", "1..5s", "99999999999999999999h"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9.smhunµ\\- ]{0,12}|\\PC*") {
            let _ = duration(&text);
        }
    }
}
