//! Where a forward may listen: unix sockets with a mode and an owner, abstract ones, TCP, and what systemd
//! passes. The other end is a unix socket of the host with an echo behind it, and there is no virtual
//! network.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::process::{Signal, getegid, geteuid};
use socket2::{SockAddr, Socket};
use testkit::daemon::{Builder, Daemon};
use testkit::streams::{PATIENCE, Server, assert_closed, assert_echo, at, connect};
use testkit::{eventually, free_port, tool};

testkit::agent_in_a_namespace!();

/// An echo on the host, behind every forward of a test.
struct Echo {
    _server: Server,
    dir: tempfile::TempDir,
}

impl Echo {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        Self { _server: Server::echo(dir.path().join("echo")), dir }
    }

    /// A path in its directory.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A daemon that leads here from each of `sources`, in which `@/` is the directory.
    fn daemon<S: AsRef<str>>(&self, sources: &[S]) -> Builder {
        let dest = format!("unix://{}", self.path("echo").display());
        let dir = format!("{}/", self.dir.path().display());
        let words = sources.iter().flat_map(|source| {
            let source = source.as_ref().replace("@/", &dir);
            ["-forward-sock".to_owned(), source, "-forward-dest".to_owned(), dest.clone()]
        });
        Daemon::builder().without_qemu().args(words)
    }
}

/// Through to the echo, once the daemon is there.
#[track_caller]
fn assert_served(daemon: &mut Daemon, address: &SockAddr) {
    let socket = eventually("a place to connect to", PATIENCE, || {
        assert!(daemon.is_running(), "the daemon has ended: {}", daemon.stderr());
        connect(address).ok()
    });
    assert_echo(&socket, b"hello");
}

/// It ends at start, and says why.
#[track_caller]
fn assert_refused(builder: Builder, why: &str) {
    let mut daemon = builder.spawn();
    let status = daemon.wait(PATIENCE).expect("a daemon that ends");
    let log = daemon.stderr();
    assert!(status.code() == Some(1) && log.contains(why), "{status}, want {why:?}: {log}");
}

fn abstract_address(name: &str) -> SockAddr {
    SockAddr::unix(format!("\0{name}")).unwrap()
}

#[test]
fn a_unix_socket_has_the_mode_owner_and_group_that_were_asked() {
    let echo = Echo::start();
    let own = (geteuid().as_raw(), getegid().as_raw());
    // Another's is root's to give.
    let (owner, group) = if geteuid().is_root() { (65534, 65533) } else { own };
    let sources = [
        "@/plain".to_owned(),
        "unix://@/same".to_owned(),
        "unix://@/mode?mode=0666".to_owned(),
        format!("unix://@/all?group={group}&mode=660&owner={owner}"),
        format!(
            "unix://@/named?owner={}",
            if geteuid().is_root() { "nobody".into() } else { own.0.to_string() }
        ),
    ];
    // The mode is the one that was asked for, whatever the umask.
    let umask = ["sh", "-c", "umask 0177; exec \"$@\"", "sh"];
    let mut daemon = echo.daemon(&sources).through(umask).spawn();
    for (name, mode, ids) in [
        ("plain", 0o600, own),
        ("same", 0o600, own),
        ("mode", 0o666, own),
        ("all", 0o660, (owner, group)),
        ("named", 0o600, (owner, own.1)),
    ] {
        assert_served(&mut daemon, &at(echo.path(name)));
        let made = fs::metadata(echo.path(name)).unwrap();
        assert_eq!((made.mode() & 0o7777, (made.uid(), made.gid())), (mode, ids), "{name}");
    }
    assert!(daemon.terminate().success());
    for name in ["plain", "same", "mode", "all", "named"] {
        assert!(!echo.path(name).exists(), "{name} is left");
    }
}

/// Root without the capability to give files away is as any user here.
#[test]
fn a_socket_for_others_is_not_to_be_had_without_root() {
    let echo = Echo::start();
    let own = (geteuid().as_raw(), getegid().as_raw());
    let setpriv = tool("setpriv", "util-linux").display().to_string();
    let dropped = [setpriv.as_str(), "--bounding-set=-chown", "--inh-caps=-chown", "--clear-groups"];
    let unprivileged = |builder: Builder| match geteuid().is_root() {
        true => builder.through(dropped),
        false => builder,
    };
    for what in ["owner=4242", "group=4242", "mode=0666&owner=4242&group=4242"] {
        let why = "chown: operation not permitted: it takes root, or a group that the daemon is in";
        assert_refused(unprivileged(echo.daemon(&[format!("unix://@/s?{what}")])), why);
        assert!(!echo.path("s").exists(), "the socket is left");
    }
    let source = format!("unix://@/s?owner={}&group={}", own.0, own.1);
    let mut daemon = unprivileged(echo.daemon(&[source])).spawn();
    assert_served(&mut daemon, &at(echo.path("s")));
}

