//! How a link gets to the engine, and how its end gets back. Owns: nothing. May not: read or write a frame.
//! Read next: `links.rs`; `hypervisor/mod.rs`, which attaches.

use rustix::fd::OwnedFd;
use std::io;
use std::sync::atomic::Ordering;

use netstack::PortId;
use tokio::sync::oneshot;

use super::Handle;
use super::command::Command;
use crate::link::Framing;

/// What becomes a link.
#[derive(Debug)]
pub(super) struct NewLink {
    pub(super) input: OwnedFd,
    pub(super) output: Option<OwnedFd>,
    pub(super) framing: Framing,
    /// Bytes of the stream that have been read already.
    pub(super) early: Vec<u8>,
    pub(super) over: oneshot::Sender<anyhow::Result<()>>,
}

/// A link that is attached. Forgetting this leaves the link as it is.
#[derive(Debug)]
pub struct Attachment {
    port: PortId,
    over: oneshot::Receiver<anyhow::Result<()>>,
    handle: Handle,
}

impl Attachment {
    /// The port of the switch that the link got.
    pub fn port(&self) -> PortId {
        self.port
    }

    /// Waits until the link has ended, and says how, once.
    ///
    /// # Errors
    /// It did not end in order: the descriptor failed, or what came was not frames.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        if self.over.is_terminated() {
            return Ok(());
        }
        (&mut self.over).await.unwrap_or(Ok(()))
    }

    /// Ends the link, if it has not ended.
    pub async fn detach(mut self) {
        self.handle.send(Command::Detach(self.port)).await;
        let _ = self.ended().await;
    }
}

impl Handle {
    /// Attaches a virtual machine: `stream`, a connected socket, carries its frames from now on. It need not
    /// be non-blocking.
    ///
    /// # Errors
    /// The engine has ended, has too many links, or cannot watch the socket; or the network's packets are too
    /// long for the framing.
    pub async fn attach(&self, stream: impl Into<OwnedFd>, framing: Framing) -> io::Result<Attachment> {
        self.attach_after(stream, framing, Vec::new()).await
    }

    /// The same for a stream of which `early` has been read already, up to a few hundred KiB.
    ///
    /// # Errors
    /// As [`attach`](Self::attach).
    pub async fn attach_after(
        &self,
        stream: impl Into<OwnedFd>,
        framing: Framing,
        early: Vec<u8>,
    ) -> io::Result<Attachment> {
        self.attach_link(stream.into(), None, framing, early).await
    }

    /// Attaches what is read from one descriptor and written to another, if there is one.
    pub(crate) async fn attach_pair(
        &self,
        input: OwnedFd,
        output: Option<OwnedFd>,
        framing: Framing,
    ) -> io::Result<Attachment> {
        self.attach_link(input, output, framing, Vec::new()).await
    }

    async fn attach_link(
        &self,
        input: OwnedFd,
        output: Option<OwnedFd>,
        framing: Framing,
        early: Vec<u8>,
    ) -> io::Result<Attachment> {
        let (told, over) = oneshot::channel();
        let (reply, answer) = oneshot::channel();
        let link = NewLink { input, output, framing, early, over: told };
        self.send(Command::Attach { link, reply }).await;
        let is_down = |_| io::Error::new(io::ErrorKind::ConnectionAborted, "the network is down");
        let port = answer.await.map_err(is_down)??;
        self.attached.fetch_add(1, Ordering::Relaxed);
        Ok(Attachment { port, over, handle: self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use netstack::{Mac, NetworkConfig, Subnet};

    use super::super::Engine;
    use super::*;
    use crate::permits::Permits;
    use crate::sys::stream::blocking_pair;

    const GATEWAY: [u8; 4] = [192, 168, 127, 1];

    fn network(mtu: u16) -> NetworkConfig {
        let gateway = GATEWAY.into();
        NetworkConfig { mtu, ..NetworkConfig::new(Subnet::new(gateway, 24), gateway, Mac([2; 6])) }
    }

    /// A request for the gateway's hardware address, after its length in HyperKit's framing.
    fn question() -> Vec<u8> {
        let arp = [0, 1, 8, 0, 6, 4, 0, 1];
        let guest = [4, 0, 0, 0, 0, 1];
        [
            &[42, 0, 255, 255, 255, 255, 255, 255][..],
            &guest,
            &[8, 6],
            &arp,
            &guest,
            &[192, 168, 127, 2],
            &[0; 6],
            &GATEWAY,
        ]
        .concat()
    }

    #[tokio::test]
    async fn what_was_read_before_is_read_first() {
        let (engine, handle) = Engine::new(network(1500), 1, Permits::new(0)).unwrap();
        let running = std::thread::spawn(|| engine.run());
        for early in [0, 1, 20, 44] {
            let (ours, mut theirs) = blocking_pair();
            theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let question = question();
            let (first, rest) = question.split_at(early);
            let attached = handle.attach_after(ours, Framing::Hyperkit, first.to_vec()).await;
            let mut attachment = attached.unwrap();
            theirs.write_all(rest).unwrap();
            let mut answer = [0; 44];
            theirs.read_exact(&mut answer).unwrap_or_else(|error| panic!("{error} after {early} bytes"));
            assert_eq!((&answer[..2], &answer[20..24]), (&[42, 0][..], &[6, 4, 0, 2][..]));
            drop(theirs);
            attachment.ended().await.unwrap();
            attachment.detach().await;
        }
        handle.stop().await;
        running.join().unwrap().unwrap();
        assert!(handle.attach(blocking_pair().0, Framing::Qemu).await.is_err());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn who_shares_a_descriptor_finds_it_as_it_was() {
        use rustix::fs::OFlags;

        let is_waiting = |fd: &OwnedFd| !rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK);
        let (engine, handle) = Engine::new(network(1500), 1, Permits::new(0)).unwrap();
        let running = std::thread::spawn(|| engine.run());
        let pairs = [true, false].map(|ends_first| (ends_first, blocking_pair()));
        for (ends_first, (ours, theirs)) in pairs {
            let [input, output, shared] = [(); 3].map(|()| OwnedFd::from(ours.try_clone().unwrap()));
            let mut attachment = handle.attach_pair(input, Some(output), Framing::Hyperkit).await.unwrap();
            assert!(!is_waiting(&shared));
            if ends_first {
                drop(theirs);
                attachment.ended().await.unwrap();
            } else {
                attachment.detach().await;
            }
            assert!(is_waiting(&shared));
        }
        let (ours, _theirs) = blocking_pair();
        let shared = OwnedFd::from(ours.try_clone().unwrap());
        let _attachment = handle.attach(ours, Framing::Hyperkit).await.unwrap();
        handle.stop().await;
        running.join().unwrap().unwrap();
        assert!(is_waiting(&shared), "at the end of the run");
    }

    #[tokio::test]
    async fn packets_that_the_framing_cannot_carry_are_refused() {
        let (engine, handle) = Engine::new(network(65_535), 1, Permits::new(0)).unwrap();
        let running = std::thread::spawn(|| engine.run());
        let attach = |framing| handle.attach(blocking_pair().0, framing);
        let error = attach(Framing::Hyperkit).await.unwrap_err().to_string();
        assert_eq!(error, "this link carries packets of up to 65521 bytes");
        let attachment = attach(Framing::Qemu).await.unwrap();
        attachment.detach().await;
        handle.stop().await;
        running.join().unwrap().unwrap();
    }
}
