//! How two ends of a stream may end: what each does, and what it has to have heard. Owns: the table of that.
//! May not: know what is between the two. Read next: `ways.rs`.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

/// Bytes of what is said before an end.
const SAID: usize = 1000;
/// Bytes of an upload that nobody reads to its end.
const UPLOAD: usize = 1 << 20;
/// A writer whose socket takes nothing for as long is blocked.
const BLOCKED: Timespec = Timespec { tv_sec: 0, tv_nsec: 30_000_000 };
/// More bytes than there is room for between the two.
const MUCH: usize = 32 << 20;
/// A writer whose peer is gone is told before that.
const STUCK: Duration = Duration::from_secs(5);
/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a way has to be able to carry for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// The client can close its half and still be answered.
    ClientHalf,
    /// The server can close its half and still be spoken to.
    ServerHalf,
    /// The client's end is told though nobody takes what it said before.
    ClientEnd,
    /// The same of the server's.
    ServerEnd,
}

/// One way to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    /// How often of [`super::table::ROUNDS`]: 1 in this many, where much is moved.
    pub(crate) one_in: usize,
    pub(crate) needs: Needs,
    client: fn(Socket, &Signal) -> Result<(), String>,
    server: fn(Socket, &Signal) -> Result<(), String>,
}

/// All of them.
pub(crate) const SCENES: [Scene; 14] = [
    // A server answers 413 to an upload, and closes.
    scene("early answer", answered_early, answer_early),
    // The same with the parts changed.
    scene("early farewell", answer_early, answered_early),
    scene("client resets", say_and_reset, hear_it),
    scene("server resets", hear_it, say_and_reset),
    scene("client closes", say_and_close, hear_it),
    scene("server closes", hear_it, say_and_close),
    Scene { needs: Needs::ClientHalf, ..scene("client's half first", half_first, half_last) },
    Scene { needs: Needs::ServerHalf, ..scene("server's half first", half_last, half_first) },
    many("client fills, closes", fill_and_close, hear_late),
    many("server fills, closes", hear_late, fill_and_close),
    many("client fills, resets", fill_and_reset, hear_late),
    many("server fills, resets", hear_late, fill_and_reset),
    // Neither reads.
    Scene { needs: Needs::ClientEnd, ..many("both fill, client closes", fill_and_close, fill_and_go_on) },
    Scene { needs: Needs::ServerEnd, ..many("both fill, server closes", fill_and_go_on, fill_and_close) },
];

type Part = fn(Socket, &Signal) -> Result<(), String>;

const fn scene(name: &'static str, client: Part, server: Part) -> Scene {
    Scene { name, one_in: 1, needs: Needs::Nothing, client, server }
}

const fn many(name: &'static str, client: Part, server: Part) -> Scene {
    Scene { name, one_in: 20, needs: Needs::Nothing, client, server }
}

impl Scene {
    /// One round: both parts at once.
    pub(crate) fn play(
        &self,
        connect: impl FnOnce() -> io::Result<Socket> + Send,
        accept: impl FnOnce(Duration) -> Option<Socket>,
    ) -> Result<(), String> {
        let signal = Signal::default();
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                let socket = connect().map_err(|error| format!("connect: {error}"))?;
                limit(&socket);
                (self.client)(socket, &signal)
            });
            let server = accept(PATIENCE).ok_or_else(|| "nobody came".to_owned()).and_then(|socket| {
                limit(&socket);
                (self.server)(socket, &signal)
            });
            let client = client.join().unwrap_or_else(|_| Err("panic".into()));
            client.map_err(|why| format!("client: {why}"))?;
            server.map_err(|why| format!("server: {why}"))
        })
    }
}

/// How a client ends before anybody has answered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Early {
    Closes,
    HalfCloses,
    Resets,
}

impl Early {
    pub(crate) const ALL: [Self; 3] = [Self::Closes, Self::HalfCloses, Self::Resets];

    /// A client that has said what it has to say, and may still listen.
    pub(crate) fn say(self, client: Socket) -> Result<Option<Socket>, String> {
        limit(&client);
        say(&client)?;
        match self {
            Self::Closes => Ok(None),
            Self::HalfCloses => {
                client.shutdown(Shutdown::Write).map_err(|error| format!("cannot close a half: {error}"))?;
                Ok(Some(client))
            }
            Self::Resets => {
                reset(client);
                Ok(None)
            }
        }
    }
}

/// The server's part, which answers.
pub(crate) fn hear_and_answer(server: Option<Socket>) -> Result<(), String> {
    let server = server.ok_or("nobody came")?;
    limit(&server);
    hear_said(&server)?;
    // Whoever has left hears nothing.
    let _ = say(&server);
    Ok(())
}

/// What the client is answered.
pub(crate) fn hear_answer(client: &Socket) -> Result<(), String> {
    hear_said(client)
}

fn limit(socket: &Socket) {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// One side tells the other what it has done.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    /// Bytes that the other is to have, at least.
    filled: Mutex<Option<usize>>,
    told: Condvar,
}

