//! A case: what is done with a daemon, and what is to be seen. Owns: the two expectations. Read next:
//! `cli.rs`.

use std::fmt;
use std::path::{Path, PathBuf};

use testkit::daemon::{Builder, Daemon};
use testkit::guest::{Guest, MAC};
use testkit::net::{Host, plug};

/// The binary that a case is driven on.
#[derive(Debug)]
pub(crate) struct On {
    pub(crate) binary: PathBuf,
    pub(crate) is_ours: bool,
}

impl On {
    pub(crate) fn ours(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), is_ours: true }
    }

    pub(crate) fn original(binary: impl AsRef<Path>) -> Self {
        Self { binary: binary.as_ref().to_owned(), is_ours: false }
    }

    /// A daemon of this binary with a QEMU socket.
    pub(crate) fn daemon(&self) -> Builder {
        Daemon::builder().binary(&self.binary)
    }

    /// A host, a daemon on it, and a Linux guest that has the first address, configured by hand.
    pub(crate) fn net<const N: usize>(&self, args: [&str; N]) -> Net {
        self.net_on(Host::new("nameserver 127.0.0.1\n"), args)
    }

    /// The same on a host of the case's own.
    pub(crate) fn net_on<const N: usize>(&self, host: Host, args: [&str; N]) -> Net {
        let daemon = self.daemon().args(args).through(host.prefix()).start();
        let guest = Guest::start(plug(&daemon), MAC, 1500);
        guest.configure("192.168.127.2/24", Some("192.168.127.1"));
        Net { guest, daemon, host }
    }
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_ours { "ours" } else { "the original" })
    }
}

/// A Linux guest behind a daemon on a host. Dropped in order: the guest hangs up first.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) guest: Guest,
    pub(crate) daemon: Daemon,
    pub(crate) host: Host,
}

/// What is to be seen.
#[derive(Debug)]
pub(crate) enum Expected {
    /// Of both.
    Same(String),
    /// On purpose; `row` is the first cell of the line in COMPAT.md that says why.
    Differs { row: &'static str, ours: String, original: String },
}

impl Expected {
    pub(crate) fn of(&self, on: &On) -> &String {
        match self {
            Self::Same(seen) => seen,
            Self::Differs { ours, original, .. } => {
                if on.is_ours {
                    ours
                } else {
                    original
                }
            }
        }
    }
}

/// Drives a daemon and writes down what was seen.
pub(crate) type Drive = Box<dyn Fn(&On) -> String + Send + Sync>;

/// One line of the table.
pub(crate) struct Case {
    /// The module, then the rows of the reference that it shows (`10.3`, `9.36`), then what it is about.
    pub(crate) name: String,
    pub(crate) drive: Drive,
    pub(crate) expected: Expected,
}

impl Case {
    pub(crate) fn module(&self) -> &str {
        self.name.split(' ').next().unwrap_or_default()
    }

    /// The rows of the reference's sections 9 and 10 that it shows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &str> {
        self.name.split(' ').skip(1).take_while(|word| word.starts_with("9.") || word.starts_with("10."))
    }
}

/// The cases of a module, as they are written.
pub(crate) struct Table {
    module: &'static str,
    cases: Vec<Case>,
}

impl Table {
    pub(crate) fn new(module: &'static str) -> Self {
        Self { module, cases: Vec::new() }
    }

    /// A case in which both do the same.
    pub(crate) fn same(
        &mut self,
        name: impl fmt::Display,
        seen: impl Into<String>,
        drive: impl Fn(&On) -> String + Send + Sync + 'static,
    ) {
        self.push(name, Expected::Same(seen.into()), drive);
    }

    /// A case in which ours does otherwise on purpose.
    pub(crate) fn differs(
        &mut self,
        name: impl fmt::Display,
        row: &'static str,
        ours: impl Into<String>,
        original: impl Into<String>,
        drive: impl Fn(&On) -> String + Send + Sync + 'static,
    ) {
        self.push(name, Expected::Differs { row, ours: ours.into(), original: original.into() }, drive);
    }

    fn push(
        &mut self,
        name: impl fmt::Display,
        expected: Expected,
        drive: impl Fn(&On) -> String + Send + Sync + 'static,
    ) {
        self.cases.push(Case { name: format!("{} {name}", self.module), drive: Box::new(drive), expected });
    }

    pub(crate) fn done(self) -> Vec<Case> {
        self.cases
    }
}
