//! A socket that is told what happens to machines. Owns: the socket and its directory. Read next:
//! `tests/notify.rs`.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A socket outside the daemon's directory, and the messages that come to it, whole.
#[derive(Debug)]
pub struct Listener {
    _dir: tempfile::TempDir,
    pub url: String,
    pub messages: Receiver<String>,
}

impl Listener {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        let socket = UnixListener::bind(dir.path().join("n")).unwrap();
        let url = format!("unix://{}/n", dir.path().display());
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for stream in socket.incoming() {
                let mut text = String::new();
                stream.unwrap().read_to_string(&mut text).unwrap();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        Self { _dir: dir, url, messages }
    }

    #[track_caller]
    pub fn next(&self, what: &str) -> String {
        self.messages.recv_timeout(PATIENCE).expect(what)
    }
}
