//! A daemon in another program: the library's face. Owns: the thread that such a daemon runs on.
//! May not: change what belongs to the process: its signals, limits, log, standard input and output. Read
//! next: `../daemon.rs`, which runs it.

use rustix::fd::OwnedFd;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail};
use tokio::runtime;

use super::bound::Bound;
use super::{ControlPlane, Exit, Process, Stop};
use crate::cli::{self, Parsed};
use crate::config::{Asked, Config, Exposed, Protocol, RESOLV_CONF};
use crate::engine;
use crate::forward::registry::{Asker, ExposeError, Registry};
use crate::hypervisor;
use crate::link::Framing;
use crate::preflight;
use crate::sys::owner::THREAD;

/// Says what a daemon is to do, and starts it. To be had from [`Daemon::builder`].
#[derive(Clone)]
pub struct Builder {
    argv: Vec<OsString>,
}

/// The flags without their values, in which there may be passwords.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.argv.iter().map(|word| word.to_string_lossy());
        f.debug_list().entries(names.map(|word| word.split('=').next().map(str::to_owned))).finish()
    }
}

impl Builder {
    /// Adds a flag of the program `gvproxy` and its value, without the dash: `flag("mtu", "4000")` is
    /// `-mtu=4000`. Of a flag that is given twice the last one counts, unless it is a list. A switch has the
    /// value `"true"`. `docs/cli.md` has all flags; with `config` the rest is in a YAML file, as
    /// `docs/config.md` describes it.
    ///
    /// Two things differ from the program. No port of the host leads to the guest's sshd, unless `ssh-port`
    /// says so. And what is about the whole process is an error of [`start`](Self::start), as it is the
    /// embedding program's: `debug`, `listen-stdio`, `log-file`, `pid-file`, `qmp-status` and `version`, and
    /// the keys of the file that mean the same.
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let mut word = OsString::from(format!("-{name}="));
        word.push(value);
        self.argv.push(word);
        self
    }

    /// Binds every socket, and runs the daemon on a thread of its own. When this returns, clients can
    /// connect. It blocks: for file systems, up to a second for a process that is about to give up a socket,
    /// and up to ten for a QMP server that is at the path of `listen-qemu`. Unlike the program it takes over
    /// no socket of another gvproxy.
    ///
    /// # Errors
    /// A flag, a value or the file is wrong, or something cannot be bound: one line (`{:#}`), as the program
    /// says it. Nothing is left then.
    pub fn start(self) -> Result<Daemon> {
        let config = self.config()?;
        let (ready, bound) = mpsc::channel();
        let run = || ControlPlane::new()?.run_in(Process::Anothers(ready), config);
        let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(run);
        let thread = thread.context("cannot start a thread")?;
        match bound.recv() {
            Ok(handle) => Ok(Daemon { handle, thread: Some(thread) }),
            // It has ended without: the error is its own.
            Err(_) => match join(thread) {
                Err(error) => Err(error),
                Ok(exit) => bail!("the daemon ended at its start: {exit:?}"),
            },
        }
    }

    fn config(&self) -> Result<Config> {
        let raw = match cli::parse(&self.argv) {
            Parsed::Run(raw) => *raw,
            Parsed::Help(_) => bail!("flag provided but not defined: -help"),
            // Behind its first line is how the program is used.
            Parsed::Usage(text) => bail!("{}", text.lines().next().unwrap_or_default()),
        };
        let asked = Asked::new(raw)?;
        if let Some(name) = asked.about_process() {
            bail!("{name} is about the whole process, which is not the daemon's here: leave it out");
        }
        Config::resolve(&asked, Path::new(RESOLV_CONF), &preflight::ensure_to_be_had)
    }
}

/// A virtual network that runs in this process. Dropping it ends the run, and returns when every socket is
/// closed, every socket's file removed, and its threads have ended; that may take some seconds where a
/// virtual machine does not answer. A thread that waits for a file system is left behind after a second. In a
/// program with an asynchronous runtime it is to be dropped where a thread may wait.
#[derive(Debug)]
pub struct Daemon {
    handle: Handle,
    /// `None` once it is waited for.
    thread: Option<JoinHandle<Result<Exit>>>,
}

impl Daemon {
    /// A network as the program `gvproxy` has it without flags: 192.168.127.0/24, whose gateway is
    /// 192.168.127.1, and whose guest of the hardware address 5a:94:ef:e4:0c:ee is 192.168.127.2. No socket
    /// of the host is made.
    pub fn builder() -> Builder {
        Builder { argv: vec!["gvproxy".into(), "-ssh-port=-1".into()] }
    }

