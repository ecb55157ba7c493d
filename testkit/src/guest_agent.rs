//! gvforwarder as the agent of a guest that is a namespace. Owns: the process, and its log. Read next:
//! `tests/agent.rs`.

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;
use crate::ns::Namespace;
use crate::process::Process;
use crate::program;

const PATIENCE: Duration = Duration::from_secs(30);

/// A file for `-agent-secret-file`, by its path.
pub fn secret_file(path: impl AsRef<Path>, secret: &str) -> String {
    fs::write(&path, secret).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path.as_ref().display().to_string()
}

/// The next line, with its end, and nothing behind it.
#[track_caller]
pub fn line(mut from: &TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        from.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// gvforwarder in the guest.
#[derive(Debug)]
pub struct Agent {
    pub child: Child,
    log: tempfile::NamedTempFile,
}

impl Agent {
    /// Starts it without waiting.
    pub fn spawn(ns: &Namespace, args: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let stderr = log.reopen().unwrap().into();
        Self { child: Self::child(ns, args, stderr), log }
    }

    /// The same with a standard error of which [`Self::stderr`] knows nothing.
    pub fn spawn_to(ns: &Namespace, args: &[&str], stderr: OwnedFd) -> Self {
        Self { child: Self::child(ns, args, stderr), log: tempfile::NamedTempFile::new().unwrap() }
    }

    fn child(ns: &Namespace, args: &[&str], stderr: OwnedFd) -> Child {
        let mut command = ns.command(program("gvforwarder"));
        command.args(["-debug", "-agent"]).args(args).stdin(Stdio::null()).stderr(stderr);
        command.spawn().expect("nsenter")
    }

    #[track_caller]
    pub fn start(ns: &Namespace, args: &[&str]) -> Self {
        let mut agent = Self::spawn(ns, args);
        eventually("the agent listens", PATIENCE, || {
            assert_eq!(agent.child.try_wait().unwrap(), None, "{}", agent.stderr());
            agent.stderr().contains("agent: listening").then_some(())
        });
        agent
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    #[track_caller]
    pub fn end(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        eventually("the end of the agent", PATIENCE, || self.child.try_wait().unwrap());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = self.stderr();
            let lines: Vec<_> = text.lines().collect();
            eprintln!(
                "--- stderr of the agent ---\n{}\n---",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
    }
}
