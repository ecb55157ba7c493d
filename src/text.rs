//! Text the way Go programs write it: `%q` and the reasons of failed system calls. What greps the original's
//! lines then finds ours. Owns: nothing. Read next: `logging.rs`.

use std::io;

/// `text` in double quotes, with everything that is not printable escaped.
pub fn quote(text: impl AsRef<[u8]>) -> String {
    let mut out = String::new();
    push_quoted(&mut out, text.as_ref(), usize::MAX);
    out
}

/// Appends what [`quote`] gives, but stops with `...` where `out` would grow past `limit` bytes.
/// The dots and the closing quote may pass the limit by four bytes.
pub fn push_quoted(out: &mut String, text: &[u8], limit: usize) {
    out.push('"');
    'all: for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            if !push_within(out, &escape(c), limit) {
                break 'all;
            }
        }
        for byte in chunk.invalid() {
            if !push_within(out, &format!("\\x{byte:02x}"), limit) {
                break 'all;
            }
        }
    }
    out.push('"');
}

fn push_within(out: &mut String, piece: &str, limit: usize) -> bool {
    let fits = out.len().saturating_add(piece.len()) <= limit;
    out.push_str(if fits { piece } else { "..." });
    fits
}

fn escape(c: char) -> String {
    match c {
        '"' => "\\\"".into(),
        '\\' => "\\\\".into(),
        ' '..='~' => c.into(),
        '\x07' => "\\a".into(),
        '\x08' => "\\b".into(),
        '\x0c' => "\\f".into(),
        '\n' => "\\n".into(),
        '\r' => "\\r".into(),
        '\t' => "\\t".into(),
        '\x0b' => "\\v".into(),
        '\0'..='\x7f' => format!("\\x{:02x}", u32::from(c)),
        // One char out of `escape_debug` is the standard library's word for "printable".
        _ if c.escape_debug().count() == 1 && !c.is_whitespace() => c.into(),
        '\u{80}'..='\u{ffff}' => format!("\\u{:04x}", u32::from(c)),
        _ => format!("\\U{:08x}", u32::from(c)),
    }
}

/// A path as a shell takes it, where that is simple.
pub fn shown(path: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@".contains(&b);
    if path.bytes().all(is_plain) { path.to_owned() } else { quote(path) }
}

/// Why a system call failed, without Rust's error number: `no such file or directory`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" (os error ").map_or(text.as_str(), |(text, _)| text);
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_as_go_does() {
        for (text, quoted) in [
            (&b"plain"[..], r#""plain""#),
            (b"", r#""""#),
            (b"a\"b\\c'd", r#""a\"b\\c'd""#),
            (b"\x00\x1b\x7f\n", r#""\x00\x1b\x7f\n""#),
            (b"\xff\xc3", r#""\xff\xc3""#),
            ("é\u{a0}\u{202e}\u{e0001}".as_bytes(), r#""é\u00a0\u202e\U000e0001""#),
        ] {
            assert_eq!(quote(text), quoted);
        }
    }

    #[cfg(unix)]
    #[test]
    fn reasons_have_no_number() {
        assert_eq!(reason(&io::Error::from_raw_os_error(2)), "no such file or directory");
        assert_eq!(reason(&io::Error::other("Odd")), "odd");
    }

    proptest! {
        #[test]
        fn quoted_text_is_bounded_and_printable(text: Vec<u8>, limit in 0usize..200) {
            let mut out = String::new();
            push_quoted(&mut out, &text, limit);
            prop_assert!(out.len() <= limit.max(1) + 4, "{out}");
            prop_assert!(!out.chars().any(char::is_control));
        }
    }
}
