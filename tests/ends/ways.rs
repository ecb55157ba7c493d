//! What may be between two ends: every way through the daemon, and nothing. Owns: the daemon, its guest, an
//! sshd, the agent, sockets.
//! May not: know what the ends do. Read next: `way.rs`.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::Command;

use socket2::{SockAddr, Socket};

use super::scenes::Needs;
use super::way::{Connect, Way, connect, dial, listen, listen_at, loopback, shrink, way};
use testkit::daemon::{Daemon, binary};
use testkit::eventually;
use testkit::exposed::GUEST;
use testkit::free_port;
use testkit::guest::{self, Guest};
use testkit::guest_agent::Agent;
use testkit::http::{Answer, read_to_end};
use testkit::net::{HOST, plug};
use testkit::reversed::{Files, Login, MADE};
use testkit::streams::{PATIENCE, at};
use testkit::traffic::lead;

/// As a VMM does for vsock at a unix socket.
fn greet_as_vmm(mut socket: &Socket) {
    let mut byte = [0];
    while socket.read_exact(&mut byte).is_ok() && byte != *b"\n" {}
    socket.write_all(b"OK 1073741824\n").unwrap();
}

/// Ports of the guest.
const EXPOSED: u16 = 5001;
const FROM_UNIX: u16 = 5002;
const FROM_TCP: u16 = 5003;
const TUNNEL: u16 = 5004;

/// What clients connect to, with a daemon behind and no guest yet.
pub(crate) struct Doors {
    daemon: Daemon,
    login: Login,
    files: Files,
    /// Ports of the host that forwards listen at.
    ports: [u16; 4],
    /// Whether the daemon has more ways than the original.
    own: bool,
    servers: HashMap<&'static str, Socket>,
}

/// Everything that runs. Who asks goes before who is asked.
pub(crate) struct Rig {
    _agent: Option<Agent>,
    guest: Guest,
    /// A second one, by `/connect` of the API, and its address.
    other: (Guest, Ipv4Addr),
    exposed: u16,
    doors: Doors,
}

impl Doors {
    #[track_caller]
    pub(crate) fn open() -> Self {
        let (files, login) = (Files::new(), Login::new(""));
        let ports: [u16; 4] = std::array::from_fn(|_| free_port());
        let (relayed, at_relayed) = listen();
        let own = is_own();
        let names =
            ["ssh", "ssh-tcp", "agent", "agent-tcp", "unix", "unix-tcp", "vmm", "host-agent", "host-ssh"];
        let servers = names.map(|name| (name, listen_at(&at(files.path(name)))));
        let servers = servers.into_iter().chain([("relayed", relayed)]).collect();
        let args = words(&files, &login, ports, at_relayed, own);
        let daemon = Daemon::builder().args(["-listen", "unix://{dir}/api.sock"]).args(args).start();
        Self { daemon, login, files, ports, own, servers }
    }

