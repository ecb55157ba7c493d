//! Pipes of messages, of which an empty one is the end of a half: as docker's clients and podman's have it.
//! To be one it has to be read for itself, and to stand behind nothing that is unread. Each client is carried
//! to one end of a pair of sockets, whose other end is like every other stream's.
//!
//! A client connects to an instance of the pipe that waits for one; without one it is told that the pipe is
//! busy. So several wait at any time, and another takes the place of each that has a client before that is
//! looked at.
//! Owns: the instances, and the tasks that carry bytes. May not: look at a byte.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "CreateNamedPipeW")]

use std::collections::VecDeque;
use std::io;
use std::os::windows::io::{
    AsRawHandle as _, BorrowedHandle, FromRawHandle as _, IntoRawHandle as _, OwnedHandle,
};
use std::pin::pin;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::windows::named_pipe::NamedPipeServer;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_FILE_NOT_FOUND, HANDLE, INVALID_HANDLE_VALUE, LocalFree,
};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    GetTokenInformation, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::Storage::FileSystem::{
    FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, FlushFileBuffers, PIPE_ACCESS_DUPLEX,
};
use windows_sys::Win32::System::Pipes::{
    CreateNamedPipeW, PIPE_READMODE_MESSAGE, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_MESSAGE,
    PIPE_UNLIMITED_INSTANCES, PIPE_WAIT, PeekNamedPipe, WaitNamedPipeW,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

use crate::sys::stream::{Stream, pair};

pub(crate) const EXIST: bool = true;

/// Instances that wait for a client. As many may connect at the same moment.
const SPARE: usize = 64;
/// Clients that have connected and wait to be taken: then no instance waits.
const MAX_WAITING: usize = 1024;
/// Bytes that the system holds each way.
const QUOTA: u32 = 64 << 10;
/// Bytes carried at once, each way.
const PIECE: usize = 16 << 10;
/// How long an end may take nothing.
const PATIENCE: Duration = Duration::from_secs(900);
/// The pause after the system had no instance to give.
const PAUSE: Duration = Duration::from_millis(100);

/// Where it is, and who may connect.
#[derive(Debug)]
struct Pipe {
    /// `\\.\pipe\NAME` and a zero.
    path: Vec<u16>,
    descriptor: Descriptor,
}

#[derive(Debug)]
pub(crate) struct PipeListener {
    pipe: Pipe,
    first: OwnedHandle,
}

impl PipeListener {
    pub(crate) fn bind(name: &str) -> io::Result<Self> {
        let path = format!(r"\\.\pipe\{name}").encode_utf16().chain([0]).collect();
        let pipe = Pipe { path, descriptor: Descriptor::for_own_user()? };
        // Whoever asked for the first instance is told where it is not: but not on every system.
        if pipe.is_there() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let first = match pipe.instance(FILE_FLAG_FIRST_PIPE_INSTANCE) {
            Err(error) if error.raw_os_error() == Some(ERROR_ACCESS_DENIED.cast_signed()) => {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            made => made?,
        };
        Ok(Self { pipe, first })
    }

    pub(crate) fn listen(self) -> io::Result<PipeClients> {
        let Self { pipe, first } = self;
        let queue =
            Arc::new(Queue { pipe, clients: Mutex::default(), came: Notify::new(), room: Notify::new() });
        let mut first = Some(first);
        let mut waiting = JoinSet::new();
        for _ in 0..SPARE {
            let instance = first.take().map_or_else(|| queue.pipe.instance(0), Ok)?;
            let queue = Arc::clone(&queue);
            let instance = watched(instance)?;
            waiting.spawn(async move { queue.wait(instance).await });
        }
        Ok(PipeClients { queue, carried: Mutex::default(), _waiting: waiting })
    }
}

impl Pipe {
    /// Whether somebody has it. Takes nothing from anybody.
    fn is_there(&self) -> bool {
        // SAFETY: the path ends with a zero. One millisecond is the least that can be waited.
        let free = unsafe { WaitNamedPipeW(self.path.as_ptr(), 1) };
        free != 0 || io::Error::last_os_error().raw_os_error() != Some(ERROR_FILE_NOT_FOUND.cast_signed())
    }

    fn instance(&self, flags: u32) -> io::Result<OwnedHandle> {
        let security = SECURITY_ATTRIBUTES {
            nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: self.descriptor.0,
            bInheritHandle: 0,
        };
        // SAFETY: the path ends with a zero, and the descriptor outlives the call.
        let handle = unsafe {
            CreateNamedPipeW(
                self.path.as_ptr(),
                PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | flags,
                PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE | PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS,
                PIPE_UNLIMITED_INSTANCES,
                QUOTA,
                QUOTA,
                0,
                &raw const security,
            )
        };
        if handle == INVALID_HANDLE_VALUE {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was made just now, and is nobody else's.
        Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
    }
}

fn watched(instance: OwnedHandle) -> io::Result<NamedPipeServer> {
    // SAFETY: the handle is an instance's that was made for overlapped calls, and is given away.
    unsafe { NamedPipeServer::from_raw_handle(instance.into_raw_handle()) }
}

/// A security descriptor, as the system has it.
#[derive(Debug)]
struct Descriptor(PSECURITY_DESCRIPTOR);

// SAFETY: nobody writes to it before it is freed.
unsafe impl Send for Descriptor {}
// SAFETY: likewise.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// SYSTEM, administrators and this process's own user may do everything, and nobody else anything.
    fn for_own_user() -> io::Result<Self> {
        let text = format!("D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;{})", own_user()?);
        let text: Vec<u16> = text.encode_utf16().chain([0]).collect();
        let mut descriptor = ptr::null_mut();
        // SAFETY: the text ends with a zero; the call writes one pointer.
        let made = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                ptr::null_mut(),
            )
        };
        if made == 0 { Err(io::Error::last_os_error()) } else { Ok(Self(descriptor)) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the system gave it to be freed so, once.
        unsafe { LocalFree(self.0.cast()) };
    }
}

/// The security identifier of the user who runs this process, as text.
fn own_user() -> io::Result<String> {
    let mut token: HANDLE = ptr::null_mut();
    // SAFETY: the call writes one handle.
    if unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) } == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened just now, and is nobody else's.
    let token = unsafe { OwnedHandle::from_raw_handle(token) };
    // The structure, and a longest identifier behind it; aligned for both.
    let mut room = [0_u64; 32];
    let mut len = 0;
    // SAFETY: the call writes at most so many bytes.
    let told = unsafe {
        let at = room.as_mut_ptr().cast();
        let size = size_of_val(&room) as u32;
        GetTokenInformation(token.as_raw_handle(), TokenUser, at, size, &raw mut len)
    };
    if told == 0 {
        return Err(io::Error::last_os_error());
    }
    let mut text = ptr::null_mut();
    // SAFETY: the structure was filled, and what it points to lies behind it; the call writes one pointer.
    let made = unsafe {
        let user = room.as_ptr().cast::<TOKEN_USER>().read();
        ConvertSidToStringSidW(user.User.Sid, &raw mut text)
    };
    if made == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the text ends with a zero, and is freed once, behind its use.
    unsafe {
        let len = (0..).take_while(|&at| *text.add(at) != 0).count();
        let copied = String::from_utf16_lossy(std::slice::from_raw_parts(text, len));
        LocalFree(text.cast());
        Ok(copied)
    }
}

