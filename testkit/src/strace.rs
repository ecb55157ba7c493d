//! What strace saw of a program's calls that move bytes. Owns: how its lines are read. Read next:
//! `tests/sockets_rate.rs`.

use std::collections::BTreeMap;

/// All calls that can move bytes.
pub const CALLS: &str = "read,readv,pread64,preadv,preadv2,recvfrom,recvmsg,recvmmsg,write,writev,pwrite64,pwritev,pwritev2,\
     sendto,sendmsg,sendmmsg,splice,tee,vmsplice,sendfile,copy_file_range,io_uring_enter";
/// Bytes that a daemon reads and writes besides: its libraries, its log, its own wake-ups.
const OTHERS: u64 = 64 << 10;

/// How often each was called, and how many bytes it returned.
#[derive(Debug)]
pub struct Calls(BTreeMap<String, (u64, u64)>);

impl Calls {
    /// Those of a trace with `-f`; `None` while it is still written.
    pub fn read(trace: &str, pid: u32) -> Option<Self> {
        // The number is padded to five digits.
        let is_over = |line: &str| {
            line.trim_start()
                .strip_prefix(&pid.to_string())
                .is_some_and(|rest| rest.trim_start().starts_with("+++ exited with"))
        };
        trace.lines().any(is_over).then_some(())?;
        let mut calls = BTreeMap::<_, (u64, u64)>::new();
        for line in trace.lines() {
            // `PID name(...) = bytes`, or in two lines: `PID name(... <unfinished ...>`, `PID <... name
            // resumed>...) = bytes`.
            let Some((_, text)) = line.trim_start().split_once(' ') else { continue };
            let text = text.trim_start();
            let name = match text.strip_prefix("<... ") {
                Some(rest) => rest.split(' ').next(),
                None => text.split_once('(').map(|(name, _)| name),
            };
            let (Some(name), Some((_, result))) = (name, text.rsplit_once(" = ")) else { continue };
            let result = result.split(' ').next().unwrap_or_default();
            let entry = calls.entry(name.to_owned()).or_default();
            entry.0 += 1;
            // A failure is below 0, and the end of a process no number.
            entry.1 += result.parse::<u64>().unwrap_or(0);
        }
        Some(Self(calls))
    }

    /// That all of the payload went into a pipe and out of it, and none of it through memory.
    #[track_caller]
    pub fn assert_spliced(&self, payload: u64) {
        let Self(calls) = self;
        let spliced = calls.get("splice").map_or(0, |(_, bytes)| *bytes);
        assert_eq!(spliced, 2 * payload, "{calls:#?}");
        let others: u64 = calls.values().map(|(_, bytes)| bytes).sum::<u64>() - spliced;
        assert!(others < OTHERS, "{others} bytes by other calls than splice: {calls:#?}");
    }
}
