//! Go's literals: the values that its `flag` package takes for integers and booleans.
//! Owns: nothing. Read next: `mod.rs`, which hands these parsers to clap.

/// Why a text is no value; the words are Go's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LiteralError {
    /// Not a literal at all.
    #[error("parse error")]
    Syntax,
    /// More than 64 bits.
    #[error("value out of range")]
    Range,
}

/// An integer literal: a sign, then decimal, `0x`, `0o`, `0b` or leading-zero octal digits, with `_`
/// between digits.
pub fn int(text: &str) -> Result<i64, LiteralError> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = uint(unsigned)?;
    if negative { 0i64.checked_sub_unsigned(magnitude) } else { 0i64.checked_add_unsigned(magnitude) }
        .ok_or(LiteralError::Range)
}

fn uint(text: &str) -> Result<u64, LiteralError> {
    let (radix, digits) = match text.as_bytes() {
        [] => return Err(LiteralError::Syntax),
        [b'0', b'x' | b'X', digits @ ..] if !digits.is_empty() => (16, digits),
        [b'0', b'o' | b'O', digits @ ..] if !digits.is_empty() => (8, digits),
        [b'0', b'b' | b'B', digits @ ..] if !digits.is_empty() => (2, digits),
        [b'0', digits @ ..] => (8, digits),
        digits => (10, digits),
    };
    let mut value = 0u64;
    // An underscore stands behind a digit or the base prefix, and before a digit.
    let mut after_underscore = false;
    let mut may_separate = text.starts_with('0');
    let mut misplaced = false;
    for &byte in digits {
        if byte == b'_' {
            misplaced |= !may_separate;
            (may_separate, after_underscore) = (false, true);
            continue;
        }
        let digit = char::from(byte).to_digit(radix).ok_or(LiteralError::Syntax)?;
        value = value
            .checked_mul(radix.into())
            .and_then(|v| v.checked_add(digit.into()))
            .ok_or(LiteralError::Range)?;
        (may_separate, after_underscore) = (true, false);
    }
    if misplaced || after_underscore { Err(LiteralError::Syntax) } else { Ok(value) }
}

/// A boolean literal.
pub fn boolean(text: &str) -> Result<bool, LiteralError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(LiteralError::Syntax),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers() {
        for (text, value) in [
            ("0", 0),
            ("1500", 1500),
            ("-1", -1),
            ("+7", 7),
            ("0x5dc", 1500),
            ("0X5DC", 1500),
            ("-0b11", -3),
            ("0o17", 15),
            ("017", 15),
            ("00", 0),
            ("1_500", 1500),
            ("0_7", 7),
            ("0x_5_dc", 1500),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(int(text), Ok(value), "{text}");
        }
        for text in [
            "", "-", "+", "abc", "0x", "0b", "0b2", "08", "1__5", "_1", "1_", "0_", "0x5_", "1.0", " 1",
            "1 ", "--1", "+-1", "0x-1", "1e3", "٣",
        ] {
            assert_eq!(int(text), Err(LiteralError::Syntax), "{text}");
        }
        for text in
            ["9223372036854775808", "-9223372036854775809", "99999999999999999999", "0x1_0000_0000_0000_0000"]
        {
            assert_eq!(int(text), Err(LiteralError::Range), "{text}");
        }
    }

    #[test]
    fn booleans() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(text), Ok(true), "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(text), Ok(false), "{text}");
        }
        for text in ["", "tRUE", "yes", "2", " true"] {
            assert_eq!(boolean(text), Err(LiteralError::Syntax), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_integer_reads_back(value: i64) {
            let sign = if value < 0 { "-" } else { "" };
            let magnitude = value.unsigned_abs();
            prop_assert_eq!(int(&value.to_string()), Ok(value));
            for text in [
                format!("{sign}0x{magnitude:x}"),
                format!("{sign}0o{magnitude:o}"),
                format!("{sign}0{magnitude:o}"),
                format!("{sign}0b{magnitude:b}"),
            ] {
                prop_assert_eq!(int(&text), Ok(value), "{}", text);
            }
        }

        #[test]
        fn no_text_panics(text in "[-+0-9a-fxob_ ]{0,24}|\\PC*") {
            let _ = (int(&text), boolean(&text));
        }
    }
}
