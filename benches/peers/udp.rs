//! Datagrams, sent faster than anything takes them. Owns: the two ends, and the count of what was lost.
//! Read next: `measure.rs`.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use socket2::SockRef;

use crate::measure::{Direction, Sample, Window};
use crate::setup::Setup;
use testkit::eventually;
use testkit::guest::NIC;
use testkit::ns::Namespace;
use testkit::udp::UdpSocket;

/// Datagrams of one system call.
const BATCH: usize = 64;
/// What a receiver asks for as its buffer; the system may give less.
const BUFFER: usize = 8 << 20;
/// How often a receiver looks whether it is over.
const LOOK: Duration = Duration::from_millis(100);

/// Datagrams that arrive in a second; how many of 100 do not; how many of 100 that left the guest's card do
/// not; and the daemon's microseconds for each that does.
pub(crate) fn udp(setup: &Setup, direction: Direction, size: usize, time: Duration) -> Sample {
    let (guest, host) = flow(setup);
    let (from, to) = direction.order(guest, host);
    SockRef::from(&to).set_recv_buffer_size(BUFFER).unwrap();
    let (sent, received, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (window, carried) = thread::scope(|scope| {
        scope.spawn(|| send(&from, size, &sent, &stop));
        scope.spawn(|| receive(&to, &received, &stop));
        let before = Card::of(&setup.guest);
        let window = Window::watch(setup, time, &[&sent, &received]);
        let after = Card::of(&setup.guest);
        stop.store(true, Ordering::Relaxed);
        (window, 100.0 * (after.dropped - before.dropped) / (after.total() - before.total()))
    });
    let [sent, received] = window.counts[..] else { panic!("two counters") };
    Sample(vec![
        Some(received / window.seconds),
        Some(100.0 * (1.0 - received / sent)),
        (direction == Direction::GuestToHost).then_some(carried),
        window.cpu_per(received / 1e6),
    ])
}

/// Two sockets that know each other: the guest's, and the host's, to which the guest has spoken first.
fn flow(setup: &Setup) -> (UdpSocket, UdpSocket) {
    let host = setup.services().udp((setup.service, 0).into());
    let guest = setup.guest.udp("0.0.0.0:0".parse().unwrap());
    for socket in [&host, &guest] {
        socket.set_read_timeout(Some(LOOK)).unwrap();
    }
    guest.connect(SocketAddr::new(setup.to.into(), host.local_addr().unwrap().port())).unwrap();
    let from = eventually("a first datagram", Duration::from_secs(10), || {
        guest.send(b"?").ok().and_then(|_| host.recv_from(&mut [0]).ok())
    });
    host.connect(from.1).unwrap();
    (guest, host)
}

fn send(socket: &UdpSocket, size: usize, sent: &AtomicU64, stop: &AtomicBool) {
    let payload = vec![0x5a; size];
    let slices = [IoSlice::new(&payload)];
    let mut none: Vec<_> = (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
    let mut batch: Vec<_> = none.iter_mut().map(|none| MMsgHdr::new(&slices, none)).collect();
    while !stop.load(Ordering::Relaxed) {
        // A refusal is another datagram that was lost on its way.
        let count = sendmmsg(socket, &mut batch, SendFlags::empty()).unwrap_or(1);
        sent.fetch_add(count as u64, Ordering::Relaxed);
    }
}

fn receive(socket: &UdpSocket, received: &AtomicU64, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if socket.recv(&mut buffer).is_ok() {
            received.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the guest's card has sent, and what found its queue full.
#[derive(Debug)]
struct Card {
    sent: f64,
    dropped: f64,
}

impl Card {
    fn of(guest: &Namespace) -> Self {
        let text = guest.run(["cat", "/proc/net/dev"]);
        let line = text.lines().find_map(|line| line.trim().strip_prefix(NIC)?.strip_prefix(':'));
        let fields: Vec<f64> =
            line.expect("the guest's card").split_whitespace().map(|field| field.parse().unwrap()).collect();
        // Eight fields of what was received, then bytes, packets, errs, drop of what was sent.
        Self { sent: fields[9], dropped: fields[11] }
    }

    fn total(&self) -> f64 {
        self.sent + self.dropped
    }
}
