//! A host with a user of `podman machine`: both exist only in namespaces of the test, and the host's programs
//! are those of one of the Debian systems of `tests/guest/build.sh`. Owns: the host's network, which is a
//! loopback and nothing else, the user's files, every process that the user starts, and their end. May not:
//! leave anything on this machine.
//! Read next: `ns.rs`; `tests/guest/boot.sh`, which boots what podman asks for;
//! `tests/guest/files/usr/local/sbin/ignition`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::daemon::binary;
use crate::ns::Namespace;
use crate::workspace;
use crate::{eventually, tool};

/// One command, in seconds: a machine under emulation is slow, and the host may be busy.
const COMMAND_SECONDS: &str = "300";
/// The user's id: that of `core` in the machine, which podman wants to be the same.
const UID: &str = "1000";

/// Which Debian the host and the machine have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// podman 5.4, QEMU 10.
    Trixie,
    /// podman 4.3, QEMU 7.2.
    Bookworm,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }
}

/// Makes `$1`, a Debian system that is only read, the root of a mount namespace, with this machine's devices
/// and processes, `/tmp`, and the directories that follow at the places where they are here; becomes what
/// follows `--`.
const ENTER: &str = r#"
set -eu
system=$1
shift
mount -t tmpfs none /mnt
for entry in "$system"/*; do
    if [ -L "$entry" ]; then
        cp -P "$entry" /mnt/
    else
        mkdir "/mnt/${entry##*/}"
        mount --bind "$entry" "/mnt/${entry##*/}"
    fi
done
umount /mnt/run
for directory in /proc /sys /dev /tmp; do
    mkdir -p "/mnt$directory"
    mount --rbind "$directory" "/mnt$directory"
done
while [ "$1" != -- ]; do
    mkdir -p "/mnt$1"
    mount --rbind "$1" "/mnt$1"
    shift
done
shift
mount --bind "$PASSWD" /mnt/etc/passwd
cd /mnt
mkdir old
pivot_root . old
umount -l /old
exec "$@"
"#;

/// The user and the host.
#[derive(Debug)]
pub struct User {
    suite: Suite,
    host: Namespace,
    /// `unshare`, whose child is the first process of the user's; all others end with that one.
    first: Child,
    home: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// One machine at a time: two of them emulated would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

impl User {
    /// A user whose podman finds the daemon under test through `helper_binaries_dir`, and boots the machine
    /// of `make guest`.
    #[track_caller]
    pub fn new(suite: Suite) -> Self {
        let cache = workspace().join("tests/guest/cache");
        let stamp = cache.join(suite.name()).join("stamp");
        assert!(stamp.exists(), "this test needs a machine to boot: run `make guest`");
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // Sockets' paths are short.
        let home = tempfile::Builder::new().prefix("gvm").tempdir_in("/tmp").expect("a temporary directory");
        let host = Namespace::new();
        let passwd = home.path().join("passwd");
        let users = format!("root:x:0:0::/:/bin/sh\ncore:x:{UID}:{UID}::{}:/bin/sh\n", home.path().display());
        fs::write(&passwd, users).expect("a file");
        let daemon = binary();
        let first = host
            .command(tool("unshare", "util-linux"))
            .args(["--mount", "bash", "-c", ENTER, "enter"])
            .args([
                cache.join(suite.name()).join("root").as_path(),
                workspace(),
                daemon.parent().expect("a directory"),
            ])
            .args(["--", "unshare"])
            .args(["--user", &format!("--map-user={UID}"), &format!("--map-group={UID}")])
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            // Waits for those whose parents have ended, as the first process has to.
            .args(["bash", "-c", "sleep infinity & wait"])
            .env("PASSWD", &passwd)
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        let user = Self { suite, host, first, home, _alone: alone };
        user.prepare();
        eventually("the user's first process", Duration::from_secs(10), || {
            // Until it has entered its namespaces it is root, and in those of the host.
            (text(&user.output("id", &["-u"])).0.trim() == UID).then_some(())
        });
        user.make_disk();
        user.make_ready();
        user
    }

    fn prepare(&self) {
        let guest = workspace().join("tests/guest");
        for directory in [".config", ".config/containers", "run", "helpers"] {
            fs::create_dir(self.path(directory)).expect("a directory");
        }
        fs::set_permissions(self.path("run"), fs::Permissions::from_mode(0o700)).expect("a mode");
        let helpers = self.path("helpers");
        let configuration =
            format!("[engine]\nhelper_binaries_dir = [\"{}\"]\n[machine]\nvolumes = []\n", helpers.display());
        fs::write(self.path(".config/containers/containers.conf"), configuration).expect("a file");
        self.script(
            "helpers/gvproxy",
            &format!(
                "printf '%s\\n' \"$*\" >>{0}/gvproxy.args\nexec {1} \"$@\" 2>>{0}/gvproxy.log",
                self.home.path().display(),
                binary().display()
            ),
        );
        // podman believes that it has KVM, and a disk with a boot loader.
        self.script(
            "helpers/qemu-system-x86_64",
            &format!(
                "args=()\nwhile [ $# -gt 0 ]; do\n  case $1 in\n  -accel | -cpu) shift ;;\n  *) args+=(\"$1\") ;;\n  esac\n  shift\ndone\n\
                 GUEST={2} exec {0}/boot.sh - {1}/console \"${{args[@]}}\" 2>>{1}/qemu.log",
                guest.display(),
                self.home.path().display(),
                self.suite.name()
            ),
        );
    }

