//! Sockets of the guest on the host, over SSH to a real sshd behind the guest's port 22. Reference 5.4 and
//! 5.5.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::case::{Case, Net, On, Table};
use crate::web::{EXPOSE, PATIENCE, SERVED, UNEXPOSE, post};
use testkit::daemon::Daemon;
use testkit::eventually;
use testkit::guest::{Guest, MAC};
use testkit::net::{Host, plug};
use testkit::sshd::Sshd;
use testkit::traffic::lead;
use testkit::uninterrupted;

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("ssh");
    table.same("9.36 a socket of the guest through -forward-sock", "600, hello", |on| {
        let machine = Machine::new();
        let (net, socket) = machine.forwarded(on, "service.sock", "id");
        let mode = socket_mode(&socket);
        let seen = format!("{mode:o}, {}", said(&socket));
        drop(net);
        seen
    });
    table.same("a client that came before the guest is served", "hello", |on| {
        let machine = Machine::new();
        let host = Host::new("nameserver 127.0.0.1\n");
        let daemon = machine.daemon(on, &host, "service.sock", "id");
        let socket = daemon.dir().join("s");
        let early = eventually("the socket", PATIENCE, || UnixStream::connect(&socket).ok());
        let guest = Guest::start(plug(&daemon), MAC, 1500);
        guest.configure("192.168.127.2/24", Some("192.168.127.1"));
        machine.serve(&guest);
        talk(early)
    });
    table.same(
        "a socket that the guest does not have closes its client, and the next is served",
        "\"\", then the daemon runs",
        |on| {
            let machine = Machine::new();
            let (mut net, socket) = machine.forwarded(on, "none.sock", "id");
            format!(
                "{:?}, then the daemon {}",
                said(&socket),
                if net.daemon.is_running() { "runs" } else { "ends" }
            )
        },
    );
    table.same("half-close both ways, and a megabyte", "3 bytes counted; 1048576 bytes", |on| {
        let machine = Machine::new();
        let (_net, socket) = machine.forwarded(on, "service.sock", "id");
        let mut counting = open(&socket);
        counting.write_all(b"Pabc").unwrap();
        counting.shutdown(Shutdown::Write).unwrap();
        let mut count = [0; 8];
        counting.read_exact(&mut count).unwrap();
        let mut getting = open(&socket);
        getting.write_all(b"G").unwrap();
        getting.write_all(&(1_u64 << 20).to_be_bytes()).unwrap();
        let mut bytes = Vec::new();
        getting.read_to_end(&mut bytes).unwrap();
        format!("{} bytes counted; {} bytes", u64::from_be_bytes(count), bytes.len())
    });
    table.same("the guest's sshd ends and comes again", "hello, then \"\", then hello", |on| {
        let mut machine = Machine::new();
        let (_net, socket) = machine.forwarded(on, "service.sock", "id");
        let first = said(&socket);
        let mut open = open(&socket);
        open.write_all(b"Ex").unwrap();
        open.read_exact(&mut [0]).unwrap();
        machine.sshd.stop();
        let mut rest = Vec::new();
        let _ = open.read_to_end(&mut rest);
        machine.runtime.block_on(machine.sshd.start());
        format!("{first}, then {:?}, then {}", String::from_utf8_lossy(&rest), said(&socket))
    });
    table.same(
        "9.38 a socket of the guest exposed with ssh-tunnel, and taken back",
        "200; hello; 200; there false",
        |on| {
            let machine = Machine::new();
            let net = on.net(SERVED);
            machine.serve(&net.guest);
            let local = net.daemon.dir().join("t");
            let body = machine.wish(&local, "id");
            let exposed = post(&net.daemon, EXPOSE, &body);
            let seen = format!("{exposed}; {}; ", said(&local));
            seen + &post(&net.daemon, UNEXPOSE, &body) + &format!("; there {}", local.exists())
        },
    );
    table.same("10.51 an ssh-tunnel's connections end with it", "closed", |on| {
        let machine = Machine::new();
        let net = on.net(SERVED);
        machine.serve(&net.guest);
        let local = net.daemon.dir().join("t");
        let body = machine.wish(&local, "id");
        post(&net.daemon, EXPOSE, &body);
        let mut client = open(&local);
        client.write_all(b"Ex").unwrap();
        client.read_exact(&mut [0]).unwrap();
        post(&net.daemon, UNEXPOSE, &body);
        if matches!(uninterrupted(|| client.read(&mut [0])), Ok(0)) { "closed" } else { "open" }.to_owned()
    });
    table.same("an ssh-tunnel with a key that there is not", "200, \"\"", |on| {
        let machine = Machine::new();
        let net = on.net(SERVED);
        machine.serve(&net.guest);
        let local = net.daemon.dir().join("t");
        let exposed = post(&net.daemon, EXPOSE, &machine.wish(&local, "none"));
        let mut client = open(&local);
        let mut bytes = Vec::new();
        let _ = client.read_to_end(&mut bytes);
        format!("{exposed}, {:?}", String::from_utf8_lossy(&bytes))
    });
    table.done()
}

fn socket_mode(path: &Path) -> u32 {
    eventually("the socket", PATIENCE, || path.metadata().ok()).permissions().mode() & 0o777
}

fn open(path: &Path) -> UnixStream {
    let stream = eventually("the socket", PATIENCE, || UnixStream::connect(path).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What an echo says.
fn said(path: &Path) -> String {
    talk(open(path))
}

fn talk(mut stream: UnixStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(b"Ehello");
    let _ = stream.shutdown(Shutdown::Write);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// An sshd for the guest, on the loopback interface of this machine.
struct Machine {
    runtime: tokio::runtime::Runtime,
    sshd: Sshd,
}

impl Machine {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sshd = runtime.block_on(Sshd::new());
        Self { runtime, sshd }
    }

    /// Leads the guest's port 22 to it.
    fn serve(&self, guest: &Guest) {
        lead(guest.listen("0.0.0.0:22".parse().unwrap()), self.sshd.addr);
    }

    fn daemon(&self, on: &On, host: &Host, dest: &str, identity: &str) -> Daemon {
        let [dest, identity] = [dest, identity].map(|name| self.sshd.path(name).display().to_string());
        let user = self.sshd.user.as_str();
        let flags = [
            "-forward-sock",
            "{dir}/s",
            "-forward-dest",
            &dest,
            "-forward-user",
            user,
            "-forward-identity",
            &identity,
        ];
        on.daemon().args(SERVED).args(flags).through(host.prefix()).start()
    }

    /// A guest whose socket `dest` is the daemon's socket, which is the second value.
    fn forwarded(&self, on: &On, dest: &str, identity: &str) -> (Net, std::path::PathBuf) {
        let host = Host::new("nameserver 127.0.0.1\n");
        let daemon = self.daemon(on, &host, dest, identity);
        let guest = Guest::start(plug(&daemon), MAC, 1500);
        guest.configure("192.168.127.2/24", Some("192.168.127.1"));
        self.serve(&guest);
        let socket = daemon.dir().join("s");
        (Net { guest, daemon, host }, socket)
    }

    fn wish(&self, local: &Path, key: &str) -> String {
        format!(
            r#"{{"local":"{}","remote":"ssh-tunnel://{}@192.168.127.2{}?key={}","protocol":"unix"}}"#,
            local.display(),
            self.sshd.user,
            self.sshd.path("service.sock").display(),
            self.sshd.path(key).display()
        )
    }
}
