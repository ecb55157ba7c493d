//! The client against netstack's server, and against servers that are odd.

use std::net::SocketAddrV4;

use dhcproto::v4::{DhcpOption, Message, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use netstack::dhcp::{Asker, DhcpServer, SERVER_PORT};
use netstack::{NetworkConfig, Subnet};

use super::*;

const MAC: Mac = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
const GATEWAY_MAC: Mac = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const SECOND: Duration = Duration::from_secs(1);

fn config() -> NetworkConfig {
    NetworkConfig {
        static_leases: vec![(ADDRESS, netstack::Mac(MAC))],
        ..NetworkConfig::new(Subnet::new(GATEWAY, 24), GATEWAY, netstack::Mac(GATEWAY_MAC))
    }
}

/// A client beside a server, on a clock of their own.
struct Network {
    client: Client,
    server: DhcpServer,
    start: Instant,
    now: Instant,
}

/// What a frame of the client holds.
fn sent(frame: &[u8]) -> (Message, Ipv4Addr, Ipv4Addr) {
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
    assert_eq!(frame[12..14], [8, 0], "IPv4");
    assert_eq!(frame[34..38], [0, 68, 0, 67], "ports");
    assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
    let words = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "header checksum");
    let message = Message::decode(&mut Decoder::new(&frame[42..])).unwrap();
    (message, address(26), address(30))
}

