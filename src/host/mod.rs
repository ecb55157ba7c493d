//! The host's side of what the virtual network asks for. Read next: `dns/`, the host's resolvers.

pub mod dns;
