//! A file system that the test answers for: it freezes, fails and goes on when told. Owns: its thread, its
//! files.
//! May not: have directories. The words are those of `linux/fuse.h`. Read next: `ns.rs`, where it is mounted.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::ns::Namespace;

/// How often it looks whether its mood has changed, where nothing is asked.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const ROOT: u64 = 1;
const IN_HEADER: usize = 40;

/// What it does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Answers,
    /// What is written is refused with this, as with `EDQUOT` where a quota is used up; everything else
    /// works.
    RefusesWrites(Errno),
    /// Nothing is looked at until the mood changes, as when the program behind it is stopped.
    Frozen,
    Ended,
}

/// A mounted file system with a flat directory.
#[derive(Debug)]
pub struct Fuse {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<(Mood, Files)>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Files {
    names: BTreeMap<String, u64>,
    /// Of the inode 2 and those behind it: mode and content.
    inodes: Vec<(u32, Vec<u8>)>,
}

impl Fuse {
    /// Mounts it in `ns` at `at`, an empty directory.
    #[track_caller]
    pub fn mount(ns: &Namespace, at: &Path) -> Self {
        let device = ns.open(&format!("fuse {}", at.display())).expect("a FUSE mount");
        let shared = Arc::new(Shared {
            state: Mutex::new((Mood::Answers, Files::default())),
            changed: Condvar::new(),
        });
        let server = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || server.serve(&device)));
        // The first close hears that there is no FLUSH.
        ns.run(["touch", &at.join("touched").display().to_string()]);
        Self { shared, thread }
    }

    pub fn set(&self, mood: Mood) {
        self.shared.lock().0 = mood;
        self.shared.changed.notify_all();
    }

    /// The content of a file; `None` without one.
    pub fn read(&self, name: &str) -> Option<String> {
        let state = self.shared.lock();
        let inode = state.1.names.get(name)?;
        Some(String::from_utf8_lossy(&state.1.inodes[*inode as usize - 2].1).into_owned())
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Whoever waits for an answer hears that there will be none, as the device is closed.
        self.set(Mood::Ended);
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}

