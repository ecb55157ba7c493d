//! Bytes whose place in a stream can be told, and the two ends that send and check them.
//! Owns: the pattern. Read next: `tests/tap_tcp.rs`, which sends it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::uninterrupted;

/// Not a power of two, so that a block never lies on a boundary of anything that is copied.
const BLOCK: usize = 65521;
/// Longest silence that an end puts up with.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stream of any length in which every block is different.
#[derive(Clone, Debug)]
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        Self(std::iter::repeat_with(next).take(BLOCK).collect())
    }

    /// What the stream holds from `position` to the end of that block.
    fn at(&mut self, position: u64) -> &[u8] {
        let (number, offset) = (position / BLOCK as u64, (position % BLOCK as u64) as usize);
        self.0[..8].copy_from_slice(&number.to_be_bytes());
        &self.0[offset..]
    }
}

/// Writes `length` bytes of the pattern from `start` on.
pub fn send_from(mut to: impl Write, start: u64, length: u64) -> io::Result<()> {
    let mut pattern = Pattern::new();
    let mut position = start;
    while position < start + length {
        let block = pattern.at(position);
        let part = block.len().min(usize::try_from(start + length - position).unwrap_or(usize::MAX));
        to.write_all(&block[..part])?;
        position += part as u64;
    }
    Ok(())
}

/// Reads to the end of the stream, checks each byte against the pattern, and says how many there were.
pub fn check(mut from: impl Read) -> io::Result<u64> {
    let mut pattern = Pattern::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut position = 0;
    loop {
        let read = uninterrupted(|| from.read(&mut buffer))?;
        if read == 0 {
            return Ok(position);
        }
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let block = pattern.at(position);
            let part = block.len().min(rest.len());
            if rest[..part] != block[..part] {
                let wrong = (0..part).find(|&i| rest[i] != block[i]).unwrap_or(0);
                return Err(io::Error::other(format!(
                    "byte {} of the stream is wrong",
                    position + wrong as u64
                )));
            }
            position += part as u64;
            rest = &rest[part..];
        }
    }
}

/// A stream that fails instead of waiting for good.
pub fn impatient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The next connection of a listener, which a test fails without.
#[track_caller]
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    // A daemon that was refused several times comes again after half a minute.
    let accepted = crate::eventually("a connection", Duration::from_secs(40), || listener.accept().ok());
    accepted.0.set_nonblocking(false).unwrap();
    impatient(accepted.0)
}

/// Leads every connection of `listener` to `to`, from a thread that stays.
pub fn lead(listener: TcpListener, to: impl Into<SocketAddr>) {
    let to = to.into();
    std::thread::spawn(move || {
        while let Ok((near, _)) = listener.accept() {
            let Ok(far) = TcpStream::connect(to) else { break };
            for end in [&near, &far] {
                end.set_nodelay(true).unwrap();
            }
            let ends = (near.try_clone().unwrap(), far.try_clone().unwrap());
            for (mut from, mut to) in [(near, far), (ends.1, ends.0)] {
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
}

/// Sends `length` bytes through a connection and its end, and checks what arrives at the other.
#[track_caller]
pub fn transfer(from: &TcpStream, to: &TcpStream, length: u64) {
    let (mut sender, receiver) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let sending = std::thread::spawn(move || {
        send_from(&mut sender, 0, length)?;
        sender.shutdown(Shutdown::Write)
    });
    let received = check(receiver);
    let sent = sending.join().unwrap();
    assert!(
        matches!(received, Ok(n) if n == length),
        "received {received:?} of {length}, the sender ended with {sent:?}"
    );
    sent.expect("the sender got rid of everything");
}

/// Answers each connection's one byte with one byte, then waits for the client to close; ends with the
/// listener's `connections`.
pub fn answer_each(listener: TcpListener, connections: usize) -> JoinHandle<io::Result<()>> {
    std::thread::spawn(move || {
        for _ in 0..connections {
            let mut stream = impatient(listener.accept()?.0);
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
        Ok(())
    })
}