/// A server's message in its frame.
fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &GATEWAY_MAC, &[8, 0, 0x45, 0]].concat();
    frame.extend(u16::try_from(28 + payload.len()).unwrap().to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(GATEWAY.octets());
    frame.extend([255; 4]);
    frame.extend([0, 67, 0, 68]);
    frame.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

impl Network {
    fn new(config: NetworkConfig) -> Self {
        let now = Instant::now();
        Self { client: Client::new(MAC, 7, now), server: DhcpServer::new(&config), start: now, now }
    }

    /// The next frame that is due at once.
    fn frame(&mut self) -> Vec<u8> {
        match self.client.poll_event(self.now) {
            Some(Event::Send(frame)) => frame,
            other => panic!("{other:?} instead of a frame"),
        }
    }

    /// Gives `frame` to the server, and its reply to the client.
    fn answer(&mut self, frame: &[u8]) -> Option<Event> {
        let (_, source, _) = sent(frame);
        let mut reply = Vec::new();
        let source = SocketAddrV4::new(source, 68);
        self.server
            .handle_message(&frame[42..], &Asker::alone(source), self.now - self.start, &mut reply)
            .ok()?;
        self.client.handle_frame(&framed(&reply), self.now)
    }

    fn exchange(&mut self) -> Option<Event> {
        let frame = self.frame();
        self.answer(&frame)
    }

    fn lease(&mut self) -> Lease {
        assert_eq!(self.exchange(), None, "the offer");
        match self.exchange() {
            Some(Event::Configure(lease)) => lease,
            other => panic!("{other:?} instead of a lease"),
        }
    }

    /// To the next deadline.
    fn pass(&mut self) -> Duration {
        let passed = self.client.deadline().saturating_duration_since(self.now);
        self.now += passed;
        passed
    }
}

#[test]
fn a_lease_has_everything() {
    let config = NetworkConfig {
        mtu: 4000,
        search_domains: vec!["office.lan".into(), "example.org".into()],
        ..config()
    };
    let lease = Network::new(config).lease();
    assert_eq!((lease.address, lease.prefix, lease.router), (ADDRESS, 24, Some(GATEWAY)));
    assert_eq!((lease.dns, lease.mtu), (vec![GATEWAY], Some(4000)));
    assert_eq!(lease.search, ["office.lan", "example.org"]);
    assert_eq!(lease.server, Server { address: GATEWAY, mac: GATEWAY_MAC });
}

#[test]
fn is_renewed_with_the_server_and_says_nothing_of_it() {
    let mut network = Network::new(config());
    network.lease();
    assert_eq!(network.client.poll_event(network.now), None);
    for _ in 0..3 {
        assert_eq!(network.pass(), 1800 * SECOND);
        let frame = network.frame();
        let (message, from, to) = sent(&frame);
        assert_eq!((message.ciaddr(), from, to), (ADDRESS, ADDRESS, GATEWAY));
        assert_eq!(frame[..6], GATEWAY_MAC, "to the server's hardware address");
        assert!(message.opts().get(OptionCode::RequestedIpAddress).is_none());
        assert_eq!(network.answer(&frame), None, "the same lease");
    }
}

#[test]
fn asks_everybody_and_gives_up_when_the_server_is_silent() {
    let mut network = Network::new(config());
    network.lease();
    let (mut unicast, mut broadcast) = (0, 0);
    let lost = loop {
        network.pass();
        match network.client.poll_event(network.now) {
            Some(Event::Send(frame)) if sent(&frame).2 == GATEWAY => unicast += 1,
            Some(Event::Send(frame)) => {
                assert_eq!(sent(&frame).2, Ipv4Addr::BROADCAST);
                broadcast += 1;
            }
            Some(Event::Deconfigure) => break network.now - network.start,
            other => assert_eq!(other, None),
        }
    };
    assert_eq!(lost, 3600 * SECOND);
    assert!((2..10).contains(&unicast) && (2..10).contains(&broadcast), "{unicast}, {broadcast}");
    let (message, _, _) = sent(&network.frame());
    assert_eq!(message.opts().msg_type(), Some(MessageType::Discover));
}

#[test]
fn asks_for_the_address_of_before_when_the_link_is_back() {
    let mut network = Network::new(config());
    network.lease();
    network.client.restart(network.now);
    let frame = network.frame();
    let (message, from, to) = sent(&frame);
    assert_eq!(
        (message.ciaddr(), from, to),
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)
    );
    assert_eq!(
        message.opts().get(OptionCode::RequestedIpAddress),
        Some(&DhcpOption::RequestedIpAddress(ADDRESS))
    );
    assert!(message.opts().get(OptionCode::ServerIdentifier).is_none(), "RFC 2131, table 5");
    assert_eq!(network.answer(&frame), None, "nothing has changed");

    // The network is another one: the old address is refused, and a new one taken.
    let subnet = Subnet::new(Ipv4Addr::new(10, 9, 0, 0), 24);
    let mut other = NetworkConfig { subnet, gateway: Ipv4Addr::new(10, 9, 0, 1), ..config() };
    other.static_leases = vec![(Ipv4Addr::new(10, 9, 0, 7), netstack::Mac(MAC))];
    network.server = DhcpServer::new(&other);
    network.client.restart(network.now);
    assert_eq!(network.exchange(), Some(Event::Deconfigure));
    assert_eq!(network.client.poll_event(network.now), None, "not at once");
    network.pass();
    assert_eq!(network.lease().address, Ipv4Addr::new(10, 9, 0, 7));
}

#[test]
fn starts_over_when_nobody_knows_the_address() {
    let mut network = Network::new(config());
    network.lease();
    network.client.restart(network.now);
    let mut kinds = Vec::new();
    for _ in 0..5 {
        kinds.push(sent(&network.frame()).0.opts().msg_type().unwrap());
        network.pass();
    }
    use MessageType::{Discover, Request};
    assert_eq!(kinds, [Request, Request, Request, Discover, Discover]);
    assert!(network.now - network.start < 12 * SECOND);
}

#[test]
fn questions_become_rare() {
    let mut network = Network::new(config());
    let mut pauses = Vec::new();
    for _ in 0..7 {
        network.frame();
        assert_eq!(network.client.poll_event(network.now), None);
        pauses.push(network.pass().as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 16, 16]);
}

