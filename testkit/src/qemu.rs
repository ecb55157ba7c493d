//! A QEMU without a system in it, and the tests' own way to its monitor. Owns: one process; its QMP socket
//! for the daemon, and another for the test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{eventually, tool};

const START: Duration = Duration::from_secs(20);

/// Which machine; each has room for one more device.
pub const PC: &[&str] = &["-M", "pc"];
pub const Q35: &[&str] = &["-M", "q35", "-device", "pcie-root-port,id=hot0,chassis=1"];

/// A running QEMU, killed when dropped.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    monitor: Monitor,
}

impl Qemu {
    /// Starts one that serves QMP at `socket`, and stands still unless `args` say otherwise.
    #[track_caller]
    pub fn start(socket: &Path, args: &[&str]) -> Self {
        let program = tool("qemu-system-x86_64", "qemu-system-x86");
        let own = PathBuf::from(format!("{}.test", socket.display()));
        let qmp = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        let child = Command::new(program)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "16", "-name", "empty"])
            .args(["-accel", "tcg", "-qmp", &qmp(socket), "-qmp", &qmp(&own)])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64");
        Self { child, monitor: Monitor::connect(&own) }
    }

    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.monitor.execute(command, arguments)
    }

    /// Waits for an event, of which nothing was read yet, and gives its data.
    #[track_caller]
    pub fn wait_event(&mut self, name: &str) -> Value {
        loop {
            let mut message = self.monitor.line();
            if message["event"] == name {
                return message["data"].take();
            }
        }
    }

    /// What `info network` of the human monitor says.
    #[track_caller]
    pub fn network(&mut self) -> String {
        let text = self.execute("human-monitor-command", json!({"command-line": "info network"}));
        text.as_str().expect("a text").to_owned()
    }

    /// Waits until `info network` is as wanted.
    #[track_caller]
    pub fn network_until(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let network = self.network();
            if wanted(&network) {
                return network;
            }
            assert!(start.elapsed() < START, "{what}: not in {network:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by its monitor.
    #[track_caller]
    pub fn quit(mut self) -> ExitStatus {
        self.execute("quit", json!({}));
        eventually("the end of QEMU", START, || self.child.try_wait().expect("wait"))
    }

    /// Ends it without a word.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A QMP session of the test.
#[derive(Debug)]
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Waits for the socket and the greeting.
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        let stream = eventually("a QMP socket", START, || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(START)).expect("a timeout");
        let mut monitor = Self(BufReader::new(stream));
        let greeting = monitor.line();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        monitor.execute("qmp_capabilities", json!({}));
        monitor
    }

    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments});
        writeln!(self.0.get_mut(), "{line}").expect("a command");
        loop {
            let mut message = self.line();
            assert!(message.get("error").is_none(), "{command}: {message}");
            if let Some(value) = message.get_mut("return") {
                return value.take();
            }
        }
    }

    #[track_caller]
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line of QMP");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}