/// Those that have connected and wait to be taken.
#[derive(Debug)]
struct Queue {
    pipe: Pipe,
    clients: Mutex<VecDeque<io::Result<NamedPipeServer>>>,
    came: Notify,
    room: Notify,
}

impl Queue {
    fn clients(&self) -> MutexGuard<'_, VecDeque<io::Result<NamedPipeServer>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of one of the instances that wait, and of those in its place.
    async fn wait(&self, mut instance: NamedPipeServer) {
        loop {
            let connected = instance.connect().await;
            let next = loop {
                match self.pipe.instance(0).and_then(watched) {
                    Ok(next) => break next,
                    Err(error) => {
                        self.give(Err(error)).await;
                        sleep(PAUSE).await;
                    }
                }
            };
            let client = std::mem::replace(&mut instance, next);
            self.give(connected.map(|()| client)).await;
        }
    }

    async fn give(&self, client: io::Result<NamedPipeServer>) {
        loop {
            let room = self.room.notified();
            {
                let mut clients = self.clients();
                if clients.len() < MAX_WAITING {
                    clients.push_back(client);
                    break;
                }
            }
            room.await;
        }
        self.came.notify_one();
    }
}

#[derive(Debug)]
pub(crate) struct PipeClients {
    queue: Arc<Queue>,
    /// One task for each client that was taken. They end with it.
    carried: Mutex<JoinSet<()>>,
    _waiting: JoinSet<()>,
}

