//! win-sshproxy's life.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use testkit::eventually;
use testkit::sshd::Sshd;

use super::pipes::{assert_echo, say};
use super::{PATIENCE, program};

/// Ends with the test, whatever becomes of it.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(args: &[&str]) -> Proxy {
    let mut command = Command::new(program("win-sshproxy"));
    Proxy(command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Process and thread, once both are there.
fn thread_file(directory: &Path) -> (String, String) {
    eventually("the thread's file", PATIENCE, || {
        let text = fs::read_to_string(directory.join("win-sshproxy.tid")).ok()?;
        let (process, thread) = text.strip_suffix('\n')?.split_once(':')?;
        Some((process.to_owned(), thread.to_owned()))
    })
}

fn ended(proxy: &mut Proxy) -> Option<i32> {
    eventually("the end of win-sshproxy", PATIENCE, || proxy.0.try_wait().unwrap()).code()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pipes_from_the_start_to_wm_quit() {
    let mut sshd = Sshd::prepare().await;
    sshd.start().await;
    let names = ["one", "two"].map(|name| format!("sshproxy-{name}-{}", std::process::id()));
    let pipes = names.each_ref().map(|name| format!("npipe:////./pipe/{name}"));
    let dest = format!("ssh://{}@{}{}", sshd.user, sshd.addr, sshd.path("service.sock").display());
    let (state, key) = (tempfile::tempdir().unwrap(), sshd.path("id").display().to_string());
    let directory = state.path().display().to_string();
    let mut proxy = start(&["-debug", "machine", &directory, &pipes[0], &dest, &key, &pipes[1], &dest, &key]);
    let (_, thread) = thread_file(state.path());
    let clients = names.clone();
    let echo = move || clients.iter().for_each(|name| assert_echo(name, b"hello"));
    tokio::task::spawn_blocking(echo.clone()).await.unwrap();
    // The guest is restarted.
    sshd.stop();
    sshd.start().await;
    tokio::task::spawn_blocking(echo).await.unwrap();
    let file = state.path().join("win-sshproxy.tid");
    assert!(file.exists());
    let quit = Command::new(program("client")).args(["quit", &thread]).status().unwrap();
    assert!(quit.success(), "{quit:?}");
    assert_eq!(ended(&mut proxy), Some(0));
    assert!(!file.exists(), "the file goes with the process");
    for name in &names {
        assert_eq!(say(name, b"E").status.code(), Some(1), "no such pipe");
    }
    sshd.stop();
}

#[test]
fn what_is_not_asked_rightly() {
    for args in [
        &[][..],
        &["machine"],
        &["machine", "/tmp"],
        &["machine", "/tmp", "npipe:////./pipe/x", "ssh://u@h/x"],
    ] {
        assert_eq!(ended(&mut start(args)), Some(10), "{args:?}");
    }
    let version = Command::new(program("win-sshproxy")).arg("-version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("win-sshproxy version v"), "{version:?}");
    // A key that is not there ends all, and leaves no file.
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().display().to_string();
    let mut proxy = start(&["m", &directory, "npipe:////./pipe/nokey", "ssh://u@127.0.0.1:1/x", "/none/key"]);
    assert_eq!(ended(&mut proxy), Some(0));
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
}
