//! The event log, by a source that is there without an installation. Owns: a handle of it.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "ReportEventW")]

use std::ptr;

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::System::EventLog::{
    DeregisterEventSource, EVENTLOG_ERROR_TYPE, EVENTLOG_INFORMATION_TYPE, EVENTLOG_WARNING_TYPE,
    RegisterEventSourceW, ReportEventW,
};

use crate::sys::event_log::Severity;

/// Its events may have any text, and ids from 1000 on.
const SOURCE: &str = ".NET Runtime";
/// The longest text, in characters of the log's.
const LONGEST: usize = 31_839;

#[derive(Debug)]
pub(crate) struct EventLog(HANDLE);

// SAFETY: the calls may come from any thread.
unsafe impl Send for EventLog {}
// SAFETY: and from several at once.
unsafe impl Sync for EventLog {}

impl EventLog {
    pub(crate) fn open() -> Option<Self> {
        let source: Vec<u16> = SOURCE.encode_utf16().chain([0]).collect();
        // SAFETY: the name ends with a zero.
        let handle = unsafe { RegisterEventSourceW(ptr::null(), source.as_ptr()) };
        (!handle.is_null()).then_some(Self(handle))
    }

    pub(crate) fn report(&self, severity: Severity, text: &str) -> bool {
        let (kind, id) = match severity {
            Severity::Error => (EVENTLOG_ERROR_TYPE, 1000),
            Severity::Warning => (EVENTLOG_WARNING_TYPE, 1000),
            Severity::Information => (EVENTLOG_INFORMATION_TYPE, 1000),
            Severity::Debug => (EVENTLOG_INFORMATION_TYPE, 1001),
        };
        let text: Vec<u16> = plain(text).encode_utf16().take(LONGEST).chain([0]).collect();
        let texts = [text.as_ptr()];
        let (none, no_data) = (ptr::null_mut(), ptr::null());
        // SAFETY: there is one text, which ends with a zero and outlives the call.
        unsafe { ReportEventW(self.0, kind, 0, id, none, 1, 0, texts.as_ptr(), no_data) != 0 }
    }
}

/// Without zeros, which would end it, and without what readers of the log put something in the place of.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for one in text.chars().filter(|one| *one != '\0') {
        if out.ends_with('%') && (one.is_ascii_digit() || one == '{') {
            out.push(' ');
        }
        out.push(one);
    }
    out
}

impl Drop for EventLog {
    fn drop(&mut self) {
        // SAFETY: it is open, and closed once.
        unsafe { DeregisterEventSource(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_readers_would_replace() {
        assert_eq!(plain("a\0b 100% fe80::1%3 %{x} %%1"), "ab 100% fe80::1% 3 % {x} %% 1");
    }

    /// Where there is no log, nothing is to come of that.
    #[test]
    fn a_report_is_taken_or_refused_and_no_more() {
        if let Some(log) = EventLog::open() {
            for severity in [Severity::Error, Severity::Warning, Severity::Information, Severity::Debug] {
                let _ = log.report(severity, &"a\0b".repeat(20_000));
            }
        }
    }
}