/// The device for a mount at `at`, in the namespace of the caller.
pub fn mount(at: &str) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::mount::{MountFlags, mount};
    use std::os::fd::AsRawFd;
    let device = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = std::ffi::CString::new(data)?;
    mount("frozen", at, "fuse", MountFlags::empty(), Some(data.as_c_str()))?;
    Ok(device)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Mood, Files)> {
        self.state.lock().unwrap()
    }

    fn serve(&self, device: &OwnedFd) {
        let mut buffer = vec![0; 256 << 10];
        loop {
            // What has been read cannot be taken back: whoever asked could then not even be killed.
            let mut polled = [PollFd::new(device, PollFlags::IN)];
            if poll(&mut polled, Some(&LOOK_EVERY)) == Ok(0) && self.lock().0 != Mood::Ended {
                continue;
            }
            let mut state = self.lock();
            while state.0 == Mood::Frozen {
                state = self.changed.wait(state).unwrap();
            }
            if state.0 == Mood::Ended {
                return;
            }
            let len = match rustix::io::read(device, &mut buffer) {
                Ok(len) => len,
                // The request was taken back.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
                // Unmounted.
                Err(_) => return,
            };
            let refused = match state.0 {
                Mood::RefusesWrites(error) => Some(error),
                _ => None,
            };
            let Some(answer) = state.1.answer(&buffer[..len], refused) else { continue };
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(error) => (-error.raw_os_error(), Vec::new()),
            };
            let len = (16 + body.len()) as u32;
            let reply = [&len.to_ne_bytes()[..], &error.to_ne_bytes(), &buffer[8..16], &body].concat();
            let _ = rustix::io::write(device, &reply);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap();
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Words, most of which say nothing.
fn words(count: usize, given: &[(usize, u32)]) -> Vec<u8> {
    let mut words = vec![0_u32; count];
    for (at, value) in given {
        words[*at] = *value;
    }
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

impl Files {
    /// `None` where none is expected.
    fn answer(&mut self, request: &[u8], refused: Option<Errno>) -> Option<Result<Vec<u8>, Errno>> {
        let (opcode, inode, body) = (word(request, 4), long(request, 16), &request[IN_HEADER..]);
        Some(match opcode {
            // INIT: the words are major, minor, readahead, flags, background and threshold, max_write,
            // time_gran.
            26 => Ok(words(16, &[(0, 7), (1, 31), (4, 0x000c_0010), (5, 128 << 10), (6, 1)])),
            // FORGET, INTERRUPT, BATCH_FORGET.
            2 | 36 | 42 => return None,
            // LOOKUP
            1 => match self.names.get(&name(body)) {
                Some(inode) => Ok(self.entry(*inode)),
                None => Err(Errno::NOENT),
            },
            // GETATTR
            3 => Ok([vec![0; 16], self.attributes(inode)].concat()),
            // SETATTR: of mode and size.
            4 => {
                if let Some(file) = self.inodes.get_mut((inode - ROOT - 1) as usize) {
                    let valid = word(body, 0);
                    if valid & 8 != 0 {
                        file.1.resize(long(body, 16) as usize, 0);
                    }
                    if valid & 1 != 0 {
                        file.0 = word(body, 68);
                    }
                }
                Ok([vec![0; 16], self.attributes(inode)].concat())
            }
            // MKNOD
            8 => {
                let inode = self.make(name(&body[16..]), word(body, 0));
                Ok(self.entry(inode))
            }
            // CREATE
            35 => {
                let inode = self.make(name(&body[16..]), 0o100_000 | word(body, 4) & 0o777);
                Ok([self.entry(inode), words(4, &[])].concat())
            }
            // UNLINK
            10 => self.names.remove(&name(body)).map(|_| Vec::new()).ok_or(Errno::NOENT),
            // OPEN, OPENDIR
            14 | 27 => Ok(words(4, &[])),
            // READ
            15 => {
                let (from, len) = (long(body, 8) as usize, word(body, 16) as usize);
                let content = &self.inodes[(inode - ROOT - 1) as usize].1;
                let from = from.min(content.len());
                Ok(content[from..(from + len).min(content.len())].to_vec())
            }
            // WRITE
            16 if let Some(error) = refused => Err(error),
            16 => {
                let (at, len) = (long(body, 8) as usize, word(body, 16) as usize);
                let content = &mut self.inodes[(inode - ROOT - 1) as usize].1;
                content.resize(content.len().max(at + len), 0);
                content[at..at + len].copy_from_slice(&body[40..40 + len]);
                Ok(words(2, &[(0, len as u32)]))
            }
            // STATFS, RELEASE, FSYNC, RELEASEDIR
            17 => Ok(words(20, &[])),
            18 | 20 | 29 => Ok(Vec::new()),
            // FLUSH is not had here: the system would ask for it as the process ends, and wait for the
            // answer, even after SIGKILL.
            _ => Err(Errno::NOSYS),
        })
    }

    fn make(&mut self, name: String, mode: u32) -> u64 {
        self.inodes.push((mode, Vec::new()));
        let inode = ROOT + self.inodes.len() as u64;
        self.names.insert(name, inode);
        inode
    }

    /// It is asked for anew each time it is used.
    fn entry(&self, inode: u64) -> Vec<u8> {
        [&inode.to_ne_bytes()[..], &[0; 32], &self.attributes(inode)].concat()
    }

    fn attributes(&self, inode: u64) -> Vec<u8> {
        let (mode, size) = match inode {
            ROOT => (0o040_755, 0),
            _ => self
                .inodes
                .get((inode - ROOT - 1) as usize)
                .map_or((0, 0), |(mode, content)| (*mode, content.len())),
        };
        // Six long words and the parts of seconds, then: mode, links, ids, device, block size, flags.
        let start = [inode, size as u64, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
        [start, words(10, &[(3, mode), (4, 1), (8, 4096)])].concat()
    }
}