/// The reply to `request`, with options spoilt by `spoil`.
fn spoilt(request: &[u8], spoil: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut server = DhcpServer::new(&config());
    let mut reply = Vec::new();
    let source = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT + 1);
    server.handle_message(&request[42..], &Asker::alone(source), Duration::ZERO, &mut reply).unwrap();
    let mut message = Message::decode(&mut Decoder::new(&reply)).unwrap();
    spoil(&mut message);
    framed(&message.to_vec().unwrap())
}

#[test]
fn what_is_for_others_or_makes_no_sense_is_passed_over() {
    let mut network = Network::new(config());
    let request = network.frame();
    let spoils: [fn(&mut Message); 6] = [
        |m| {
            m.set_xid(1);
        },
        |m| {
            m.set_chaddr(&[2; 6]);
        },
        |m| {
            m.set_opcode(dhcproto::v4::Opcode::BootRequest);
        },
        |m| {
            m.set_yiaddr(Ipv4Addr::UNSPECIFIED);
        },
        |m| {
            m.opts_mut().remove(OptionCode::ServerIdentifier);
        },
        |m| {
            m.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0)));
        },
    ];
    for spoil in spoils {
        network.client.handle_frame(&spoilt(&request, spoil), network.now);
        assert_eq!(network.client.state, State::Discovering);
    }
    let mut long = spoilt(&request, |_| {});
    long[42 + 2] = 255;
    assert_eq!(network.client.handle_frame(&long, network.now), None, "a hardware address of 255 bytes");
    assert_eq!(network.client.state, State::Discovering);
    network.client.handle_frame(&spoilt(&request, |_| {}), network.now);
    assert!(matches!(network.client.state, State::Requesting { .. }));
}

#[test]
fn times_of_a_server_are_put_in_order() {
    for (end, renew, rebind, expected) in [
        (3600, None, None, [1800, 3150, 3600]),
        (3600, Some(100), Some(200), [100, 200, 3600]),
        (3600, Some(5000), Some(9000), [1800, 3150, 3600]),
        (0, None, None, [30, 53, 60]),
        (u32::MAX, None, None, [2_147_483_647, 3_758_096_384, 4_294_967_295]),
    ] {
        let mut network = Network::new(config());
        let request = network.frame();
        network.answer(&request);
        let request = network.frame();
        let ack = spoilt(&request, |message| {
            message.opts_mut().insert(DhcpOption::AddressLeaseTime(end));
            if let Some(renew) = renew {
                message.opts_mut().insert(DhcpOption::Renewal(renew));
            }
            if let Some(rebind) = rebind {
                message.opts_mut().insert(DhcpOption::Rebinding(rebind));
            }
        });
        // A server that has made no offer refuses; this one is told that it has.
        let Some(Event::Configure(lease)) = network.client.handle_frame(&ack, network.now) else {
            panic!("no lease with {end} {renew:?} {rebind:?}");
        };
        let times = [lease.times.renew, lease.times.rebind, lease.times.end].map(|time| time.as_secs());
        assert_eq!(times, expected);
    }
}

#[test]
fn only_whole_dhcp_replies_are_taken_from_the_wire() {
    let frame = framed(b"message");
    assert_eq!(message(&frame), Some(&b"message"[..]));
    for (at, value) in
        [(12, 0x86), (23, 6), (20, 0x20), (21, 1), (35, 68), (37, 67), (14, 0x65), (39, 3), (38, 1)]
    {
        let mut frame = frame.clone();
        frame[at] = value;
        assert_eq!(message(&frame), None, "byte {at} is {value}");
    }
    for length in 0..frame.len() {
        assert_eq!(message(&frame[..length]), None);
    }
    let mut with_options = [&frame[..14], &[0x46], &frame[15..34], &[0; 4], &frame[34..]].concat();
    with_options[17] += 4;
    assert_eq!(message(&with_options), Some(&b"message"[..]));
}

proptest::proptest! {
    #[test]
    fn no_frame_panics(frame: Vec<u8>, payload: Vec<u8>) {
        let mut network = Network::new(config());
        network.frame();
        network.client.handle_frame(&frame, network.now);
        network.client.handle_frame(&framed(&payload), network.now);
    }
}
