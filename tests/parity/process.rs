//! A run in a directory of its own, from its command line to how it ended. Owns: the directory, the process.
//! Read next: `cli.rs`.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::case::On;
use testkit::{eventually, tool};

/// No run here takes longer, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a run that starts to listen show that it has: both programs bind this socket last.
pub(crate) const READY: &str = "-listen-vfkit unixgram://@/ready";

/// A directory with a key, a file that is no socket, a live socket, a dead one, and a socket's path that is
/// long. `@` in a command line stands for its path.
#[derive(Debug)]
pub(crate) struct Place {
    dir: tempfile::TempDir,
    binary: PathBuf,
    /// Words before the binary's own.
    prefix: Vec<String>,
    _live: UnixListener,
}

impl Place {
    pub(crate) fn new(on: &On) -> Self {
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        for name in ["nokey", "file"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        drop(UnixListener::bind(dir.path().join("dead")).unwrap());
        let live = UnixListener::bind(dir.path().join("live")).unwrap();
        let place = Self { binary: on.binary.clone(), prefix: Vec::new(), _live: live, dir };
        let made = Command::new(tool("ssh-keygen", "openssh-client"))
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(place.path("key"))
            .status();
        assert!(made.unwrap().success());
        place
    }

    /// Runs in a namespace, say.
    pub(crate) fn through(mut self, prefix: Vec<String>) -> Self {
        self.prefix = prefix;
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn at(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// Starts `line`; `@` in it is this directory.
    pub(crate) fn start(&self, line: &str) -> Run<'_> {
        let mut words = self.prefix.clone();
        words.push(self.binary.display().to_string());
        words.extend(line.replace('@', self.at()).split_whitespace().map(str::to_owned));
        let log = self.dir.path().with_extension("log");
        // Whoever started the tests may ignore it, as nohup does, and that is inherited.
        let mut command = Command::new("env");
        command
            .arg("--default-signal=HUP,INT")
            .args(&words)
            .current_dir(self.dir.path())
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command.stderr(fs::File::create(&log).unwrap());
        let stdout = self.dir.path().with_extension("out");
        command.stdout(fs::File::create(&stdout).unwrap());
        let before = self.files();
        Run { child: command.spawn().expect("the binary"), place: self, before, log, stdout }
    }

    /// The names in the directory.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A run; dropping kills it.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    child: Child,
    place: &'a Place,
    before: Vec<String>,
    log: PathBuf,
    stdout: PathBuf,
}

impl Run<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default().replace(self.place.at(), "@")
    }

    /// The exit code, or the signal as a negative number.
    pub(crate) fn end(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = eventually("the end of the run", PATIENCE, || self.child.try_wait().unwrap());
        status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
    }

    /// Ends it, and gives what it said: while it runs, that may come later than what it did.
    pub(crate) fn whole_log(&mut self) -> String {
        self.signal(Signal::TERM);
        self.end();
        self.stderr()
    }

    /// Waits until it has `socket`; says how it ended where it did instead.
    pub(crate) fn waits_with(&mut self, socket: &str) -> Result<(), String> {
        let path = self.place.path(socket);
        let ended = eventually(socket, PATIENCE, || {
            if self.child.try_wait().unwrap().is_some() {
                return Some(true);
            }
            path.exists().then_some(false)
        });
        if ended { Err(self.outcome()) } else { Ok(()) }
    }

    /// How it ended: the code, the last line of log that tells more than how things go, and what it left
    /// behind.
    pub(crate) fn outcome(&mut self) -> String {
        let code = self.end();
        let stderr = self.stderr();
        let telling = |line: &&str| {
            !line.contains(" level=info ") || line.contains("gvproxy exiting") && !line.contains("signal")
        };
        let last = stderr.lines().rfind(telling).unwrap_or("nothing said");
        let last = match last.split_once(" level=").and_then(|(_, rest)| rest.split_once(" msg=")) {
            Some((level, message)) => format!("{level}: {}", unquoted(message)),
            None if stderr.contains("goroutine ") => "panic".to_owned(),
            None => last.to_owned(),
        };
        format!("exit {code}, {last}{}", self.left())
    }

    /// What has appeared or gone in the directory.
    pub(crate) fn left(&self) -> String {
        let now = self.place.files();
        let appeared =
            now.iter().filter(|name| !self.before.contains(name)).map(|name| format!("; leaves {name}"));
        let gone =
            self.before.iter().filter(|name| !now.contains(name)).map(|name| format!("; removes {name}"));
        appeared.chain(gone).collect()
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
        let _ = fs::remove_file(&self.stdout);
    }
}

/// A message of the log as it was before it was quoted, and the fields behind it.
fn unquoted(message: &str) -> String {
    let Some(inner) = message.strip_prefix('"') else { return message.to_owned() };
    // Go writes a narrow space where it means one.
    let text = inner.replace("\\\"", "\u{1}").replace("\\u202f", " ");
    let (text, fields) = text.split_once('"').unwrap_or((&text, ""));
    format!("{text}{fields}").replace('\u{1}', "\"")
}

/// Runs `line` to its end.
pub(crate) fn ends(on: &On, line: &str) -> String {
    Place::new(on).start(line).outcome()
}

/// Runs `line` until it ends or serves.
pub(crate) fn runs(on: &On, line: &str) -> String {
    let place = Place::new(on);
    let mut run = place.start(&format!("{READY} {line}"));
    match run.waits_with("ready") {
        Ok(()) => "runs".to_owned(),
        Err(end) => end,
    }
}

/// Runs `line` to its end, for which `text` is one of its words: where a text of the system's or Go's
/// follows.
pub(crate) fn ends_with(on: &On, line: &str, text: &str) -> String {
    let seen = ends(on, line);
    match seen.split_once(text) {
        Some((before, after)) => {
            format!("{before}{text}{}", after.find("; ").map_or("", |at| &after[at..]))
        }
        None => seen,
    }
}
