//! DHCP on the gateway (RFC 2131, options RFC 2132): one client message in, at most one reply out.
//! Owns: what the replies say, and through `leases.rs` who has which address. May not: know of frames or
//! ports but the two of its own. Read next: `leases.rs`.

mod leases;

use core::net::{Ipv4Addr, SocketAddrV4};
use core::time::Duration;

use dhcproto::error::EncodeResult;
use dhcproto::v4::{
    DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, borrowed, encode_long_opt_bytes,
};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

use crate::{Mac, NetworkConfig, PortId};
use leases::Leases;

/// The port that the server is reached on, whatever the address.
pub const SERVER_PORT: u16 = 67;

/// How long a client may keep an address without renewing it.
pub const LEASE_TIME: Duration = Duration::from_secs(3600);

/// Bytes of the shortest reply; BOOTP relays and old clients drop shorter ones.
const MIN_REPLY_LEN: usize = 300;

/// BOOTREPLY of Ethernet (RFC 951), all else zero, up to the magic cookie (RFC 2131 section 3).
const BLANK_REPLY: [u8; 240] = {
    let mut bytes = [0; 240];
    (bytes[0], bytes[1]) = (2, 1);
    [bytes[236], bytes[237], bytes[238], bytes[239]] = [99, 130, 83, 99];
    bytes
};

/// Bytes of option 119: with it a reply still fits an Ethernet frame.
const MAX_SEARCH_LIST_LEN: usize = 1024;

/// Where the reply in `out` goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The client's own address where it already speaks from one of the subnet, else 255.255.255.255.
    pub destination: SocketAddrV4,
    /// Whom the reply is for; a broadcast one need not reach the other guests.
    pub client: Mac,
}

/// Who sends a message, as the network sees it.
#[expect(missing_debug_implementations, reason = "closures have none")]
pub struct Asker<'a> {
    /// The port that it is behind.
    pub port: PortId,
    /// What it says that it comes from.
    pub source: SocketAddrV4,
    /// How many addresses are used behind the port, with a lease or without.
    pub count: usize,
    /// Which port a hardware address is behind.
    pub port_of: &'a dyn Fn(Mac) -> Option<PortId>,
    /// The same, unless it is only used there by somebody else than before.
    pub home_of: &'a dyn Fn(Mac) -> Option<PortId>,
    /// Whether a port is there.
    pub is_there: &'a dyn Fn(PortId) -> bool,
    /// What others have of an address, with a lease or without.
    pub use_of: &'a dyn Fn(Ipv4Addr) -> Use,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its hardware address.
    pub client: Mac,
    /// The port that it was leased to.
    pub port: Option<PortId>,
    /// It need not have asked for it.
    pub is_reserved: bool,
    /// It has not accepted it yet.
    pub is_offer: bool,
}

/// What another port has of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nothing.
    None,
    /// It is kept for a machine that is gone.
    Kept,
    /// It is used, or owned by a machine, behind a port with so many.
    By(usize),
}

impl Asker<'_> {
    /// One that has the network for itself.
    pub fn alone(source: SocketAddrV4) -> Self {
        let (port_of, home_of) = (&|_| None, &|_| Some(PortId(0)));
        Self {
            port: PortId(0),
            source,
            count: 0,
            port_of,
            home_of,
            is_there: &|_| true,
            use_of: &|_| Use::None,
        }
    }

    fn is_free(&self, address: Ipv4Addr) -> bool {
        (self.use_of)(address) == Use::None
    }

    /// The port that counts for the client's lease from now on. It is the asker's if the client is at home
    /// there, else the one that it was `leased_to`. For a client that is not seen, anybody may ask in its
    /// name.
    fn leases_to(&self, client: Mac, leased_to: PortId) -> PortId {
        if (self.home_of)(client) == Some(self.port) { self.port } else { leased_to }
    }

    /// Whether what it says of that lease counts.
    fn may_end(&self, client: Mac, leased_to: PortId) -> bool {
        self.leases_to(client, leased_to) == self.port
    }
}

/// Why a message gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DhcpDrop {
    /// Truncated, not DHCP, not from a client, or not Ethernet.
    #[error("malformed DHCP message")]
    Malformed,
    /// RELEASE and DECLINE are not answered.
    #[error("nothing to answer")]
    Unanswered,
    /// The client took another server's offer.
    #[error("for another DHCP server")]
    OtherServer,
    /// It speaks of a client that is behind another port.
    #[error("for a client behind another port")]
    Anothers,
    /// All addresses are taken.
    #[error("no free address")]
    Exhausted,
}

/// The gateway's DHCP server.
#[derive(Clone, Debug)]
pub struct DhcpServer {
    gateway: Ipv4Addr,
    gateway_mac: Mac,
    mtu: u16,
    /// Option 119 as it goes on the wire.
    search_list: Vec<u8>,
    leases: Leases,
}

