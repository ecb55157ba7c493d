use rustix::fd::AsFd;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::*;
use crate::sys::pipe::SPLICES;
use crate::sys::stream::{StdStream, Stream, blocking_pair};

const PATIENCE: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;

/// A stream of either kind, blocking, that fails instead of waiting for good.
#[derive(Debug)]
enum Peer {
    Unix(StdStream),
    Tcp(TcpStream),
}

impl Peer {
    fn close(&self, how: Shutdown) {
        match self {
            Self::Unix(stream) => stream.shutdown(how).unwrap(),
            Self::Tcp(stream) => stream.shutdown(how).unwrap(),
        }
    }

    fn another(&self) -> Self {
        match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone().unwrap()),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone().unwrap()),
        }
    }

    /// Everything until the end, or until it fails.
    fn read_all(&mut self) -> (Vec<u8>, io::Result<()>) {
        let mut bytes = Vec::new();
        let end = self.read_to_end(&mut bytes).map(drop);
        (bytes, end)
    }
}

impl Read for Peer {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(space),
            Self::Tcp(stream) => stream.read(space),
        }
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn unix() -> (Peer, OwnedFd) {
    let (peer, end) = blocking_pair();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.set_write_timeout(Some(PATIENCE)).unwrap();
    (Peer::Unix(peer), end.into())
}

fn tcp() -> (Peer, OwnedFd) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.set_write_timeout(Some(PATIENCE)).unwrap();
    (Peer::Tcp(peer), listener.accept().unwrap().0.into())
}

type Pair = fn() -> (Peer, OwnedFd);
const KINDS: [(&str, Pair, Pair); 4] =
    [("unix, unix", unix, unix), ("unix, tcp", unix, tcp), ("tcp, unix", tcp, unix), ("tcp, tcp", tcp, tcp)];

/// Runs a relay on a thread of its own.
fn carry(relays: &Arc<Relays>, first: OwnedFd, second: OwnedFd) -> JoinHandle<Ended> {
    let relays = Arc::clone(relays);
    spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(relays.carry(first, second))
    })
}

/// Two peers of one kind or two, and the relay between them.
fn relayed(relays: &Arc<Relays>, first: Pair, second: Pair) -> (Peer, Peer, JoinHandle<Ended>) {
    let ((one, first), (other, second)) = (first(), second());
    (one, other, carry(relays, first, second))
}

/// No two places of it are alike, as far as a mistake goes.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let word = |i: u32| i.wrapping_mul(0x9e37_79b9).wrapping_add(seed).rotate_left(i % 31).to_le_bytes();
    (0..length.div_ceil(4) as u32).flat_map(word).take(length).collect()
}

fn finish(relay: JoinHandle<Ended>) -> Ended {
    let start = Instant::now();
    while !relay.is_finished() {
        assert!(start.elapsed() < PATIENCE, "the relay does not end");
        std::thread::yield_now();
    }
    relay.join().unwrap()
}

#[track_caller]
fn assert_at_rest(relays: &Relays) {
    let stats = relays.stats();
    assert_eq!((stats.open, stats.pipes), (0, stats.spare_pipes), "{stats:?}");
}

#[test]
fn bytes_and_ends_arrive_each_way() {
    for (name, first, second) in KINDS {
        for pipes in [0, 1, 8] {
            let relays = Arc::new(Relays::new(pipes));
            let (mut one, mut other, relay) = relayed(&relays, first, second);
            let (up, down) = (pattern(5 * MIB + 17, 1), pattern(7 * MIB + 3, 2));
            let sending =
                [(one.another(), up.clone()), (other.another(), down.clone())].map(|(mut to, bytes)| {
                    spawn(move || {
                        to.write_all(&bytes).unwrap();
                        to.close(Shutdown::Write);
                    })
                });
            let receiving = spawn(move || {
                let (bytes, end) = other.read_all();
                end.unwrap();
                bytes
            });
            let (got_down, end) = one.read_all();
            end.unwrap();
            let got_up = receiving.join().unwrap();
            assert!(got_up == up && got_down == down, "{name}: bytes differ");
            for thread in sending {
                thread.join().unwrap();
            }
            let ended = finish(relay);
            assert_eq!((ended.forth, ended.back), (up.len() as u64, down.len() as u64), "{name}");
            assert!(ended.error.is_none(), "{name}: {ended:?}");
            assert_at_rest(&relays);
            let (stats, all) = (relays.stats(), ended.forth + ended.back);
            assert_eq!(stats.spliced + stats.copied, all, "{name}: {stats:?}");
            match pipes {
                0 => assert_eq!(stats.spliced, 0, "{name}: {stats:?}"),
                8 if SPLICES => assert_eq!((stats.copied, stats.pipes <= 2), (0, true), "{name}: {stats:?}"),
                _ => assert!(stats.pipes <= pipes, "{name}: {stats:?}"),
            }
        }
    }
}

