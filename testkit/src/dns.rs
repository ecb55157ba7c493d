//! Questions as bytes, and a real DNS server that answers them. Owns: the server's process.
//! Read next: `tests/tap_dns.rs`.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::ns::Namespace;
use crate::udp::UdpSocket;
use crate::{eventually, tool, traffic::impatient};

/// What the server knows, all of it under `test.`; `big.test.` does not fit a datagram.
const ZONE: &[&str] = &[
    "a.test. 301 A 192.0.2.1",
    "many.test. 302 A 192.0.2.2",
    "many.test. 302 A 192.0.2.3",
    "aaaa.test. 303 AAAA 2001:db8::1",
    "both.test. 304 A 192.0.2.4",
    "both.test. 304 AAAA 2001:db8::4",
    "mx.test. 305 MX 10 a.test.",
    "mx.test. 305 MX 20 b.test.",
    r#"txt.test. 306 TXT "one" "two""#,
    "_http._tcp.test. 307 SRV 1 2 8080 a.test.",
    "alias.test. 308 CNAME a.test.",
    r#"caa.test. 309 CAA 0 issue "ca.example""#,
    "test. 310 NS a.test.",
    "test. 311 SOA a.test. root.test. 1 2 3 4 5",
    "1.2.0.192.in-addr.arpa. 312 PTR a.test.",
];

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const MX: u16 = 15;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;
pub const HTTPS: u16 = 65;
pub const CAA: u16 = 257;

pub const NOERROR: u8 = 0;
pub const FORMERR: u8 = 1;
pub const SERVFAIL: u8 = 2;
pub const NXDOMAIN: u8 = 3;

/// A DNS server in a namespace.
#[derive(Debug)]
pub struct Server {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Server {
    /// A server on `address`:53 that has answered its first question.
    #[track_caller]
    pub fn start(ns: &Namespace, address: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut text = format!(
            "server:\n interface: {address}\n do-daemonize: no\n username: ''\n chroot: ''\n directory: '{0}'\n \
             pidfile: ''\n use-syslog: no\n access-control: 0.0.0.0/0 allow\n rrset-roundrobin: no\n \
             module-config: 'iterator'\n do-not-query-localhost: no\n local-zone: '.' refuse\n \
             local-zone: 'test.' static\n local-zone: '192.in-addr.arpa.' static\nremote-control:\n control-enable: no\n",
            dir.path().display()
        );
        let big = (0..60).map(|n| format!("big.test. 400 TXT \"record {n} {}\"", "x".repeat(40)));
        let records = ZONE.iter().map(|&record| record.to_owned()).chain(big);
        let lines: String = records.map(|record| format!(" local-data: '{record}'\n")).collect();
        text = text.replacen("remote-control:", &format!("{lines}remote-control:"), 1);
        let conf = dir.path().join("unbound.conf");
        std::fs::write(&conf, text).unwrap();
        let mut command: Command = ns.command(tool("unbound", "unbound"));
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child =
            command.arg("-d").arg("-c").arg(&conf).stdin(Stdio::null()).stderr(log).spawn().expect("unbound");
        let server = Self { child, _dir: dir };
        let address = SocketAddr::new(address.parse().unwrap(), 53);
        let socket = ns.udp("0.0.0.0:0".parse().unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        eventually("an answer from unbound", Duration::from_secs(10), || {
            socket.send_to(&question("a.test", A, None), address).ok()?;
            socket.recv(&mut [0; 512]).ok()
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that does what a test says: answers each question after a time, or not at all.
#[derive(Debug)]
pub struct Scripted {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    /// A server on `address`:53.
    #[track_caller]
    pub fn start(
        ns: &Namespace,
        address: &str,
        mut answer: impl FnMut(&[u8]) -> Option<(Duration, Vec<u8>)> + Send + 'static,
    ) -> Self {
        let socket = ns.udp(SocketAddr::new(address.parse().unwrap(), 53));
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        // A burst is not lost before it is read; without the right to that, the system's default has to do.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, 4 << 20);
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut waiting: Vec<(Instant, Vec<u8>, SocketAddr)> = Vec::new();
            let mut question = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                if let Ok((length, client)) = socket.recv_from(&mut question)
                    && let Some((after, message)) = answer(&question[..length])
                {
                    waiting.push((Instant::now() + after, message, client));
                }
                let now = Instant::now();
                for (_, message, client) in waiting.extract_if(.., |(at, ..)| *at <= now) {
                    let _ = socket.send_to(&message, client);
                }
            }
        });
        Self { ended, thread: Some(thread) }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The answer to `question` with this code and no record, or with an address.
pub fn answer(question: &[u8], code: u8, address: Option<[u8; 4]>) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
    let mut message = question[..end].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80 | code]);
    message[6..12].copy_from_slice(&[0, u8::from(address.is_some()), 0, 0, 0, 0]);
    if let Some(address) = address {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        message.extend(address);
    }
    message
}

/// Whether the first label of the name in `question` begins with `start`.
pub fn is_about(question: &[u8], start: &str) -> bool {
    question.get(13..).is_some_and(|name| name.starts_with(start.as_bytes()))
}

/// A recursive question; with `edns` as the largest datagram that the client takes.
pub fn question(name: &str, record: u16, edns: Option<u16>) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(record.to_be_bytes());
    message.extend([0, 1]);
    if let Some(size) = edns {
        message.extend([0, 0, 41]);
        message.extend(size.to_be_bytes());
        message.extend([0; 6]);
    }
    message
}

/// An answer's response code.
pub fn code(answer: &[u8]) -> u8 {
    answer[3] & 15
}

/// Whether an answer was cut short.
pub fn is_truncated(answer: &[u8]) -> bool {
    answer[2] & 2 != 0
}

/// How many records an answer holds in its answer section.
pub fn count(answer: &[u8]) -> u16 {
    u16::from_be_bytes([answer[6], answer[7]])
}

/// The answer to `question` over UDP, if there is one in time.
pub fn try_ask_udp(
    socket: &UdpSocket,
    to: SocketAddr,
    question: &[u8],
    patience: Duration,
) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(question, to).unwrap();
    let mut answer = vec![0; 65536];
    match socket.recv(&mut answer) {
        Ok(length) => answer.truncate(length),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
        Err(error) => panic!("asking {to}: {error}"),
    }
    Some(answer)
}

/// The answer to `question` over UDP.
#[track_caller]
pub fn ask_udp(ns: &Namespace, to: SocketAddr, question: &[u8]) -> Vec<u8> {
    let socket = ns.udp("0.0.0.0:0".parse().unwrap());
    try_ask_udp(&socket, to, question, Duration::from_secs(20)).expect("an answer over UDP")
}

/// The answers to `questions` over one TCP connection, all sent before the first is read.
#[track_caller]
pub fn ask_tcp(ns: &Namespace, to: SocketAddr, questions: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut stream = impatient(ns.connect(to).expect("a connection to the DNS server"));
    let framed =
        |message: &Vec<u8>| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
    stream.write_all(&questions.iter().flat_map(framed).collect::<Vec<u8>>()).unwrap();
    let mut answers: Vec<Vec<u8>> = Vec::new();
    for _ in questions {
        let mut length = [0; 2];
        stream.read_exact(&mut length).expect("an answer over TCP");
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).unwrap();
        answers.push(answer);
    }
    answers
}