    /// The way to change it while it runs.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits for the end of the run, that is for [`Handle::shutdown`] or a failure, or for a guest to leave
    /// where the flags make that the end. Everything is gone when this returns, as when it is dropped.
    ///
    /// # Errors
    /// The run could not go on: what failed, as one line (`{:#}`).
    pub fn wait(mut self) -> Result<Exit> {
        self.thread.take().map_or(Ok(Exit::Stopped), join)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.handle.shutdown();
        if let Err(error) = join(thread) {
            tracing::error!(error = %format_args!("{error:#}"), "the daemon failed");
        }
    }
}

fn join(thread: JoinHandle<Result<Exit>>) -> Result<Exit> {
    thread.join().map_err(|_| anyhow!("the daemon's thread panicked"))?
}

/// A daemon that runs, for whoever changes it. Clones are of the same daemon, and any thread may use them;
/// they do not keep it running.
///
/// Its methods wait for the daemon, which answers soon. In a program with an asynchronous runtime they, and
/// [`Daemon::wait`], belong where a thread may wait, as `tokio::task::spawn_blocking` has it.
#[derive(Clone, Debug)]
pub struct Handle {
    engine: engine::Handle,
    registry: Registry,
    runtime: runtime::Handle,
    stop: Stop,
}

impl Handle {
    /// Of a daemon of the runtime that this is called in.
    pub(super) fn new(bound: &Bound, stop: Stop) -> Self {
        let (engine, registry) = (bound.handle.clone(), bound.registry.clone());
        Self { engine, registry, runtime: runtime::Handle::current(), stop }
    }

    /// Puts a virtual machine into the network: `socket`, one end of a connected pair, carries its frames
    /// from now on, framed as `framing` says. The socket need not be non-blocking. The machine leaves when
    /// the other end is closed, and only the log tells; the daemon goes on.
    ///
    /// # Errors
    /// The daemon has ended or has too many links, the system cannot watch the socket, or packets of the
    /// network's MTU are too long for the framing.
    pub fn attach(&self, socket: impl Into<OwnedFd>, framing: Framing) -> io::Result<()> {
        let (engine, socket) = (self.engine.clone(), socket.into());
        let attach = async move {
            let link = engine.attach(socket, framing).await?;
            hypervisor::report_begin(link.port());
            tokio::spawn(hypervisor::follow(link));
            Ok(())
        };
        let has_ended = || io::Error::new(io::ErrorKind::ConnectionAborted, "the daemon has ended");
        self.wait_for(attach).unwrap_or_else(|| Err(has_ended()))
    }

    /// Listens at `local` of the host for clients, and leads them to `remote`. For TCP and UDP both are
    /// `ADDRESS:PORT`, and `remote` is a guest's. For [`Protocol::Unix`] they are what the flags
    /// `forward-sock` and `forward-dest` take; `docs/sockets.md` has those.
    ///
    /// # Errors
    /// One of the two is wrong, `local` cannot be listened on, or the daemon has ended: see [`ExposeError`].
    pub fn expose(&self, protocol: Protocol, local: &str, remote: &str) -> Result<(), ExposeError> {
        let wanted = Exposed { protocol, local: local.to_owned(), remote: remote.to_owned() };
        let registry = self.registry.clone();
        let expose = async move { registry.expose(wanted, Asker::Operator).await };
        self.wait_for(expose).unwrap_or(Err(ExposeError::Stopping))
    }

    /// Listens no more at `local`, spelled as it was exposed. TCP connections that it accepted go on.
    ///
    /// # Errors
    /// Nothing is exposed there, or the daemon has ended.
    pub fn unexpose(&self, protocol: Protocol, local: &str) -> Result<(), ExposeError> {
        let (registry, local) = (self.registry.clone(), local.to_owned());
        let unexpose = async move { registry.unexpose(protocol, &local, Asker::Operator).await };
        self.wait_for(unexpose).unwrap_or(Err(ExposeError::Stopping))
    }

    /// What is exposed, in the order of `local`: by this, by the flags and the file, by the HTTP API, and by
    /// guests.
    pub fn exposed(&self) -> Vec<Exposed> {
        self.registry.all()
    }

    /// Makes the daemon end, without waiting for that: [`Daemon::wait`] does.
    pub fn shutdown(&self) {
        self.stop.ask();
    }

