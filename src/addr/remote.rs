//! What `remote` means where a TCP or UDP port is exposed: an address of a guest. In the original's words.
//! Owns: nothing. May not: know whether anybody is there. Read next: `dest.rs`, the URLs of sockets.

use std::net::SocketAddrV4;

use super::parse_port;
use crate::text::quote;

/// `address:port`.
///
/// # Errors
/// What is wrong with it. The original drops the connection where the address is none.
pub(crate) fn remote_address(text: &str) -> Result<SocketAddrV4, String> {
    let (host, port) =
        text.split_once(':').filter(|(_, port)| !port.contains(':')).ok_or("invalid remote addr")?;
    let port = parse_port(port)?;
    let ip = host.parse().map_err(|_| format!("invalid remote addr: {} is not an IPv4 address", quote(host)));
    Ok(SocketAddrV4::new(ip?, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the original says, as observed, but for what is no address.
    #[test]
    fn addresses() {
        assert_eq!(remote_address("192.168.127.2:80"), Ok("192.168.127.2:80".parse().unwrap()));
        for (text, why) in [
            ("192.168.127.2:abc", r#"strconv.ParseUint: parsing "abc": invalid syntax"#),
            ("192.168.127.2:99999", r#"strconv.ParseUint: parsing "99999": value out of range"#),
            ("192.168.127.2:+80", r#"strconv.ParseUint: parsing "+80": invalid syntax"#),
            ("192.168.127.2:", r#"strconv.ParseUint: parsing "": invalid syntax"#),
            ("[::1]:80", "invalid remote addr"),
            ("192.168.127.2", "invalid remote addr"),
            ("name:80", r#"invalid remote addr: "name" is not an IPv4 address"#),
        ] {
            assert_eq!(remote_address(text), Err(why.into()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z:/@?&%=#\\[\\]é.0-9]{0,40}") {
            let _ = remote_address(&text);
            let _ = crate::addr::split_host_port(&text);
        }
    }
}
