//! Secrets of one network, all from one seed. None tells anything of another. Owns: what they are. May not:
//! draw randomness.
//! Read next: `tcp/sequence.rs`.

use siphasher::sip::SipHasher13;

/// What has to be unpredictable for a guest.
pub(crate) struct Keys {
    /// Of the sequence numbers that connections begin with.
    pub(crate) sequence: SipHasher13,
    /// Of hash tables.
    pub(crate) tables: u64,
    /// Of the ports of flows to guests.
    pub(crate) tcp_ports: SipHasher13,
    pub(crate) udp_ports: SipHasher13,
}

impl Keys {
    pub(crate) fn new(seed: u128) -> Self {
        let secret = SipHasher13::new_with_keys(seed as u64, (seed >> 64) as u64);
        let key = |number: u8| secret.hash(&[number]);
        let hasher = |number| SipHasher13::new_with_keys(key(number), key(number + 1));
        Self { sequence: hasher(0), tcp_ports: hasher(2), udp_ports: hasher(4), tables: key(6) }
    }
}