impl DhcpServer {
    /// A server with no leases but the reserved ones.
    pub fn new(config: &NetworkConfig) -> Self {
        Self {
            gateway: config.gateway,
            gateway_mac: config.gateway_mac,
            mtu: config.mtu,
            search_list: encode_search_list(&config.search_domains),
            leases: Leases::new(config),
        }
    }

    /// One client message, a UDP payload from `asker`, at `now` since the start. Replaces `out` by the
    /// reply's payload.
    ///
    /// # Errors
    /// A message without a reply; `out` is then in no defined state.
    pub fn handle_message(
        &mut self,
        payload: &[u8],
        asker: &Asker<'_>,
        now: Duration,
        out: &mut Vec<u8>,
    ) -> Result<Reply, DhcpDrop> {
        let request = Request::parse(payload).ok_or(DhcpDrop::Malformed)?;
        if (asker.port_of)(request.client).is_some_and(|port| port != asker.port) {
            return Err(DhcpDrop::Anothers);
        }
        let source = asker.source;
        let for_other_server = request.server.is_some_and(|server| server != self.gateway);
        match request.message_type {
            MessageType::Discover => {
                let address = self.leases.offer(request.client, request.requested, asker, now);
                let address = address.ok_or(DhcpDrop::Exhausted)?;
                self.write_reply(&request, MessageType::Offer, address, source, out)
            }
            MessageType::Request if for_other_server => {
                self.leases.withdraw(request.client, asker, now);
                Err(DhcpDrop::OtherServer)
            }
            // RFC 2131 section 4.3.2: SELECTING and INIT-REBOOT name the address in option 50, RENEWING and
            // REBINDING speak of it in ciaddr. SELECTING alone names the server, and then there has to be an
            // offer.
            MessageType::Request => {
                let wanted = request.requested.unwrap_or(request.ciaddr);
                if self.leases.bind(request.client, wanted, request.server.is_some(), asker, now) {
                    self.write_reply(&request, MessageType::Ack, wanted, source, out)
                } else {
                    self.write_reply(&request, MessageType::Nak, Ipv4Addr::UNSPECIFIED, source, out)
                }
            }
            MessageType::Inform => {
                self.write_reply(&request, MessageType::Ack, Ipv4Addr::UNSPECIFIED, source, out)
            }
            MessageType::Decline | MessageType::Release if for_other_server => Err(DhcpDrop::OtherServer),
            MessageType::Decline => {
                let address = request.requested.unwrap_or(request.ciaddr);
                self.leases.decline(request.client, address, asker, now);
                Err(DhcpDrop::Unanswered)
            }
            MessageType::Release => {
                self.leases.release(request.client, request.ciaddr, asker, now);
                Err(DhcpDrop::Unanswered)
            }
            _ => Err(DhcpDrop::Malformed),
        }
    }

    /// The addresses in use at `now`: the gateway's, the reserved ones whether used or not, the leased ones.
    pub fn leases(&self, now: Duration) -> impl Iterator<Item = (Ipv4Addr, Mac)> {
        core::iter::once((self.gateway, self.gateway_mac)).chain(self.leases.iter(now))
    }

    /// Whose `address` is at `now`, if anybody's.
    pub fn owner(&self, address: Ipv4Addr, now: Duration) -> Option<Owner> {
        self.leases.owner(address, now)
    }

    /// The client with this hardware address is gone. Others may have its address; until one does, the client
    /// gets it again.
    pub fn end_lease(&mut self, client: Mac, now: Duration) {
        self.leases.end(client, now);
    }

    /// `yiaddr` is unspecified in a NAK and in the answer to INFORM; those carry no lease time either.
    fn write_reply(
        &self,
        request: &Request,
        message_type: MessageType,
        yiaddr: Ipv4Addr,
        source: SocketAddrV4,
        out: &mut Vec<u8>,
    ) -> Result<Reply, DhcpDrop> {
        let nak = message_type == MessageType::Nak;
        out.clear();
        // Message's constructors draw a random number, which a filter of system calls may refuse.
        let head = Message::decode(&mut Decoder::new(&BLANK_REPLY)).map_err(|_| DhcpDrop::Malformed)?;
        self.encode_reply(request, head, message_type, yiaddr, out).map_err(|_| DhcpDrop::Malformed)?;
        if out.len() < MIN_REPLY_LEN {
            out.resize(MIN_REPLY_LEN, 0);
        }
        // RFC 2131 section 4.3.2: who is refused its address cannot be reached at it.
        let is_reachable = !nak && self.leases.has(*source.ip());
        let destination = if is_reachable { *source.ip() } else { Ipv4Addr::BROADCAST };
        Ok(Reply { destination: SocketAddrV4::new(destination, source.port()), client: request.client })
    }

