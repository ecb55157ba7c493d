//! What keeps web pages out. A page that a browser shows may send requests to any address that the browser
//! reaches; an API without passwords has to tell them from programs. Owns: which `Host` and `Origin` headers
//! pass. Read next: `mod.rs`.
//!
//! A page whose name was made to lead here (DNS rebinding) is told by its `Host`, another one by its
//! `Origin`, or where a browser sends none, as for an image, by its `Sec-Fetch-Site`.

use std::net::IpAddr;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderName, ORIGIN};
use hyper::{Request, StatusCode};

use super::reply::Refusal;

/// What an endpoint may be called.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// The host of the URL that it listens on. Without one any name passes: guests have names of their own
    /// for the gateway.
    pub(super) listened: Option<String>,
}

impl Names {
    /// # Errors
    /// The request is one that a browser sends for somebody else's page.
    pub(super) fn ensure_own(&self, request: &Request<Incoming>) -> Result<(), Refusal> {
        let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
        if header(HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| !matches!(site, "same-origin" | "none"))
        {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "pages of other sites may not ask here".to_owned(),
            ));
        }
        let host = header(HOST).unwrap_or_default();
        let named = request.uri().authority().map(|authority| authority.as_str());
        self.check(host, named, header(ORIGIN)).map_err(|text| Refusal::new(StatusCode::FORBIDDEN, text))
    }

    fn check(&self, host: &str, named: Option<&str>, origin: Option<&str>) -> Result<(), String> {
        for host in [Some(host), named].into_iter().flatten() {
            if !self.is_own(name_of(host)) {
                return Err(format!("host {host:?} is not served here"));
            }
        }
        let own =
            |origin: &str| origin.split_once("://").is_some_and(|(_, page)| page.eq_ignore_ascii_case(host));
        match origin {
            Some(origin) if !own(origin) => Err(format!("pages of {origin:?} may not ask here")),
            _ => Ok(()),
        }
    }

    fn is_own(&self, name: &str) -> bool {
        let Some(listened) = &self.listened else { return true };
        let name = name.strip_suffix('.').unwrap_or(name);
        // No page has an address for its name unless it came from there.
        name.is_empty()
            || name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || name.eq_ignore_ascii_case(listened)
    }
}

/// `Host` without port and brackets.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_pass_and_foreign_ones_do_not() {
        let names = Names { listened: Some("devbox".into()) };
        for host in ["", "127.0.0.1:8080", "[::1]:8080", "[::1]", "localhost", "LOCALHOST.:1", "DevBox:80"] {
            assert_eq!(names.check(host, None, None), Ok(()), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "[x]", "?", "a b"] {
            assert!(names.check(host, None, None).is_err(), "{host}");
        }
        assert!(names.check("localhost", Some("evil.example:80"), None).is_err(), "an absolute URL");
        assert_eq!(Names::default().check("gateway.containers.internal", None, None), Ok(()));
    }

    #[test]
    fn pages_of_others_may_not_ask() {
        for names in [Names { listened: Some(String::new()) }, Names::default()] {
            let check = |origin| names.check("127.0.0.1:8080", None, Some(origin));
            assert_eq!(check("http://127.0.0.1:8080"), Ok(()));
            for origin in ["http://evil.example", "null", "http://127.0.0.1:9", ""] {
                assert!(check(origin).is_err(), "{origin}");
            }
        }
    }
}
