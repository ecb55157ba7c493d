//! The plainest forwarder that there can be, as a process of its own: two threads for each client, a pipe for
//! each, splice(2) that blocks.
//! Owns: its clients. May not: be clever. Read next: `forwarder.rs`.

use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use socket2::Socket;

/// The first argument of the process that is to be one. After it: bytes of a pipe, the clients' socket, the
/// server's as a URL.
const ROLE: &str = "--splice";

/// What starts one.
pub(crate) fn words(size: usize, socket: &str, to: &str) -> Vec<String> {
    let program = std::env::current_exe().expect("a path to this executable").display().to_string();
    [&program, ROLE, &size.to_string(), socket, to].map(ToOwned::to_owned).into()
}

/// Serves for good, if this process was started to.
pub(crate) fn serve_if_asked() -> bool {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [ROLE, size, socket, to] = words[..] else { return false };
    let size: usize = size.parse().expect("a pipe's size");
    let listener = UnixListener::bind(socket).expect("a socket");
    for client in listener.incoming() {
        let (near, far) = (Socket::from(client.expect("a client")), connect(to));
        let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
        thread::spawn(move || carry(&near, &far, size));
        thread::spawn(move || carry(&back.0, &back.1, size));
    }
    true
}

fn connect(to: &str) -> Socket {
    match to.split_once("://").expect("a URL") {
        ("unix", path) => UnixStream::connect(path).expect("the server").into(),
        (_, address) => {
            let stream = TcpStream::connect(address).expect("the server");
            stream.set_nodelay(true).unwrap();
            stream.into()
        }
    }
}

fn carry(from: &Socket, to: &Socket, size: usize) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    fcntl_setpipe_size(&write, size).expect("a pipe of this size");
    'all: while let Ok(mut held @ 1..) = splice(from, None, &write, None, size, SpliceFlags::MOVE) {
        while held > 0 {
            let Ok(moved @ 1..) = splice(&read, None, to, None, held, SpliceFlags::MOVE) else { break 'all };
            held -= moved;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
