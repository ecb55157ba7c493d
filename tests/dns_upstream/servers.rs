//! Resolvers on loopback: unbound with a zone of its own, and ones that misbehave.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use netstack::dns::Transport;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

/// A running unbound; ends with the value.
pub(crate) struct Unbound {
    child: Child,
    dir: TempDir,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) port: u16,
}

impl Unbound {
    /// On a free port of all the addresses; `which.test.` is 10.9.8.1.
    pub(crate) fn start(addresses: &[Ipv4Addr]) -> Self {
        // Between the search for a port and unbound's start another may take it.
        let mut tried = Vec::new();
        for _ in 0..5 {
            let port = free_port(addresses);
            match Self::try_start(addresses.iter().map(|address| (*address, port).into()).collect(), 1) {
                Ok(unbound) => return unbound,
                Err(log) => tried.push(log),
            }
        }
        panic!("unbound does not start: {tried:#?}");
    }

    /// On this address; `which.test.` is 10.9.8.`which`.
    pub(crate) fn start_on(address: SocketAddr, which: u8) -> Self {
        Self::try_start(vec![address], which).unwrap_or_else(|log| panic!("unbound does not start: {log}"))
    }

    fn try_start(addresses: Vec<SocketAddr>, which: u8) -> Result<Self, String> {
        let dir = TempDir::new().unwrap();
        let conf = dir.path().join("unbound.conf");
        let log = dir.path().join("log");
        let mut file = std::fs::File::create(&conf).unwrap();
        let interfaces: String =
            addresses.iter().map(|a| format!("  interface: {}@{}\n", a.ip(), a.port())).collect();
        let data: String = zone(which).iter().map(|record| format!("  local-data: '{record}'\n")).collect();
        write!(
            file,
            "server:\n{interfaces}{data}  \
             do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  \
             directory: \"{}\"\n  module-config: iterator\n  num-threads: 1\n  rrset-roundrobin: no\n  \
             access-control: 127.0.0.0/8 allow\n  local-zone: test. static\n  local-zone: example. always_refuse\n  \
             local-zone: 8.9.10.in-addr.arpa. static\nremote-control:\n  control-enable: no\n",
            dir.path().display(),
        )
        .unwrap();
        let child = Command::new("unbound")
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .args(["-d", "-c"])
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(std::fs::File::options().append(true).open(&log).unwrap())
            .spawn()
            .expect("unbound is needed: apt-get install unbound");
        let port = addresses[0].port();
        let mut unbound = Self { child, dir, addresses, port };
        let start = Instant::now();
        loop {
            if unbound.answers() {
                return Ok(unbound);
            }
            if unbound.child.try_wait().unwrap().is_some() || start.elapsed() > Duration::from_secs(10) {
                return Err(std::fs::read_to_string(unbound.dir.path().join("log")).unwrap());
            }
        }
    }

