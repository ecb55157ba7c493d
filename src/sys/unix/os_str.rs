//! Any bytes. Owns: nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

pub(crate) fn from_bytes(bytes: Vec<u8>) -> OsString {
    OsString::from_vec(bytes)
}
