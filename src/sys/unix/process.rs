//! Signals and limits of the process. Owns: nothing.
// UNSAFETY: rustix leaves signal handlers to libc.
#![expect(unsafe_code, reason = "sigprocmask, signal")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// None is blocked, and those that nobody means are ignored, `others` among them.
pub(crate) fn mend_signals(others: &[libc::c_int]) {
    const IGNORED: [libc::c_int; 9] = [
        libc::SIGXFSZ,
        libc::SIGXCPU,
        libc::SIGTTOU,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
    ];
    // SAFETY: the set is initialized before it is used, and an ignored signal runs no code.
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
        for signal in IGNORED.iter().chain(others) {
            libc::signal(*signal, libc::SIG_IGN);
        }
    }
}

pub(crate) fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Linux takes a limit of one byte as that also where dumps go to a program, as systemd-coredump (core(5)).
pub(crate) fn leave_no_core_dump() {
    let before = getrlimit(Resource::Core);
    // Where none was allowed it is none: to write a file. A smaller limit than before is always allowed.
    let current = before.maximum.map_or(1, |maximum| maximum.min(1));
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(current), ..before });
}

/// Whether the system has no such call, or a filter keeps it from this process (seccomp(2)).
pub(crate) fn is_withheld(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOSYS | Errno::PERM | Errno::ACCESS))
}

pub(crate) fn is_exhausted(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL)
    )
}

pub(crate) fn is_under_way(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error) == Some(Errno::INPROGRESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_core_dump_is_left_by_a_program_of_ours() {
        let before = getrlimit(Resource::Core);
        crate::sys::leave_no_core_dump();
        assert_eq!(getrlimit(Resource::Core), before, "another program's process is left alone");
        crate::sys::IS_OWN.store(true, std::sync::atomic::Ordering::Relaxed);
        crate::sys::leave_no_core_dump();
        // Less than any dump, and what tells Linux to start no program for one.
        assert!(getrlimit(Resource::Core).current.is_some_and(|limit| limit <= 1));
    }
}
