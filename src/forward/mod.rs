//! Ways from the host into the guest.
//! Owns: the listeners on the host side, and the table of them. May not: know frames or the virtual network's inside; it dials.
//! Read next: `registry.rs`, `unix.rs`.

pub mod agent;
pub(crate) mod local;
pub mod policy;
pub mod registry;
mod remote;
pub mod unix;