impl Signal {
    fn tell(&self, bytes: usize) {
        *self.filled.lock().unwrap() = Some(bytes);
        self.told.notify_all();
    }

    fn wait(&self) -> Result<usize, String> {
        let filled = self.filled.lock().unwrap();
        let (filled, _) = self.told.wait_timeout_while(filled, PATIENCE, |filled| filled.is_none()).unwrap();
        filled.ok_or("the writer is never done".into())
    }
}

/// Byte `at` of everything that is said here.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

fn say(mut socket: &Socket) -> Result<(), String> {
    socket.write_all(&bytes(0, SAID)).map_err(|error| format!("cannot speak: {error}"))
}

/// Reads to the end, whatever that is, and gives how much came.
fn hear(mut socket: &Socket) -> Result<usize, String> {
    let mut heard = Vec::new();
    let end = socket.read_to_end(&mut heard);
    if let Err(error) = end
        && !matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    {
        return Err(format!("{} bytes, then {error}", heard.len()));
    }
    match heard == bytes(0, heard.len()) {
        true => Ok(heard.len()),
        false => Err(format!("{} other bytes than were sent", heard.len())),
    }
}

fn hear_said(socket: &Socket) -> Result<(), String> {
    match hear(socket)? {
        SAID => Ok(()),
        heard => Err(format!("heard {heard} bytes")),
    }
}

fn reset(socket: Socket) {
    // A unix socket has none: it is closed.
    let _ = socket.set_linger(Some(Duration::ZERO));
    drop(socket);
}

/// Writes as many bytes, or until the peer is gone.
fn upload(mut socket: &Socket, len: usize) -> Result<(), String> {
    const PART: usize = 64 << 10;
    socket.set_write_timeout(Some(STUCK)).unwrap();
    for _ in 0..len / PART {
        match socket.write_all(&bytes(0, PART)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(format!("nobody takes the upload, or says no for {STUCK:?}"));
            }
            Err(_) => break,
        }
    }
    Ok(())
}

fn answered_early(socket: Socket, _: &Signal) -> Result<(), String> {
    upload(&socket, UPLOAD)?;
    hear_said(&socket)
}

fn answer_early(mut socket: Socket, _: &Signal) -> Result<(), String> {
    socket.read_exact(&mut [0; 100]).map_err(|error| format!("no upload: {error}"))?;
    say(&socket)
}

fn say_and_reset(socket: Socket, _: &Signal) -> Result<(), String> {
    say(&socket)?;
    reset(socket);
    Ok(())
}

fn say_and_close(socket: Socket, _: &Signal) -> Result<(), String> {
    say(&socket)
}

fn hear_it(socket: Socket, _: &Signal) -> Result<(), String> {
    hear_said(&socket)
}

fn half_first(socket: Socket, _: &Signal) -> Result<(), String> {
    say(&socket)?;
    socket.shutdown(Shutdown::Write).map_err(|error| format!("cannot close a half: {error}"))?;
    hear_said(&socket)
}

fn half_last(socket: Socket, _: &Signal) -> Result<(), String> {
    hear_said(&socket)?;
    say(&socket)
}

/// Writes until nothing is taken any more, or it is taken in vain; how much was.
fn fill(mut socket: &Socket) -> Result<usize, String> {
    let wrong = |error: io::Error| format!("cannot fill: {error}");
    socket.set_nonblocking(true).map_err(wrong)?;
    let mut filled = 0;
    while filled < MUCH {
        match socket.write(&bytes(filled, 64 << 10)) {
            Ok(written) => filled += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let room = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&BLOCKED));
                if room.map_err(|error| wrong(error.into()))? == 0 {
                    return Ok(filled);
                }
            }
            Err(error) => return Err(wrong(error)),
        }
    }
    Ok(filled)
}

fn fill_and_close(socket: Socket, signal: &Signal) -> Result<(), String> {
    let filled = fill(&socket)?;
    drop(socket);
    signal.tell(filled);
    Ok(())
}

fn fill_and_reset(socket: Socket, signal: &Signal) -> Result<(), String> {
    let filled = fill(&socket)?;
    let is_tcp = socket.local_addr().is_ok_and(|address| address.as_socket().is_some());
    // What TCP has not yet delivered goes with a reset.
    let unsent = if is_tcp { gvproxy::sys::unsent(socket.as_fd()).unwrap_or(0) } else { 0 };
    reset(socket);
    signal.tell(filled - unsent);
    Ok(())
}

fn hear_late(socket: Socket, signal: &Signal) -> Result<(), String> {
    let filled = signal.wait()?;
    match hear(&socket)? {
        heard if heard >= filled => Ok(()),
        heard => Err(format!("heard {heard} of {filled} bytes")),
    }
}

/// Who is left alone can write on, in vain, or is told.
fn fill_and_go_on(socket: Socket, signal: &Signal) -> Result<(), String> {
    if fill(&socket).is_err() {
        return Ok(());
    }
    signal.wait()?;
    socket.set_nonblocking(false).map_err(|error| error.to_string())?;
    upload(&socket, MUCH)
}
