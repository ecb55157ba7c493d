//! How the daemon ends, and what it does while nothing happens, with a Linux guest attached.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::SockRef;
use testkit::daemon::Daemon;
use testkit::net::{Host, Net};
use testkit::traffic::{accept, impatient, transfer};
use testkit::uninterrupted;
use testkit::{eventually, http};

testkit::agent_in_a_namespace!();

/// What "at once" means.
const AT_ONCE: Duration = Duration::from_secs(1);

fn start(args: &[&str]) -> Net {
    Net::with(Host::new("nameserver 127.0.0.1\n"), Daemon::builder().args(args), 1500)
}

/// What is left in the daemon's directory.
fn left(daemon: &Daemon) -> Vec<String> {
    let entries = std::fs::read_dir(daemon.dir()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn ends_at_once_when_asked_to_and_leaves_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut net = start(&["-pid-file", "{dir}/pid"]);
        assert_eq!(
            std::fs::read_to_string(net.daemon.dir().join("pid")).unwrap(),
            net.daemon.pid().to_string()
        );
        let start = Instant::now();
        net.daemon.signal(signal);
        let status =
            net.daemon.wait(AT_ONCE).unwrap_or_else(|| panic!("still running {AT_ONCE:?} after {signal:?}"));
        assert!(status.success(), "{status:?} {:?} after {signal:?}", start.elapsed());
        assert_eq!(left(&net.daemon), [""; 0]);
    }
}

/// The guest's system was told that its peer has them.
#[test]
fn what_a_guest_sent_before_it_left_arrives_and_nobody_takes_a_part_for_the_whole() {
    for reads in [true, false] {
        let net = start(&[]);
        let (listener, address) = net.listen();
        SockRef::from(&listener).set_recv_buffer_size(64 << 10).unwrap();
        let guest = net.guest.connect(address).unwrap();
        guest.set_nonblocking(true).unwrap();
        let mut host = impatient(accept(&listener));
        let (mut sent, mut before) = (0, None);
        eventually("everything between the two is full", Duration::from_secs(20), || {
            while let Ok(more) = (&guest).write(&[7; 65536]) {
                sent += more;
            }
            let taken = sent - gvproxy::sys::unsent(guest.as_fd()).unwrap();
            (before.replace(taken) == Some(taken)).then_some(())
        });
        let taken = before.unwrap();
        let Net { guest: machine, mut daemon, .. } = net;
        drop(machine);
        let read = |mut host: &TcpStream| {
            let mut bytes = Vec::new();
            let end = host.read_to_end(&mut bytes).map_err(|error| error.kind());
            (bytes.len(), end)
        };
        if reads {
            let (bytes, end) = read(&host);
            assert!(bytes >= taken, "{bytes} bytes of {taken}");
            assert_eq!(end, Err(ErrorKind::ConnectionReset));
        }
        let status = daemon.wait(2 * AT_ONCE).expect("the end of the daemon");
        assert!(status.success(), "{status:?}");
        if !reads {
            host.read_exact(&mut [0]).unwrap();
            let (bytes, end) = read(&host);
            assert_eq!(end, Err(ErrorKind::ConnectionReset), "after {bytes} bytes of {taken}");
        }
    }
}

/// As in the background of a script, at whose terminal somebody types Ctrl-C.
#[test]
fn an_interrupt_that_was_ignored_at_the_start_stays_so() {
    let builder = Daemon::builder().through(["env", "--ignore-signal=INT"]);
    let mut daemon = builder.args(["-listen", "unix://{dir}/api"]).start();
    let ask = |path: &std::path::Path| {
        let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("it has ended: {error}"));
        http::ask(stream, "GET", "/services/dhcp/leases", "").status
    };
    daemon.signal(Signal::INT);
    // A signal that ends it is heard before that many requests.
    for number in 0..200 {
        assert_eq!(ask(&daemon.dir().join("api")), 200, "request {number}");
    }
    assert!(daemon.is_running());
    assert!(daemon.terminate().success());
    assert_eq!(left(&daemon), [""; 0]);
}

/// Signals that nobody means for it, and what a parent left of others.
#[test]
fn signals_neither_end_it_nor_find_it_deaf() {
    let builder = Daemon::builder().through(["env", "--block-signal"]);
    let mut daemon = builder.args(["-listen", "unix://{dir}/api"]).start();
    for signal in [
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::VTALARM,
        Signal::PROF,
        Signal::IO,
        Signal::POWER,
        Signal::XCPU,
        Signal::XFSZ,
        Signal::TTOU,
    ] {
        daemon.signal(signal);
        let stream = UnixStream::connect(daemon.dir().join("api"));
        let stream = stream.unwrap_or_else(|error| panic!("it has ended by {signal:?}: {error}"));
        assert_eq!(http::ask(stream, "GET", "/services/dhcp/leases", "").status, 200, "after {signal:?}");
    }
    assert!(daemon.terminate().success());
    assert_eq!(left(&daemon), [""; 0]);
}

