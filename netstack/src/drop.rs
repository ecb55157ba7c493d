//! Why a frame was not acted on. A guest can cause any of these and nothing worse. Owns: the reasons and
//! their counts.

/// Why a frame, or what was in it, went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(usize)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    #[error("frame shorter than an Ethernet header")]
    ShortFrame,
    /// The source address is a group address or the gateway's own.
    #[error("frame from an impossible hardware address")]
    BadSource,
    /// Neither IPv4 nor ARP.
    #[error("unknown ethertype")]
    EtherType,
    /// An ARP packet that is cut short, or not Ethernet and IPv4.
    #[error("malformed ARP packet")]
    Arp,
    /// A header that is cut short or contradicts itself.
    #[error("malformed IPv4 packet")]
    Ipv4,
    /// A source or destination that may not appear on the wire (RFC 1122 3.2.1.3).
    #[error("martian address")]
    Martian,
    /// A fragment that overlaps or does not fit, or an incomplete datagram that made room for another.
    #[error("fragment refused")]
    Fragment,
    /// A malformed ICMP message, or one of a type that nobody here answers.
    #[error("ICMP message not handled")]
    Icmp,
    /// A TCP header that is cut short or contradicts itself.
    #[error("malformed TCP segment")]
    Tcp,
    /// A UDP header that is cut short or contradicts itself.
    #[error("malformed UDP datagram")]
    Udp,
    /// An IP protocol other than ICMP, TCP and UDP.
    #[error("unknown IP protocol")]
    Protocol,
    /// The policy says no (`nat.rs`).
    #[error("destination not allowed")]
    Policy,
    /// A segment for a flow that belongs to another port.
    #[error("flow of another port")]
    OtherPort,
    /// There are too many TCP flows: left by the other end, being opened by one port, or in all. One made
    /// room, or could not be opened.
    #[error("too many flows")]
    Flows,
    /// A UDP flow made room for another.
    #[error("too many UDP flows")]
    UdpFlows,
    /// Too many addresses are asked for, or too many flows wait for one: a flow to a guest ended.
    #[error("too much waits for addresses")]
    Resolving,
    /// No DHCP answer; the DHCP server has the details.
    #[error("DHCP message not answered")]
    Dhcp,
    /// No DNS answer: too short, or itself a response.
    #[error("DNS message not answered")]
    Dns,
    /// The port's batch was full and the frame can be lost.
    #[error("port full")]
    PortFull,
    /// No port has the destination.
    #[error("no port has the destination")]
    NoPort,
    /// The guest that it is for has not shown to take packets of this size, and it cannot be cut.
    #[error("longer than the guest takes")]
    TooLong,
    /// It may be forwarded no further: its TTL is used up.
    #[error("time to live exceeded in transit")]
    HopLimit,
    /// Its sender says that it is another guest, or the gateway.
    #[error("address of another port")]
    Claimed,
    /// To guests only the gateway may say this: which addresses they have, and who is their router.
    #[error("only the gateway may say this to a guest")]
    GatewaysPart,
    /// The port sends more to everybody than others can be asked to take.
    #[error("too many frames to everybody")]
    Storm,
}

/// How often each [`DropReason`] happened.
#[derive(Clone, Debug, Default)]
pub struct DropCounts([u64; 25]);

impl DropCounts {
    pub(crate) fn count(&mut self, reason: DropReason) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter += 1;
        }
        tracing::trace!(%reason, "dropped");
    }

    /// How often `reason` happened.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
