//! Ways from the host into the guest.
//! Owns: the listeners on the host side. May not: know frames or the virtual network's inside; it dials.
//! Read next: `unix.rs`.

pub mod unix;