    /// Options in ascending order; 82 last (RFC 3046 section 2.2).
    fn encode_reply(
        &self,
        request: &Request,
        mut head: Message,
        message_type: MessageType,
        yiaddr: Ipv4Addr,
        out: &mut Vec<u8>,
    ) -> EncodeResult<()> {
        head.set_xid(request.xid).set_flags(request.flags);
        head.set_yiaddr(yiaddr).set_giaddr(request.giaddr).set_chaddr(&request.client.0);
        let mut encoder = Encoder::new(out);
        head.encode(&mut encoder)?;
        if message_type != MessageType::Nak {
            DhcpOption::SubnetMask(self.leases.subnet_mask()).encode(&mut encoder)?;
            DhcpOption::Router(vec![self.gateway]).encode(&mut encoder)?;
            DhcpOption::DomainNameServer(vec![self.gateway]).encode(&mut encoder)?;
            DhcpOption::InterfaceMtu(self.mtu).encode(&mut encoder)?;
        }
        if !yiaddr.is_unspecified() {
            DhcpOption::AddressLeaseTime(LEASE_TIME.as_secs() as u32).encode(&mut encoder)?;
        }
        DhcpOption::MessageType(message_type).encode(&mut encoder)?;
        DhcpOption::ServerIdentifier(self.gateway).encode(&mut encoder)?;
        if let Some(id) = &request.client_id {
            encode_long_opt_bytes(OptionCode::ClientIdentifier, id, &mut encoder)?;
        }
        if message_type != MessageType::Nak {
            encode_long_opt_bytes(OptionCode::DomainSearch, &self.search_list, &mut encoder)?;
        }
        if let Some(relay) = &request.relay_agent {
            encode_long_opt_bytes(OptionCode::RelayAgentInformation, relay, &mut encoder)?;
        }
        DhcpOption::End.encode(&mut encoder)
    }
}

/// The parts of a client's message that matter here.
#[derive(Debug)]
struct Request {
    message_type: MessageType,
    xid: u32,
    flags: Flags,
    client: Mac,
    ciaddr: Ipv4Addr,
    giaddr: Ipv4Addr,
    /// Option 50.
    requested: Option<Ipv4Addr>,
    /// Option 54.
    server: Option<Ipv4Addr>,
    /// Option 61, copied into the reply (RFC 6842).
    client_id: Option<Vec<u8>>,
    /// Option 82, copied into the reply (RFC 3046).
    relay_agent: Option<Vec<u8>>,
}

impl Request {
    fn parse(payload: &[u8]) -> Option<Self> {
        let message = borrowed::Message::new(payload).ok()?;
        if message.opcode() != Opcode::BootRequest || usize::from(message.hlen()) != size_of::<Mac>() {
            return None;
        }
        let client = Mac(message.chaddr().try_into().ok()?);
        let (mut message_type, mut requested, mut server, mut client_id, mut relay_agent) =
            Default::default();
        for option in message.opts() {
            let address = || <[u8; 4]>::try_from(option.data()).ok().map(Ipv4Addr::from);
            match option.code() {
                OptionCode::MessageType => message_type = option.data().first().copied(),
                OptionCode::RequestedIpAddress => requested = address(),
                OptionCode::ServerIdentifier => server = address(),
                OptionCode::ClientIdentifier => client_id = Some(option.data().to_vec()),
                OptionCode::RelayAgentInformation => relay_agent = Some(option.data().to_vec()),
                _ => {}
            }
        }
        (!client.is_group()).then_some(Self {
            message_type: message_type?.into(),
            xid: message.xid(),
            flags: message.flags(),
            client,
            ciaddr: message.ciaddr(),
            giaddr: message.giaddr(),
            requested,
            server,
            client_id,
            relay_agent,
        })
    }
}

/// The value of option 119 (RFC 3397), without compression. Left out: text that is no domain name, and names
/// past [`MAX_SEARCH_LIST_LEN`].
fn encode_search_list(domains: &[String]) -> Vec<u8> {
    let mut list = Vec::new();
    for domain in domains {
        let labels = domain.strip_suffix('.').unwrap_or(domain).split('.');
        let valid = labels.clone().all(|label| (1..=63).contains(&label.len()));
        let len = domain.len() + 2;
        if !valid || len > 255 || list.len() + len > MAX_SEARCH_LIST_LEN {
            tracing::warn!(domain, "search domain left out");
            continue;
        }
        for label in labels {
            list.push(label.len() as u8);
            list.extend(label.as_bytes());
        }
        list.push(0);
    }
    list
}

#[cfg(test)]
mod tests;
