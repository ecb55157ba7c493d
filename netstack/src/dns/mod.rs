//! DNS on the gateway: which questions are answered here, and the wire form of those answers.
//! Owns: the zones. May not: ask anyone; a question that is not for the zones is handed back as
//! [`Verdict::Forward`] and travels on as the message it is. Read next: `zones.rs`, which decides;
//! `message.rs`, which reads and writes.

pub mod message;
mod zones;

pub use message::{Query, Rcode, Transport, server_failure};
pub use zones::{Record, Verdict, Zone, ZoneChange, ZoneError, Zones};

/// Bytes of the longest question that comes over UDP: as large as datagrams of DNS are made (RFC 6891 6.2.5).
pub(crate) const MAX_QUESTION: usize = 4096;
