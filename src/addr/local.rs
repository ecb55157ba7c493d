//! `local` of a TCP or UDP port: where the host listens, by the rules and in the words of Go's `net.Listen`.
//! Owns: nothing. May not: look a name up. Read next: `../listen/port.rs`, which binds.

use std::net::IpAddr;

use super::PORT_DIGITS;

/// Where to listen, as it was typed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Local {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Host {
    /// None: every address of the host.
    Any,
    Address(IpAddr),
    Name(String),
}

impl Local {
    /// # Errors
    /// What is wrong with it, as Go says it.
    pub(crate) fn parse(text: &str, protocol: &str) -> Result<Self, String> {
        // Go takes nothing at all for any address and any port.
        let (host, port) = if text.is_empty() { ("", "") } else { split_host_port(text)? };
        let port = parse_port(port, protocol)?;
        let host = match host.parse::<IpAddr>() {
            Ok(address) => Host::Address(address.to_canonical()),
            Err(_) if host.is_empty() => Host::Any,
            // The system's resolver would take these for addresses written in an old form.
            Err(_) if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') || host.trim().is_empty() => {
                return Err(format!("lookup {host}: no such host"));
            }
            Err(_) => Host::Name(host.to_owned()),
        };
        Ok(Self { host, port })
    }
}

/// Takes `host:port`, `[host]:port` or `:port` apart; neither part is looked at.
///
/// # Errors
/// What is wrong with it, in the words of Go's function of that name.
pub(crate) fn split_host_port(text: &str) -> Result<(&str, &str), String> {
    let wrong = |why: &str| match text {
        "" => Err(why.to_owned()),
        text => Err(format!("address {text}: {why}")),
    };
    let Some((before, port)) = text.rsplit_once(':') else { return wrong("missing port in address") };
    let host = if let Some(bracketed) = text.strip_prefix('[') {
        let Some((host, after)) = bracketed.split_once(']') else {
            return wrong("missing ']' in address");
        };
        match after.strip_prefix(':') {
            Some(rest) if rest.contains(':') => return wrong("too many colons in address"),
            Some(_) => host,
            None => return wrong("missing port in address"),
        }
    } else if before.contains(':') {
        return wrong("too many colons in address");
    } else {
        before
    };
    let is_bracketed = text.starts_with('[');
    if text.get(usize::from(is_bracketed)..).unwrap_or_default().contains('[') {
        return wrong("unexpected '[' in address");
    }
    if text.matches(']').count() > usize::from(is_bracketed) {
        return wrong("unexpected ']' in address");
    }
    Ok((host, port))
}

fn parse_port(port: &str, protocol: &str) -> Result<u16, String> {
    let digits = port.strip_prefix(['+', '-']).unwrap_or(port);
    if digits.is_empty() && port.is_empty() {
        return Ok(0);
    }
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        // COMPAT(gvproxy): the original also knows services by name.
        return Err(format!("lookup {protocol}/{port}: unknown port"));
    }
    match digits.parse::<u16>() {
        Ok(number) if digits.len() <= PORT_DIGITS && (number == 0 || !port.starts_with('-')) => Ok(number),
        _ => Err(format!("address {port}: invalid port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Host, u16), String> {
        Local::parse(text, "tcp").map(|local| (local.host, local.port))
    }

    /// What the original says, as observed.
    #[test]
    fn what_go_takes() {
        let at = |address: &str| Host::Address(address.parse().unwrap());
        for (text, host, port) in [
            ("", Host::Any, 0),
            (":", Host::Any, 0),
            (":0", Host::Any, 0),
            (":9494", Host::Any, 9494),
            (":09898", Host::Any, 9898),
            ("0.0.0.0:9595", at("0.0.0.0"), 9595),
            ("[::]:9696", at("::"), 9696),
            ("[::1]:9191", at("::1"), 9191),
            ("127.0.0.1:", at("127.0.0.1"), 0),
            ("127.0.0.1:+9393", at("127.0.0.1"), 9393),
            ("[127.0.0.1]:9900", at("127.0.0.1"), 9900),
            ("[::ffff:127.0.0.1]:9902", at("127.0.0.1"), 9902),
            ("localhost:80", Host::Name("localhost".into()), 80),
            ("[fe80::1%lo]:80", Host::Name("fe80::1%lo".into()), 80),
        ] {
            assert_eq!(parse(text), Ok((host, port)), "{text}");
        }
    }

    /// Each number of zeros would be another port, kept as it was written.
    #[test]
    fn leading_zeros_end() {
        assert_eq!(parse(":0000000000000080"), Ok((Host::Any, 80)));
        let text = format!(":{}80", "0".repeat(15));
        assert_eq!(parse(&text), Err(format!("address {}: invalid port", &text[1..])));
    }

    #[test]
    fn what_go_refuses() {
        for (text, why) in [
            ("9090", "address 9090: missing port in address"),
            ("127.0.0.1", "address 127.0.0.1: missing port in address"),
            (":99999", "address 99999: invalid port"),
            (":99999999999999999999", "address 99999999999999999999: invalid port"),
            (":-80", "address -80: invalid port"),
            (":abc", "lookup tcp/abc: unknown port"),
            ("127.0.0.1:1 ", "lookup tcp/1 : unknown port"),
            ("::1:80", "address ::1:80: too many colons in address"),
            ("a:b:c", "address a:b:c: too many colons in address"),
            ("[::1]", "address [::1]: missing port in address"),
            ("[::1", "address [::1: missing ']' in address"),
            ("[::1]x:80", "address [::1]x:80: missing port in address"),
            ("x]:80", "address x]:80: unexpected ']' in address"),
            (" :9797", "lookup  : no such host"),
            ("127.1:80", "lookup 127.1: no such host"),
            ("127.0.0.01:9901", "lookup 127.0.0.01: no such host"),
            ("256.1.1.1:80", "lookup 256.1.1.1: no such host"),
        ] {
            assert_eq!(parse(text), Err(why.into()), "{text}");
        }
    }
}
