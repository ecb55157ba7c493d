//! Ways over the system's vsock (vsock(7)), in a machine that has its loopback. Owns: a daemon without a
//! network, its forwards, servers.
//! May not: know what the ends do. Read next: `way.rs`.

use socket2::{SockAddr, Socket};

use super::way::{Way, dial, listen, listen_at, loopback, way};
use testkit::daemon::Daemon;
use testkit::eventually;
use testkit::free_port;
use testkit::streams::{PATIENCE, at};

/// This machine, for itself: `VMADDR_CID_LOCAL`.
const LOCAL: u32 = 1;
/// Any context, and a port that is free: `VMADDR_CID_ANY`, `VMADDR_PORT_ANY`.
const ANY: u32 = u32::MAX;

/// Forwards of the daemon.
const SOURCES: usize = 6;

/// A daemon with a forward from vsock to each kind of socket and to SSH, and to vsock from each.
pub(crate) struct Rig {
    daemon: Daemon,
    ports: [u32; 4],
    tcp: u16,
    servers: [Socket; SOURCES],
    control: (Socket, u32),
    _files: tempfile::TempDir,
}

fn listen_on_vsock() -> (Socket, u32) {
    let socket = listen_at(&SockAddr::vsock(ANY, ANY));
    let (_, port) = socket.local_addr().unwrap().as_vsock_address().unwrap();
    (socket, port)
}

impl Rig {
    /// The machine's sshd lets root in with `key`.
    #[track_caller]
    pub(crate) fn start(binary: &str, key: &str) -> Self {
        let (from_unix, from_tcp, from_vsock) = (listen_on_vsock(), listen_on_vsock(), listen_on_vsock());
        let (to_tcp, at_tcp) = listen();
        let files = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        let ports = [(); 4].map(|()| listen_on_vsock().1);
        let tcp = free_port();
        let to_unix = files.path().join("unix");
        let to_ssh = files.path().join("ssh");
        let [at_unix, at_ssh] = [&to_unix, &to_ssh].map(|path| listen_at(&at(path)));
        let mut words: Vec<String> = Vec::new();
        for (source, dest) in [
            ("{dir}/to-vsock".into(), format!("vsock://{LOCAL}:{}", from_unix.1)),
            (format!("tcp://127.0.0.1:{tcp}"), format!("vsock://{LOCAL}:{}", from_tcp.1)),
            (format!("vsock://:{}", ports[0]), format!("vsock://{LOCAL}:{}", from_vsock.1)),
            (format!("vsock://:{}", ports[1]), format!("unix://{}", to_unix.display())),
            (format!("vsock://:{}", ports[2]), format!("tcp://{at_tcp}")),
            (
                format!("vsock://:{}", ports[3]),
                format!("ssh://root@127.0.0.1:22{}?key={key}&secure=false", to_ssh.display()),
            ),
        ] {
            words.extend(["-forward-sock".into(), source, "-forward-dest".into(), dest]);
        }
        let daemon = Daemon::builder().binary(binary).without_qemu().args(words).spawn();
        let listening = || (daemon.stderr().matches("forward: listening").count() == SOURCES).then_some(());
        eventually("its sockets", PATIENCE, listening);
        Self {
            daemon,
            ports,
            tcp,
            servers: [from_unix.0, from_tcp.0, from_vsock.0, at_unix, to_tcp, at_ssh],
            control: listen_on_vsock(),
            _files: files,
        }
    }

    pub(crate) fn ways(&self) -> Vec<Way<'_>> {
        let vsock = |port: u32| Box::new(dial(SockAddr::vsock(LOCAL, port)));
        let [from_unix, from_tcp, from_vsock, unix, tcp, ssh] =
            self.servers.each_ref().map(|socket| socket.try_clone().unwrap());
        vec![
            way("no proxy: vsock", vsock(self.control.1), self.control.0.try_clone().unwrap()),
            way("unix to vsock", Box::new(dial(at(self.daemon.dir().join("to-vsock")))), from_unix),
            way("tcp to vsock", Box::new(dial(loopback(self.tcp))), from_tcp),
            way("vsock to vsock", vsock(self.ports[0]), from_vsock),
            way("vsock to unix", vsock(self.ports[1]), unix),
            way("vsock to tcp", vsock(self.ports[2]), tcp),
            way("vsock to ssh", vsock(self.ports[3]), ssh).by_ssh(),
        ]
    }
}
