//! URLs, read as Go's `net/url` reads them. Owns: nothing. May not: look at the file system, or know what a
//! scheme means.
//! Read next: `listen.rs`, `dest.rs`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::sys::os_str::from_bytes;
use crate::text::quote;

/// Scheme, authority, path and query; a fragment is cut off.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url {
    /// In lower case; empty if there is none.
    pub(crate) scheme: String,
    /// As it was typed.
    authority: Vec<u8>,
    /// Percent escapes decoded. Empty where the URL has none, as in `unix:rel`.
    pub(crate) path: OsString,
    /// What follows the question mark, as it was typed.
    query: Vec<u8>,
}

/// `USER:PASSWORD@HOST:PORT`, percent escapes not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Authority<'a> {
    /// Whether there is a user or a password, though they be empty.
    pub(crate) has_login: bool,
    /// Empty if there is none.
    pub(crate) user: &'a str,
    pub(crate) password: Option<&'a str>,
    /// As it was typed: an address of IPv6 has brackets.
    pub(crate) host: &'a str,
    /// What follows the last colon that is not within brackets. `None` without a colon.
    pub(crate) port: Option<&'a str>,
}

impl<'a> Authority<'a> {
    fn of(text: &'a str) -> Self {
        let (login, place) = text.rsplit_once('@').unwrap_or(("", text));
        let has_login = place.len() < text.len();
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (place, None),
        };
        Self { has_login, user, password, host, port }
    }

    /// The host without the brackets of an address of IPv6.
    pub(crate) fn bare_host(&self) -> &'a str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(self.host)
    }
}

impl Url {
    /// Follows Go's `net/url` in what is a URL and what is not.
    pub(crate) fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_encoded_bytes();
        let wrong = |why: String| anyhow!("parse {}: {why}", quote(bytes));
        if bytes.iter().any(u8::is_ascii_control) {
            return Err(wrong("invalid control character in URL".into()));
        }
        let bytes = bytes.split(|&b| b == b'#').next().unwrap_or_default();
        let (bytes, query) = bytes.split_at(bytes.iter().position(|&b| b == b'?').unwrap_or(bytes.len()));
        let query = query.strip_prefix(b"?").unwrap_or_default().to_vec();
        let (scheme, rest) = split_scheme(bytes).ok_or_else(|| wrong("missing protocol scheme".into()))?;
        let (authority, path) = match rest.strip_prefix(b"//") {
            Some(rest) => rest.split_at(rest.iter().position(|&b| b == b'/').unwrap_or(rest.len())),
            None if rest.starts_with(b"/") || scheme.is_empty() => (&b""[..], rest),
            None => (&b""[..], &b""[..]),
        };
        let path = unescape(path).map_err(|bad| wrong(format!("invalid URL escape {}", quote(bad))))?;
        Ok(Self { scheme, authority: authority.to_vec(), path, query })
    }

    /// What stands between `//` and the path, as text.
    pub(crate) fn authority_text(&self) -> Result<&str> {
        std::str::from_utf8(&self.authority).map_err(|_| anyhow!("the address is not UTF-8"))
    }

    /// The same in its parts.
    pub(crate) fn authority(&self) -> Result<Authority<'_>> {
        self.authority_text().map(Authority::of)
    }

    /// What follows the question mark, as it was typed.
    pub(crate) fn query(&self) -> &[u8] {
        &self.query
    }

    /// The first value of a key of the query, whatever other keys there are.
    pub(crate) fn parameter(&self, key: &str) -> Result<Option<String>> {
        let mut pairs = self.query.split(|&b| b == b'&').map(|pair| {
            let end = pair.iter().position(|&b| b == b'=').unwrap_or(pair.len());
            (pair.get(..end).unwrap_or_default(), pair.get(end + 1..).unwrap_or_default())
        });
        let Some((_, value)) = pairs.find(|(name, _)| *name == key.as_bytes()) else { return Ok(None) };
        let value: Vec<u8> = value.iter().map(|&b| if b == b'+' { b' ' } else { b }).collect();
        let wrong = || anyhow!("invalid URL escape in {}", quote(&value));
        let value = unescape(&value).map_err(|_| wrong())?.into_string().map_err(|_| wrong())?;
        Ok(Some(value))
    }

    /// The values of the query's `keys`, which are all that it may have.
    pub(crate) fn parameters<const N: usize>(&self, keys: [&str; N]) -> Result<[Option<String>; N]> {
        let mut values = [const { None }; N];
        for (key, value) in form_urlencoded::parse(&self.query) {
            let Some(place) = keys.iter().position(|known| *known == key).and_then(|at| values.get_mut(at))
            else {
                let known = if N == 0 { "nothing".to_owned() } else { keys.join(", ") };
                bail!(
                    "unknown parameter {}: a {} URL takes {known} here",
                    quote(key.as_bytes()),
                    self.scheme
                );
            };
            ensure!(place.replace(value.into_owned()).is_none(), "parameter {key} is given twice");
        }
        Ok(values)
    }

    /// The path of a socket's file: absolute, so that a relative one is not taken for a host's name.
    pub(crate) fn into_socket_path(self) -> Result<PathBuf> {
        let Self { scheme, authority, path, .. } = self;
        if !authority.is_empty() || path.is_empty() {
            bail!("the path of a {scheme} URL must be absolute, as in {scheme}:///run/x.sock");
        }
        ensure!(!path.as_encoded_bytes().contains(&0), "a path has no zero byte");
        Ok(path.into())
    }

    /// The host, which may be empty, and the port of a URL such as `tcp://127.0.0.1:8080`.
    pub(crate) fn into_host_and_port(self) -> Result<(String, u16)> {
        let Authority { host, port, has_login, .. } = self.authority()?;
        ensure!(!has_login, "invalid address {}: no user is wanted", quote(&self.authority));
        let port = port.filter(|_| !host.contains(':') || host.ends_with(']'));
        let port = port.with_context(|| format!("no port in {}", quote(&self.authority)))?;
        let port = port.parse().map_err(|_| anyhow!("invalid port {} after host", quote(port.as_bytes())))?;
        Ok((host.to_owned(), port))
    }
}