    /// What `work` comes to in the daemon's own runtime; `None` if that is gone, or goes meanwhile.
    fn wait_for<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (done, result) = mpsc::channel();
        self.runtime.spawn(async move {
            let _ = done.send(work.await);
        });
        result.recv().ok()
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::sys::owner::Owner;

    fn refused(builder: Builder) -> String {
        format!("{:#}", builder.start().unwrap_err())
    }

    #[test]
    fn two_live_in_one_process_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["one", "other"].map(|name| dir.path().join(name));
        let started = paths.each_ref().map(|path| {
            let url = format!("unix://{}", path.display());
            Daemon::builder().flag("listen", url).start().unwrap()
        });
        assert!(paths.iter().all(|path| UnixStream::connect(path).is_ok()));
        let url = format!("unix://{}", paths[0].display());
        let error = refused(Daemon::builder().flag("listen", url));
        assert!(error.contains("in use"), "{error}");

        let own = Owner { program: "vmm".into(), pid: std::process::id() };
        assert!(own.embeds_gvproxy() && !own.is_gvproxy(), "another gvproxy is not to connect to it");
        let [one, other] = started;
        let handle = one.handle().clone();
        drop(one);
        assert!(!paths[0].exists() && paths[1].exists());
        let (ours, _guests) = UnixStream::pair().unwrap();
        let error = handle.attach(ours, Framing::Qemu).unwrap_err();
        assert_eq!(error.to_string(), "the daemon has ended");
        let error = handle.expose(Protocol::Tcp, "127.0.0.1:0", "192.168.127.2:80").unwrap_err();
        assert_eq!(error.to_string(), "the daemon is stopping");

        other.handle().shutdown();
        assert_eq!(other.wait().unwrap(), Exit::Stopped);
        assert!(!paths[1].exists());
    }

    #[test]
    fn a_guest_leaves_and_the_daemon_goes_on() {
        let daemon = Daemon::builder().start().unwrap();
        for _ in 0..2 {
            let (ours, mut guests) = UnixStream::pair().unwrap();
            daemon.handle().attach(ours, Framing::Qemu).unwrap();
            // An ARP request for the gateway, and as long an answer.
            let arp = [
                0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 168, 127, 2, 0, 0, 0, 0, 0, 0, 192, 168, 127,
                1,
            ];
            let frame = [&[0, 0, 0, 42][..], &[255; 6], &[2, 0, 0, 0, 0, 1, 8, 6], &arp].concat();
            guests.write_all(&frame).unwrap();
            let mut answer = [0; 46];
            guests.read_exact(&mut answer).unwrap();
            assert_eq!(answer[24..26], [0, 2], "{answer:?}");
        }
    }

    #[test]
    fn sockets_are_exposed_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        let server = UnixListener::bind(&there).unwrap();
        let daemon = Daemon::builder().start().unwrap();
        let handle = daemon.handle();
        let (local, remote) = (here.to_str().unwrap(), format!("unix://{}", there.display()));
        handle.expose(Protocol::Unix, local, &remote).unwrap();
        assert_eq!(handle.exposed(), [Exposed { local: local.into(), remote, protocol: Protocol::Unix }]);
        let mut client = UnixStream::connect(&here).unwrap();
        server.accept().unwrap().0.write_all(b"hello").unwrap();
        client.read_exact(&mut [0; 5]).unwrap();
        handle.unexpose(Protocol::Unix, local).unwrap();
        assert_eq!((handle.exposed(), here.exists()), (Vec::new(), false));
    }

    #[test]
    fn what_is_shown_of_a_builder_has_no_values() {
        let builder = Daemon::builder().flag("forward-dest", "ssh://u:secret@h/x");
        let shown = format!("{builder:?}");
        assert!(shown.contains("-forward-dest") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (name, value, why) in [
            ("nosuch", "1", "flag provided but not defined: -nosuch"),
            ("mtu", "1", "mtu is out of range: 1, want 68 to 65535"),
            ("help", "", "flag provided but not defined: -help"),
            ("", "", "bad flag syntax: -="),
            ("config", "/nonexistent/file", "/nonexistent/file"),
        ] {
            let error = refused(Daemon::builder().flag(name, value));
            assert!(error.contains(why), "{error}");
        }
        for (name, value) in
            [("debug", "true"), ("pid-file", "/x"), ("log-file", "/x"), ("listen-stdio", "-")]
        {
            let error = refused(Daemon::builder().flag(name, value));
            assert!(error.starts_with(&format!("{name} is about the whole process")), "{error}");
        }
    }
}
