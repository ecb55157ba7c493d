//! Users and groups by their names. Owns: nothing. May not: be asked where nothing may wait; the system may
//! ask a server.

use std::io;

use super::os;

/// The id of the user with this name, if there is one.
///
/// # Errors
/// The system's; or it has no such ids.
pub fn user_id(name: &str) -> io::Result<Option<u32>> {
    os::users::user_id(name)
}

/// The same of a group.
///
/// # Errors
/// As [`user_id`].
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    os::users::group_id(name)
}

/// The user that this process was started by; `None` where the system has no such ids.
pub fn own_id() -> Option<u32> {
    os::users::own_id()
}

/// The user that this process may act as; `None` where the system has no such ids.
pub fn effective_id() -> Option<u32> {
    os::users::effective_id()
}
