//! A guest: smoltcp on Ethernet with sockets of its own, and what its programs read and write.

use std::collections::VecDeque;

use netstack::{Instant, Mac};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmoltcpInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::network::GATEWAY;

/// One end of a stream: what a program writes and has read.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// All that it will write.
    pub(crate) out: Vec<u8>,
    /// How much of `out` has been written.
    pub(crate) sent: usize,
    /// Closes its half when all is written.
    pub(crate) closes: bool,
    pub(crate) got: Vec<u8>,
    /// Whether it reads.
    pub(crate) reads: bool,
    /// The other half's end was read.
    pub(crate) eof: bool,
    pub(crate) reset: bool,
}

impl End {
    /// Writes `out` and closes its half, and reads all there is.
    pub(crate) fn new(out: Vec<u8>) -> Self {
        Self { out, sent: 0, closes: true, got: Vec::new(), reads: true, eof: false, reset: false }
    }

    /// Stays open when all is written.
    pub(crate) fn open(out: Vec<u8>) -> Self {
        Self { closes: false, ..Self::new(out) }
    }

    /// Does not read until told.
    pub(crate) fn stalled(self) -> Self {
        Self { reads: false, ..self }
    }

    pub(crate) fn left(&self) -> &[u8] {
        &self.out[self.sent..]
    }
}

/// `len` bytes that no other seed gives.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = crate::rng::Rng::new(seed ^ 0x5eed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.draw().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) handle: SocketHandle,
    pub(crate) end: End,
    /// It has been open.
    pub(crate) opened: bool,
}

/// The guest.
pub(crate) struct Guest {
    pub(crate) ip: Ipv4Addr,
    /// Bytes of each ring of the sockets that are opened from now on.
    pub(crate) ring: usize,
    pub(crate) connections: Vec<Connection>,
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Queues,
    next_port: u16,
}

impl Guest {
    pub(crate) fn new(ip: Ipv4Addr, mac: Mac, mtu: u16, seed: u64) -> Self {
        let mut device = Queues { rx: VecDeque::new(), tx: VecDeque::new(), mtu: usize::from(mtu) + 14 };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac.0)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, SmoltcpInstant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(ip.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Self {
            ip,
            ring: 256 << 10,
            connections: Vec::new(),
            interface,
            sockets: SocketSet::new(Vec::new()),
            device,
            next_port: 40_000,
        }
    }

    /// Dials; the number is the connection's.
    pub(crate) fn connect(&mut self, to: SocketAddrV4, end: End) -> usize {
        self.next_port = self.next_port.checked_add(1).unwrap_or(40_000);
        self.connect_from(self.next_port, to, end)
    }

    pub(crate) fn connect_from(&mut self, port: u16, to: SocketAddrV4, end: End) -> usize {
        let mut socket = self.new_socket();
        socket.connect(self.interface.context(), (*to.ip(), to.port()), port).unwrap();
        self.add(socket, end)
    }

    /// Takes one connection on `port`.
    pub(crate) fn listen(&mut self, port: u16, end: End) -> usize {
        let mut socket = self.new_socket();
        socket.listen(port).unwrap();
        self.add(socket, end)
    }

    fn new_socket(&self) -> Socket<'static> {
        Socket::new(SocketBuffer::new(vec![0; self.ring]), SocketBuffer::new(vec![0; self.ring]))
    }

    fn add(&mut self, socket: Socket<'static>, end: End) -> usize {
        let handle = self.sockets.add(socket);
        self.connections.push(Connection { handle, end, opened: false });
        self.connections.len() - 1
    }

    pub(crate) fn socket(&mut self, connection: usize) -> &mut Socket<'static> {
        let handle = self.connections[connection].handle;
        self.sockets.get_mut(handle)
    }

    pub(crate) fn state(&self, connection: usize) -> State {
        self.sockets.get::<Socket<'_>>(self.connections[connection].handle).state()
    }

    pub(crate) fn end(&mut self, connection: usize) -> &mut End {
        &mut self.connections[connection].end
    }

    pub(crate) fn receive(&mut self, frame: Vec<u8>) {
        assert!(frame.len() <= self.device.mtu, "{}: {} bytes at once", self.ip, frame.len());
        self.device.rx.push_back(frame);
    }

    /// Runs programs and stack; what is to be sent comes back.
    pub(crate) fn poll(&mut self, now: Instant) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.interface.poll(to_smoltcp(now), &mut self.device, &mut self.sockets);
        let mut moved = false;
        for connection in &mut self.connections {
            moved |= connection.run(self.sockets.get_mut(connection.handle));
        }
        if moved {
            self.interface.poll(to_smoltcp(now), &mut self.device, &mut self.sockets);
        }
        self.device.tx.drain(..)
    }

    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(to_smoltcp(now), &self.sockets)?;
        Some(Instant::from_micros(at.total_micros() as u64))
    }
}

fn to_smoltcp(now: Instant) -> SmoltcpInstant {
    SmoltcpInstant::from_micros(now.as_micros() as i64)
}

impl Connection {
    fn run(&mut self, socket: &mut Socket<'static>) -> bool {
        let mut moved = false;
        let end = &mut self.end;
        self.opened |= socket.may_send() || socket.may_recv();
        if !self.opened {
            // Refused while connecting.
            end.reset |= socket.state() == State::Closed;
            return false;
        }
        while socket.can_send() && end.sent < end.out.len() {
            end.sent += socket.send_slice(&end.out[end.sent..]).unwrap();
            moved = true;
        }
        if end.closes && end.sent == end.out.len() && socket.may_send() {
            socket.close();
            moved = true;
        }
        while end.reads && !end.eof && !end.reset {
            let taken = socket.recv(|bytes| {
                end.got.extend_from_slice(bytes);
                (bytes.len(), bytes.len())
            });
            match taken {
                Ok(0) => break,
                Ok(_) => moved = true,
                Err(RecvError::Finished) => end.eof = true,
                Err(RecvError::InvalidState) => end.reset = true,
            }
        }
        if socket.state() == State::Closed && !end.eof && !socket.can_recv() {
            end.reset |= end.reads;
        }
        moved
    }
}

struct Queues {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
    mtu: usize,
}

impl Device for Queues {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: SmoltcpInstant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Rx(frame), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: SmoltcpInstant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

struct Rx(Vec<u8>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}