    /// Makes [`Self::disk`].
    #[track_caller]
    fn make_disk(&self) {
        let disk = workspace().join("tests/guest/cache").join(self.suite.name()).join("root.img");
        let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(Into::into);
        let words = [&words[..], &[disk, self.disk()]].concat();
        let words: Vec<_> = words.iter().map(|word: &PathBuf| word.to_str().expect("UTF-8")).collect();
        let output = self.output("qemu-img", &words);
        assert!(output.status.success(), "{output:?}");
    }

    /// podman 4.3 gives QEMU three seconds to begin, of which `boot.sh` may not take five to find out about
    /// KVM.
    #[track_caller]
    fn make_ready(&self) {
        let output = self.output(workspace().join("tests/guest/boot.sh").to_str().expect("UTF-8"), &[]);
        assert!(output.status.success(), "{output:?}");
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        let mut file = fs::File::create(&path).expect("a file");
        file.write_all(format!("#!/bin/bash\n{text}\n").as_bytes()).expect("a script");
        file.set_permissions(fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// A file of the user.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// What `podman machine init` is to copy: nothing but a reference to the disk of `make guest`.
    pub fn disk(&self) -> PathBuf {
        self.path("disk.qcow2")
    }

    /// The host's network.
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// Runs a command of the user's to its end.
    #[track_caller]
    pub fn output(&self, program: &str, args: &[&str]) -> Output {
        self.command(program, args).output().expect("nsenter")
    }

    /// Starts a command of the user's.
    #[track_caller]
    pub fn spawn(&self, program: &str, args: &[&str]) -> Child {
        self.command(program, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nsenter")
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let first = self.first.id();
        let home = self.home.path().display().to_string();
        let mut command = Command::new(tool("nsenter", "util-linux"));
        command
            .args(["-t", &first.to_string(), "--user", "--net", "--mount"])
            .arg(format!("--pid=/proc/{first}/ns/pid_for_children"))
            .args(["--preserve-credentials", "--", "env", "-i", "-C", &home])
            .args([format!("HOME={home}"), "USER=core".to_owned(), format!("XDG_RUNTIME_DIR={home}/run")])
            .args([
                "PATH=/usr/bin:/bin:/usr/sbin:/sbin",
                "timeout",
                "--kill-after=5",
                COMMAND_SECONDS,
                program,
            ])
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// SIGKILL to the user's processes with this name, of which there must be one.
    #[track_caller]
    pub fn kill(&self, name: &str) {
        let script = r#"for process in /proc/[0-9]*; do
            [ "$(cat "$process/comm" 2>/dev/null)" != "$0" ] || { kill -9 "${process#/proc/}" && echo killed; }
        done"#;
        let (killed, errors) = text(&self.output("sh", &["-c", script, name]));
        assert!(killed.starts_with("killed"), "no {name} among {:?}: {errors}", self.processes());
    }

    /// A daemon with the arguments that podman gave the last one, whom nobody ends.
    #[track_caller]
    pub fn leave_a_gvproxy(&self) {
        let args = fs::read_to_string(self.path("gvproxy.args")).expect("a start of gvproxy");
        let last = args.lines().last().expect("its arguments");
        let script = format!("setsid helpers/gvproxy {last} </dev/null >/dev/null 2>&1 &");
        let output = self.output("sh", &["-c", &script]);
        assert!(output.status.success(), "{output:?}");
    }

    /// podman with these arguments, which must succeed; what it printed.
    #[track_caller]
    pub fn podman(&self, args: &[&str]) -> String {
        let output = self.output("podman", args);
        let (stdout, stderr) = text(&output);
        assert!(output.status.success(), "podman {args:?}: {}\n{stdout}{stderr}", output.status);
        stdout.trim_end().to_owned()
    }

    /// podman with these arguments, which must fail; what it said.
    #[track_caller]
    pub fn podman_fails(&self, args: &[&str]) -> String {
        let output = self.output("podman", args);
        let (stdout, stderr) = text(&output);
        assert!(!output.status.success(), "podman {args:?} succeeds:\n{stdout}");
        stderr
    }

    /// The names of the user's processes, without those that a look at them takes.
    #[track_caller]
    pub fn processes(&self) -> Vec<String> {
        let (names, _) = text(&self.output("sh", &["-c", "cat /proc/[0-9]*/comm"]));
        let look = ["bash", "sleep", "timeout", "sh", "cat"];
        names.lines().filter(|name| !look.contains(name)).map(str::to_owned).collect()
    }

    /// The user's sockets and pid files.
    #[track_caller]
    pub fn sockets_and_pid_files(&self) -> Vec<String> {
        let words = [".", "(", "-type", "s", "-o", "-name", "*.pid", ")"];
        let (files, _) = text(&self.output("find", &words));
        files.lines().map(str::to_owned).collect()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.first.kill();
        let _ = self.first.wait();
        if std::thread::panicking() {
            for name in ["console", "qemu.log", "gvproxy.args", "gvproxy.log"] {
                let text = fs::read(self.path(name)).unwrap_or_default();
                let tail = text.len().saturating_sub(4000);
                eprintln!("--- {name} ---\n{}", String::from_utf8_lossy(&text[tail..]));
            }
        }
    }
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
