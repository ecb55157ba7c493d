//! What the integration tests and benchmarks share. Owns: the daemon under test, its namespaces, its guests
//! and peers.
//! May not: reach outside a temporary directory and namespaces of its own. Read next: `daemon.rs`, `net.rs`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::new_without_default,
    reason = "it serves tests, and a test fails by panic"
)]

pub mod agent;
pub mod archive;
pub mod cable;
pub mod daemon;
pub mod dns;
pub mod exposed;
pub mod frames;
pub mod fuse;
pub mod guest;
pub mod guest_agent;
pub mod http;
pub mod machine;
pub mod net;
pub mod notices;
pub mod ns;
pub mod process;
pub mod qemu;
pub mod relay;
pub mod reversed;
pub mod sshd;
pub mod strace;
pub mod streams;
pub mod traffic;
pub mod udp;
pub mod vm;
pub mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often [`eventually`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks until there is something to see, and fails the test with `what` after `patience`.
#[track_caller]
pub fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Calls again what only a stopped process has interrupted: a socket with a timeout does not go on by itself
/// then (signal(7)).
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A TCP port that was free on 127.0.0.1 a moment ago, for a flag that cannot say "any port".
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port on 127.0.0.1");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// `program` on `PATH`, or a failure that says what to install.
#[track_caller]
pub fn tool(program: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("this test needs `{program}`: install the package {package}"))
}

/// Lets this process have as many descriptors as it may; a test that holds both ends of 1,000 connections
/// needs them.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("a soft limit up to the hard one");
}

/// The workspace, in which tests find the machines that were made for them and the documents that they read.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("testkit is a folder of the workspace")
}

/// A program of this project, built beside the test that runs: cargo builds it before each integration test
/// and benchmark. In a guest, where a test's executable may be alone, nothing need be there.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path to this executable");
    // Cargo puts tests into a folder of their own.
    test.ancestors().nth(2).unwrap_or_else(|| Path::new("/")).join(name)
}
