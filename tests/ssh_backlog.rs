//! Many clients of one forward that take nothing of what the guest sends. A test program of its own, as the
//! memory is the process's.

use gvproxy::ssh::MAX_LOGINS;
use testkit::process::Process;
use testkit::sshd::{PATIENCE, Sshd, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

const CLIENTS: usize = 100;
const MIB: u64 = 1 << 20;

/// What they hold has a sum, they do not keep out one who comes after them, and when they have left it is the
/// system's again.
#[tokio::test]
async fn clients_that_take_nothing_hold_so_much_together_and_make_room() {
    let sshd = Sshd::new().await;
    let forward = sshd.forward();
    forward.echo().await.unwrap();
    let own = Process(std::process::id());
    let before = own.rss_kb();
    let mut coming = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = forward.connect().await;
        coming.spawn(async move {
            client.write_all(b"G").await?;
            client.write_u64(100 * MIB).await?;
            client.read_exact(&mut [0]).await.map(|_| client)
        });
    }
    // Some are given up for others while they come.
    let stalled = timeout(PATIENCE * 2, coming.join_all()).await.expect("first bytes");
    let stalled: Vec<_> = stalled.into_iter().filter_map(Result::ok).collect();
    assert!(stalled.len() >= MAX_LOGINS, "{} of {CLIENTS} were served", stalled.len());
    timeout(PATIENCE, forward.echo()).await.expect("an echo behind those that take nothing").unwrap();
    let took = (own.peak_rss_kb() - before) / 1024;
    // Each connection's backlog, what it reads and writes at once, and a batch under way; of most of them the
    // backlog is small.
    let bound = 16 * (8 + 2);
    eprintln!("{} of {CLIENTS} served, {took} MiB", stalled.len());
    assert!(took < bound, "{took} MiB, and the bound is {bound}");
    assert!(sshd.dials.load(std::sync::atomic::Ordering::Relaxed) >= MAX_LOGINS);
    drop(stalled);
    eventually("its memory", || own.rss_kb() < before + (32 << 10)).await;
}
