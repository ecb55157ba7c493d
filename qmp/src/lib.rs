//! A QMP client: connects to a running QEMU, runs typed commands, follows its events, and knows enough of PCI
//! and netdevs to give a VM a network card while it runs. Commands, results and events are the types of
//! [`qapi::qmp`].
//!
//! Owns: the session and its bounds: every operation has a time-out but [`Client::next_event`], every message
//! and queue a limit; a peer can end the session but not the program.
//! May not: know who uses it. Read next: [`Client`], then `wire.rs`.
//!
//! ```
//! use qmp::qapi::qmp::{SHUTDOWN, query_status, quit};
//! use qmp::{Client, Lost, Timeouts};
//!
//! # use std::io::{BufRead, BufReader, Write};
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("qmp.sock");
//! # let listener = std::os::unix::net::UnixListener::bind(&path)?;
//! # let qemu = std::thread::spawn(move || -> std::io::Result<Vec<String>> {
//! #     let (mut socket, _) = listener.accept()?;
//! #     let mut lines = BufReader::new(socket.try_clone()?).lines();
//! #     let version = r#"{"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}"#;
//! #     writeln!(socket, r#"{{"QMP": {{"version": {version}, "capabilities": ["oob"]}}}}"#)?;
//! #     let mut commands = Vec::new();
//! #     for (id, result) in ["{}", r#"{"status": "running", "running": true}"#, "{}"].iter().enumerate() {
//! #         commands.extend(lines.next().transpose()?);
//! #         writeln!(socket, r#"{{"return": {result}, "id": {id}}}"#)?;
//! #     }
//! #     let data = r#"{"guest": false, "reason": "host-qmp-quit"}"#;
//! #     writeln!(socket, r#"{{"event": "SHUTDOWN", "data": {data}}}"#)?;
//! #     Ok(commands)
//! # });
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! // qemu-system-x86_64 -qmp unix:/run/qmp.sock,server=on,wait=off
//! let address = "unix:///run/qmp.sock".parse()?;
//! # let address = { let _: qmp::Address = address; qmp::Address::Unix(path) };
//! let mut client = Client::connect(&address, Timeouts::default()).await?;
//! let status = client.execute(query_status {}).await?;
//! println!("QEMU {} is {:?}", client.version().qemu.major, status.status);
//! # assert!(status.running);
//! client.execute(quit {}).await?;
//! # let mut reason = None;
//! loop {
//!     match client.next_event().await {
//!         Ok(event) => match event.read::<SHUTDOWN>() {
//!             Some(shutdown) => {
//!                 println!("ends because of {:?}", shutdown.reason);
//! #               reason = Some(shutdown.reason);
//!             }
//!             None => println!("{}", event.name),
//!         },
//!         Err(Lost::Closed) => break,
//!         Err(error) => return Err(error.into()),
//!     }
//! }
//! # let commands = qemu.join().unwrap()?;
//! # assert!(commands[2].contains("quit"), "{commands:?}");
//! # assert_eq!(reason, Some(qmp::qapi::qmp::ShutdownCause::host_qmp_quit));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # What QEMU tells, and what it does not
//!
//! Seen with QEMU 7.2 and 10.0, and held by `tests/qemu.rs`.
//!
//! - **One client at a time.** A second one connects and hears nothing until the first has gone; it then has
//!   the monitor, whether it still wants it or not. After two that wait, the next is refused at once.
//!   [`ConnectError::is_busy`] is all of that.
//! - **`netdev_add type=stream` succeeds before it connects**, and also when nobody listens. The event
//!   `NETDEV_STREAM_CONNECTED` and [`Client::network`] tell. A stream cannot be given a descriptor by
//!   `getfd`, and 7.2 does not connect again (`reconnect` is of 8.0).
//! - **Netdevs and where they lead** are in no query: not in the object model, and `query-rx-filter` names
//!   cards only (and takes 25 kB for each). `info network` of the human monitor has it, as text.
//! - **`device_del` asks the guest.** It succeeds at once; `DEVICE_DELETED` comes when the guest let go, so
//!   not in a VM that has no system running or is stopped: there it comes with the next reset. To ask again
//!   meanwhile is an error. [`Client::unplug`] is the whole of it.
//! - **`netdev_del` under a card that is still there**: the card loses its link and lists the dead netdev
//!   until it goes, while the id is free again. The socket is closed at once by QEMU 7.2, and with the card
//!   by QEMU 10.
//! - **`info network` after the other end of a stream has closed** says nothing of it with QEMU 10, which the
//!   event `NETDEV_STREAM_DISCONNECTED` does: see [`Netdev::info`].
//! - **`query-pci` hides what is behind a port** until firmware has numbered the buses, and **a second device
//!   on a port** is accepted by QEMU 7.2, though no guest will find it. [`Client::free_pci_bus`] therefore
//!   reads the object model.
//! - **Ports without an id** have buses that cannot be named in `device_add`.
//! - **After `quit`** the reply and `SHUTDOWN` come, then the end of the stream or, if somebody else was
//!   waiting for the monitor, a reset.
//!
//! # Why only qapi's types
//!
//! `qapi`'s own asynchronous client keeps a line without an end as long as memory lasts, ends at an event
//! that it has no type for, and panics at the command after one that was abandoned, as by a time-out: it
//! numbers none with a QEMU that offers `oob`.
#![forbid(unsafe_code)]

mod address;
mod client;
mod connect;
mod error;
mod event;
mod network;
mod pci;
mod wire;

pub use qapi;

pub use address::{Address, AddressError};
pub use client::{Client, Timeouts};
pub use error::{
    ConnectError, ExecuteError, HandshakeError, Lost, Refusal, SlotError, UnplugError, WaitError,
};
pub use event::Event;
pub use network::{Netdev, Network, Nic, netdev_stream, virtio_net};
pub use wire::MAX_LINE;

/// The example of README.md is compiled with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