#[test]
fn a_limit_of_file_sizes_ends_the_log_and_not_the_daemon() {
    let builder = Daemon::builder().through(["prlimit", "--fsize=16384"]);
    let mut daemon =
        builder.args(["-listen", "unix://{dir}/api", "-debug", "-log-file", "{dir}/log"]).start();
    let log = daemon.dir().join("log");
    eventually("a log as long as it may be", Duration::from_secs(20), || {
        let stream = UnixStream::connect(daemon.dir().join("api")).expect("it has ended");
        let zone = format!(
            r#"{{"Name": "testing.", "Records": [{{"Name": "{}", "IP": "192.168.127.9"}}]}}"#,
            "x".repeat(60)
        );
        assert_eq!(http::ask(stream, "POST", "/services/dns/add", &zone).status, 200);
        (std::fs::metadata(&log).unwrap().len() == 16384).then_some(())
    });
    for _ in 0..50 {
        let stream = UnixStream::connect(daemon.dir().join("api")).expect("it has ended");
        assert_eq!(http::ask(stream, "GET", "/services/dns/all", "").status, 200);
    }
    assert!(daemon.terminate().success());
}

#[test]
fn ends_at_once_when_asked_to_in_the_middle_of_a_transfer() {
    let mut net = start(&["-pid-file", "{dir}/pid"]);
    let (listener, address) = net.listen();
    let mut guest = impatient(net.guest.connect(address).unwrap());
    let mut host = accept(&listener);
    let sender = guest.try_clone().unwrap();
    let sending = std::thread::spawn(move || while guest.write_all(&[0; 65536]).is_ok() {});
    host.read_exact(&mut [0; 1 << 20]).unwrap();
    net.daemon.signal(Signal::TERM);
    let status = net.daemon.wait(AT_ONCE).expect("the end of the daemon");
    assert!(status.success(), "{status:?}");
    assert_eq!(left(&net.daemon), [""; 0]);
    sender.shutdown(Shutdown::Both).unwrap();
    sending.join().unwrap();
}

#[test]
fn ends_when_its_guest_leaves() {
    let mut net = start(&["-pid-file", "{dir}/pid"]);
    net.guest.switch_off();
    let status = net.daemon.wait(AT_ONCE).expect("the end of the daemon");
    assert!(status.success(), "{status:?}");
    assert_eq!(left(&net.daemon), [""; 0]);
}

#[test]
fn does_not_wake_while_nothing_happens() {
    const WINDOW: Duration = Duration::from_secs(5);
    let net = start(&[]);
    // A flow in each direction stays open, one of them half closed; and a UDP flow waits for its time-out.
    let (listener, address) = net.listen();
    let mut guest = impatient(net.guest.connect(address).unwrap());
    let mut host = accept(&listener);
    guest.write_all(b"x").unwrap();
    host.read_exact(&mut [0]).unwrap();
    // The acknowledgements of all that happened are over when no wakeup came for a second.
    let mut last = (net.daemon.sleeps(), Instant::now());
    eventually("a quiet second", Duration::from_secs(20), || {
        let sleeps = net.daemon.sleeps();
        if sleeps != last.0 {
            last = (sleeps, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(())
    });
    let (sleeps, cpu) = (net.daemon.sleeps(), net.daemon.cpu_seconds());
    std::thread::sleep(WINDOW);
    assert_eq!(net.daemon.sleeps() - sleeps, 0, "wakeups in {WINDOW:?}");
    assert!(net.daemon.cpu_seconds() - cpu < 0.01);
}

#[test]
fn rests_small() {
    let net = start(&[]);
    let rss = net.daemon.rss_kb();
    // A debug build is larger than what is shipped; `make bench` holds the shipped one to 10 MB.
    assert!(rss < 16 * 1024, "{rss} KiB at rest");
}

#[test]
fn the_ssh_port_leads_to_the_guest() {
    let port = testkit::free_port();
    let net = start(&["-ssh-port", &port.to_string()]);
    let address = ([127, 0, 0, 1], port).into();
    let listener = net.guest.listen("0.0.0.0:22".parse().unwrap());
    let host = impatient(net.host.connect(address).expect("the forwarded port"));
    let guest = accept(&listener);
    assert_eq!(guest.peer_addr().unwrap().ip(), testkit::net::GATEWAY, "the guest sees the gateway");
    transfer(&host, &guest, 64 << 20);
    transfer(&guest, &host, 64 << 20);
    // Without a listener the connection is made and then closed, as the original does.
    drop(listener);
    let mut host = impatient(net.host.connect(address).expect("the forwarded port"));
    let end = uninterrupted(|| host.read(&mut [0; 16]));
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(!matches!(&end, Err(error) if error.kind() == ErrorKind::WouldBlock), "a clean end, not silence");
}

#[test]
fn the_ssh_port_is_open_before_the_guest_is() {
    let port = testkit::free_port();
    let host = Host::new("nameserver 127.0.0.1\n");
    let daemon = Daemon::builder().args(["-ssh-port", &port.to_string()]).through(host.prefix()).start();
    let mut early = impatient(host.connect(([127, 0, 0, 1], port).into()).expect("the forwarded port"));
    // The client is let go in the end, and the daemon lives.
    let end = uninterrupted(|| early.read(&mut [0; 16]));
    assert!(!matches!(&end, Err(error) if error.kind() == ErrorKind::WouldBlock), "{end:?}");
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    drop(daemon);
}

#[test]
fn a_second_guest_does_not_disturb_the_first() {
    let net = start(&[]);
    // Nobody takes it; whether it can knock at all is the daemon's own affair.
    let second = UnixStream::connect(net.daemon.qemu_socket());
    let (listener, address) = net.listen();
    let guest = impatient(net.guest.connect(address).unwrap());
    transfer(&guest, &accept(&listener), 1 << 20);
    drop(second);
    let guest = impatient(net.guest.connect(address).unwrap());
    transfer(&guest, &accept(&listener), 1 << 20);
}
