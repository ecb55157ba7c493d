//! Hardware addresses. Owns: nothing. May not: know whose they are. Read next: `netstack::Mac`.

use netstack::{Mac, ParseMacError};

/// What Go's `net.ParseMAC` takes for six octets: pairs of hexadecimal digits with colons or with dashes, or
/// groups of four with dots; either case.
///
/// # Errors
/// Anything else.
pub(crate) fn mac(text: &str) -> Result<Mac, ParseMacError> {
    let mut separators = text.chars().filter(|c| ":-.".contains(*c));
    let first = separators.next();
    if separators.any(|separator| Some(separator) != first) {
        return Err(ParseMacError);
    }
    let groups: Vec<&str> = text.split('.').collect();
    if groups.len() == 1 {
        return text.parse();
    }
    let pairs = groups.iter().map(|group| Some((group.get(..2)?, group.get(2..)?)));
    let [(a, b), (c, d), (e, f)] =
        pairs.collect::<Option<Vec<_>>>().and_then(|pairs| pairs.try_into().ok()).ok_or(ParseMacError)?;
    format!("{a}:{b}:{c}:{d}:{e}:{f}").parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_go() {
        for text in ["5a:94:EF:e4:0c:ee", "5a-94-ef-e4-0c-ee", "5a94.efe4.0CEE"] {
            assert_eq!(mac(text), Ok(Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee])), "{text}");
        }
        for text in [
            "",
            ".",
            "..",
            "5a:94:ef:e4:0c",
            "5a:94:ef:e4:0c:e",
            "5a:94:ef:e4:0c-ee",
            "5a94efe40cee",
            "5a:94:ef:e4:0c:ee:00",
            "5a:94:ef:e4:0c:+e",
            "zz:94:ef:e4:0c:ee",
            "5a94.efe4:0cee",
            "5a94.efe4.0cee.0000",
            "5a9.4efe4.0cee",
            "5a:4.ef:4.0c:e",
            "5\u{e4}4.efe4.0cee",
        ] {
            assert_eq!(mac(text), Err(ParseMacError), "{text}");
        }
    }
}
