//! Frames between the tap and the link to the host: a 16-bit little-endian length, then the frame. Owns: one
//! thread for each direction, and a port of its own through which the DHCP client takes part. May not: look
//! into a frame further than to tell a DHCP reply.
//! Read next: `dhcp/mod.rs`, which is plugged into the port.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read, write};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::net::UnixDatagram;

use super::dhcp;
use super::endpoint::Connection;
use crate::config::TOKEN_WANTED;
use crate::sys::sockets::packet_pair;

/// Bytes of the length.
const PREFIX: usize = 2;
/// The longest frame that the length can announce.
pub(super) const MAX_FRAME: usize = u16::MAX as usize;
/// What is gathered for one write, and the room for one read, in bytes. More than a unix socket holds by
/// default.
const BATCH: usize = 256 << 10;

/// Why a relay ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to.
    Stopped,
    /// The link to the host.
    Host(anyhow::Error),
    /// The interface is gone.
    Tap(io::Error),
}

/// A running relay. It ends when either side does, or when it is dropped.
#[derive(Debug)]
pub(super) struct TapRelay {
    port: UnixDatagram,
    flags: Arc<Flags>,
    threads: Vec<JoinHandle<End>>,
}

#[derive(Debug, Default)]
struct Flags {
    /// The host has sent a frame.
    heard: AtomicBool,
    /// For a thread that has no reason to wait, and so to see that the port is closed.
    over: AtomicBool,
}

impl TapRelay {
    /// `tap` must not block. With `dhcp` the replies of DHCP servers go to the port instead of the tap. To be
    /// called in a tokio runtime.
    ///
    /// # Errors
    /// The system has no more descriptors or threads.
    pub(super) fn start(tap: File, connection: Connection, dhcp: bool) -> Result<Self> {
        let (port, inner) = packet_pair()?;
        let (from_host, to_host, program) = connection.into_parts();
        let (tap, inner) = (Arc::new(tap), Arc::new(inner));
        let port = UnixDatagram::from_std(port.into())?;
        let mut relay = Self { port, flags: Arc::default(), threads: Vec::new() };
        let flags = Arc::clone(&relay.flags);
        let (down_tap, down_inner) = (Arc::clone(&tap), Arc::clone(&inner));
        relay.spawn("to guest", move || {
            let end = to_the_guest(&from_host, &down_tap, &down_inner, dhcp, &flags);
            let _ = shutdown(&down_inner, Shutdown::Both);
            drop(program);
            end
        })?;
        let flags = Arc::clone(&relay.flags);
        relay.spawn("to host", move || {
            let end = to_the_host(&tap, &to_host, &inner);
            flags.over.store(true, Ordering::Relaxed);
            let _ = shutdown(&inner, Shutdown::Both);
            end
        })?;
        Ok(relay)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() -> End + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }

    /// Sends a frame to the host; as on a wire it may be lost.
    pub(super) async fn send(&self, frame: &[u8]) {
        let _ = self.port.send(frame).await;
    }

    /// The next DHCP reply; `None` once the relay has ended.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        self.port.recv(buffer).await.ok().filter(|length| *length > 0)
    }

    /// Whether the host has sent a frame.
    pub(super) fn has_heard(&self) -> bool {
        self.flags.heard.load(Ordering::Relaxed)
    }

    /// Ends it, and says why if it has ended by itself.
    pub(super) fn end(mut self) -> End {
        self.stop()
    }

    fn stop(&mut self) -> End {
        self.flags.over.store(true, Ordering::Relaxed);
        let _ = shutdown(&self.port, Shutdown::Both);
        // What the host said last is a better reason than that it takes no more.
        let mut end = End::Stopped;
        for thread in self.threads.drain(..) {
            let of_thread =
                thread.join().unwrap_or_else(|_| End::Host(anyhow!("a thread of the relay panicked")));
            if matches!(end, End::Stopped) {
                end = of_thread;
            }
        }
        end
    }
}

