//! Linux: a line for systemd-tmpfiles, which runs before any daemon does. See tmpfiles.d(5).
//! Owns: nothing. Read next: `mod.rs`.
//!
//! `L` without `+` makes the link where there is nothing and leaves everything else, at boot and whenever it
//! runs later. A Docker Engine that starts puts its socket in the link's place, as it does with any file.

use super::System;

/// See the module. Clients look below /var/run, which is /run wherever there is tmpfiles.d.
pub const SYSTEM: System =
    System { link: "/run/docker.sock", file: "/etc/tmpfiles.d/gvproxy-docker-sock.conf", text, target };

const HEAD: &str = "# Made by `gvproxy docker-sock install`; `gvproxy docker-sock uninstall` removes it.\nL /run/docker.sock - - - - ";

fn text(target: &str) -> String {
    format!("{HEAD}{}\n", escape(target))
}

fn target(text: &str) -> Option<String> {
    let escaped = text.strip_prefix(HEAD)?.strip_suffix('\n')?;
    let target = unescape(escaped)?;
    (escape(&target) == escaped).then_some(target)
}

/// The line's last field is unescaped as in C, and then has its specifiers, such as `%h`, replaced.
fn escape(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'%' => out.push_str("%%"),
            b'\\' => out.push_str(r"\\"),
            b'!'..=b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out
}

fn unescape(field: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = field.bytes();
    while let Some(byte) = bytes.next() {
        let plain = match byte {
            b'%' => bytes.next().filter(|&b| b == b'%')?,
            b'\\' => match bytes.next()? {
                b'\\' => b'\\',
                b'x' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
                _ => return None,
            },
            _ => byte,
        };
        out.push(plain);
    }
    String::from_utf8(out).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| digit.try_into().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_path_is_as_it_is() {
        let path = "/run/user/1000/podman/podman-machine-default-api.sock";
        let line = format!("L /run/docker.sock - - - - {path}");
        assert_eq!(text(path).lines().nth(1), Some(line.as_str()));
    }

    #[test]
    fn what_has_a_meaning_there_is_escaped() {
        assert_eq!(escape(r"/a b/%h/\x é "), r"/a\x20b/%%h/\\x\x20\xc3\xa9\x20");
    }

    #[test]
    fn a_changed_text_is_none_of_ours() {
        let good = text("/a b");
        assert_eq!(target(&good).as_deref(), Some("/a b"));
        for changed in [
            String::new(),
            good.replace("L /", "L+ /"),
            good.replace("/a", "/%h"),
            good.replace(r"\x20", " "),
            good.replace(r"\x20", r"\x2"),
            good.replace(r"\x20", r"\xff"),
            format!("{good}\n"),
            format!("{good}d /b\n"),
        ] {
            assert_eq!(target(&changed), None, "{changed}");
        }
    }

    proptest! {
        #[test]
        fn every_path_comes_back(path: String) {
            prop_assert_eq!(target(&text(&path)), Some(path));
        }

        #[test]
        fn no_text_panics(field: String) {
            let _ = target(&format!("{HEAD}{field}\n"));
        }
    }
}