#[test]
fn a_half_that_closes_leaves_the_other() {
    for (name, first, second) in KINDS {
        for turned in [false, true] {
            let relays = Arc::new(Relays::default());
            let (one, other, relay) = relayed(&relays, first, second);
            let (mut asks, mut answers) = if turned { (other, one) } else { (one, other) };
            asks.write_all(b"question").unwrap();
            asks.close(Shutdown::Write);
            let (question, end) = answers.read_all();
            assert!(question == b"question" && end.is_ok(), "{name}: {end:?} after {question:?}");
            let answer = pattern(3 * MIB, 3);
            let bytes = answer.clone();
            let sending = spawn(move || {
                for piece in bytes.chunks(MIB) {
                    answers.write_all(piece).unwrap();
                }
                // Its end is that of the stream.
            });
            let (got, end) = asks.read_all();
            assert!(got == answer && end.is_ok(), "{name}: {end:?} after {} bytes", got.len());
            sending.join().unwrap();
            assert!(finish(relay).error.is_none(), "{name}");
            assert_at_rest(&relays);
        }
    }
}

/// A VMM that offers vsock closes both halves when one is.
#[cfg(unix)]
#[test]
fn a_half_is_kept_from_who_would_close_both() {
    let relays = Arc::new(Relays::default());
    let ((mut client, first), (mut vmm, second)) = (unix(), unix());
    let shared = Arc::clone(&relays);
    let relay = spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(shared.carry_whole(first, second))
    });
    client.write_all(b"question").unwrap();
    client.close(Shutdown::Write);
    let mut question = [0; 8];
    vmm.read_exact(&mut question).unwrap();
    // Twice there and back: an end would have come in between.
    for piece in ["first", "second"] {
        vmm.write_all(piece.as_bytes()).unwrap();
        let mut got = vec![0; piece.len()];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, piece.as_bytes());
        let Peer::Unix(vmm) = &vmm else { unreachable!() };
        vmm.set_nonblocking(true).unwrap();
        let seen = (&*vmm).read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(seen, Err(io::ErrorKind::WouldBlock));
        vmm.set_nonblocking(false).unwrap();
    }
    drop(client);
    let (rest, end) = vmm.read_all();
    assert!(rest.is_empty() && end.is_ok(), "{end:?} after {rest:?}");
    assert!(finish(relay).error.is_none());
    assert_at_rest(&relays);
}

#[cfg(unix)]
#[test]
fn a_reset_arrives_behind_what_came_before_it() {
    let relays = Arc::new(Relays::default());
    let (mut one, mut other, relay) = relayed(&relays, tcp, tcp);
    one.write_all(b"before").unwrap();
    let mut before = [0; 6];
    other.read_exact(&mut before).unwrap();
    let Peer::Tcp(stream) = &one else { panic!("not TCP") };
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(one);
    let (rest, end) = other.read_all();
    assert_eq!((rest, end.unwrap_err().kind()), (vec![], io::ErrorKind::ConnectionReset));
    assert_eq!(finish(relay).error.unwrap().kind(), io::ErrorKind::ConnectionReset);
    assert_at_rest(&relays);

    // Of a unix socket too: closed with something unread.
    let (mut one, mut other, relay) = relayed(&relays, unix, tcp);
    other.write_all(b"never read").unwrap();
    let Peer::Unix(stream) = &one else { panic!("not a unix socket") };
    stream.set_nonblocking(false).unwrap();
    let mut first = [0; 1];
    one.read_exact(&mut first).unwrap();
    one.write_all(b"last words").unwrap();
    drop(one);
    let (words, end) = other.read_all();
    assert_eq!((words, end.unwrap_err().kind()), (b"last words".to_vec(), io::ErrorKind::ConnectionReset));
    assert!(finish(relay).error.is_some());
}

