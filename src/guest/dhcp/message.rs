//! DHCP messages of a client in their frames (RFC 2131, options RFC 2132). Owns: nothing. Read next:
//! `mod.rs`.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use etherparse::{
    EtherType, Ethernet2Header, Ethernet2Slice, IpNumber, Ipv4Header, Ipv4Slice, UdpHeader, UdpSlice,
};

use super::super::settings::Mac;

const BROADCAST: Mac = [0xff; 6];
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const TTL: u8 = 64;
/// What an address may cost a server that says nothing of the kind.
const DEFAULT_LIFETIME: u32 = 3600;
/// Shorter leases are kept as long: a server cannot have us ask all the time.
const MIN_LIFETIME: u32 = 60;
/// The largest MTU whose frames the link's length can announce, in bytes.
const MTU_MAX: u16 = u16::MAX - Ethernet2Header::LEN as u16;

/// What a server lets a client have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Lease {
    pub(in super::super) address: Ipv4Addr,
    pub(in super::super) prefix: u8,
    pub(in super::super) router: Option<Ipv4Addr>,
    pub(in super::super) dns: Vec<Ipv4Addr>,
    pub(in super::super) search: Vec<String>,
    /// In bytes.
    pub(in super::super) mtu: Option<u16>,
    pub(super) server: Server,
    pub(super) times: Times,
}

/// Whom a renewal goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) address: Ipv4Addr,
    pub(super) mac: Mac,
}

/// When to ask the server, when to ask any, and when to stop, since the lease was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) renew: Duration,
    pub(super) rebind: Duration,
    pub(super) end: Duration,
}

/// What a client says, and to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) kind: MessageType,
    /// The address that the client has, or none.
    pub(super) own: Ipv4Addr,
    /// Option 50.
    pub(super) requested: Option<Ipv4Addr>,
    /// Option 54: whose offer is taken.
    pub(super) chosen: Option<Ipv4Addr>,
    /// To this server alone.
    pub(super) to: Option<Server>,
}

/// What a server says.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) kind: MessageType,
    pub(super) lease: Option<Lease>,
}

/// The DHCP message in a frame from a server to a client.
pub(in super::super) fn message(frame: &[u8]) -> Option<&[u8]> {
    let frame = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    if frame.ether_type() != EtherType::IPV4 {
        return None;
    }
    let packet = Ipv4Slice::from_slice(frame.payload_slice()).ok()?;
    if packet.payload_ip_number() != IpNumber::UDP || packet.is_payload_fragmented() {
        return None;
    }
    let datagram = UdpSlice::from_slice(packet.payload().payload).ok()?;
    let is_reply = datagram.source_port() == SERVER_PORT && datagram.destination_port() == CLIENT_PORT;
    is_reply.then(|| datagram.payload())
}

/// The frame that carries `request` from the client `mac`.
pub(super) fn frame(request: &Request, mac: Mac, xid: u32) -> Option<Vec<u8>> {
    let unspecified = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(xid, request.own, unspecified, unspecified, unspecified, &mac);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(request.kind));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::DomainName,
        OptionCode::InterfaceMtu,
        OptionCode::DomainSearch,
    ]));
    if let Some(address) = request.requested {
        options.insert(DhcpOption::RequestedIpAddress(address));
    }
    if let Some(server) = request.chosen {
        options.insert(DhcpOption::ServerIdentifier(server));
    }
    let message = message.to_vec().ok()?;
    let (to_mac, to) =
        request.to.map_or((BROADCAST, Ipv4Addr::BROADCAST), |server| (server.mac, server.address));

    // Without a checksum, which IPv4 allows: what is behind the link is no wire.
    let udp = UdpHeader::without_ipv4_checksum(CLIENT_PORT, SERVER_PORT, message.len()).ok()?;
    let mut ip = Ipv4Header::new(udp.length, TTL, IpNumber::UDP, request.own.octets(), to.octets()).ok()?;
    ip.dont_fragment = false;
    ip.header_checksum = ip.calc_header_checksum();
    let ethernet = Ethernet2Header { source: mac, destination: to_mac, ether_type: EtherType::IPV4 };
    Some([&ethernet.to_bytes()[..], &ip.to_bytes(), &udp.to_bytes(), &message].concat())
}

/// What the frame says to the client `mac` about the exchange `xid`.
pub(super) fn reply(frame: &[u8], mac: Mac, xid: u32) -> Option<Reply> {
    let message = Message::decode(&mut Decoder::new(message(frame)?)).ok()?;
    // Only then has the hardware address a length that dhcproto does not trip over.
    let is_ethernet = usize::from(message.hlen()) == mac.len();
    let ours = message.opcode() == Opcode::BootReply
        && message.xid() == xid
        && is_ethernet
        && message.chaddr() == mac;
    let kind = message.opts().msg_type().filter(|_| ours)?;
    Some(Reply { kind, lease: lease(&message, frame) })
}

fn lease(message: &Message, frame: &[u8]) -> Option<Lease> {
    let options = message.opts();
    let usable =
        |ip: &Ipv4Addr| !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback());
    let address = Some(message.yiaddr()).filter(usable)?;
    let server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(address)) => *address,
        _ => return None,
    };
    let prefix = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => {
            let bits = u32::from(*mask);
            // RFC 950 allows holes, which no system takes.
            (bits.leading_ones() + bits.trailing_zeros() == 32).then(|| bits.leading_ones() as u8)?
        }
        _ => 24,
    };
    let router = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.iter().copied().find(usable),
        _ => None,
    };
    let dns = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.iter().copied().filter(usable).collect(),
        _ => Vec::new(),
    };
    let mut search = Vec::new();
    if let Some(DhcpOption::DomainName(name)) = options.get(OptionCode::DomainName) {
        search.push(name.trim_end_matches('\0').to_owned());
    }
    if let Some(DhcpOption::DomainSearch(names)) = options.get(OptionCode::DomainSearch)
        && !names.is_empty()
    {
        search = names.iter().map(|name| name.to_ascii().trim_end_matches('.').to_owned()).collect();
    }
    // They are written into a file of words and lines.
    let plain = |name: &String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    search.retain(plain);
    let mtu = match options.get(OptionCode::InterfaceMtu) {
        Some(DhcpOption::InterfaceMtu(mtu)) => {
            Some(*mtu).filter(|mtu| *mtu >= 68).map(|mtu| mtu.min(MTU_MAX))
        }
        _ => None,
    };
    let seconds = |code| match options.get(code) {
        Some(DhcpOption::AddressLeaseTime(s) | DhcpOption::Renewal(s) | DhcpOption::Rebinding(s)) => Some(*s),
        _ => None,
    };
    let end = seconds(OptionCode::AddressLeaseTime).unwrap_or(DEFAULT_LIFETIME).max(MIN_LIFETIME);
    let rebind = seconds(OptionCode::Rebinding).filter(|s| *s < end).unwrap_or(end - end / 8);
    let renew = seconds(OptionCode::Renewal).filter(|s| *s < rebind).unwrap_or_else(|| (end / 2).min(rebind));
    let [renew, rebind, end] = [renew, rebind, end].map(|seconds| Duration::from_secs(seconds.into()));
    let mac = frame.get(6..)?.first_chunk().copied()?;
    Some(Lease {
        address,
        prefix,
        router,
        dns,
        search,
        mtu,
        server: Server { address: server, mac },
        times: Times { renew, rebind, end },
    })
}
