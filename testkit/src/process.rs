//! What /proc says about a running process. Owns: nothing. Read next: `daemon.rs`.

/// A process by its id.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

impl Process {
    /// Resident memory in KiB.
    pub fn rss_kb(self) -> u64 {
        self.status_field("status", "VmRSS:")
    }

    /// The most that it was, in KiB.
    pub fn peak_rss_kb(self) -> u64 {
        self.status_field("status", "VmHWM:")
    }

    /// Processor time of all its threads, user and kernel, in seconds.
    pub fn cpu_seconds(self) -> f64 {
        let [user, system, ..] = self.ticks();
        (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// The same with that of its children, running and ended ones, and of theirs.
    pub fn family_cpu_seconds(self) -> f64 {
        let own = self.ticks().iter().sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64;
        let children = self.file(&format!("task/{}/children", self.0));
        let children = children.split_whitespace().map(|pid| Self(pid.parse().expect("a pid")));
        own + children.map(Self::family_cpu_seconds).sum::<f64>()
    }

    /// User, system, and both of children that have ended.
    fn ticks(self) -> [u64; 4] {
        let stat = self.file("stat");
        // Fields are counted from behind the program's name, which may hold blanks: utime and stime are 14
        // and 15.
        let fields: Vec<&str> =
            stat.rsplit_once(')').expect("a name in brackets").1.split_whitespace().collect();
        [11, 12, 13, 14].map(|field: usize| fields[field].parse().expect("ticks"))
    }

    /// Open descriptors.
    pub fn fds(self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0)).expect("/proc").count()
    }

    /// How often its threads went to sleep so far.
    pub fn sleeps(self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0)).expect("/proc");
        tasks
            .filter_map(|task| task.ok()?.file_name().into_string().ok())
            .map(|task| self.status_field(&format!("task/{task}/status"), "voluntary_ctxt_switches:"))
            .sum()
    }

    fn file(self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.0);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn status_field(self, file: &str, field: &str) -> u64 {
        let status = self.file(file);
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {field} in {status}"))
    }
}
