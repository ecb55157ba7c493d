//! The grammar of Go's `flag` package: which words of argv are flags, and where their values stand.
//! Owns: nothing. May not: look at values. Read next: `mod.rs`, which gives the items to clap.

use std::ffi::OsString;

use super::table::{Flag, Kind};

use crate::sys::os_str::from_bytes;

/// What argv says, up to the point where reading stopped.
#[derive(Debug)]
pub(super) struct Lexed {
    /// `--name=value`, always with the value attached; every name stands in the table.
    pub(super) items: Vec<OsString>,
    /// Why reading stopped.
    pub(super) end: End,
}

/// Why reading stopped.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At the end of the flags, with the first word that was left unread.
    Flags(Option<OsString>),
    /// `-h` or `-help`.
    Help,
    /// A mistake, in Go's words.
    Error(String),
}

/// Reads the words behind the program's name, whose flags are `flags`.
pub(super) fn lex(words: &[OsString], flags: &[Flag]) -> Lexed {
    let mut items = Vec::new();
    let end = read(words, flags, &mut items);
    Lexed { items, end }
}

fn read(words: &[OsString], flags: &[Flag], items: &mut Vec<OsString>) -> End {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let body = match word.as_encoded_bytes() {
            b"--" => return End::Flags(words.next().cloned()),
            [b'-', b'-', body @ ..] | [b'-', body @ ..] if !body.is_empty() => body,
            _ => return End::Flags(Some(word.clone())),
        };
        if matches!(body, [b'-' | b'=', ..]) {
            return End::Error(format!("bad flag syntax: {}", word.display()));
        }
        let (name, attached) = match body.iter().position(|&b| b == b'=') {
            Some(at) => {
                let (name, value) = body.split_at(at);
                (name, value.get(1..))
            }
            None => (body, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.name.as_bytes() == name) else {
            if matches!(name, b"h" | b"help") {
                return End::Help;
            }
            return End::Error(format!(
                "flag provided but not defined: -{}",
                from_bytes(name.to_vec()).display()
            ));
        };
        let value = match (attached, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => b"true",
            (None, _) => match words.next() {
                Some(value) => value.as_encoded_bytes(),
                None => return End::Error(format!("flag needs an argument: -{}", flag.name)),
            },
        };
        items.push(item(flag, value));
    }
    End::Flags(None)
}

fn item(flag: &Flag, value: &[u8]) -> OsString {
    from_bytes([b"--", flag.name.as_bytes(), b"=", value].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::table::FLAGS;
    use super::*;

    fn check(line: &str, items: &[&str], end: End) {
        let words: Vec<OsString> = line.split(' ').filter(|w| !w.is_empty()).map(Into::into).collect();
        let lexed = lex(&words, FLAGS);
        assert_eq!((lexed.items, lexed.end), (items.iter().map(Into::into).collect(), end), "{line}");
    }

    #[test]
    fn one_dash_or_two_and_a_value_behind_or_attached() {
        let all = ["--mtu=1400"; 4];
        check("-mtu 1400 --mtu 1400 -mtu=1400 --mtu=1400", &all, End::Flags(None));
        check("-subnet=a=b -pid-file= x", &["--subnet=a=b", "--pid-file="], End::Flags(Some("x".into())));
    }

    #[test]
    fn a_value_may_look_like_anything() {
        check("-ssh-port -1 -pid-file -debug", &["--ssh-port=-1", "--pid-file=-debug"], End::Flags(None));
        check("-pid-file -- -debug", &["--pid-file=--", "--debug=true"], End::Flags(None));
    }

    #[test]
    fn booleans_take_no_word() {
        check("-debug false -mtu 1", &["--debug=true"], End::Flags(Some("false".into())));
        check("-debug=false -debug=", &["--debug=false", "--debug="], End::Flags(None));
    }

    #[test]
    fn reading_stops() {
        check("-debug - -mtu", &["--debug=true"], End::Flags(Some("-".into())));
        check("-- -nosuch", &[], End::Flags(Some("-nosuch".into())));
        check("--", &[], End::Flags(None));
        check("-debug -h -nosuch", &["--debug=true"], End::Help);
        check("--help=x", &[], End::Help);
        assert_eq!(lex(&["".into()], FLAGS).end, End::Flags(Some("".into())));
    }

    #[test]
    fn mistakes() {
        for (line, text) in [
            ("-x", "flag provided but not defined: -x"),
            ("--x=1", "flag provided but not defined: -x"),
            ("-Debug", "flag provided but not defined: -Debug"),
            ("-gatewayip 1", "flag provided but not defined: -gatewayip"),
            ("-ssh", "flag provided but not defined: -ssh"),
            ("-mtu", "flag needs an argument: -mtu"),
            ("---mtu", "bad flag syntax: ---mtu"),
            ("-=x", "bad flag syntax: -=x"),
            ("--=x", "bad flag syntax: --=x"),
        ] {
            check(line, &[], End::Error(text.into()));
        }
    }

    proptest! {
        #[test]
        fn no_argv_panics_and_items_name_flags(words: Vec<Vec<u8>>) {
            let words: Vec<OsString> = words.into_iter().map(from_bytes).collect();
            for item in lex(&words, FLAGS).items {
                let named = FLAGS.iter().any(|f| item.as_encoded_bytes().starts_with(format!("--{}=", f.name).as_bytes()));
                prop_assert!(named, "{item:?}");
            }
        }
    }
}
