//! passwd(5), group(5), or what nsswitch.conf(5) names in their place. Owns: nothing.

use std::io;

use nix::unistd::{Group, User};

pub(crate) fn user_id(name: &str) -> io::Result<Option<u32>> {
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

pub(crate) fn group_id(name: &str) -> io::Result<Option<u32>> {
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

#[expect(clippy::unnecessary_wraps, reason = "the face of the one that has none")]
pub(crate) fn own_id() -> Option<u32> {
    Some(rustix::process::getuid().as_raw())
}

#[expect(clippy::unnecessary_wraps, reason = "likewise")]
pub(crate) fn effective_id() -> Option<u32> {
    Some(rustix::process::geteuid().as_raw())
}