/// `None` for an empty scheme in front of a colon; an empty scheme if there is none at all.
fn split_scheme(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.iter().position(|b| !(b.is_ascii_alphanumeric() || b"+-.".contains(b)));
    let no_scheme = Some((String::new(), bytes));
    match (bytes, end) {
        (_, Some(0)) if bytes.starts_with(b":") => None,
        ([first, ..], Some(end)) if first.is_ascii_alphabetic() && bytes.get(end) == Some(&b':') => {
            let (scheme, rest) = bytes.split_at(end);
            Some((String::from_utf8_lossy(scheme).to_lowercase(), rest.strip_prefix(b":")?))
        }
        _ => no_scheme,
    }
}

/// Decodes `%xx`; the error is the text that is no escape.
pub(crate) fn unescape(mut text: &[u8]) -> Result<OsString, &[u8]> {
    let (whole, mut out) = (text, Vec::with_capacity(text.len()));
    while let [first, rest @ ..] = text {
        if *first != b'%' {
            out.push(*first);
            text = rest;
            continue;
        }
        let digit = |at: usize| rest.get(at).and_then(|&b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(text.get(..3).unwrap_or(text));
        };
        out.extend(u8::try_from(high * 16 + low));
        text = rest.get(2..).unwrap_or_default();
    }
    // Not every system's text may be any bytes.
    let decoded = from_bytes(out.clone());
    if decoded.as_encoded_bytes() == out { Ok(decoded) } else { Err(whole) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn socket(text: &str) -> Result<PathBuf, String> {
        Url::parse(text.as_ref()).and_then(Url::into_socket_path).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn socket_paths() {
        for (url, path) in [
            ("unix:///a/b", "/a/b"),
            ("unix:/a/b", "/a/b"),
            ("UNIX:///a", "/a"),
            ("unix:///a%20b.sock", "/a b.sock"),
            ("unix:///a b.sock", "/a b.sock"),
            ("unix:///a?x=1#y", "/a"),
            ("unix:///a#y?z", "/a"),
            ("unix:///a:b", "/a:b"),
            ("unix:////a", "//a"),
        ] {
            assert_eq!(socket(url), Ok(path.into()), "{url}");
        }
        for url in ["unix://rel.sock", "unix:rel.sock", "unix://tmp/x.sock", "unix:", "unix://"] {
            let error = socket(url).unwrap_err();
            assert!(error.contains("must be absolute, as in unix:///run/x.sock"), "{url}: {error}");
        }
        assert!(socket("unix:///a%00b").unwrap_err().contains("zero byte"));
    }

    #[test]
    fn hosts_and_ports() {
        let split = |url: &str| Url::parse(url.as_ref()).and_then(Url::into_host_and_port);
        for (url, host, port) in [
            ("tcp://127.0.0.1:8080", "127.0.0.1", 8080),
            ("tcp://:1", "", 1),
            ("tcp://[::1]:65535/x", "[::1]", 65_535),
            ("tcp://localhost:0", "localhost", 0),
        ] {
            assert_eq!(split(url).unwrap(), (host.to_owned(), port), "{url}");
        }
        for url in ["tcp://a", "tcp:///a", "tcp://a:", "tcp://a:65536", "tcp://::1", "tcp:a:1"] {
            assert!(split(url).is_err(), "{url}");
        }
    }

    #[test]
    fn queries() {
        let read = |url: &str| {
            let url = Url::parse(url.as_ref()).unwrap();
            url.parameters(["a", "b"]).map_err(|error| error.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        for (url, values) in [
            ("unix:///x", [None, None]),
            ("unix:///x?", [None, None]),
            ("unix:///x?a=1", [some("1"), None]),
            ("unix:///x?b=2&a=1", [some("1"), some("2")]),
            ("unix:///x?a=%2Fk%20%3d&b#a=2", [some("/k ="), some("")]),
            ("unix:///x?a=/k?&b=", [some("/k?"), some("")]),
            ("unix:///x#?a=1", [None, None]),
        ] {
            assert_eq!(read(url), Ok(values), "{url}");
        }
        for (url, error) in [
            ("unix:///x?a=1&c=2", r#"unknown parameter "c": a unix URL takes a, b here"#),
            ("unix:///x?A=1", r#"unknown parameter "A": a unix URL takes a, b here"#),
            ("unix:///x?a=1&a=1", "parameter a is given twice"),
        ] {
            assert_eq!(read(url), Err(error.into()), "{url}");
        }
        let none = Url::parse("tcp://:1?a=1".as_ref()).unwrap().parameters([]).unwrap_err();
        assert_eq!(none.to_string(), r#"unknown parameter "a": a tcp URL takes nothing here"#);
    }

    #[test]
    fn what_is_no_url() {
        for (url, error) in [
            ("unix:///a%zz", r#"parse "unix:///a%zz": invalid URL escape "%zz""#),
            ("unix:///a%4", r#"parse "unix:///a%4": invalid URL escape "%4""#),
            (":x", r#"parse ":x": missing protocol scheme"#),
            ("unix:///a\n", r#"parse "unix:///a\n": invalid control character in URL"#),
        ] {
            assert_eq!(socket(url), Err(error.into()));
        }
    }

    #[test]
    fn schemes() {
        for (url, scheme) in [
            ("/a/b", ""),
            ("a/b:c", ""),
            ("1x://a", ""),
            ("", ""),
            ("tcp://:8080", "tcp"),
            ("a+b-c.1:x", "a+b-c.1"),
        ] {
            assert_eq!(Url::parse(url.as_ref()).unwrap().scheme, scheme, "{url}");
        }
    }

    proptest! {
        #[cfg(unix)]
        #[test]
        fn an_escaped_path_reads_back(path in prop::collection::vec(1u8.., 1..40)) {
            let escaped: String = path.iter().map(|b| format!("%{b:02X}")).collect();
            let url = format!("unix:///{escaped}");
            let read = Url::parse(url.as_ref()).unwrap().into_socket_path().unwrap();
            prop_assert_eq!(read.into_os_string(), from_bytes([b"/", &path[..]].concat()));
        }

        #[test]
        fn no_text_panics(text: Vec<u8>) {
            let _ = Url::parse(&from_bytes(text)).and_then(Url::into_socket_path);
        }
    }
}
