//! The addresses of a virtual network, from its subnet and from what was typed.
//! Owns: nothing. Read next: `../config.rs`.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netstack::Subnet;

/// The three addresses that a network's own machines have: inside the subnet and distinct.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) subnet: Subnet,
    pub(super) gateway: Ipv4Addr,
    pub(super) device: Ipv4Addr,
    pub(super) host: Ipv4Addr,
}

/// The flag whose value is wrong, and why.
pub(super) type Wrong = (&'static str, anyhow::Error);

fn in_flag(flag: &'static str) -> impl Fn(anyhow::Error) -> Wrong {
    move |error| (flag, error)
}

impl Addresses {
    /// An empty text stands for the default: first, second and last usable address of the subnet.
    ///
    /// # Errors
    /// With the name of the flag whose value is wrong.
    pub(super) fn resolve(subnet: &str, gateway: &str, device: &str, host: &str) -> Result<Self, Wrong> {
        let cidr = subnet;
        let subnet = parse(cidr).context("failed to parse subnet").map_err(in_flag("subnet"))?;
        let or_default = |text: &str, who: &str, default: fn(Subnet) -> Result<Ipv4Addr>| {
            if !text.is_empty() {
                return Ok(text.to_owned());
            }
            let address = default(subnet)
                .with_context(|| format!("failed to identify usable {who} IP address in subnet"))?;
            Ok(address.to_string())
        };
        let or_default = |text: &str, who: &str, default: fn(Subnet) -> Result<Ipv4Addr>| {
            or_default(text, who, default).map_err(in_flag("subnet"))
        };
        let gateway = or_default(gateway, "gateway", first)?;
        let device = or_default(device, "device", second)?;
        let host = or_default(host, "host", last)?;
        check(subnet, cidr, [&gateway, &device, &host])
            .map(|[gateway, device, host]| Self { subnet, gateway, device, host })
            .map_err(|(flag, error)| (flag, error.context("failed to validate configuration IPs")))
    }
}

fn parse(text: &str) -> Result<Subnet> {
    let wrong = |why: &str| anyhow!("{text:?}: {why}");
    let (address, prefix) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let address = match address.parse() {
        Ok(IpAddr::V4(address)) => address,
        Ok(IpAddr::V6(_)) => return Err(wrong("an IPv6 subnet is not supported yet")),
        Err(_) => return Err(wrong("unable to parse IP")),
    };
    if prefix.is_empty()
        || !prefix.bytes().all(|b| b.is_ascii_digit())
        || prefix.starts_with('0') && prefix != "0"
    {
        return Err(wrong("bad bits after slash"));
    }
    let prefix = prefix.parse().ok().filter(|&bits| bits <= 32);
    Ok(Subnet::new(address, prefix.ok_or_else(|| wrong("prefix length out of range"))?))
}

/// Network, broadcast, gateway, guest and host: five addresses do not fit a /30.
fn ensure_large_enough(subnet: Subnet) -> Result<()> {
    ensure!(subnet.prefix() + 3 <= 32, "subnet too small");
    Ok(())
}

fn first(subnet: Subnet) -> Result<Ipv4Addr> {
    ensure_large_enough(subnet)?;
    Ok(Ipv4Addr::from_bits(subnet.network().to_bits() | 1))
}

fn second(subnet: Subnet) -> Result<Ipv4Addr> {
    ensure_large_enough(subnet)?;
    Ok(Ipv4Addr::from_bits(subnet.network().to_bits() | 2))
}

fn last(subnet: Subnet) -> Result<Ipv4Addr> {
    ensure_large_enough(subnet)?;
    Ok(Ipv4Addr::from_bits(subnet.broadcast().to_bits() & !1))
}

fn check(subnet: Subnet, cidr: &str, texts: [&str; 3]) -> Result<[Ipv4Addr; 3], Wrong> {
    ensure_large_enough(subnet).map_err(in_flag("subnet"))?;
    let [gateway, device, host] = texts;
    let gateway = check_one(subnet, cidr, gateway).map_err(in_flag("gatewayIP"))?;
    let device = check_one(subnet, cidr, device).map_err(in_flag("deviceIP"))?;
    let host = check_one(subnet, cidr, host).map_err(in_flag("hostIP"))?;
    let distinct = |flag| in_flag(flag)(anyhow!("IP addresses need to be distinct"));
    if device == gateway {
        return Err(distinct("deviceIP"));
    }
    if host == gateway || host == device {
        return Err(distinct("hostIP"));
    }
    Ok([gateway, device, host])
}

fn check_one(subnet: Subnet, cidr: &str, text: &str) -> Result<Ipv4Addr> {
    let address: IpAddr = text.parse().map_err(|_| anyhow!("invalid IP address: {text}"))?;
    let address = match address {
        IpAddr::V4(v4) if subnet.contains(v4) => v4,
        _ => bail!("IP ({text}) not in subnet ({cidr})"),
    };
    // COMPAT(gvproxy): the original compares with the subnet as it was written, host bits included.
    ensure!(address != subnet.network(), "IP must not be address of subnet: {text}");
    ensure!(address != subnet.broadcast(), "IP must not be broadcast address: {text}");
    Ok(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resolve(line: [&str; 4]) -> Result<Addresses, String> {
        let [subnet, gateway, device, host] = line;
        Addresses::resolve(subnet, gateway, device, host).map_err(|(_, e)| format!("{e:#}"))
    }

    #[test]
    fn defaults_come_from_the_masked_subnet() {
        for (subnet, network, [gateway, device, host]) in [
            ("192.168.127.0/24", "192.168.127.0", ["192.168.127.1", "192.168.127.2", "192.168.127.254"]),
            ("192.168.127.5/24", "192.168.127.0", ["192.168.127.1", "192.168.127.2", "192.168.127.254"]),
            ("10.1.2.8/29", "10.1.2.8", ["10.1.2.9", "10.1.2.10", "10.1.2.14"]),
            ("10.0.0.0/8", "10.0.0.0", ["10.0.0.1", "10.0.0.2", "10.255.255.254"]),
            ("0.0.0.0/0", "0.0.0.0", ["0.0.0.1", "0.0.0.2", "255.255.255.254"]),
        ] {
            let found = resolve([subnet, "", "", ""]).unwrap();
            assert_eq!(found.subnet.network(), network.parse::<Ipv4Addr>().unwrap(), "{subnet}");
            let expected = [gateway, device, host].map(|a| a.parse::<Ipv4Addr>().unwrap());
            assert_eq!([found.gateway, found.device, found.host], expected, "{subnet}");
        }
    }

    #[test]
    fn the_second_address_is_the_guests_whatever_the_gateway_is() {
        let found = resolve(["10.0.0.0/24", "10.0.0.9", "", "10.0.0.1"]).unwrap();
        assert_eq!((found.gateway, found.device), ("10.0.0.9".parse().unwrap(), "10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn mistakes() {
        let usable = "failed to identify usable";
        let validate = "failed to validate configuration IPs";
        for (line, error) in [
            (["10.0.0.0", "", "", ""], r#"failed to parse subnet: "10.0.0.0": no '/'"#.into()),
            (["x/24", "", "", ""], r#"failed to parse subnet: "x/24": unable to parse IP"#.into()),
            (["10.0.0/24", "", "", ""], r#"failed to parse subnet: "10.0.0/24": unable to parse IP"#.into()),
            (
                ["10.0.0.0/33", "", "", ""],
                r#"failed to parse subnet: "10.0.0.0/33": prefix length out of range"#.into(),
            ),
            (
                ["10.0.0.0/999", "", "", ""],
                r#"failed to parse subnet: "10.0.0.0/999": prefix length out of range"#.into(),
            ),
            (
                ["10.0.0.0/+8", "", "", ""],
                r#"failed to parse subnet: "10.0.0.0/+8": bad bits after slash"#.into(),
            ),
            (
                ["10.0.0.0/08", "", "", ""],
                r#"failed to parse subnet: "10.0.0.0/08": bad bits after slash"#.into(),
            ),
            (
                ["fd00::/64", "", "", ""],
                r#"failed to parse subnet: "fd00::/64": an IPv6 subnet is not supported yet"#.into(),
            ),
            (["10.0.0.0/30", "", "", ""], format!("{usable} gateway IP address in subnet: subnet too small")),
            (
                ["10.0.0.0/30", "10.0.0.1", "", ""],
                format!("{usable} device IP address in subnet: subnet too small"),
            ),
            (
                ["10.0.0.0/30", "10.0.0.1", "10.0.0.2", ""],
                format!("{usable} host IP address in subnet: subnet too small"),
            ),
            (["10.0.0.0/30", "10.0.0.1", "10.0.0.2", "10.0.0.4"], format!("{validate}: subnet too small")),
            (
                ["10.0.0.0/24", "1.2.3.4", "", ""],
                format!("{validate}: IP (1.2.3.4) not in subnet (10.0.0.0/24)"),
            ),
            (
                ["10.0.0.5/24", "fd00::1", "", ""],
                format!("{validate}: IP (fd00::1) not in subnet (10.0.0.5/24)"),
            ),
            (["10.0.0.0/24", "", "abc", ""], format!("{validate}: invalid IP address: abc")),
            (
                ["10.0.0.0/24", "", "", "10.0.0.0"],
                format!("{validate}: IP must not be address of subnet: 10.0.0.0"),
            ),
            (
                ["10.0.0.0/24", "", "", "10.0.0.255"],
                format!("{validate}: IP must not be broadcast address: 10.0.0.255"),
            ),
            (["10.0.0.0/24", "", "10.0.0.1", ""], format!("{validate}: IP addresses need to be distinct")),
            (["10.0.0.0/24", "", "", "10.0.0.1"], format!("{validate}: IP addresses need to be distinct")),
        ] {
            assert_eq!(resolve(line), Err(error), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn defaults_are_always_valid(address: Ipv4Addr, prefix in 0u8..=29) {
            let cidr = format!("{address}/{prefix}");
            let found = resolve([&cidr, "", "", ""]);
            prop_assert!(found.is_ok(), "{cidr}: {found:?}");
        }

        #[test]
        fn no_text_panics(texts in prop::array::uniform4("[0-9./:]{0,20}|\\PC{0,10}")) {
            let _ = resolve(texts.each_ref().map(String::as_str));
        }
    }
}
