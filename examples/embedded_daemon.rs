//! The network in another program: starts it on threads of this process, gives it one end of a socket pair,
//! and at the other end has a guest made of smoltcp, which reads from a server on the host's loopback.
//!
//!     cargo run --example embedded_daemon
//!
//! A virtual machine monitor does the same with its network card in the place of `Card`: `Framing` has what
//! hypervisors speak.
#![allow(clippy::print_stdout, reason = "it shows what the guest reads")]

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use gvproxy::{Daemon, Framing};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

const GUEST_MAC: EthernetAddress = EthernetAddress([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
/// The host's loopback, as guests see it: `host.containers.internal`.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);

fn main() -> Result<()> {
    // A server that nobody outside of this host can reach.
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = server.local_addr()?.port();
    thread::spawn(move || server.accept()?.0.write_all(b"hello, guest"));

    // Its flags are those of the program; without `subnet` the network is 192.168.127.0/24.
    let daemon = Daemon::builder().start()?;
    let (ours, guests) = UnixDatagram::pair()?;
    daemon.handle().attach(ours, Framing::Vfkit)?;

    println!("{GUEST} reads from {HOST}:{port}: {}", read(Card::new(guests)?, port)?);
    // Its threads end, and whatever it had bound is closed.
    drop(daemon);
    println!("the network is gone");
    Ok(())
}

/// A guest: connects to that port of the host, and reads until the end.
fn read(mut card: Card, port: u16) -> Result<String> {
    let mut guest = Interface::new(Config::new(GUEST_MAC.into()), &mut card, Instant::now());
    guest.update_ip_addrs(|own| own.extend([IpCidr::new(GUEST.into(), 24)]));
    guest.routes_mut().add_default_ipv4_route(GATEWAY)?;
    let buffer = || SocketBuffer::new(vec![0; 4096]);
    let mut sockets = SocketSet::new(Vec::new());
    let id = sockets.add(Socket::new(buffer(), buffer()));
    sockets.get_mut::<Socket<'_>>(id).connect(guest.context(), (HOST, port), 49152)?;

    let mut text = Vec::new();
    loop {
        guest.poll(Instant::now(), &mut card, &mut sockets);
        let socket = sockets.get_mut::<Socket<'_>>(id);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), text.extend_from_slice(bytes)))?;
        }
        match socket.state() {
            State::CloseWait => return Ok(String::from_utf8(text)?),
            State::Closed => bail!("nobody listens there"),
            _ => card.wait(),
        }
    }
}

/// The guest's network card: each datagram is an Ethernet frame.
struct Card {
    link: UnixDatagram,
    received: Option<Vec<u8>>,
}

impl Card {
    fn new(link: UnixDatagram) -> Result<Self> {
        // smoltcp has timers, which are looked at as often as this.
        link.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { link, received: None })
    }

    /// Waits for the next frame.
    fn wait(&mut self) {
        let mut frame = vec![0; 2048];
        self.received = self.link.recv(&mut frame).ok().map(|len| frame[..len].to_vec());
    }
}

struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sender<'a>(&'a UnixDatagram);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        // What a link loses TCP sends again.
        let _ = self.0.send(&frame);
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Sender<'_>)> {
        Some((Frame(self.received.take()?), Sender(&self.link)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&self.link))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut card = DeviceCapabilities::default();
        card.medium = Medium::Ethernet;
        // The network's MTU, and the Ethernet header.
        card.max_transmission_unit = 1514;
        card
    }
}
