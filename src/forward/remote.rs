//! What `remote` means: an address of a guest, or a URL where a unix socket is exposed. Mostly in the original's words.
//! Owns: nothing. May not: know whether anybody is there. Read next: `registry.rs`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use crate::text::quote;

/// The guest's sshd, where the URL has no port.
const SSH_PORT: u16 = 22;

/// Where a unix socket of the host leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum UnixRemote {
    /// `tcp://address:port`
    Tcp(SocketAddrV4),
    /// `ssh-tunnel://user@address[:port]/socket?key=/file`
    Ssh(SshRemote),
}

/// A socket in a guest, over SSH.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct SshRemote {
    pub(super) sshd: SocketAddrV4,
    pub(super) user: String,
    pub(super) dest: String,
    pub(super) key: PathBuf,
    pub(super) passphrase: Option<String>,
    pub(super) password: Option<String>,
    /// Whether the guest's key is to be checked.
    pub(super) secure: bool,
}

/// `address:port`.
///
/// # Errors
/// What is wrong with it. The original drops the connection where the address is none.
pub(super) fn address(text: &str) -> Result<SocketAddrV4, String> {
    let (host, port) =
        text.split_once(':').filter(|(_, port)| !port.contains(':')).ok_or("invalid remote addr")?;
    let port = parse_port(port)?;
    Ok(SocketAddrV4::new(ipv4(host)?, port))
}

fn ipv4(host: &str) -> Result<Ipv4Addr, String> {
    host.parse().map_err(|_| format!("invalid remote addr: {} is not an IPv4 address", quote(host)))
}

/// As Go's `strconv.ParseUint` does, and says.
fn parse_port(text: &str) -> Result<u16, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("strconv.ParseUint: parsing {}: invalid syntax", quote(text)));
    }
    text.parse().map_err(|_| format!("strconv.ParseUint: parsing {}: value out of range", quote(text)))
}

impl UnixRemote {
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text)
            .map_err(|why| format!("failed to parse remote uri :{text} : parse {}: {why}", quote(text)))?;
        match url.scheme.as_str() {
            "tcp" => {
                let port = parse_port(url.port)?;
                Ok(Self::Tcp(SocketAddrV4::new(ipv4(url.host)?, port)))
            }
            "ssh-tunnel" => url.into_ssh().map(Self::Ssh),
            other => Err(format!("remote protocol for unix forwarder is not implemented: {other}")),
        }
    }
}

/// A URL's parts, not decoded but for the scheme's case.
struct Url<'a> {
    scheme: String,
    user: &'a str,
    password: Option<&'a str>,
    host: &'a str,
    port: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Url<'a> {
    /// Follows Go's `net/url` in what is a URL and what is not.
    fn parse(text: &'a str) -> Result<Self, String> {
        if text.bytes().any(|b| b.is_ascii_control()) {
            return Err("net/url: invalid control character in URL".into());
        }
        let (text, _) = text.split_once('#').unwrap_or((text, ""));
        let (text, query) = text.split_once('?').unwrap_or((text, ""));
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        let (scheme, rest) = match text.split_once(':') {
            Some(("", _)) => return Err("missing protocol scheme".into()),
            Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_lowercase(), rest),
            Some((first, _)) if !first.contains('/') => {
                return Err("first path segment in URL cannot contain colon".into());
            }
            _ => (String::new(), text),
        };
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        let after_host = place.rfind(']').map_or(0, |end| end + 1);
        let (host, port) = match place.get(after_host..).and_then(|tail| tail.rfind(':')) {
            Some(colon) => (&place[..after_host + colon], &place[after_host + colon + 1..]),
            None => (place, ""),
        };
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("invalid port {} after host", quote(format!(":{port}"))));
        }
        Ok(Self { scheme, user, password, host, port, path, query })
    }

    fn into_ssh(self) -> Result<SshRemote, String> {
        let key = self.value("key")?.unwrap_or_default();
        if key.is_empty() {
            return Err("key not provided for unix-ssh connection".into());
        }
        if matches!(self.path, "" | "/") {
            return Err("remote uri must contain a path to a socket file".into());
        }
        let port = if self.port.is_empty() { SSH_PORT } else { parse_port(self.port)? };
        Ok(SshRemote {
            sshd: SocketAddrV4::new(ipv4(self.host)?, port),
            user: unescape(self.user)?,
            dest: unescape(self.path)?,
            key: key.into(),
            passphrase: self.value("passphrase")?.filter(|passphrase| !passphrase.is_empty()),
            password: self.password.map(unescape).transpose()?,
            // What Go's `strconv.ParseBool` takes for true.
            secure: matches!(
                self.value("secure")?.as_deref(),
                Some("1" | "t" | "T" | "true" | "True" | "TRUE")
            ),
        })
    }

    /// The first value of a query's key.
    fn value(&self, key: &str) -> Result<Option<String>, String> {
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut values = pairs.filter(|(name, _)| *name == key).map(|(_, value)| value);
        values.next().map(|value| unescape(&value.replace('+', " "))).transpose()
    }
}

