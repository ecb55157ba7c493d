//! The log of the system for programs that nobody sees. Owns: a way there.

use super::os;

/// How severe a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the log's own words")]
pub enum Severity {
    Error,
    Warning,
    Information,
    Debug,
}

/// The event log of Windows.
#[derive(Debug)]
pub struct EventLog(os::event_log::EventLog);

impl EventLog {
    /// `None` where there is none, or it takes nobody.
    pub fn open() -> Option<Self> {
        os::event_log::EventLog::open().map(Self)
    }

    /// Reports `text`, up to 31,839 characters of it; whether it was taken.
    pub fn report(&self, severity: Severity, text: &str) -> bool {
        self.0.report(severity, text)
    }
}