impl Drop for TapRelay {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lost(error: Errno) -> End {
    End::Host(anyhow!("the link to the host: {}", crate::text::reason(&error.into())))
}

/// Waits until one of `fds` is ready; gives whether the port, which comes last, is still open.
fn wait(fds: &mut [PollFd<'_>]) -> bool {
    loop {
        match poll(fds, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    fds.last().is_some_and(|port| !port.revents().intersects(PollFlags::HUP | PollFlags::ERR))
}

fn to_the_host(tap: &File, host: &OwnedFd, port: &OwnedFd) -> End {
    let mut batch = vec![0; BATCH];
    loop {
        let mut fds = [PollFd::new(tap, PollFlags::IN), PollFd::new(port, PollFlags::IN)];
        if !wait(&mut fds) {
            return End::Stopped;
        }
        let mut filled = 0;
        if fds.last().is_some_and(|port| port.revents().contains(PollFlags::IN)) {
            filled = gather(&mut batch, filled, |space| Ok(recv(port, space, RecvFlags::empty())?.0)).0;
        }
        let (filled, ended) = gather(&mut batch, filled, |space| read(tap, space));
        if let Err(end) = write_all(host, batch.get(..filled).unwrap_or_default(), port) {
            return end;
        }
        if let Some(error) = ended {
            return End::Tap(error.into());
        }
    }
}

/// Adds frames with their lengths to `batch` while there are any and room is left. Gives how far it is
/// filled, and the error of a source that has failed.
fn gather(
    batch: &mut [u8],
    mut filled: usize,
    mut next: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> (usize, Option<Errno>) {
    // One byte more than a frame may have, so that a longer one is seen.
    while let Some((prefix, space)) =
        batch.get_mut(filled..filled + PREFIX + MAX_FRAME + 1).and_then(|space| space.split_first_chunk_mut())
    {
        match next(space) {
            Ok(0) => break,
            Ok(length) => {
                if let Ok(length) = u16::try_from(length) {
                    *prefix = length.to_le_bytes();
                    filled += PREFIX + usize::from(length);
                }
            }
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}

fn write_all(host: &OwnedFd, mut bytes: &[u8], port: &OwnedFd) -> Result<(), End> {
    while !bytes.is_empty() {
        match write(host, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // Of the port only its end is of interest, and that is always told.
                let mut fds = [PollFd::new(host, PollFlags::OUT), PollFd::new(port, PollFlags::empty())];
                if !wait(&mut fds) {
                    return Err(End::Stopped);
                }
            }
            Err(error) => return Err(lost(error)),
        }
    }
    Ok(())
}

fn to_the_guest(host: &OwnedFd, tap: &File, port: &OwnedFd, dhcp: bool, flags: &Flags) -> End {
    let mut buffer = vec![0; BATCH];
    let mut filled = 0;
    let mut last = false;
    loop {
        last = last || flags.over.load(Ordering::Relaxed);
        match read(host, buffer.get_mut(filled..).unwrap_or_default()) {
            Ok(0) => return End::Host(anyhow!("the host closed the link")),
            Ok(n) => filled += n,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) if last => return End::Stopped,
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(host, PollFlags::IN), PollFd::new(port, PollFlags::empty())];
                last = !wait(&mut fds);
                continue;
            }
            Err(error) => return lost(error),
        }
        let mut rest = buffer.get(..filled).unwrap_or_default();
        if !flags.heard.load(Ordering::Relaxed) && rest.starts_with(b"HTTP/") {
            return End::Host(refusal(rest));
        }
        while let Some((frame, behind)) = first_frame(rest) {
            flags.heard.store(true, Ordering::Relaxed);
            if dhcp && dhcp::message(frame).is_some() {
                // If there is no room, the client asks again.
                let _ = send(port, frame, SendFlags::empty());
            } else if let Err(error) = hand_over(tap.as_fd(), frame) {
                return End::Tap(error.into());
            }
            rest = behind;
        }
        let left = rest.len();
        buffer.copy_within(filled - left..filled, 0);
        filled = left;
        if last {
            return End::Stopped;
        }
    }
}

fn first_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*prefix)))
}

