//! The virtual network of the program `gvproxy`, for a program that runs virtual machines itself: DHCP, DNS,
//! and TCP, UDP and pings to wherever the host can reach, without privileges, on threads of this process.
//!
//! A [`Daemon`] is one network. [`Daemon::builder`] takes the program's flags and its configuration file, and
//! binds what they name. The [`Handle`] of a daemon that runs puts guests into the network, each by one end
//! of a socket pair, and exposes their ports and sockets on the host. To drop the daemon takes everything
//! down.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use gvproxy::{Daemon, Exit, Framing, Protocol};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let daemon = Daemon::builder().flag("subnet", "10.0.2.0/24").flag("mtu", "4000").start()?;
//!
//! // The other end is for the virtual machine monitor: QEMU takes it as `-netdev stream,addr.type=fd`.
//! let (ours, machines) = UnixStream::pair()?;
//! daemon.handle().attach(ours, Framing::Qemu)?;
//!
//! let local = "127.0.0.1:8080";
//! # let local = &std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
//! daemon.handle().expose(Protocol::Tcp, local, "10.0.2.2:80")?;
//! assert_eq!(daemon.handle().exposed()[0].remote, "10.0.2.2:80");
//!
//! // Any thread may hold a clone of the handle.
//! let handle = daemon.handle().clone();
//! std::thread::spawn(move || handle.shutdown());
//! assert_eq!(daemon.wait()?, Exit::Stopped);
//! # drop(machines);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/embedded_daemon.rs` has a guest that uses the network; `examples/forward_socket.rs` leads a unix
//! socket of the host elsewhere, with no guest at all. The virtual network without sockets and threads is the
//! crate `netstack`.
//!
//! # What it does not touch
//!
//! A program may run several daemons, beside whatever else it does. A daemon changes nothing that belongs to
//! the process:
//!
//! - It catches no signal. It relies on SIGPIPE being ignored, as Rust's runtime leaves it; with `pcap` under
//!   a limit of file sizes (RLIMIT_FSIZE) SIGXFSZ has to be ignored too.
//! - It logs by `tracing`, with the targets `gvproxy`, `netstack` and `qmp`; where the lines go is for the
//!   program to say.
//! - Each connection of a guest is one file descriptor or two, out of the process's RLIMIT_NOFILE. Daemons
//!   divide what the limit is at their start, each as if it were alone: a program that serves many guests
//!   raises it before.
//! - It reads keys and secrets where flags name them, and the API's token in the environment's
//!   GVISOR_API_TOKEN, as the program does. Whether a core dump may hold them is for the program to say
//!   (RLIMIT_CORE).
//! - It writes no pid file and does not use standard input or output: the flags for these are refused.
//!
//! What a guest may do is as in the program (`SECURITY.md`, `docs/limits.md`). It reaches whatever listens on
//! the host's loopback, at 192.168.127.254, servers of this program among them; but for its own daemon's HTTP
//! API.
//!
//! It runs on Linux.
#![cfg_attr(not(feature = "guest"), expect(dead_code, unused_imports, reason = "what only gvforwarder uses"))]
#![allow(
    unreachable_pub,
    reason = "`pub` in a module is for other modules; what is public outside of the package stands here"
)]

pub use config::{Exposed, Protocol};
pub use daemon::{Builder, Daemon, Exit, Handle};
pub use forward::registry::ExposeError;
pub use link::Framing;

// What is public beyond that is for this package's own programs, tests and benchmarks, and may change at any
// time.
#[doc(hidden)]
pub mod addr;
#[doc(hidden)]
pub mod agent;
mod api;
mod budget;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod daemon;
#[doc(hidden)]
pub mod dial;
mod disk;
#[doc(hidden)]
pub mod docker_sock;
mod engine;
#[doc(hidden)]
pub mod forward;
#[doc(hidden)]
#[cfg(feature = "guest")]
pub mod guest;
#[doc(hidden)]
pub mod host;
mod hypervisor;
mod limit;
mod link;
#[doc(hidden)]
pub mod listen;
#[doc(hidden)]
pub mod logging;
mod notify;
mod pcap;
#[doc(hidden)]
pub mod permits;
#[doc(hidden)]
pub mod pidfile;
#[doc(hidden)]
pub mod preflight;
mod relay;
mod reverse;
#[doc(hidden)]
pub mod ssh;
mod succession;
mod supervise;
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
pub mod text;
#[doc(hidden)]
pub mod vm;
mod vsock;
