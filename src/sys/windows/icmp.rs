//! Echoes by IcmpSendEcho, which needs no privilege. There are no sockets for it: what a session sends goes
//! to a thread on the loopback interface, which asks the system, and sends back what comes as the message
//! that it is.
//! Owns: that thread, who may use it, and the threads that wait for echoes.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "IcmpSendEcho")]

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use mio::net::UdpSocket;
use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::NetworkManagement::IpHelper::{
    ICMP_ECHO_REPLY, IP_SUCCESS, IcmpCloseHandle, IcmpCreateFile, IcmpSendEcho,
};

/// Sessions that are remembered: those of the newest sockets.
const MAX_SESSIONS: usize = 512;
/// Echoes that are waited for at a time, and those of one session among them; what comes beyond that is lost,
/// as on a busy network.
const MAX_ECHOES: usize = 128;
const MAX_ECHOES_OF_ONE: usize = 8;
/// How long an echo may take, in milliseconds.
const PATIENCE: u32 = 4000;
/// The pause after a failure of the socket.
const PAUSE: Duration = Duration::from_millis(10);
/// An echo's header, and the longest message.
const HEADER: usize = 8;
const LONGEST: usize = 65_507;
/// Types of messages (RFC 792).
const REQUEST: u8 = 8;
const REPLY: u8 = 0;

/// The thread's socket, and who may send there, and for which target.
#[derive(Debug)]
struct Service {
    address: SocketAddr,
    sessions: Mutex<VecDeque<(SocketAddr, Ipv4Addr)>>,
}

pub(crate) fn open(target: Ipv4Addr) -> io::Result<UdpSocket> {
    let service = service()?;
    let near = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    near.connect(service.address)?;
    near.set_nonblocking(true)?;
    let mut sessions = service.sessions.lock().unwrap_or_else(PoisonError::into_inner);
    let own = near.local_addr()?;
    // A port that another session had is this one's now.
    sessions.retain(|(session, _)| *session != own);
    if sessions.len() == MAX_SESSIONS {
        sessions.pop_front();
    }
    sessions.push_back((own, target));
    Ok(UdpSocket::from_std(near))
}

/// The one of this process, started with its first session.
fn service() -> io::Result<&'static Service> {
    static SERVICE: OnceLock<Arc<Service>> = OnceLock::new();
    if let Some(service) = SERVICE.get() {
        return Ok(service);
    }
    let socket = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    super::udp::ignore_resets(&socket);
    let made = Arc::new(Service { address: socket.local_addr()?, sessions: Mutex::default() });
    let (service, socket) = (Arc::clone(&made), Arc::new(socket));
    thread::Builder::new().name("echoes".to_owned()).spawn(move || serve(&service, &socket))?;
    // Of two that start at once one thread has no session.
    Ok(SERVICE.get_or_init(|| made))
}

fn serve(service: &Service, socket: &Arc<StdUdpSocket>) {
    let waiting = Arc::<Waiting>::default();
    let mut message = vec![0; LONGEST];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut message) else {
            thread::sleep(PAUSE);
            continue;
        };
        let sessions = service.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let target = sessions.iter().find(|(session, _)| *session == from).map(|(_, target)| *target);
        drop(sessions);
        let (Some(target), Some(message)) = (target, message.get(..len)) else { continue };
        if message.first() != Some(&REQUEST) || message.len() < HEADER {
            continue;
        }
        let Some(counted) = Counted::new(&waiting, from) else { continue };
        let (message, socket) = (message.to_vec(), Arc::clone(socket));
        // Without a thread it is lost, too.
        let _ = thread::Builder::new().name("echo".to_owned()).spawn(move || {
            if let Some(reply) = ask(target, &message) {
                let _ = socket.send_to(&reply, from);
            }
            drop(counted);
        });
    }
}

/// For whom an echo is waited, once for each.
type Waiting = Mutex<Vec<SocketAddr>>;

/// One of them, until it is dropped.
struct Counted {
    waiting: Arc<Waiting>,
    of: SocketAddr,
}

impl Counted {
    fn new(waiting: &Arc<Waiting>, of: SocketAddr) -> Option<Self> {
        let mut all = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.iter().filter(|other| **other == of).count();
        if all.len() >= MAX_ECHOES || own >= MAX_ECHOES_OF_ONE {
            return None;
        }
        all.push(of);
        drop(all);
        Some(Self { waiting: Arc::clone(waiting), of })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(|other| *other == self.of) {
            all.swap_remove(at);
        }
    }
}

/// Asks for the echo of `message`, a request, and makes a reply of what comes.
fn ask(target: Ipv4Addr, message: &[u8]) -> Option<Vec<u8>> {
    let (header, data) = message.split_at_checked(HEADER)?;
    let size = u16::try_from(data.len()).ok()?;
    // Room for an error message of the network's beside the data, aligned for the structure in front.
    let room = size_of::<ICMP_ECHO_REPLY>() + data.len() + 8 + 64;
    let mut replies = vec![0_u64; room.div_ceil(8)];
    let at = replies.as_mut_ptr();
    // SAFETY: the handle is open while it is used; the calls read the data and write at most `room` bytes.
    let count = unsafe {
        let handle = IcmpCreateFile();
        if handle == INVALID_HANDLE_VALUE {
            return None;
        }
        let count = IcmpSendEcho(
            handle,
            u32::from_ne_bytes(target.octets()),
            data.as_ptr().cast(),
            size,
            std::ptr::null(),
            at.cast(),
            u32::try_from(room).ok()?,
            PATIENCE,
        );
        IcmpCloseHandle(handle);
        count
    };
    // SAFETY: the buffer is large enough for one and aligned for it, and all bytes are such a structure.
    let reply = unsafe { at.cast::<ICMP_ECHO_REPLY>().read() };
    // What was echoed is what was sent, or it is no echo of it.
    if count == 0 || reply.Status != IP_SUCCESS || reply.DataSize != size {
        return None;
    }
    let mut answer = header.to_vec();
    answer.extend_from_slice(data);
    if let Some(kind) = answer.first_mut() {
        *kind = REPLY;
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_answers_and_only_sessions_are_served() {
        let near = open(Ipv4Addr::LOCALHOST).unwrap();
        let stranger = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        stranger.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let request = [8, 0, 0, 0, 0, 7, 1, 9, b'x', b'y'];
        stranger.send_to(&request, service().unwrap().address).unwrap();
        near.send(&request).unwrap();
        let start = std::time::Instant::now();
        let mut answer = [0; 64];
        let len = loop {
            match near.recv(&mut answer) {
                Ok(len) => break len,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            assert!(start.elapsed() < Duration::from_secs(5));
            thread::yield_now();
        };
        assert_eq!(&answer[..len], [0, 0, 0, 0, 0, 7, 1, 9, b'x', b'y']);
        assert!(stranger.recv(&mut answer).is_err());
    }

    #[test]
    fn of_echoes_that_are_waited_for_each_session_has_some() {
        let waiting = Arc::<Waiting>::default();
        let session = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let first: Vec<_> = (0..100).filter_map(|_| Counted::new(&waiting, session(1))).collect();
        assert_eq!(first.len(), MAX_ECHOES_OF_ONE);
        let others: Vec<_> = (2..100).filter_map(|port| Counted::new(&waiting, session(port))).collect();
        assert_eq!(others.len(), 98);
        drop(first);
        assert!(Counted::new(&waiting, session(1)).is_some());
    }
}
