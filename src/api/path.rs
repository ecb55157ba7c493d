//! The target of a request. Owns: escapes, and which paths are written in a roundabout way. Read next:
//! `mod.rs`.

use form_urlencoded::parse;

/// A path with its escapes decoded; `None` for an invalid escape, or text that is not UTF-8.
pub(super) fn decode(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

/// The shortest way to write an absolute path: without `//`, `/./`, `/../`. A slash at its end stays.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut cleaned: String = parts.iter().flat_map(|part| ["/", part]).collect();
    if cleaned.is_empty() || path.ends_with('/') {
        cleaned.push('/');
    }
    cleaned
}

/// A path and a query as they stand in a URL.
pub(super) fn encode(path: &str, query: Option<&str>) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    if let Some(query) = query {
        encoded.push('?');
        encoded.push_str(query);
    }
    encoded
}

/// The first value of `name` in a query; empty if there is none. Go ignores pairs with a semicolon.
pub(super) fn value(query: &str, name: &str) -> String {
    let pairs = query.split('&').filter(|pair| !pair.contains(';'));
    let mut values = pairs.flat_map(|pair| parse(pair.as_bytes()));
    values.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(decode("/%63am%2f").as_deref(), Some("/cam/"));
        for bad in ["/%", "/%4", "/%zz", "/%+1", "/%ff"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(encode("/a b<é>\r\n", Some("x=1&y=%41")), "/a%20b%3C%C3%A9%3E%0D%0A?x=1&y=%41");
    }

    #[test]
    fn roundabout_paths() {
        for (path, cleaned) in [
            ("/cam", "/cam"),
            ("/", "/"),
            ("//cam", "/cam"),
            ("/a/../cam", "/cam"),
            ("/cam/.", "/cam"),
            ("/..", "/"),
            ("/../../a//b/", "/a/b/"),
            ("*", "/*"),
        ] {
            assert_eq!(clean(path), cleaned, "{path}");
        }
    }

    #[test]
    fn queries() {
        for (query, ip) in [
            ("ip=1.2.3.4&port=1", "1.2.3.4"),
            ("port=1&ip=1.2.3%2E4", "1.2.3.4"),
            ("ip=&ip=1", ""),
            ("ip=1;port=1", ""),
            ("ip=a+b", "a b"),
            ("", ""),
        ] {
            assert_eq!(value(query, "ip"), ip, "{query}");
        }
    }
}
