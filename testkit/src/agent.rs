//! A process inside a namespace that opens descriptors there and hands them out, so that a test holds sockets
//! of another network in plain `std` types. Owns: the messages between the two. May not: do anything else;
//! what a namespace needs beside descriptors is a command run through `nsenter`. Read next: `ns.rs`, its
//! other end.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cable::Cable;

/// Set in the process that is to be the agent: the same executable, run again inside the namespace.
pub const ROLE: &str = "GVPROXY_TEST_AGENT";
/// Arguments that lead libtest to what [`agent_in_a_namespace!`](crate::agent_in_a_namespace) defines, and to
/// nothing else.
pub const ARGS: [&str; 3] = ["--exact", "agent_in_a_namespace", "--nocapture"];

/// Most descriptors of one answer.
const MOST: usize = 100;

/// Asks the agent at the other end of `channel` for descriptors.
pub fn ask(channel: &OwnedFd, request: &str) -> io::Result<Vec<OwnedFd>> {
    sendmsg(
        channel,
        &[IoSlice::new(request.as_bytes())],
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    )?;
    let mut text = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let read =
        recvmsg(channel, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut [0; 8])],
        &mut RecvAncillaryBuffer::default(),
        RecvFlags::empty(),
    )?;
    let answer = match &text[..read] {
        b"here" => "the descriptor found no place: raise the hard limit of open files".into(),
        answer => String::from_utf8_lossy(answer),
    };
    if fds.is_empty() { Err(io::Error::other(format!("{request}: {answer}"))) } else { Ok(fds) }
}

/// Serves on descriptor 0 until the test goes away, if this process was started as an agent.
pub fn serve_if_asked() -> bool {
    if std::env::var_os(ROLE).is_none() {
        return false;
    }
    while let Some(request) = receive() {
        match open(&request) {
            Ok(fds) => {
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&fds));
                answer("here", &mut control);
            }
            Err(error) => answer(&error.to_string(), &mut SendAncillaryBuffer::default()),
        }
        // Nothing is held here any more: what the test closes from now on is closed.
        answer("done", &mut SendAncillaryBuffer::default());
    }
    true
}

fn receive() -> Option<String> {
    let mut text = [0; 256];
    let mut control = RecvAncillaryBuffer::default();
    let read =
        recvmsg(rustix::stdio::stdin(), &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::empty());
    let read = read.ok()?.bytes;
    (read > 0).then(|| String::from_utf8_lossy(&text[..read]).into_owned())
}

fn answer(text: &str, control: &mut SendAncillaryBuffer<'_, '_, '_>) {
    // The test has gone if this fails, and then the next receive says so.
    let _ = sendmsg(rustix::stdio::stdin(), &[IoSlice::new(text.as_bytes())], control, SendFlags::NOSIGNAL);
}

fn open(request: &str) -> io::Result<Vec<OwnedFd>> {
    let socket = |kind, protocol| Ok(Socket::new(Domain::IPV4, kind, protocol)?.into());
    let fd = match request.split_once(' ').unwrap_or((request, "")) {
        ("tcp", _) => socket(Type::STREAM, None),
        ("tcps", _) => return (0..MOST).map(|_| socket(Type::STREAM, None)).collect(),
        ("udp", _) => socket(Type::DGRAM, None),
        ("tcp6", _) => Ok(Socket::new(Domain::IPV6, Type::STREAM, None)?.into()),
        ("udp6", _) => Ok(Socket::new(Domain::IPV6, Type::DGRAM, None)?.into()),
        ("ping", _) => socket(Type::DGRAM, Some(Protocol::ICMPV4)),
        ("tap", name) => tap(name),
        // The device of a FUSE file system, mounted where it says.
        ("fuse", at) => crate::fuse::mount(at),
        // The datagram socket of another process: its own name, and whom it greets.
        ("vfkit", names) => {
            let (own, daemon) = names.split_once(' ').unwrap_or_default();
            crate::cable::datagrams(daemon.as_ref(), own.as_ref(), true).map(Cable::into_socket)
        }
        // The network namespace itself.
        ("netns", _) => Ok(File::open("/proc/self/ns/net")?.into()),
        _ => Err(io::Error::other("not a thing that an agent opens")),
    };
    Ok(vec![fd?])
}

fn tap(name: &str) -> io::Result<OwnedFd> {
    let device =
        tun_rs::DeviceBuilder::new().name(name).layer(tun_rs::Layer::L2).enable(false).build_sync()?;
    device.set_nonblocking(true)?;
    device.as_fd().try_clone_to_owned()
}

/// The agent, in its own process. In a test run it checks that one can be had.
pub fn run_or_check() {
    if serve_if_asked() {
        return;
    }
    let ns = crate::ns::Namespace::new();
    let listener = ns.listen("127.0.0.1:0".parse().unwrap());
    let address = listener.local_addr().unwrap();
    // Outside, somebody else may have the port.
    let _elsewhere = std::net::TcpStream::connect(address);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a socket of the namespace is reachable from outside it");
    ns.connect(address).expect("a socket of the namespace is reachable inside it");
    assert!(ns.open("nonsense").is_err());
}

/// What each test file that uses a [`Namespace`](crate::ns::Namespace) needs: its executable is also the
/// agent.
#[macro_export]
macro_rules! agent_in_a_namespace {
    () => {
        #[test]
        fn agent_in_a_namespace() {
            $crate::agent::run_or_check();
        }
    };
}
