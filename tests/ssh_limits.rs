//! A forward when the process has no descriptors left. A test program of its own, as the limit is the
//! process's.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testkit::sshd::{PATIENCE, Sshd};
use tokio::time::timeout;

#[tokio::test]
async fn a_forward_outlives_a_lack_of_descriptors() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    let before = getrlimit(Resource::Nofile);
    let open = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 40), ..before }).unwrap();

    // A client that is connected, and waits to be accepted by a process that cannot.
    let client = UnixStream::connect(&forward.socket).unwrap();
    let mut hoard = Vec::new();
    let error = loop {
        match File::open("/dev/null") {
            Ok(file) => hoard.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()));
    // The forward's task has had its turn, and the failure, before this comes back.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(fs::read_dir("/proc/self/fd").is_err(), "a descriptor was left");

    drop(hoard);
    timeout(PATIENCE, forward.echo()).await.expect("an echo").unwrap();
    drop(client);
    setrlimit(Resource::Nofile, before).unwrap();
}
