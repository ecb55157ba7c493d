use dhcproto::{Decodable, Decoder};
use proptest::prelude::*;

use super::*;
use crate::Subnet;

const START: Duration = Duration::ZERO;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
const DEVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);
const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
const EVERYBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::BROADCAST, 68);

pub(super) fn mac(n: u32) -> Mac {
    let [_, a, b, c] = n.to_be_bytes();
    Mac([0x5a, 0x94, 0xef, a, b, c])
}

pub(super) fn config() -> NetworkConfig {
    NetworkConfig {
        gateway_virtual_ips: vec![HOST],
        nat: vec![(HOST.into(), Ipv4Addr::LOCALHOST.into())],
        static_leases: vec![(DEVICE, mac(0xee))],
        ..NetworkConfig::new(Subnet::new(Ipv4Addr::new(192, 168, 127, 0), 24), GATEWAY, mac(0xdd))
    }
}

/// A client's message as its options and the fields that are not zero.
fn request(client: Mac, message_type: MessageType, options: Vec<DhcpOption>) -> Message {
    let unspecified = Ipv4Addr::UNSPECIFIED;
    let mut message =
        Message::new_with_id(0x1234_5678, unspecified, unspecified, unspecified, unspecified, &client.0);
    message.opts_mut().insert(DhcpOption::MessageType(message_type));
    for option in options {
        message.opts_mut().insert(option);
    }
    message
}

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

/// What the server answers; panics if it does not.
fn ask(
    server: &mut DhcpServer,
    message: &Message,
    source: SocketAddrV4,
    now: Duration,
) -> (Reply, Message, Vec<u8>) {
    let mut out = vec![0xaa; 7];
    let reply = server.handle_message(&encode(message), &Asker::alone(source), now, &mut out).unwrap();
    let message = Message::decode(&mut Decoder::new(&out)).unwrap();
    (reply, message, out)
}

fn answered(server: &mut DhcpServer, message: &Message) -> (MessageType, Ipv4Addr) {
    let (_, reply, _) = ask(server, message, NOBODY, START);
    (reply.opts().msg_type().unwrap(), reply.yiaddr())
}

fn dropped(server: &mut DhcpServer, message: &Message) -> DhcpDrop {
    server.handle_message(&encode(message), &Asker::alone(NOBODY), START, &mut Vec::new()).unwrap_err()
}

fn requested(address: Ipv4Addr) -> DhcpOption {
    DhcpOption::RequestedIpAddress(address)
}

fn of(server: Ipv4Addr) -> DhcpOption {
    DhcpOption::ServerIdentifier(server)
}

