//! The host's side of the guest's flows: ordinary sockets. Owns: the sockets. May not: decide who may reach
//! what.
//! Read next: `tcp.rs`; `dns/`, the host's resolvers.

pub mod dns;
pub(crate) mod icmp;
mod reply_watch;
pub(crate) mod stream;
pub(crate) mod tcp;
pub(crate) mod udp;
