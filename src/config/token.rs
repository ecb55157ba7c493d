//! What clients of the API have to send where an endpoint is open to more than the user who runs the daemon,
//! and what this project's own clients send. Owns: where the token comes from, and what may be one. May not:
//! show it. Read next: `../api/mod.rs`, which asks for it.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::asked::Asked;
use crate::disk::files;
use crate::text::{quote, reason};

/// The environment variable that may hold it; the original's.
const VARIABLE: &str = "GVISOR_API_TOKEN";
/// Characters of one.
const LEN: std::ops::RangeInclusive<usize> = 32..=256;
/// More of the file is not read, in bytes: what is longer is no token.
const MAX_LEN: u64 = 4096;

/// What to do where the answer to a client of ours is 401.
pub(crate) const WANTED: &str = "; it wants its token, from -api-token-file or GVISOR_API_TOKEN";

/// A secret that clients share with the daemon. No log shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// What was asked for.
    ///
    /// # Errors
    /// As [`Self::find`]; or there is none, and guests are to send one.
    pub(super) fn resolve(asked: &Asked) -> Result<Option<Self>> {
        let file = asked.args.api_token_file.as_deref();
        let token = Self::find(file).map_err(|error| match file {
            None => error,
            Some(_) => asked.place("api-token-file", error),
        })?;
        ensure!(
            token.is_some() || !asked.args.api_token_gateway,
            "api-token-gateway needs a token: -api-token-file or {VARIABLE}"
        );
        Ok(token)
    }

    /// That of `file`, or of the environment where none is named.
    ///
    /// # Errors
    /// The file has no name or cannot be read or others may read it, or what is there is no token.
    pub(crate) fn find(file: Option<&OsStr>) -> Result<Option<Self>> {
        if let Some(file) = file {
            ensure!(!file.is_empty(), "api-token-file is empty: it names a file, or is left out");
            return Self::read(Path::new(file)).map(Some);
        }
        let value = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        let token = value.map(|value| Self::of(value.as_encoded_bytes()));
        token.transpose().with_context(|| format!("environment variable {VARIABLE}"))
    }

    /// The line of a request that sends it (RFC 6750, 2.1), or nothing where there is none.
    pub(crate) fn header(token: Option<&Self>) -> String {
        token.map(|Self(token)| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default()
    }

    fn read(path: &Path) -> Result<Self> {
        let of_file = || format!("API token file {}", quote(path.display().to_string()));
        let text = files::read_private(path, MAX_LEN);
        let text = text.map_err(|error| anyhow!(reason(&error))).with_context(of_file)?;
        Self::of(text.trim_ascii()).with_context(of_file)
    }

    fn of(text: &[u8]) -> Result<Self> {
        let len = text.len();
        ensure!(LEN.contains(&len), "a token has {} to {} characters, not {len}", LEN.start(), LEN.end());
        ensure!(text.iter().all(u8::is_ascii_graphic), "a token has visible ASCII characters without blanks");
        Ok(Self(String::from_utf8_lossy(text).into_owned()))
    }

    /// Whether it is this one, in a time that does not depend on how much of it is right.
    pub fn is(&self, sent: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differing = own.iter().zip(sent).fold(0, |bits, (own, sent)| bits | (own ^ sent));
        std::hint::black_box(differing) == 0 && own.len() == sent.len()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str, mode| {
            let path = dir.path().join("token");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            Token::read(&path).map_err(|error| format!("{error:#}"))
        };
        let (shortest, longest) = ("x".repeat(32), "x".repeat(256));
        for text in [&shortest, &longest, &format!("{shortest}\n"), &format!(" {shortest}\r\n")] {
            assert_eq!(read(text, 0o600), Ok(Token(text.trim().into())));
        }
        assert!(read(&shortest, 0o400).is_ok());
        for (text, mode, why) in [
            (&shortest, 0o644, "its mode is 0644, want 0600"),
            (&shortest, 0o640, "its mode is 0640"),
            (&"x".repeat(31), 0o600, "32 to 256 characters, not 31"),
            (&"x".repeat(257), 0o600, "32 to 256 characters, not 257"),
            (&format!("{shortest} {shortest}"), 0o600, "without blanks"),
            (&"é".repeat(32), 0o600, "visible ASCII"),
            (&String::new(), 0o600, "not 0"),
            (&"x".repeat(5000), 0o600, "32 to 256 characters, not 4096"),
        ] {
            let said = read(text, mode).unwrap_err();
            assert!(said.contains(why) && !said.contains("xxx"), "{text}: {said}");
        }
        assert!(format!("{:#}", Token::read(dir.path()).unwrap_err()).contains("not a regular file"));
    }

    #[test]
    fn only_the_same_is_the_same() {
        let token = Token::of(&[b'x'; 32]).unwrap();
        assert!(token.is(&[b'x'; 32]));
        for sent in [&b""[..], &[b'x'; 31], &[b'x'; 33], &[b'y'; 32]] {
            assert!(!token.is(sent), "{sent:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}
