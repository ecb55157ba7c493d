//! Text of the system's own, as bytes: what was typed, and paths. To bytes it goes by
//! `OsStr::as_encoded_bytes`. Owns: nothing.

use std::ffi::OsString;

use super::os;

/// The text of such bytes, cut or joined at ASCII characters. Where the system's text is Unicode, as on
/// Windows, what is none of it is replaced, so that it names nothing.
pub fn from_bytes(bytes: Vec<u8>) -> OsString {
    os::os_str::from_bytes(bytes)
}