    fn answers(&self) -> bool {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect(self.addresses[0]).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // `test. NS`
        let _ = socket.send(b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x04test\0\0\x02\0\x01");
        let up = socket.recv(&mut [0; 512]).is_ok();
        if !up {
            std::thread::sleep(Duration::from_millis(5));
        }
        up
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn zone(which: u8) -> Vec<String> {
    let txt = |n: usize| format!("\"{}\"", char::from(b'a' + (n % 26) as u8).to_string().repeat(250));
    let mut records: Vec<String> = [
        "test. 3600 SOA ns.test. admin.test. 1 3600 600 86400 300",
        "test. 3600 NS ns.test.",
        "test. 1800 MX 20 mx2.test.",
        "test. 1800 MX 10 mx1.test.",
        "test. 60 CAA 0 issue \"ca.example\"",
        "test. 60 HTTPS 1 . alpn=h2,h3 ipv4hint=10.9.8.1",
        "a.test. 77 A 10.9.8.1",
        "a.test. 78 AAAA fd00::9",
        "a.test. 78 TLSA 3 1 1 0000000000000000000000000000000000000000000000000000000000000001",
        "alias.test. 79 CNAME a.test.",
        "_http._tcp.test. 80 SRV 1 2 8080 a.test.",
        "_http._tcp.test. 80 SRV 2 0 8081 a.test.",
        "private.test. 81 TYPE65280 \\# 4 01020304",
        "1.8.9.10.in-addr.arpa. 82 PTR a.test.",
    ]
    .map(String::from)
    .into();
    records.push(format!("which.test. 0 A 10.9.8.{which}"));
    records.push(format!("long.test. 83 TXT {} {}", txt(0), txt(1)));
    records.push(format!("huge.test. 84 TXT {}", (0..40).map(txt).collect::<Vec<_>>().join(" ")));
    records.extend((1..=40).map(|n| format!("forty.test. 85 A 10.9.7.{n}")));
    records
}

/// A port that is free at all the addresses over both transports.
fn free_port(addresses: &[Ipv4Addr]) -> u16 {
    for _ in 0..100 {
        let first = std::net::UdpSocket::bind((addresses[0], 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        let others = addresses[1..].iter().all(|address| std::net::UdpSocket::bind((*address, port)).is_ok());
        let tcp = addresses.iter().all(|address| std::net::TcpListener::bind((*address, port)).is_ok());
        if others && tcp {
            return port;
        }
    }
    panic!("no port is free at {addresses:?}");
}

/// The same free port at each.
pub(crate) fn addresses<const N: usize>(addresses: [Ipv4Addr; N]) -> [SocketAddr; N] {
    let port = free_port(&addresses);
    addresses.map(|address| (address, port).into())
}

/// A server in this process; ends with the value.
pub(crate) struct Server(JoinHandle<()>);

impl Server {
    /// Ends it, and waits until its port is free.
    pub(crate) async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends what `answer` makes of each query.
pub(crate) fn serve_udp(
    address: SocketAddr,
    answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
) -> Server {
    serve_udp_from(address, move |query, _| answer(query))
}

/// The same, with the client's address.
pub(crate) fn serve_udp_from(
    address: SocketAddr,
    answer: impl Fn(&[u8], SocketAddr) -> Vec<Vec<u8>> + Send + 'static,
) -> Server {
    let socket = std::net::UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = UdpSocket::from_std(socket).unwrap();
    Server(tokio::spawn(async move {
        let mut query = vec![0; 4096];
        loop {
            let (len, client) = socket.recv_from(&mut query).await.unwrap();
            for message in answer(&query[..len], client) {
                socket.send_to(&message, client).await.unwrap();
            }
        }
    }))
}

/// Sends what `answer` makes of each query, each message after its time.
pub(crate) fn serve_slowly(
    address: SocketAddr,
    mut answer: impl FnMut(&[u8]) -> Vec<(Duration, Vec<u8>)> + Send + 'static,
) -> Server {
    let socket = std::net::UdpSocket::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = std::sync::Arc::new(UdpSocket::from_std(socket).unwrap());
    Server(tokio::spawn(async move {
        let mut query = vec![0; 4096];
        loop {
            let (len, client) = socket.recv_from(&mut query).await.unwrap();
            for (after, message) in answer(&query[..len]) {
                let socket = std::sync::Arc::clone(&socket);
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    let _ = socket.send_to(&message, client).await;
                });
            }
        }
    }))
}

/// A server that knows 10.9.8.`which` for every name.
pub(crate) fn answering(address: SocketAddr, which: u8) -> Server {
    serve_udp(address, move |query| vec![give(query, which)])
}

/// What is wrong with a server's TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Closes,
    Resets,
    Silent,
    /// It closes within the answer.
    Partial,
    /// Connections wait for ever.
    NeverAccepts,
}

/// A server that takes connections, or not even these, and answers none.
pub(crate) fn serve_broken_tcp(address: SocketAddr, broken: Broken) -> Server {
    let listener = listen(address, if broken == Broken::NeverAccepts { 0 } else { 16 });
    Server(tokio::spawn(async move {
        // One connection fits the backlog of 0; with two in it the next one's SYN is dropped.
        let mut held = Vec::new();
        while broken == Broken::NeverAccepts && held.len() < 2 {
            held.push(tokio::spawn(TcpStream::connect(address)));
        }
        if broken == Broken::NeverAccepts {
            std::future::pending::<()>().await;
        }
        let mut silent = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut query = vec![0; 512];
            match broken {
                Broken::Closes => {}
                Broken::Resets => stream.set_zero_linger().unwrap(),
                Broken::Partial => {
                    let _ = stream.read(&mut query).await;
                    let _ = stream.write_all(&[0, 99, 1, 2, 3]).await;
                }
                Broken::Silent | Broken::NeverAccepts => silent.push(stream),
            }
        }
    }))
}

/// Closes the first connection, and joins the others to `to`.
pub(crate) fn relay_second_connection(address: SocketAddr, to: SocketAddr) -> Server {
    let listener = listen(address, 16);
    Server(tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    }))
}

fn listen(address: SocketAddr, backlog: u32) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket.listen(backlog).unwrap()
}

/// A server that takes questions and answers none.
pub(crate) fn silent(address: SocketAddr) -> Server {
    serve_udp(address, |_| vec![])
}

/// The response to `query` with this code and no records.
pub(crate) fn refuse(query: &[u8], rcode: u8) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80;
    message[3] = 0x80 | rcode;
    message
}

/// The response to `query` with the address 10.9.8.`which`.
pub(crate) fn give(query: &[u8], which: u8) -> Vec<u8> {
    // Behind the header, the name and four bytes of type and class; what the client says besides is left out.
    let end = 12 + query[12..].iter().position(|&byte| byte == 0).unwrap() + 5;
    let mut message = refuse(&query[..end], 0);
    message[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 8, which]);
    message
}

/// The response to `query` with all records left out (TC).
pub(crate) fn cut(query: &[u8]) -> Vec<u8> {
    let mut message = refuse(query, 0);
    message[2] |= 2;
    message
}

/// Asks the server itself.
pub(crate) async fn ask_directly(server: SocketAddr, query: &[u8], transport: Transport) -> Vec<u8> {
    let asking = async {
        if transport == Transport::Udp {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
            socket.connect(server).await.unwrap();
            socket.send(query).await.unwrap();
            let mut answer = Vec::with_capacity(65_536);
            socket.recv_buf(&mut answer).await.unwrap();
            return answer;
        }
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_u16(query.len() as u16).await.unwrap();
        stream.write_all(query).await.unwrap();
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    };
    tokio::time::timeout(Duration::from_secs(10), asking).await.expect("the resolver answers")
}
