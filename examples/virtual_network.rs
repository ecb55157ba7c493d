//! A network of two guests, without sockets, and with a clock that the program sets: they find each other and
//! the gateway, one of them dials the outside, and is unplugged.
//!
//!     cargo run --example virtual_network
#![allow(clippy::print_stdout, reason = "it shows what happens")]

use std::net::Ipv4Addr;
use std::time::Duration;

use netstack::{Event, FrameSink, Instant, Mac, NetworkConfig, PortId, Refusal, Stack, Subnet, Target};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
const GATEWAY_MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);
const ONE: (Mac, Ipv4Addr) = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(192, 168, 127, 11));
const OTHER: (Mac, Ipv4Addr) = (Mac([2, 0, 0, 0, 0, 2]), Ipv4Addr::new(192, 168, 127, 12));
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

/// Where the stack writes frames in place. A daemon's has a bound, and says here when it is full.
#[derive(Default)]
struct Sent(Vec<(PortId, Vec<u8>)>);

impl FrameSink for Sent {
    fn has_room(&self, _: PortId, _: usize) -> bool {
        true
    }

    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
        self.0.push((port, vec![0; len]));
        self.0.last_mut().map(|(_, frame)| frame.as_mut_slice())
    }
}

impl Sent {
    /// Shows what was sent since, and forgets it.
    fn show(&mut self) {
        for (port, frame) in self.0.drain(..) {
            let what = match (frame.get(12..14), frame.get(21), frame.get(23)) {
                (Some([8, 6]), Some(1), _) => "an ARP request",
                (Some([8, 6]), Some(2), _) => "an ARP reply",
                (Some([8, 0]), _, Some(6)) => "a TCP segment",
                _ => "a frame",
            };
            println!("  to port {port}: {what} of {} bytes", frame.len());
        }
    }
}

fn main() {
    let subnet = Subnet::new(GATEWAY, 24);
    let mut now = Instant::ZERO;
    // Whoever knows the seed can guess the network's numbers: a daemon's is from the system's random numbers.
    let mut stack = Stack::new(NetworkConfig::new(subnet, GATEWAY, GATEWAY_MAC), 1, now);
    let mut sent = Sent::default();
    let (one, other) = (stack.attach_port(now), stack.attach_port(now));

    println!("{} asks for the gateway:", ONE.1);
    stack.handle_frame(one, &arp(1, ONE, (Mac::BROADCAST, GATEWAY)), now, &mut sent);
    sent.show();

    println!("{} asks for {}, who answers:", OTHER.1, ONE.1);
    stack.handle_frame(other, &arp(1, OTHER, (Mac::BROADCAST, ONE.1)), now, &mut sent);
    stack.handle_frame(one, &arp(2, ONE, OTHER), now, &mut sent);
    sent.show();

    println!("{} dials {OUTSIDE}:", ONE.1);
    stack.handle_frame(one, &syn(ONE, OUTSIDE), now, &mut sent);
    while let Some(event) = stack.poll_event() {
        match event {
            Event::TcpOpen { flow, target: Target::Host(address) } => {
                println!("  the driver is to connect to {address}, and says that nobody is there");
                stack.tcp_refuse(flow, Refusal::Reset, now, &mut sent);
            }
            Event::AddressLearned(mac) => println!("  {mac} is known since it spoke"),
            event => println!("  {event:?}"),
        }
    }
    sent.show();

    println!("the stack wants to be called at {:?}", stack.poll_timeout());
    now += Duration::from_secs(1);
    stack.handle_timeout(now, &mut sent);
    sent.show();

    println!("the link of {} goes:", ONE.1);
    stack.detach_port(one, now);
    while let Some(Event::AddressLost(mac)) = stack.poll_event() {
        println!("  {mac} is gone");
    }
    println!("frames dropped: {}", stack.drops().total());
}

/// An Ethernet frame with an ARP packet (RFC 826).
fn arp(operation: u8, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = [&to.0.0[..], &from.0.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    for (mac, ip) in [from, to] {
        frame.extend(mac.0);
        frame.extend(ip.octets());
    }
    frame
}

/// An Ethernet frame with the first segment of a connection to port 80 (RFC 9293).
fn syn(from: (Mac, Ipv4Addr), to: Ipv4Addr) -> Vec<u8> {
    let mut ip = [&[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0], &from.1.octets()[..], &to.octets()].concat();
    let sum = checksum(&ip);
    ip.splice(10..12, sum);
    let mut tcp = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    let pseudo = [&from.1.octets()[..], &to.octets(), &[0, 6, 0, 20], &tcp].concat();
    let sum = checksum(&pseudo);
    tcp.splice(16..18, sum);
    [&GATEWAY_MAC.0[..], &from.0.0, &[8, 0], &ip, &tcp].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
