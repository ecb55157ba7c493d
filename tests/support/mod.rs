//! What the integration tests share. Owns: the daemon under test, its namespaces, its guests.
//! May not: reach outside a temporary directory and namespaces of its own. Read next: `daemon.rs`, `net.rs`.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

pub(crate) mod agent;
pub(crate) mod cable;
pub(crate) mod daemon;
pub(crate) mod dns;
pub(crate) mod exposed;
pub(crate) mod frames;
pub(crate) mod fuse;
pub(crate) mod guest;
pub(crate) mod http;
pub(crate) mod net;
pub(crate) mod notices;
pub(crate) mod ns;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod streams;
pub(crate) mod traffic;
pub(crate) mod wire;

use std::io;
use std::time::{Duration, Instant};

/// How often [`eventually`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks until there is something to see, and fails the test with `what` after `patience`.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Calls again what only a stopped process has interrupted: a socket with a timeout does not go on by itself then (signal(7)).
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A TCP port that was free on 127.0.0.1 a moment ago, for a flag that cannot say "any port".
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port on 127.0.0.1");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// `program` on `PATH`, or a failure that says what to install.
#[track_caller]
pub(crate) fn tool(program: &str, package: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("this test needs `{program}`: install the package {package}"))
}

/// Lets this process have as many descriptors as it may; a test that holds both ends of 1,000 connections needs them.
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("a soft limit up to the hard one");
}