    /// A forward's socket.
    fn unix(&self, name: &str) -> Connect<'static> {
        Box::new(dial(at(self.files.path(name))))
    }

    fn tcp(&self, number: usize) -> Connect<'static> {
        Box::new(dial(loopback(self.ports[number])))
    }

    /// The forwards that wait for a guest.
    pub(crate) fn patient(&self) -> Vec<(&'static str, Connect<'static>)> {
        let mut doors = vec![("unix to ssh", self.unix("to-ssh"))];
        if self.own {
            doors.extend([
                ("tcp to ssh", self.tcp(0)),
                ("unix to guest", self.unix("to-guest")),
                ("tcp to guest", self.tcp(1)),
                ("unix to agent", self.unix("to-agent")),
                ("tcp to agent", self.tcp(2)),
            ]);
        }
        doors
    }

    /// The guest comes.
    #[track_caller]
    pub(crate) fn plug(mut self) -> Rig {
        let guest = Guest::start(plug(&self.daemon), guest::MAC, 1500);
        assert_eq!(guest.dhcp().ip(), GUEST);
        let mut link = UnixStream::connect(self.daemon.dir().join("api.sock")).unwrap();
        link.write_all(b"POST /connect HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        // COMPAT(gvproxy): the original loses what comes before it has taken the connection over, and DHCP
        // asks again.
        let other = Guest::start(link, "5a:94:ef:e4:0c:ef", 1500);
        let at_other = other.dhcp().ip();
        for (guest, name, port) in [
            (&guest, "exposed", EXPOSED),
            (&guest, "from unix", FROM_UNIX),
            (&guest, "from tcp", FROM_TCP),
            (&guest, "tunnel", TUNNEL),
            (&other, "other", TUNNEL),
        ] {
            let socket = guest.tcp();
            shrink(&socket);
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
            socket.listen(4096).unwrap();
            self.servers.insert(name, socket);
        }
        lead(guest.listen("0.0.0.0:22".parse().unwrap()), self.login.sshd.addr);
        let [allowed, also, offered] =
            &["agent", "agent-tcp", "reversed"].map(|name| self.files.path(name).display().to_string());
        let agent = self.own.then(|| {
            Agent::start(&guest, &["-agent-allow", allowed, "-agent-allow", also, "-agent-offer", offered])
        });
        let exposed = free_port();
        let wish =
            format!(r#"{{"local":"127.0.0.1:{exposed}","remote":"{GUEST}:{EXPOSED}","protocol":"tcp"}}"#);
        let mut asked = dial(self.api())().unwrap();
        write!(
            asked,
            "POST /services/forwarder/expose HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{wish}",
            wish.len()
        )
        .unwrap();
        let answer = Answer::of(&read_to_end(asked));
        assert_eq!(answer.status, 200, "{answer:?}");
        if self.own {
            eventually("sockets in the guest", PATIENCE, || {
                (self.daemon.stderr().matches(MADE).count() == 2).then_some(())
            });
        }
        Rig { _agent: agent, guest, other: (other, at_other), exposed, doors: self }
    }

    fn api(&self) -> SockAddr {
        at(self.daemon.dir().join("api.sock"))
    }
}

/// The daemon's arguments.
fn words(files: &Files, login: &Login, ports: [u16; 4], relayed: SocketAddr, own: bool) -> Vec<String> {
    let path = |name: &str| files.path(name).display().to_string();
    let tcp = |number: usize| format!("tcp://127.0.0.1:{}", ports[number]);
    let mut forwards = vec![(path("to-ssh"), path("ssh"))];
    let mut words = Vec::new();
    if own {
        forwards.extend([
            (tcp(0), path("ssh-tcp")),
            (path("to-guest"), format!("tcp://{GUEST}:{FROM_UNIX}")),
            (tcp(1), format!("tcp://{GUEST}:{FROM_TCP}")),
            (path("to-agent"), format!("agent://{}", path("agent"))),
            (tcp(2), format!("agent://{}", path("agent-tcp"))),
            (path("to-unix"), format!("unix://{}", path("unix"))),
            (tcp(3), format!("unix://{}", path("unix-tcp"))),
            (path("to-tcp"), format!("tcp://{relayed}")),
            (path("to-vmm"), format!("unix://{}?port=7", path("vmm"))),
        ]);
        let reverses = [
            (path("reversed-ssh"), path("host-ssh")),
            (format!("agent://{}", path("reversed")), path("host-agent")),
        ];
        for (socket, dest) in reverses {
            words.extend(["-reverse-sock".into(), socket, "-reverse-dest".into(), dest]);
        }
    }
    for (source, dest) in forwards {
        words.extend(["-forward-sock".into(), source, "-forward-dest".into(), dest]);
    }
    let key = login.sshd.path("id").display().to_string();
    for _ in 0..if own { 2 } else { 1 } {
        words.extend(["-forward-user".into(), login.sshd.user.clone()]);
        words.extend(["-forward-identity".into(), key.clone()]);
    }
    words
}

impl Rig {
    /// Stops taking frames from the daemon, or goes on with it.
    pub(crate) fn hold(&self, hold: bool) {
        self.guest.hold(hold);
    }

    /// Every way that the daemon under test has.
    pub(crate) fn ways(&self) -> Vec<Way<'_>> {
        let doors = &self.doors;
        let server = |name: &str| doors.servers[name].try_clone().unwrap();
        let (other, at_other) = &self.other;
        let from = |guest: &'_ Guest, to: SocketAddr| {
            let socket = guest.tcp();
            shrink(&socket);
            connect(&socket, &SocketAddr::from((HOST, to.port())).into())?;
            Ok(socket)
        };
        let tunnel = move |to: Ipv4Addr| {
            let mut socket = dial(doors.api())()?;
            write!(socket, "POST /tunnel?ip={to}&port={TUNNEL} HTTP/1.1\r\nHost: x\r\n\r\n")?;
            socket.read_exact(&mut [0; 2])?;
            Ok(socket)
        };
        let ((to_host, address), (by_other, for_other)) = (listen(), listen());
        let exposed = Box::new(dial(loopback(self.exposed)));
        let mut ways = vec![
            way("guest to host", Box::new(move || from(&self.guest, address)), to_host),
            way("/connect out", Box::new(move || from(other, for_other)), by_other),
            way("/connect in", Box::new(move || tunnel(*at_other)), server("other")).dialled(),
            way("exposed port", exposed, server("exposed")).dialled(),
            way("/tunnel", Box::new(move || tunnel(GUEST)), server("tunnel")).dialled(),
            way("unix to ssh", doors.unix("to-ssh"), server("ssh")).by_ssh(),
        ];
        if !doors.own {
            return ways;
        }
        let vmm = way("unix to VMM", doors.unix("to-vmm"), server("vmm"));
        ways.extend([
            way("tcp to ssh", doors.tcp(0), server("ssh-tcp")).by_ssh(),
            way("unix to guest", doors.unix("to-guest"), server("from unix")).dialled(),
            way("tcp to guest", doors.tcp(1), server("from tcp")).dialled(),
            way("unix to agent", doors.unix("to-agent"), server("agent")).dialled(),
            way("tcp to agent", doors.tcp(2), server("agent-tcp")).dialled(),
            way("unix to unix", doors.unix("to-unix"), server("unix")),
            way("tcp to unix", doors.tcp(3), server("unix-tcp")),
            way("unix to tcp", doors.unix("to-tcp"), server("relayed")),
            vmm.greeted(greet_as_vmm)
                .lacking(&[(Needs::ClientHalf, "a VMM takes the end of a half for that of both")]),
            way("guest by agent", doors.unix("reversed"), server("host-agent")),
            way("guest by ssh", doors.unix("reversed-ssh"), server("host-ssh")).lacking(&[(
                Needs::ClientEnd,
                "a channel's end is behind what was sent before (RFC 4254 5.3)",
            )]),
        ]);
        ways
    }
}

/// Nothing between the two.
pub(crate) fn controls(files: &Files) -> [Way<'static>; 2] {
    let (tcp, address) = listen();
    let unix = at(files.path("control"));
    let listener = listen_at(&unix);
    [
        way("no proxy: tcp", Box::new(dial(address)), tcp),
        way("no proxy: unix", Box::new(dial(unix)), listener),
    ]
}

/// Whether the daemon under test has more ways than the original.
fn is_own() -> bool {
    let help = Command::new(binary()).arg("-help").output().expect("the daemon's help");
    [help.stdout, help.stderr].iter().any(|text| String::from_utf8_lossy(text).contains("-reverse-sock"))
}
