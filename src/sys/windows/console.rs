//! The console of who started a program that has none. Owns: nothing.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "AttachConsole")]

use windows_sys::Win32::Foundation::INVALID_HANDLE_VALUE;
use windows_sys::Win32::System::Console::{
    ATTACH_PARENT_PROCESS, AttachConsole, GetStdHandle, STD_ERROR_HANDLE,
};

/// Writes there from now on, unless somebody has said where to write. To be called by a program that is about
/// to end: the console's end, and Ctrl-C there, would be its own.
pub(crate) fn borrow() {
    if !has_stderr() {
        // SAFETY: a process without a console may have another's; a refusal changes nothing.
        unsafe { AttachConsole(ATTACH_PARENT_PROCESS) };
    }
}

/// Whether somebody has given the program a standard error.
pub(crate) fn has_stderr() -> bool {
    // SAFETY: the call only asks.
    let handle = unsafe { GetStdHandle(STD_ERROR_HANDLE) };
    !handle.is_null() && handle != INVALID_HANDLE_VALUE
}