impl PipeClients {
    pub(crate) async fn ready(&self) {
        loop {
            let came = self.queue.came.notified();
            if !self.queue.clients().is_empty() {
                return;
            }
            came.await;
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Option<Stream>> {
        let Some(client) = self.queue.clients().pop_front() else { return Ok(None) };
        self.queue.room.notify_one();
        let (near, far) = pair()?;
        let (near, far, client) = (Stream::from_std(near)?, Stream::from_std(far)?, client?);
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        while carried.try_join_next().is_some() {}
        carried.spawn(carry(client, far));
        Ok(Some(near))
    }
}

/// How the client's sending has ended.
enum Ended {
    /// By an empty message, or nobody takes it; it may go on reading.
    Half,
    Gone,
}

/// Carries bytes, and the end of each half, until both have ended or the client is gone.
async fn carry(client: NamedPipeServer, stream: Stream) {
    let handle = client.as_raw_handle() as usize;
    let (mut from_client, to_client) = split(client);
    let (from_stream, to_stream) = stream.into_split();
    let mut back = pin!(carry_back(from_stream, to_client, handle));
    let ended = {
        let mut forth = pin!(carry_forth(&mut from_client, to_stream, handle));
        tokio::select! {
            ended = &mut forth => ended,
            () = &mut back => {
                forth.await;
                return;
            }
        }
    };
    if matches!(ended, Ended::Half) {
        tokio::select! {
            () = back => {}
            () = gone(&mut from_client, handle) => {}
        }
    }
}

async fn carry_forth(from: &mut ReadHalf<NamedPipeServer>, mut to: OwnedWriteHalf, handle: usize) -> Ended {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).await {
            Ok(0) if is_connected(handle) => {
                let _ = to.shutdown().await;
                return Ended::Half;
            }
            Ok(len @ 1..) => {
                let bytes = piece.get(..len).unwrap_or_default();
                if !matches!(timeout(PATIENCE, to.write_all(bytes)).await, Ok(Ok(()))) {
                    return Ended::Half;
                }
            }
            Ok(0) | Err(_) => return Ended::Gone,
        }
    }
}

