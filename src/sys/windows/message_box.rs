//! Text for who has started a program that has no console. Owns: nothing.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "MessageBoxW")]

use std::mem::MaybeUninit;
use std::ptr;

use windows_sys::Win32::System::StationsAndDesktops::{
    GetProcessWindowStation, GetUserObjectInformationW, UOI_FLAGS, USEROBJECTFLAGS,
};
use windows_sys::Win32::UI::WindowsAndMessaging::{MB_ICONERROR, MB_OK, MessageBoxW, WSF_VISIBLE};

use super::console;

/// Waits until it has been read, where somebody can read it, and has not been told otherwise.
pub(crate) fn show(title: &str, text: &str) {
    if console::has_stderr() || !is_visible() {
        return;
    }
    let [title, text] = [title, text].map(|text| text.encode_utf16().chain([0]).collect::<Vec<u16>>());
    // SAFETY: the texts end with a zero and outlive the call.
    unsafe { MessageBoxW(ptr::null_mut(), text.as_ptr(), title.as_ptr(), MB_OK | MB_ICONERROR) };
}

/// Whether this session's windows are seen: nobody would close one of a service.
fn is_visible() -> bool {
    let mut flags = MaybeUninit::<USEROBJECTFLAGS>::zeroed();
    let size = size_of::<USEROBJECTFLAGS>() as u32;
    // SAFETY: the call writes one structure, which zeros are too.
    unsafe {
        let station = GetProcessWindowStation();
        let told = GetUserObjectInformationW(
            station.cast(),
            UOI_FLAGS,
            flags.as_mut_ptr().cast(),
            size,
            ptr::null_mut(),
        );
        told != 0 && flags.assume_init().dwFlags & WSF_VISIBLE as u32 != 0
    }
}