#[test]
fn an_abstract_socket_has_a_name_and_no_file() {
    let echo = Echo::start();
    let names = [1, 2, 3].map(|number| format!("gvproxy/{}/{number}", echo.dir.path().display()));
    let sources = [format!("@{}", names[0]), format!("unix:@{}", names[1]), format!("unix://@{}", names[2])];
    let mut daemon = echo.daemon(&sources).spawn();
    for name in &names {
        assert_served(&mut daemon, &abstract_address(name));
    }
    let files: Vec<_> = fs::read_dir(daemon.dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.is_empty(), "{files:?}");
    assert_refused(echo.daemon(&sources[..1]), "bind: address already in use");
    assert!(daemon.terminate().success());
    assert!(connect(&abstract_address(&names[0])).is_err(), "it goes with the daemon");
}

#[test]
fn tcp_of_one_address_and_of_all() {
    let echo = Echo::start();
    let mut daemon = echo.daemon(&["tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://:0"]).spawn();
    let four = daemon.tcp_port("127.0.0.1");
    let six = daemon.tcp_port("[::1]");
    let both = daemon.tcp_port("");
    let (ip4, ip6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    for address in [(ip4, four), (ip6, six), (ip4, both), (ip6, both)] {
        assert_served(&mut daemon, &SocketAddr::from(address).into());
    }
    for address in [(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), four), (ip4, six), (ip6, four)] {
        assert!(connect(&SocketAddr::from(address).into()).is_err(), "{address:?} is not what was asked for");
    }
    assert_refused(
        echo.daemon(&[format!("tcp://127.0.0.1:{four}")]),
        &format!(
            "listen tcp 127.0.0.1:{four}: bind: address already in use (by gvproxy, pid {})",
            daemon.pid()
        ),
    );
}

#[test]
fn what_is_taken_stays_with_who_has_it() {
    let echo = Echo::start();
    let [live, dead, file] = ["live", "dead", "file"].map(|name| echo.path(name));
    let listener = UnixListener::bind(&live).unwrap();
    drop(UnixListener::bind(&dead).unwrap());
    fs::write(&file, "mine").unwrap();
    assert_refused(echo.daemon(&["unix://@/live?mode=0666"]), "already exists and is in use");
    assert_refused(echo.daemon(&["unix://@/file?mode=0666"]), "already exists");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "whoever listens there has seen a connection");
    let mut daemon = echo.daemon(&["unix://@/dead?mode=0666"]).spawn();
    assert_served(&mut daemon, &at(&dead));
}

#[test]
fn each_place_is_for_one_forward() {
    let echo = Echo::start();
    assert_refused(echo.daemon(&["@/s", "unix://@/s?mode=0666"]), "is given twice");
    let name = format!("@gvproxy/{}", echo.dir.path().display());
    assert_refused(echo.daemon(&[&name, &format!("unix:{name}")]), "bind: address already in use");
    let tcp = format!("tcp://127.0.0.1:{}", free_port());
    assert_refused(echo.daemon(&[&tcp, &tcp]), "bind: address already in use");
    assert!(!echo.path("s").exists());
}

#[test]
fn a_mistake_is_told_at_start() {
    let echo = Echo::start();
    for (source, why) in [
        ("unix://@/s?mode=0999", "octal digits are wanted, at most 0777"),
        ("unix://@/s?user=root", "a unix URL takes mode, owner, group here"),
        ("unix://@/s?owner=nobody-of-that-name", "there is no user"),
        ("unix:@s?mode=0600", "an abstract socket has no mode and no owner"),
        ("tcp://127.0.0.1", "missing port in address"),
        ("fd://", "systemd has passed no socket: start this as the service of a .socket unit"),
        ("fd://docker", "systemd has passed no socket"),
    ] {
        assert_refused(echo.daemon(&[source]), why);
    }
}

/// systemd-socket-activate with sockets at `listen`, which starts the daemon when the first client comes.
fn activate(listen: &[&str], names: &[&str]) -> Vec<String> {
    let program = tool("systemd-socket-activate", "systemd").display().to_string();
    let listen = listen.iter().flat_map(|address| ["-l".to_owned(), (*address).to_owned()]);
    let names = (!names.is_empty()).then(|| format!("--fdname={}", names.join(":")));
    [program].into_iter().chain(listen).chain(names).collect()
}

#[test]
fn systemd_passes_one_socket() {
    let echo = Echo::start();
    let path = echo.path("s");
    let listen = path.display().to_string();
    let mut daemon = echo.daemon(&["fd://"]).through(activate(&[&listen], &[])).spawn();
    assert_served(&mut daemon, &at(&path));
    assert_served(&mut daemon, &at(&path));
    assert!(daemon.terminate().success());
    assert!(path.exists(), "the file is systemd's");

    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut daemon = echo.daemon(&["fd://3"]).through(activate(&[&listen], &[])).spawn();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into();
    assert_served(&mut daemon, &address);
    assert_served(&mut daemon, &address);
}