/// Decodes `%xx`.
fn unescape(text: &str) -> Result<String, String> {
    let wrong = || format!("invalid URL escape in {}", quote(text));
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (Some(digits), Some(rest)) = (part.get(..2), part.get(2..)) else { return Err(wrong()) };
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the original says, as observed, but for the address that is none.
    #[test]
    fn addresses() {
        assert_eq!(address("192.168.127.2:80"), Ok("192.168.127.2:80".parse().unwrap()));
        for (text, why) in [
            ("192.168.127.2:abc", r#"strconv.ParseUint: parsing "abc": invalid syntax"#),
            ("192.168.127.2:99999", r#"strconv.ParseUint: parsing "99999": value out of range"#),
            ("192.168.127.2:+80", r#"strconv.ParseUint: parsing "+80": invalid syntax"#),
            ("192.168.127.2:", r#"strconv.ParseUint: parsing "": invalid syntax"#),
            ("[::1]:80", "invalid remote addr"),
            ("192.168.127.2", "invalid remote addr"),
            ("name:80", r#"invalid remote addr: "name" is not an IPv4 address"#),
        ] {
            assert_eq!(address(text), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn urls() {
        let tcp = Ok(UnixRemote::Tcp("192.168.127.2:80".parse().unwrap()));
        for text in ["tcp://192.168.127.2:80", "TCP://192.168.127.2:80", "tcp://u@192.168.127.2:80/p?x=1"] {
            assert_eq!(UnixRemote::parse(text), tcp, "{text}");
        }
        for (text, why) in [
            ("tcp://192.168.127.2", r#"strconv.ParseUint: parsing "": invalid syntax"#),
            ("tcp:192.168.127.2:80", r#"strconv.ParseUint: parsing "": invalid syntax"#),
            ("tcp://192.168.127.2:99999", r#"strconv.ParseUint: parsing "99999": value out of range"#),
            ("udp://192.168.127.2:80", "remote protocol for unix forwarder is not implemented: udp"),
            ("", "remote protocol for unix forwarder is not implemented: "),
            (
                "192.168.127.2:80",
                "failed to parse remote uri :192.168.127.2:80 : parse \"192.168.127.2:80\": \
                 first path segment in URL cannot contain colon",
            ),
            (
                "tcp://192.168.127.2:abc",
                "failed to parse remote uri :tcp://192.168.127.2:abc : parse \"tcp://192.168.127.2:abc\": \
                 invalid port \":abc\" after host",
            ),
            ("ssh-tunnel://root@192.168.127.2:22/run/x", "key not provided for unix-ssh connection"),
            ("ssh-tunnel://root@192.168.127.2:22/run/x?key=", "key not provided for unix-ssh connection"),
            ("ssh-tunnel://root@192.168.127.2/?key=/k", "remote uri must contain a path to a socket file"),
            ("ssh-tunnel://root@192.168.127.2?key=/k", "remote uri must contain a path to a socket file"),
        ] {
            assert_eq!(UnixRemote::parse(text), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn ssh_tunnels() {
        let parsed = UnixRemote::parse(
            "ssh-tunnel://core@192.168.127.2/run/a%20b?key=/k+%2B&passphrase=p%26q&secure=true",
        );
        let expected = SshRemote {
            sshd: "192.168.127.2:22".parse().unwrap(),
            user: "core".into(),
            dest: "/run/a b".into(),
            key: "/k +".into(),
            passphrase: Some("p&q".into()),
            password: None,
            secure: true,
        };
        assert_eq!(parsed, Ok(UnixRemote::Ssh(expected)));
        let parsed = UnixRemote::parse("ssh-tunnel://u:a%40b@192.168.127.2:2222/x?key=/k&secure=no");
        let Ok(UnixRemote::Ssh(parsed)) = parsed else { panic!("{parsed:?}") };
        assert_eq!(
            (parsed.password.as_deref(), parsed.sshd.port(), parsed.secure),
            (Some("a@b"), 2222, false)
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z:/@?&%=#\\[\\]é.0-9]{0,40}") {
            let _ = UnixRemote::parse(&text);
            let _ = address(&text);
            let _ = super::super::local::split_host_port(&text);
        }
    }
}