/// As a wire does, a tap that is down or full loses frames, and takes none that are shorter than a header.
fn hand_over(tap: BorrowedFd<'_>, frame: &[u8]) -> Result<(), Errno> {
    match write(tap, frame) {
        Ok(_) | Err(Errno::IO | Errno::AGAIN | Errno::INTR | Errno::INVAL | Errno::NOBUFS | Errno::NOMEM) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// A server that does not know the path, or does not let us have it, answers with HTTP.
fn refusal(answer: &[u8]) -> anyhow::Error {
    let line = answer.split(|&b| b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line.get(..line.len().min(100)).unwrap_or_default());
    let wanted = if line.contains(" 401 ") { TOKEN_WANTED } else { "" };
    anyhow!("the host refuses the link: {line}{wanted}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Each call gives the next of these frames.
    fn source(frames: &[&[u8]]) -> impl FnMut(&mut [u8]) -> Result<usize, Errno> {
        let mut frames = frames.iter().map(|frame| frame.to_vec()).collect::<Vec<_>>().into_iter();
        move |space| {
            let frame = frames.next().ok_or(Errno::AGAIN)?;
            space[..frame.len()].copy_from_slice(&frame);
            Ok(frame.len())
        }
    }

    #[test]
    fn what_is_gathered_reads_back() {
        let longest = vec![7; MAX_FRAME];
        let mut batch = vec![0; BATCH];
        let (filled, error) =
            gather(&mut batch, 0, source(&[b"one", &longest, &vec![8; MAX_FRAME + 1], b"two"]));
        assert_eq!(error, None);
        let (first, rest) = first_frame(&batch[..filled]).unwrap();
        let (second, rest) = first_frame(rest).unwrap();
        let (third, rest) = first_frame(rest).unwrap();
        assert_eq!((first, second, third, rest), (&b"one"[..], &longest[..], &b"two"[..], &b""[..]));
        assert_eq!(first_frame(&[3, 0, 1, 2]), None);
    }

    #[test]
    fn a_full_batch_takes_no_more() {
        let mut batch = vec![0; BATCH];
        let frame = vec![1; MAX_FRAME];
        let (filled, _) = gather(&mut batch, 0, |space| {
            space[..frame.len()].copy_from_slice(&frame);
            Ok(frame.len())
        });
        assert_eq!(filled, (BATCH - 1) / (PREFIX + MAX_FRAME) * (PREFIX + MAX_FRAME));
        let (_, error) = gather(&mut batch, 0, |_| Err(Errno::BADFD));
        assert_eq!(error, Some(Errno::BADFD));
    }

    /// A relay between a host and a tap which are both sockets here, where a message is a frame as on a tap.
    fn relay() -> (UnixStream, OwnedFd, TapRelay) {
        let (host, ours) = UnixStream::pair().unwrap();
        let (tap, far) = packet_pair().unwrap();
        let relay = TapRelay::start(File::from(tap), Connection::of(ours), true).unwrap();
        (host, far, relay)
    }

    #[tokio::test]
    async fn ends_with_the_host_and_says_so() {
        let (host, _far, relay) = relay();
        drop(host);
        assert_eq!(relay.receive(&mut [0; 10]).await, None);
        let End::Host(reason) = relay.end() else { panic!("another reason") };
        assert_eq!(reason.to_string(), "the host closed the link");
    }

    #[tokio::test]
    async fn an_http_answer_is_a_refusal() {
        use std::io::Write;
        let (mut host, _far, relay) = relay();
        host.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Type: x\r\n\r\n").unwrap();
        assert_eq!(relay.receive(&mut [0; 10]).await, None);
        assert!(!relay.has_heard());
        let End::Host(reason) = relay.end() else { panic!("another reason") };
        assert_eq!(reason.to_string(), "the host refuses the link: HTTP/1.1 404 Not Found");
    }

    #[tokio::test]
    async fn an_empty_frame_is_passed_over() {
        use std::io::Write;
        let (mut host, far, relay) = relay();
        host.write_all(b"\x00\x00\x03\x00abc").unwrap();
        tokio::task::spawn_blocking(move || {
            let mut bytes = [0; 10];
            loop {
                let mut fds = [PollFd::new(&far, PollFlags::IN)];
                poll(&mut fds, None).unwrap();
                match recv(&far, &mut bytes, RecvFlags::empty()).unwrap().0 {
                    0 => {}
                    length => return assert_eq!(&bytes[..length], b"abc"),
                }
            }
        })
        .await
        .unwrap();
        assert!(relay.has_heard());
    }

    #[tokio::test]
    async fn the_port_takes_part() {
        use std::io::Read;
        let (mut host, _far, relay) = relay();
        relay.send(b"a frame of the DHCP client").await;
        let mut bytes = [0; 28];
        host.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        tokio::task::spawn_blocking(move || {
            host.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"\x1a\x00a frame of the DHCP client");
            host
        })
        .await
        .unwrap();
        assert!(matches!(relay.end(), End::Stopped | End::Host(_)));
    }

    #[tokio::test]
    async fn a_host_that_does_not_read_does_not_hold_the_end_up() {
        let (_host, far, relay) = relay();
        tokio::task::spawn_blocking(move || {
            let frame = vec![1; 60_000];
            let mut fds = [PollFd::new(&far, PollFlags::OUT)];
            let half_a_second = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
            while poll(&mut fds, Some(&half_a_second)).unwrap() > 0 {
                let _ = send(&far, &frame, SendFlags::NOSIGNAL);
            }
            far
        })
        .await
        .unwrap();
        assert!(matches!(relay.end(), End::Stopped));
    }
}