#[test]
fn the_device_gets_its_reserved_address_with_every_option() {
    let mut server = DhcpServer::new(&config());
    let mut discover = request(mac(0xee), MessageType::Discover, vec![]);
    discover.set_flags(Flags::default().set_broadcast()).set_hops(3).set_secs(7);
    let (to, offer, bytes) = ask(&mut server, &discover, NOBODY, START);
    assert_eq!(to, Reply { destination: EVERYBODY, client: mac(0xee) });
    let options = [
        1, 4, 255, 255, 255, 0, 3, 4, 192, 168, 127, 1, 6, 4, 192, 168, 127, 1, 26, 2, 0x05, 0xdc, 51, 4, 0,
        0, 0x0e, 0x10, 53, 1, 2, 54, 4, 192, 168, 127, 1, 255,
    ];
    assert_eq!(&bytes[240..240 + options.len()], options);
    assert_eq!(bytes.len(), 300);
    assert!(bytes[240 + options.len()..].iter().all(|byte| *byte == 0));
    assert_eq!((offer.opcode(), offer.xid(), offer.yiaddr()), (Opcode::BootReply, 0x1234_5678, DEVICE));
    assert_eq!((offer.chaddr(), offer.hops(), offer.secs()), (&mac(0xee).0[..], 0, 0));
    assert_eq!((offer.ciaddr(), offer.siaddr()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    assert!(offer.flags().broadcast());

    let select = request(mac(0xee), MessageType::Request, vec![requested(DEVICE), of(GATEWAY)]);
    let (_, ack, _) = ask(&mut server, &select, NOBODY, START);
    assert_eq!((ack.opts().msg_type(), ack.yiaddr()), (Some(MessageType::Ack), DEVICE));
    assert_eq!(server.leases(START).collect::<Vec<_>>(), [(GATEWAY, mac(0xdd)), (DEVICE, mac(0xee))]);
}

#[test]
fn identifier_relay_and_search_list_are_on_the_wire_in_order() {
    let search_domains: Vec<_> = ["example.com", "", "a..b", "internal."].map(String::from).into();
    let mut server = DhcpServer::new(&NetworkConfig { search_domains, ..config() });
    let id = DhcpOption::ClientIdentifier(vec![1, 2, 3]);
    let mut bytes = encode(&request(mac(1), MessageType::Discover, vec![id]));
    assert_eq!(bytes.pop(), Some(255));
    bytes.extend([82, 4, 1, 2, 9, 9, 255]);
    let mut out = Vec::new();
    server.handle_message(&bytes, &Asker::alone(NOBODY), START, &mut out).unwrap();
    let expected =
        b"\x3d\x03\x01\x02\x03\x77\x17\x07example\x03com\0\x08internal\0\x52\x04\x01\x02\x09\x09\xff";
    assert_eq!(&out[240 + 37..][..expected.len()], expected);
}

#[test]
fn a_long_search_list_is_split() {
    let search_domains: Vec<_> = (0..200).map(|n| format!("domain-{n}.example.com")).collect();
    let mut server = DhcpServer::new(&NetworkConfig { search_domains, ..config() });
    let (_, reply, bytes) = ask(&mut server, &request(mac(1), MessageType::Discover, vec![]), NOBODY, START);
    assert!(bytes.len() <= 1500 - 28, "{}", bytes.len());
    assert_eq!(bytes[240 + 37..][..2], [119, 255]);
    assert_eq!(bytes[240 + 37 + 257..][..2], [119, 255]);
    assert_eq!(reply.opts().msg_type(), Some(MessageType::Offer));
    let parts = borrowed::Message::new(&bytes).unwrap();
    let list = parts.opts().find(|option| option.code() == OptionCode::DomainSearch).unwrap();
    let Ok(DhcpOption::DomainSearch(names)) = list.into_option() else { panic!("no search list") };
    assert_eq!(names[43].to_ascii(), "domain-43.example.com.");
}

#[test]
fn a_speaking_client_is_answered_at_its_address() {
    let mut server = DhcpServer::new(&config());
    let source = SocketAddrV4::new(DEVICE, 1068);
    let mut renew = request(mac(0xee), MessageType::Request, vec![]);
    renew.set_ciaddr(DEVICE);
    let (to, ack, _) = ask(&mut server, &renew, source, START);
    assert_eq!(to.destination, source);
    assert_eq!((ack.opts().msg_type(), ack.yiaddr()), (Some(MessageType::Ack), DEVICE));

    renew.set_ciaddr(Ipv4Addr::new(192, 168, 127, 9));
    let (to, nak, bytes) = ask(&mut server, &renew, source, START);
    assert_eq!(to.destination, SocketAddrV4::new(Ipv4Addr::BROADCAST, 1068));
    assert_eq!((nak.opts().msg_type(), nak.yiaddr()), (Some(MessageType::Nak), Ipv4Addr::UNSPECIFIED));
    assert_eq!(&bytes[240..250], [53, 1, 6, 54, 4, 192, 168, 127, 1, 255]);

    let mut inform = request(mac(7), MessageType::Inform, vec![]);
    inform.set_ciaddr(Ipv4Addr::new(192, 168, 127, 9));
    let (_, ack, _) = ask(&mut server, &inform, source, START);
    assert_eq!((ack.opts().msg_type(), ack.yiaddr()), (Some(MessageType::Ack), Ipv4Addr::UNSPECIFIED));
    assert_eq!(ack.opts().get(OptionCode::Router), Some(&DhcpOption::Router(vec![GATEWAY])));
    assert_eq!(ack.opts().get(OptionCode::AddressLeaseTime), None);
    assert_eq!(server.leases(START).count(), 2, "INFORM leases nothing");
}

#[test]
fn an_address_of_another_is_refused() {
    let mut server = DhcpServer::new(&config());
    let third = Ipv4Addr::new(192, 168, 127, 3);
    let nak = (MessageType::Nak, Ipv4Addr::UNSPECIFIED);
    let select = request(mac(1), MessageType::Request, vec![requested(third), of(GATEWAY)]);
    assert_eq!(answered(&mut server, &select), nak, "of an offer that was never made");
    let discover = request(mac(1), MessageType::Discover, vec![]);
    assert_eq!(answered(&mut server, &discover), (MessageType::Offer, third));
    assert_eq!(answered(&mut server, &select), (MessageType::Ack, third));
    for address in [third, DEVICE, GATEWAY, HOST, Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::UNSPECIFIED] {
        let reboot = request(mac(2), MessageType::Request, vec![requested(address)]);
        assert_eq!(answered(&mut server, &reboot), nak, "{address}");
    }
    let other = request(mac(0xee), MessageType::Request, vec![requested(Ipv4Addr::new(192, 168, 127, 77))]);
    assert_eq!(answered(&mut server, &other), nak);
}

#[test]
fn a_wished_address_is_given_if_free() {
    let mut server = DhcpServer::new(&config());
    let wish = Ipv4Addr::new(192, 168, 127, 77);
    let discover = request(mac(1), MessageType::Discover, vec![requested(wish)]);
    assert_eq!(answered(&mut server, &discover), (MessageType::Offer, wish));
    let discover = request(mac(2), MessageType::Discover, vec![requested(wish)]);
    assert_eq!(answered(&mut server, &discover), (MessageType::Offer, Ipv4Addr::new(192, 168, 127, 3)));
    // A guest that outlived the daemon asks for what it had.
    let reboot = request(mac(3), MessageType::Request, vec![requested(Ipv4Addr::new(192, 168, 127, 9))]);
    assert_eq!(answered(&mut server, &reboot), (MessageType::Ack, Ipv4Addr::new(192, 168, 127, 9)));
}

#[test]
fn what_is_not_for_the_server_gets_no_answer() {
    let mut server = DhcpServer::new(&config());
    let other = Ipv4Addr::new(192, 168, 127, 50);
    let elsewhere = request(mac(1), MessageType::Request, vec![requested(other), of(other)]);
    assert_eq!(dropped(&mut server, &elsewhere), DhcpDrop::OtherServer);
    let release = request(mac(1), MessageType::Release, vec![of(GATEWAY)]);
    assert_eq!(dropped(&mut server, &release), DhcpDrop::Unanswered);
    let decline = request(mac(1), MessageType::Decline, vec![of(GATEWAY), requested(other)]);
    assert_eq!(dropped(&mut server, &decline), DhcpDrop::Unanswered);
    for message_type in [MessageType::Offer, MessageType::Ack, MessageType::Nak, MessageType::Unknown(77)] {
        assert_eq!(dropped(&mut server, &request(mac(1), message_type, vec![])), DhcpDrop::Malformed);
    }
    let mut reply = request(mac(1), MessageType::Discover, vec![]);
    reply.set_opcode(Opcode::BootReply);
    assert_eq!(dropped(&mut server, &reply), DhcpDrop::Malformed);
    assert_eq!(
        dropped(&mut server, &request(Mac::BROADCAST, MessageType::Discover, vec![])),
        DhcpDrop::Malformed
    );
    let mut long_address = encode(&request(mac(1), MessageType::Discover, vec![]));
    long_address[2] = 255;
    let result = server.handle_message(&long_address, &Asker::alone(NOBODY), START, &mut Vec::new());
    assert_eq!(result, Err(DhcpDrop::Malformed));
    assert_eq!(server.leases(START).count(), 2, "none of these leases anything");
}

#[test]
fn guests_get_addresses_of_their_own_until_none_is_left() {
    let mut server = DhcpServer::new(&NetworkConfig { subnet: Subnet::new(GATEWAY, 29), ..config() });
    for (client, last) in [(1, 3), (2, 4), (3, 5), (4, 6)] {
        let address = Ipv4Addr::new(192, 168, 127, last);
        let discover = request(mac(client), MessageType::Discover, vec![]);
        assert_eq!(answered(&mut server, &discover), (MessageType::Offer, address));
    }
    let discover = request(mac(5), MessageType::Discover, vec![]);
    assert_eq!(dropped(&mut server, &discover), DhcpDrop::Exhausted);
    let device = request(mac(0xee), MessageType::Discover, vec![]);
    assert_eq!(answered(&mut server, &device), (MessageType::Offer, DEVICE));
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(
        mut payload in proptest::collection::vec(any::<u8>(), 0..700),
        plausible in any::<bool>(),
    ) {
        // With a header that is taken, the options are what is random.
        if plausible && payload.len() >= 240 {
            payload[..3].copy_from_slice(&[1, 1, 6]);
            payload[28] &= 0xfe;
            payload[236..240].copy_from_slice(&[99, 130, 83, 99]);
        }
        let mut server = DhcpServer::new(&config());
        let mut out = Vec::new();
        if server.handle_message(&payload, &Asker::alone(NOBODY), START, &mut out).is_ok() {
            prop_assert!(out.len() >= 300);
            prop_assert!(Message::decode(&mut Decoder::new(&out)).is_ok());
        }
    }

    #[test]
    fn random_options_do_no_harm(options in proptest::collection::vec(
        (prop_oneof![Just(50_u8), Just(53), Just(54), Just(61), Just(82), any::<u8>()],
         proptest::collection::vec(any::<u8>(), 0..300)), 0..12,
    ), message_type in 0..20_u8) {
        let mut payload = encode(&request(mac(1), MessageType::Unknown(message_type), vec![]));
        payload.pop();
        for (code, data) in options {
            let len = data.len().min(255);
            payload.extend([code, len as u8]);
            payload.extend(&data[..len]);
        }
        let mut server = DhcpServer::new(&config());
        let mut out = Vec::new();
        if let Ok(reply) = server.handle_message(&payload, &Asker::alone(NOBODY), START, &mut out) {
            prop_assert_eq!(reply.client, mac(1));
            prop_assert!(Message::decode(&mut Decoder::new(&out)).is_ok());
        }
    }
}
