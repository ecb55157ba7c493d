//! How a program without a console is asked to end: `WM_CLOSE` to its hidden window, as taskkill and podman
//! send it, `WM_ENDSESSION`, or `WM_QUIT` to the window's thread, as podman sends it to win-sshproxy. Class
//! and title of the window are the original's.
//! Owns: the thread and its window.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "CreateWindowExW, GetMessageW")]

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use windows_sys::Win32::Foundation::{HWND, LPARAM, LRESULT, WPARAM};
use windows_sys::Win32::System::LibraryLoader::GetModuleHandleW;
use windows_sys::Win32::System::Threading::GetCurrentThreadId;
use windows_sys::Win32::UI::WindowsAndMessaging::{
    CreateWindowExW, DefWindowProcW, DestroyWindow, DispatchMessageW, GetMessageW, MSG, PM_NOREMOVE,
    PeekMessageW, PostQuitMessage, PostThreadMessageW, RegisterClassW, TranslateMessage, WM_CLOSE,
    WM_DESTROY, WM_ENDSESSION, WM_QUIT, WNDCLASSW, WS_OVERLAPPEDWINDOW,
};

#[derive(Debug)]
pub(crate) struct QuitThread {
    id: u32,
    /// `None` once it has been heard.
    ended: Option<oneshot::Receiver<()>>,
}

/// How long the end of the session waits for that of the program; the system waits 5 s.
const FAREWELL: Duration = Duration::from_secs(4);

thread_local! {
    /// Tells that the program is to end, once.
    static TELL: RefCell<Option<oneshot::Sender<()>>> = const { RefCell::new(None) };
}

fn tell() {
    if let Some(tell) = TELL.take() {
        let _ = tell.send(());
    }
}

impl QuitThread {
    /// Returns when messages can be posted.
    pub(crate) fn start() -> io::Result<Self> {
        let (give, given) = mpsc::channel();
        let (ends, ended) = oneshot::channel();
        thread::Builder::new().name("window".to_owned()).spawn(move || {
            // SAFETY: the call looks for a message, of which there is none, and makes the thread's queue.
            let id = unsafe {
                let mut message = MaybeUninit::<MSG>::zeroed();
                PeekMessageW(message.as_mut_ptr(), ptr::null_mut(), 0, 0, PM_NOREMOVE);
                GetCurrentThreadId()
            };
            make_window();
            TELL.set(Some(ends));
            let _ = give.send(id);
            if let Ok(()) = run() {
                tell();
            }
        })?;
        let id = given.recv().map_err(io::Error::other)?;
        Ok(Self { id, ended: Some(ended) })
    }

    /// Whom `WM_QUIT` is for.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Waits until the window is closed, or the thread is told.
    pub(crate) async fn asked(&mut self) {
        if let Some(ended) = &mut self.ended {
            let heard = ended.await;
            self.ended = None;
            if heard.is_ok() {
                return;
            }
        }
        // It was heard before; or the loop has failed, and nobody can ask that way.
        std::future::pending().await
    }
}

impl Drop for QuitThread {
    fn drop(&mut self) {
        // SAFETY: a message without a pointer; a thread that is gone refuses it.
        unsafe { PostThreadMessageW(self.id, WM_QUIT, 0, 0) };
    }
}

/// In a session without windows there is none; the thread still takes messages.
fn make_window() {
    let exe = std::env::current_exe().ok();
    let name = exe.as_deref().and_then(|exe| exe.file_stem()).unwrap_or_default().to_string_lossy();
    let wide = |text: String| -> Vec<u16> { text.encode_utf16().chain([0]).collect() };
    let (class, title) = (wide(format!("{name}-rclass")), wide(format!("{name}-root")));
    // SAFETY: the texts end with a zero and outlive the calls; the class's procedure is there for ever.
    unsafe {
        let instance = GetModuleHandleW(ptr::null());
        let known = WNDCLASSW {
            lpfnWndProc: Some(handle),
            hInstance: instance,
            lpszClassName: class.as_ptr(),
            ..MaybeUninit::zeroed().assume_init()
        };
        RegisterClassW(&raw const known);
        let none = ptr::null_mut();
        CreateWindowExW(
            0,
            class.as_ptr(),
            title.as_ptr(),
            WS_OVERLAPPEDWINDOW,
            0,
            0,
            0,
            0,
            none,
            ptr::null_mut(),
            instance,
            ptr::null(),
        );
    }
}

/// Takes messages until `WM_QUIT`.
fn run() -> io::Result<()> {
    loop {
        let mut message = MaybeUninit::<MSG>::zeroed();
        // SAFETY: the call writes one message, which is then handed to the window that it is for.
        match unsafe { GetMessageW(message.as_mut_ptr(), ptr::null_mut(), 0, 0) } {
            0 => return Ok(()),
            -1 => return Err(io::Error::last_os_error()),
            // SAFETY: likewise.
            _ => unsafe {
                TranslateMessage(message.as_ptr());
                DispatchMessageW(message.as_ptr());
            },
        }
    }
}

/// The window's procedure.
unsafe extern "system" fn handle(window: HWND, message: u32, first: WPARAM, second: LPARAM) -> LRESULT {
    // SAFETY: the system calls this for its own window, with that window's messages.
    unsafe {
        match message {
            WM_CLOSE => {
                DestroyWindow(window);
                0
            }
            WM_DESTROY => {
                PostQuitMessage(0);
                0
            }
            // Once this returns the process may be ended at any time.
            WM_ENDSESSION if first != 0 => {
                tell();
                thread::sleep(FAREWELL);
                0
            }
            _ => DefWindowProcW(window, message, first, second),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;
    use windows_sys::Win32::UI::WindowsAndMessaging::{EnumThreadWindows, PostMessageW};

    use super::*;

    #[tokio::test]
    async fn its_thread_is_told_to_quit() {
        let mut quit = QuitThread::start().unwrap();
        assert!(timeout(Duration::from_millis(50), quit.asked()).await.is_err());
        // SAFETY: a message without a pointer.
        assert_ne!(unsafe { PostThreadMessageW(quit.id(), WM_QUIT, 0, 0) }, 0);
        timeout(Duration::from_secs(5), quit.asked()).await.unwrap();
    }

    /// As podman does with each of a process's threads.
    #[tokio::test]
    async fn its_window_is_closed() {
        unsafe extern "system" fn close(window: HWND, count: LPARAM) -> i32 {
            // SAFETY: the count is a test's, which waits; a message without a pointer.
            unsafe {
                *(count as *mut u32) += 1;
                PostMessageW(window, WM_CLOSE, 0, 0);
            }
            1
        }
        let mut quit = QuitThread::start().unwrap();
        let mut count = 0_u32;
        // SAFETY: the count outlives the call.
        unsafe { EnumThreadWindows(quit.id(), Some(close), (&raw mut count) as LPARAM) };
        assert!(count > 0, "no window in this session");
        timeout(Duration::from_secs(5), quit.asked()).await.unwrap();
    }
}
