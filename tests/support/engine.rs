//! An engine in the test's own process, with a Linux guest behind it and the registry of what it exposes in front: for what is
//! told from the registry's answers. Owns: the engine's thread. Read next: `../forwards.rs`.

use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use gvproxy::cli::{self, Parsed};
use gvproxy::config::Config;
use gvproxy::engine::{Engine, Handle};
use gvproxy::forward::registry::{Asker, ExposeError, Protocol, Registry};
use gvproxy::link::Framing;
use tokio::runtime::Runtime;

use super::guest::{self, Guest};

/// The address of the guest.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

/// A running engine, its registry, and its guest, which hangs up last.
pub(crate) struct Bench {
    pub(crate) registry: Registry,
    pub(crate) runtime: Runtime,
    handle: Handle,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    pub(crate) guest: Guest,
    dir: tempfile::TempDir,
}

impl Bench {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let argv = ["gvproxy", "-ssh-port", "-1"].map(Into::into);
        let Parsed::Run(raw) = cli::parse(&argv) else { panic!("the flags are right") };
        let config = Config::resolve(&raw, Path::new("/dev/null")).expect("a configuration");
        let (engine, handle, _) = Engine::new(config.network, 7).expect("an engine");
        let thread = std::thread::spawn(move || engine.run());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (link, far) = UnixStream::pair().expect("a link");
        runtime.block_on(handle.attach(far, Framing::Qemu)).expect("a link");
        let guest = Guest::start(link, guest::MAC, 1500);
        assert_eq!(guest.dhcp().ip(), GUEST);
        let registry = Registry::new(handle.clone());
        Self { registry, runtime, handle, thread: Some(thread), guest, dir }
    }

    /// For files of the test.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn expose_as(
        &self,
        asker: Asker,
        protocol: Protocol,
        local: &str,
        remote: &str,
    ) -> Result<(), ExposeError> {
        self.runtime.block_on(self.registry.expose(protocol, local, remote, asker))
    }

    pub(crate) fn unexpose_as(
        &self,
        asker: Asker,
        protocol: Protocol,
        local: &str,
    ) -> Result<(), ExposeError> {
        self.runtime.block_on(self.registry.unexpose(protocol, local, asker))
    }

    #[track_caller]
    pub(crate) fn expose(&self, protocol: Protocol, local: &str, remote: &str) {
        self.expose_as(Asker::Operator, protocol, local, remote)
            .unwrap_or_else(|error| panic!("expose {protocol} {local} for {remote}: {error}"));
    }

    #[track_caller]
    pub(crate) fn unexpose(&self, protocol: Protocol, local: &str) {
        self.unexpose_as(Asker::Operator, protocol, local)
            .unwrap_or_else(|error| panic!("unexpose {protocol} {local}: {error}"));
    }

    /// What the operator is told when that is not exposed.
    #[track_caller]
    pub(crate) fn refusal(&self, protocol: Protocol, local: &str, remote: &str) -> String {
        match self.expose_as(Asker::Operator, protocol, local, remote) {
            Ok(()) => panic!("exposed: {protocol} {local} for {remote}"),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.runtime.block_on(async {
            self.registry.close().await;
            self.handle.stop().await;
        });
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the engine panicked");
        }
    }
}