/// Reads in vain until the client is gone.
async fn gone(from: &mut ReadHalf<NamedPipeServer>, handle: usize) {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).await {
            Ok(0) if !is_connected(handle) => return,
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Ends when all is written, the end too.
async fn carry_back(mut from: OwnedReadHalf, mut to: WriteHalf<NamedPipeServer>, handle: usize) {
    let mut piece = vec![0; PIECE];
    loop {
        let len = from.read(&mut piece).await.unwrap_or(0);
        let bytes = piece.get(..len).unwrap_or_default();
        // An empty message is the end; there are no others.
        let written = match len {
            0 => {
                let end = async {
                    flush(handle).await?;
                    to.write(bytes).await.map(drop)
                };
                timeout(PATIENCE, end).await
            }
            _ => timeout(PATIENCE, to.write_all(bytes)).await,
        };
        if len == 0 || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

/// Waits until the client has read everything: behind unread bytes an empty message would be none. It takes a
/// thread, which stays until the client reads or leaves.
async fn flush(handle: usize) -> io::Result<()> {
    // SAFETY: the instance is open as long as its halves are, of which the caller has one.
    let instance = unsafe { BorrowedHandle::borrow_raw(handle as HANDLE) }.try_clone_to_owned()?;
    let (tell, told) = oneshot::channel();
    let wait = move || {
        // SAFETY: the handle is this thread's own.
        let done = unsafe { FlushFileBuffers(instance.as_raw_handle()) };
        let _ = tell.send(if done == 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    };
    thread::Builder::new().name("pipe".to_owned()).stack_size(64 << 10).spawn(wait)?;
    told.await.map_err(io::Error::other)?
}

/// Whether the client still has its end: a read of nothing says as much of an empty message as of a closed
/// pipe.
fn is_connected(handle: usize) -> bool {
    let nothing = ptr::null_mut();
    // SAFETY: the instance is open as long as its reading half is, and nothing is to be written.
    let peeked = unsafe {
        PeekNamedPipe(handle as HANDLE, ptr::null_mut(), 0, ptr::null_mut(), nothing, ptr::null_mut())
    };
    peeked != 0
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::windows::named_pipe::{ClientOptions, NamedPipeClient};
    use windows_sys::Win32::Security::Authorization::{
        ConvertSecurityDescriptorToStringSecurityDescriptorW, GetSecurityInfo, SE_KERNEL_OBJECT,
    };
    use windows_sys::Win32::Security::DACL_SECURITY_INFORMATION;

    use super::*;

    fn name(of: &str) -> String {
        format!("gvproxy-test-{of}-{}", std::process::id())
    }

    fn client(name: &str) -> io::Result<NamedPipeClient> {
        ClientOptions::new().open(format!(r"\\.\pipe\{name}"))
    }

    async fn next(clients: &PipeClients) -> Stream {
        clients.ready().await;
        clients.accept().unwrap().unwrap()
    }

    #[tokio::test]
    async fn its_descriptor_names_three() {
        let listener = PipeListener::bind(&name("dacl")).unwrap();
        let (mut descriptor, mut text) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: as the calls ask for; what they give is kept until the process ends.
        let told = unsafe {
            let handle = listener.first.as_raw_handle();
            let none = ptr::null_mut();
            let done = GetSecurityInfo(
                handle,
                SE_KERNEL_OBJECT,
                DACL_SECURITY_INFORMATION,
                none,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                &raw mut descriptor,
            );
            assert_eq!(done, 0);
            let made = ConvertSecurityDescriptorToStringSecurityDescriptorW(
                descriptor,
                SDDL_REVISION_1,
                DACL_SECURITY_INFORMATION,
                &raw mut text,
                ptr::null_mut(),
            );
            assert_ne!(made, 0);
            let len = (0..).take_while(|&at| *text.add(at) != 0).count();
            String::from_utf16_lossy(std::slice::from_raw_parts(text, len))
        };
        let user = own_user().unwrap();
        assert!(user.starts_with("S-1-5-"), "{user}");
        // Windows says what all generic rights are of a file; Wine keeps the word.
        let expected =
            ["GA", "FA"].map(|all| format!("D:P(A;;{all};;;SY)(A;;{all};;;BA)(A;;{all};;;{user})"));
        assert!(expected.contains(&told), "{told}");
    }

    #[tokio::test]
    async fn a_name_is_one_listeners() {
        let name = name("twice");
        let first = PipeListener::bind(&name).unwrap();
        assert_eq!(PipeListener::bind(&name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let clients = first.listen().unwrap();
        assert_eq!(PipeListener::bind(&name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(clients);
        let start = Instant::now();
        // Its tasks end when the runtime gets to them.
        while let Err(error) = PipeListener::bind(&name) {
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(start.elapsed() < Duration::from_secs(5), "{error}");
            tokio::task::yield_now().await;
        }
        assert_eq!(client("gvproxy-none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn an_empty_message_is_the_end_of_a_half() {
        let name = name("halves");
        let clients = PipeListener::bind(&name).unwrap().listen().unwrap();
        let mut client = client(&name).unwrap();
        let stream = next(&clients).await;
        let sent: Vec<u8> = (0..300_000_u32).map(|at| (at / 7) as u8).collect();
        let (mut reads, mut writes) = stream.into_split();
        let say = async {
            client.write_all(&sent).await.unwrap();
            // The end of its sending; it goes on reading.
            client.write(&[]).await.unwrap();
            let mut heard = vec![0; sent.len()];
            client.read_exact(&mut heard).await.unwrap();
            assert!(heard == sent);
            assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0);
        };
        let echo = async {
            let mut heard = Vec::new();
            reads.read_to_end(&mut heard).await.unwrap();
            assert!(heard == sent);
            writes.write_all(&heard).await.unwrap();
            writes.shutdown().await.unwrap();
        };
        timeout(Duration::from_secs(30), async { tokio::join!(say, echo) }).await.unwrap();
    }

    #[tokio::test]
    async fn the_other_half_first() {
        let name = name("other");
        let clients = PipeListener::bind(&name).unwrap().listen().unwrap();
        let mut client = client(&name).unwrap();
        let mut stream = next(&clients).await;
        stream.write_all(b"bye").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = [0; 9];
        assert_eq!(client.read(&mut heard).await.unwrap(), 3);
        assert_eq!(client.read(&mut heard).await.unwrap(), 0);
        client.write_all(b"still here").await.unwrap();
        let mut heard = [0; 10];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still here");
        drop(client);
        assert_eq!(timeout(Duration::from_secs(5), stream.read(&mut heard)).await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn many_at_once_and_one_after_the_other() {
        let name = name("many");
        let clients = PipeListener::bind(&name).unwrap().listen().unwrap();
        // As many as may connect at the same moment, however little the runtime does meanwhile.
        let at_once: Vec<_> = (0..SPARE).map(|_| client(&name).unwrap()).collect();
        let mut streams = Vec::new();
        for _ in &at_once {
            streams.push(next(&clients).await);
        }
        drop((at_once, streams));
        for round in 0..50_u8 {
            let start = Instant::now();
            let mut client = loop {
                match client(&name) {
                    Ok(client) => break client,
                    Err(error) => assert!(start.elapsed() < Duration::from_secs(5), "{error}"),
                }
                tokio::task::yield_now().await;
            };
            let mut stream = next(&clients).await;
            client.write_all(&[round]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), round);
            stream.write_all(&[!round]).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), !round);
        }
    }
}