#[test]
fn systemd_passes_several_by_name_and_by_number() {
    let echo = Echo::start();
    let port = free_port();
    let (path, tcp) = (echo.path("s").display().to_string(), format!("127.0.0.1:{port}"));
    let by_systemd = activate(&[&tcp, &path], &["podman", "docker"]);
    let mut daemon = echo.daemon(&["fd://docker", "@/own", "fd://3"]).through(&by_systemd).spawn();
    assert_served(&mut daemon, &at(&path));
    assert_served(&mut daemon, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into());
    assert_served(&mut daemon, &at(echo.path("own")));
    assert!(!daemon.stderr().contains("systemd has passed a socket that"), "{}", daemon.stderr());
}

#[test]
fn a_socket_of_systemds_that_nobody_names_is_told() {
    const WARNING: &str = "that no -forward-sock fd:// names";
    let echo = Echo::start();
    let paths = ["a", "b"].map(|name| echo.path(name).display().to_string());
    let by_systemd = activate(&[&paths[0], &paths[1]], &["a", "b"]);
    let mut daemon = echo.daemon(&["fd://b"]).through(&by_systemd).spawn();
    assert_served(&mut daemon, &at(&paths[1]));
    let log = daemon.log_with(WARNING);
    let line = log.lines().find(|line| line.contains(WARNING)).unwrap();
    assert!(line.contains(r#"3 (\"a\")"#), "{line}");
}

/// What is wrong with it is told once a client has made systemd start the daemon.
#[test]
fn what_systemd_passes_has_to_be_what_was_asked_for() {
    let echo = Echo::start();
    for (number, (sources, names, why)) in [
        (
            &["fd://docker", "fd://4"][..],
            &["podman", "docker"][..],
            r#"socket 4 (\"docker\") is given twice"#,
        ),
        (&["fd://"], &["podman", "docker"], "systemd has passed several: name one by its number"),
        (&["fd://x"], &["x", "x"], r#"name one by its number; there is 3 (\"x\"), 4 (\"x\")"#),
        (&["fd://x"], &["podman", "docker"], "systemd has passed no such socket; there is 3"),
        (&["fd://5"], &["podman", "docker"], "systemd has passed no such socket; there is 3"),
    ]
    .into_iter()
    .enumerate()
    {
        let paths = ["a", "b"].map(|name| echo.path(&format!("{name}{number}")).display().to_string());
        let by_systemd = activate(&[&paths[0], &paths[1]], names);
        let mut daemon = echo.daemon(sources).through(by_systemd).spawn();
        let client = eventually("systemd's socket", PATIENCE, || connect(&at(&paths[1])).ok());
        let status = daemon.wait(PATIENCE).expect("a daemon that ends");
        let log = daemon.stderr();
        assert!(status.code() == Some(1) && log.contains(why), "{status}, want {why:?}: {log}");
        assert_closed(&client);
    }
}

/// The test is systemd here: what it keeps is its own listening socket.
#[test]
fn clients_that_come_while_nobody_runs_are_served_by_the_next() {
    let echo = Echo::start();
    let path = echo.path("s");
    let kept = UnixListener::bind(&path).unwrap();
    let start = || {
        let words = "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=kept; exec \"$@\" 3<&0 </dev/null";
        let builder = echo.daemon(&["fd://kept"]).input(kept.try_clone().unwrap());
        builder.through(["sh", "-c", words, "sh"]).spawn()
    };
    let early = connect(&at(&path)).unwrap();
    let mut daemon = start();
    assert_echo(&early, b"early");
    for _ in 0..3 {
        let mut open = connect(&at(&path)).unwrap();
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        daemon.signal(Signal::KILL);
        daemon.wait(PATIENCE).expect("a killed daemon ends");
        assert_closed(&open);
        let waiting: Vec<Socket> = (0..20).map(|_| connect(&at(&path)).unwrap()).collect();
        for (number, mut client) in waiting.iter().enumerate() {
            client.write_all(&[number as u8; 1000]).unwrap();
        }
        daemon = start();
        for (number, client) in waiting.into_iter().enumerate() {
            client.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            (&client).read_to_end(&mut got).unwrap_or_else(|error| panic!("client {number}: {error}"));
            assert_eq!(got, [number as u8; 1000], "client {number}");
        }
    }
    assert!(daemon.terminate().success());
    assert!(path.exists(), "the file is systemd's");
}

/// Children of others inherit the environment: the sockets are not theirs.
#[test]
fn another_process_is_not_meant() {
    let echo = Echo::start();
    let others = ["sh", "-c", "export LISTEN_PID=1 LISTEN_FDS=1; exec \"$@\" 3</dev/null", "sh"];
    assert_refused(echo.daemon(&["fd://"]).through(others), "systemd has passed no socket");
    let none = ["sh", "-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3</dev/null", "sh"];
    assert_refused(echo.daemon(&["fd://"]).through(none), "it is no socket");
    let closed = ["sh", "-c", "export LISTEN_PID=$$ LISTEN_FDS=9; exec \"$@\"", "sh"];
    assert_refused(
        echo.daemon(&["fd://"]).through(closed),
        "LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are wrong: bad file descriptor",
    );
}