#[cfg(unix)]
#[test]
fn a_peer_that_vanishes_ends_it_though_the_other_one_is_silent() {
    for half_first in [false, true] {
        let relays = Arc::new(Relays::default());
        let (one, mut other, relay) = relayed(&relays, unix, unix);
        if half_first {
            one.close(Shutdown::Write);
            let (bytes, end) = other.read_all();
            assert!(bytes.is_empty() && end.is_ok());
        }
        drop(one);
        finish(relay);
        assert_at_rest(&relays);
        assert_eq!(other.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

/// What was delivered into TCP's buffers is not taken away by the end of who sent it, in order or not.
#[cfg(unix)]
#[test]
fn a_slow_reader_gets_all_that_was_sent_before_the_end() {
    for unread in [false, true] {
        let relays = Arc::new(Relays::default());
        let (mut one, mut other, relay) = relayed(&relays, unix, tcp);
        let bytes = pattern(MIB / 2, 8);
        other.write_all(b"xy").unwrap();
        let mut byte = [0; 2];
        one.read_exact(&mut byte[usize::from(unread)..]).unwrap();
        one.write_all(&bytes).unwrap();
        drop(one);
        let start = Instant::now();
        while relays.stats().spliced + relays.stats().copied < 2 + bytes.len() as u64 {
            assert!(start.elapsed() < PATIENCE, "{:?}", relays.stats());
            std::thread::yield_now();
        }
        let (got, end) = other.read_all();
        assert!(got == bytes, "{} of {} bytes arrive, then {end:?}", got.len(), bytes.len());
        assert_eq!(end.is_err(), unread, "{end:?}");
        drop(other);
        finish(relay);
        assert_at_rest(&relays);
    }
}

/// Both kinds of receivers, one of which takes a little at times.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn what_a_sender_left_behind_waits_for_a_while() {
    const STEP: Duration = Duration::from_secs(800);
    for (mut peer, end) in [unix(), tcp()] {
        match &peer {
            Peer::Unix(stream) => stream.set_nonblocking(true).unwrap(),
            Peer::Tcp(stream) => stream.set_nonblocking(true).unwrap(),
        }
        // So that it takes only a part each time.
        SockRef::from(&end).set_send_buffer_size(8 << 10).unwrap();
        let relays = Relays::default();
        let (Peer::Unix(mut client), first) = unix() else { unreachable!() };
        client.set_nonblocking(true).unwrap();
        let mut relay = pin!(relays.carry(first, end));
        // It writes until nothing goes on any more.
        while timeout(Duration::from_millis(50), &mut relay).await.is_err() {
            if client.write(&[7; 64 << 10]).is_err() {
                break;
            }
        }
        assert!(timeout(STEP, &mut relay).await.is_err(), "it is still there");
        drop(client);
        for _ in 0..3 {
            assert!(timeout(STEP, &mut relay).await.is_err(), "the receiver takes some");
            while peer.read(&mut [0; 64 << 10]).is_ok() {}
        }
        let ended = timeout(STEP * 2, &mut relay).await.expect("the receiver takes nothing");
        assert!(ended.forth > 0 && ended.error.is_none(), "{ended:?}");
        assert_at_rest(&relays);
    }
}

/// As of a pager that nobody scrolls.
#[tokio::test(start_paused = true)]
async fn what_a_service_sent_waits_for_its_client() {
    let relays = Relays::default();
    let ((mut client, first), (mut service, second)) = (unix(), unix());
    for peer in [&client, &service] {
        let Peer::Unix(stream) = peer else { unreachable!() };
        stream.set_nonblocking(true).unwrap();
    }
    SockRef::from(&first).set_send_buffer_size(8 << 10).unwrap();
    let mut sent = 0;
    let mut relay = pin!(relays.carry(first, second));
    while timeout(Duration::from_millis(50), &mut relay).await.is_err() {
        match service.write(&[7; 64 << 10]) {
            Ok(written) => sent += written,
            Err(_) => break,
        }
    }
    drop(service);
    assert!(timeout(Duration::from_secs(10_000), &mut relay).await.is_err(), "the client is still there");
    let mut got = 0;
    loop {
        match client.read(&mut [0; 64 << 10]) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(_) => drop(timeout(Duration::from_millis(50), &mut relay).await),
        }
        if got == sent {
            break;
        }
    }
    assert_eq!(got, sent);
}

#[test]
fn a_sender_to_nobody_is_told() {
    let relays = Arc::new(Relays::default());
    let (one, mut other, relay) = relayed(&relays, unix, tcp);
    let sending = spawn(move || {
        let block = pattern(MIB, 4);
        loop {
            if let Err(error) = other.write_all(&block) {
                return error.kind();
            }
        }
    });
    let mut byte = [0];
    let mut one = one;
    one.read_exact(&mut byte).unwrap();
    drop(one);
    let told = sending.join().unwrap();
    assert!(matches!(told, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{told:?}");
    finish(relay);
    assert_at_rest(&relays);
}

#[test]
fn a_side_that_does_not_read_holds_nothing_else_back() {
    for (name, first, second) in KINDS {
        let relays = Arc::new(Relays::default());
        let (mut one, mut other, relay) = relayed(&relays, first, second);
        let flood = pattern(MIB, 5);
        // Until everything on the way is full.
        let mut sent = 0;
        let fd = other.another();
        let is_full = |peer: &Peer| {
            let fd = match peer {
                Peer::Unix(stream) => stream.as_fd(),
                Peer::Tcp(stream) => stream.as_fd(),
            };
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::OUT)];
            let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
            rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 0
        };
        match &fd {
            Peer::Unix(stream) => stream.set_nonblocking(true).unwrap(),
            Peer::Tcp(stream) => stream.set_nonblocking(true).unwrap(),
        }
        while !is_full(&fd) {
            sent += other.write(&flood[sent % MIB..]).unwrap_or(0);
        }
        match &fd {
            Peer::Unix(stream) => stream.set_nonblocking(false).unwrap(),
            Peer::Tcp(stream) => stream.set_nonblocking(false).unwrap(),
        }
        let bytes = pattern(4 * MIB, 6);
        let mut sender = one.another();
        let sending = spawn({
            let bytes = bytes.clone();
            move || {
                sender.write_all(&bytes).unwrap();
                sender.close(Shutdown::Write);
            }
        });
        let (got, end) = other.read_all();
        assert!(got == bytes && end.is_ok(), "{name}: {end:?} after {} bytes", got.len());
        sending.join().unwrap();
        other.close(Shutdown::Write);
        let (held, end) = one.read_all();
        let expected: Vec<u8> = flood.iter().cycle().take(sent).copied().collect();
        assert!(held == expected && end.is_ok(), "{name}: {end:?} after {} of {sent}", held.len());
        finish(relay);
        assert_at_rest(&relays);
    }
}

/// More streams than pipes, all of them stalled on the way for a while.
#[tokio::test]
async fn a_thousand_share_a_few_pipes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const COUNT: usize = 1000;
    const PIPES: usize = 16;
    crate::sys::prepare_process();
    let relays = Arc::new(Relays::new(PIPES));
    let (mut running, mut clients) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
    for number in 0..COUNT {
        let (one, first) = blocking_pair();
        let (other, second) = blocking_pair();
        let shared = Arc::clone(&relays);
        running.spawn(async move { shared.carry(first, second).await });
        for (stream, seed) in [(one, number), (other, number + COUNT)] {
            stream.set_nonblocking(true).unwrap();
            let stream = Stream::from_std(stream).unwrap();
            let shared = Arc::clone(&relays);
            clients.spawn(async move {
                let bytes = pattern(300_000, seed as u32);
                let (mut from, mut to) = stream.into_split();
                let sending = async {
                    to.write_all(&bytes).await.unwrap();
                    drop(to);
                };
                let mut got = Vec::new();
                let receiving = async {
                    // Everybody's way fills up first.
                    tokio::task::yield_now().await;
                    from.read_to_end(&mut got).await.unwrap();
                };
                tokio::join!(sending, receiving);
                assert!(shared.stats().pipes <= PIPES);
                let of_other = if seed < COUNT { seed + COUNT } else { seed - COUNT };
                assert!(got == pattern(300_000, of_other as u32), "stream {seed}");
            });
        }
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let mut ended = 0;
    while let Some(relay) = running.join_next().await {
        let relay = relay.unwrap();
        assert!(relay.error.is_none(), "{relay:?}");
        ended += 1;
    }
    assert_eq!(ended, COUNT);
    assert_at_rest(&relays);
    assert_eq!(relays.stats().spliced + relays.stats().copied, 2 * COUNT as u64 * 300_000);
}

#[test]
fn an_idle_relay_holds_no_pipe_and_a_dropped_one_nothing() {
    let relays = Arc::new(Relays::default());
    let (mut one, mut other, relay) = relayed(&relays, unix, unix);
    for _ in 0..3 {
        one.write_all(b"ping").unwrap();
        let mut ping = [0; 4];
        other.read_exact(&mut ping).unwrap();
        let start = Instant::now();
        while relays.stats().pipes != relays.stats().spare_pipes {
            assert!(start.elapsed() < PATIENCE, "{:?}", relays.stats());
            std::thread::yield_now();
        }
        assert_eq!((relays.stats().open, relays.stats().pipes), (1, usize::from(SPLICES)));
    }
    drop((one, other));
    finish(relay);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ((mut one, first), (mut other, second)) = (unix(), unix());
    one.write_all(&pattern(100, 7)).unwrap();
    runtime.block_on(async {
        let carried = relays.carry(first, second);
        assert!(timeout(Duration::from_millis(20), carried).await.is_err());
    });
    assert_at_rest(&relays);
    let (got, end) = other.read_all();
    assert!(got.len() == 100 && end.is_ok(), "{end:?} after {got:?}");
    assert!(one.read_all().0.is_empty());
}
