//! `gvproxy docker-sock` through the binary: in a directory tree, and in a mount namespace with a /run of its
//! own, where systemd-tmpfiles starts the system again and docker's own client comes by the link.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helper fails like the test")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use gvproxy::docker_sock::launchd;
use testkit::ns::Namespace;
use testkit::tool;
use testkit::uninterrupted;

testkit::agent_in_a_namespace!();

const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");
/// What the system tests have in the link's place.
const LINK: &str = "/var/run/docker.sock";
const BOOT_FILE: &str = "/etc/tmpfiles.d/gvproxy-docker-sock.conf";

/// A socket at which a Docker API answers, as much of it as `docker version` asks for.
struct Api {
    path: PathBuf,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let listener = UnixListener::bind(&path).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                serve(client.unwrap());
            }
        });
        Self { path, end, thread: Some(thread) }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if UnixStream::connect(&self.path).is_ok() {
            let _ = self.thread.take().unwrap().join();
        }
    }
}

/// One request, one answer.
fn serve(mut client: UnixStream) {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        match uninterrupted(|| client.read(&mut chunk)) {
            Ok(n @ 1..) => head.extend(&chunk[..n]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let body = match head.split(' ').nth(1).unwrap() {
        path if path.ends_with("/_ping") => "OK",
        path if path.ends_with("/version") => {
            r#"{"Version":"9.8.7","ApiVersion":"1.41","MinAPIVersion":"1.24","Os":"linux","Arch":"amd64"}"#
        }
        other => panic!("asked for {other}"),
    };
    let length = body.len();
    let body = if head.starts_with("HEAD ") { "" } else { body };
    let _ = write!(
        client,
        "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nServer: Libpod/9.8.7 (linux)\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
}

/// How a run ended and what it said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    #[track_caller]
    fn said(self, code: i32, stdout: &str) {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (Some(code), stdout, ""));
    }

    /// One line why it did nothing.
    #[track_caller]
    fn refused(self, code: i32, reason: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{self:?}");
        assert_eq!(self.stderr, format!("{reason}\n"));
    }
}

/// A directory tree in place of `/`, with a directory beside it for sockets.
struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn link(&self) -> PathBuf {
        self.path("root/run/docker.sock")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(OURS);
        command.args(["docker-sock", verb, "-prefix"]).arg(self.path("root")).stdin(Stdio::null());
        command
    }

    fn run(&self, verb: &str) -> Ran {
        self.command(verb).output().unwrap().into()
    }

    fn install(&self, socket: &Path) -> Ran {
        self.command("install").arg("-socket").arg(socket).output().unwrap().into()
    }

    /// Every file below.
    fn files(&self) -> Vec<PathBuf> {
        let found = Command::new("find").arg(self.path("root")).args(["!", "-type", "d"]).output().unwrap();
        String::from_utf8(found.stdout).unwrap().lines().map(PathBuf::from).collect()
    }
}

#[test]
fn a_life_in_words_and_exit_codes() {
    let tree = Tree::new();
    let link = tree.link().display().to_string();
    let file = tree.path("root").join(&BOOT_FILE[1..]).display().to_string();
    let socket = tree.path("podman.sock");
    let at = format!("{link} -> {}", socket.display());
    let installed = format!("installed: {file} makes it again after a restart");

    tree.run("status").said(4, &format!("{link} is missing\nnot installed\n"));
    tree.run("uninstall").said(0, "not installed\n");
    let silent = format!("{at}\n{installed}\nno answer: no such file or directory\n");
    tree.install(&socket).said(0, &silent);
    tree.run("status").said(3, &silent);

    let api = Api::new(&socket);
    let live = format!("{at}\n{installed}\n\"Libpod/9.8.7 (linux)\" answers\n");
    tree.run("status").said(0, &live);
    tree.install(&socket).said(0, &live);
    drop(api);
    tree.run("status").said(3, &format!("{at}\n{installed}\nno answer: connection refused\n"));

    fs::remove_file(tree.link()).unwrap();
    let makes = format!("incomplete: {file} makes it at the next start, `install` makes it now");
    tree.run("status").said(6, &format!("{link} is missing\n{makes}\n"));
    // By hand, where a daemon answers.
    let _other = Api::new(tree.path("other.sock"));
    std::os::unix::fs::symlink(tree.path("other.sock"), tree.link()).unwrap();
    let taken = tree.run("status");
    assert_eq!(taken.code, Some(5), "{taken:?}");
    assert!(taken.stdout.contains("\ntaken: gvproxy's link to "), "{taken:?}");
    assert!(taken.stdout.ends_with("\n\"Libpod/9.8.7 (linux)\" answers\n"), "{taken:?}");
    tree.run("uninstall").said(0, &format!("removed {file}\n{link} stays: gvproxy did not make it\n"));
    assert_eq!(tree.files(), [tree.link()]);
    fs::remove_file(tree.link()).unwrap();

    tree.install(&tree.path("other.sock"));
    tree.run("uninstall").said(0, &format!("removed {link} and {file}\n"));
    assert_eq!(tree.files(), Vec::<PathBuf>::new());
    assert!(tree.path("podman.sock").exists() && tree.path("other.sock").exists());
}

#[test]
fn a_daemons_socket_stays() {
    let tree = Tree::new();
    let link = tree.link();
    let shown = link.display().to_string();
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    let daemon = Api::new(&link);
    tree.install(Path::new("/podman.sock")).refused(
        1,
        &format!(
            "gvproxy docker-sock install: {shown} is a daemon's socket, and \"Libpod/9.8.7 (linux)\" answers: \
             stop and disable it first"
        ),
    );
    let status = format!("{shown} is a socket\nnot installed: gvproxy did not make it\n");
    tree.run("status").said(5, &format!("{status}\"Libpod/9.8.7 (linux)\" answers\n"));
    drop(daemon);
    tree.install(Path::new("/podman.sock")).refused(
        1,
        &format!(
            "gvproxy docker-sock install: {shown} is a daemon's socket, though nobody answers (connection refused): \
             if that daemon is not to come back, disable it (systemctl disable --now docker.socket docker.service) \
             and remove the socket"
        ),
    );
    tree.run("status").said(5, &format!("{status}no answer: connection refused\n"));
    tree.run("uninstall").said(0, &format!("not installed\n{shown} stays: gvproxy did not make it\n"));
    assert_eq!(tree.files(), [link]);
}

#[test]
fn a_changed_boot_file_stays() {
    let tree = Tree::new();
    let file = tree.path("root").join(&BOOT_FILE[1..]);
    tree.install(Path::new("/podman.sock"));
    let changed = fs::read_to_string(&file).unwrap().replace("L /", "L+ /");
    fs::write(&file, &changed).unwrap();
    assert_eq!(tree.run("status").code, Some(6));
    tree.run("uninstall").refused(
        1,
        &format!(
            "gvproxy docker-sock uninstall: {} is not as gvproxy wrote it, and stays: remove it, and {} if that is \
             no daemon's",
            file.display(),
            tree.link().display()
        ),
    );
    assert_eq!(tree.files().len(), 2);
    assert_eq!(fs::read_to_string(&file).unwrap(), changed);
}

#[test]
fn the_usual_socket_is_that_of_who_ran_sudo() {
    let tree = Tree::new();
    let installed: Ran = tree.command("install").env("SUDO_UID", "4321").output().unwrap().into();
    assert_eq!(installed.code, Some(0), "{installed:?}");
    let target = fs::read_link(tree.link()).unwrap();
    assert_eq!(target, Path::new("/run/user/4321/podman/podman-machine-default-api.sock"));

    let which: Ran = Tree::new().command("install").env("SUDO_UID", "0").output().unwrap().into();
    which.refused(
        1,
        "gvproxy docker-sock install: which socket? -socket \
         \"$(podman machine inspect --format '{{.ConnectionInfo.PodmanSocket.Path}}')\"",
    );
}

#[test]
fn what_is_no_command_line() {
    let run = |words: &[&str]| Ran::from(Command::new(OURS).args(words).output().unwrap());
    let verbs = format!("Usage of {OURS} docker-sock: install, status or uninstall; each has -h");
    run(&["docker-sock"]).refused(2, &verbs);
    run(&["docker-sock", "remove"]).refused(2, &verbs);
    run(&["docker-sock", "-h"]).refused(0, &verbs);
    let help = run(&["docker-sock", "install", "-h"]);
    assert_eq!(help.code, Some(0), "{help:?}");
    assert!(help.stderr.starts_with(&format!("Usage of {OURS} docker-sock install:\n  -prefix")), "{help:?}");
    for (words, first) in [
        (["docker-sock", "status", "now"], "unexpected word \"now\"\n"),
        (["docker-sock", "status", "-socket=/a"], "flag provided but not defined: -socket\n"),
        (["docker-sock", "install", "-socket"], "flag needs an argument: -socket\n"),
    ] {
        let ran = run(&words);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.starts_with(first), "{ran:?}");
    }
    // Only as the first word: behind a flag it is a word like any other.
    run(&["-version", "docker-sock", "status"]).said(0, &run(&["-version"]).stdout);
}

/// A system that has just started: /run and /etc/tmpfiles.d are empty, and nobody else's.
fn system() -> Namespace {
    assert!(
        fs::canonicalize("/var/run").is_ok_and(|run| run == Path::new("/run")),
        "this test needs a system on which /var/run is /run"
    );
    let ns = Namespace::new();
    mount(&ns, "/etc/tmpfiles.d");
    mount(&ns, "/run");
    ns
}

/// An empty directory there. Without -n it would leave a note in /run.
fn mount(ns: &Namespace, at: &str) {
    ns.run(["mount", "-n", "-t", "tmpfs", "-o", "mode=755", "tmpfs", at]);
}

fn ours(ns: &Namespace, words: &[&str]) -> Ran {
    ns.command(OURS).arg("docker-sock").args(words).env_remove("SUDO_UID").output().unwrap().into()
}

/// What a start of the system does, for this path.
fn restart(ns: &Namespace) {
    ns.run(["umount", "-n", "/run"]);
    mount(ns, "/run");
    tmpfiles(ns);
}

fn tmpfiles(ns: &Namespace) {
    let program = tool("systemd-tmpfiles", "systemd").display().to_string();
    let ran = ns.output([&program, "--create", "--remove", "--boot", "--prefix=/run/docker.sock"]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.is_empty(), "{ran:?}");
}

fn docker_version(ns: &Namespace, config: &Path) -> String {
    let docker = tool("docker", "docker-cli (docker.io before Debian 13)");
    let mut command = ns.command("timeout");
    command.arg("30").arg(docker).args(["version", "--format", "{{.Server.Version}}"]);
    for name in ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_API_VERSION", "DOCKER_TLS_VERIFY"] {
        command.env_remove(name);
    }
    let ran = Ran::from(command.env("DOCKER_CONFIG", config).output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.stdout.trim().into()
}

#[test]
fn dockers_client_comes_by_the_link_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    // Everything that a line of tmpfiles.d gives a meaning to.
    let socket = dir.path().join(r#"a b\x20%h'"é.sock"#);
    let api = Api::new(&socket);
    let socket = socket.to_str().unwrap();
    let ns = system();
    let installed = ours(&ns, &["install", "-socket", socket]);
    assert_eq!(installed.code, Some(0), "{installed:?}");
    assert_eq!(docker_version(&ns, dir.path()), "9.8.7");

    restart(&ns);
    assert_eq!(ns.run(["readlink", "--", LINK]).trim_end_matches('\n'), socket);
    assert_eq!(docker_version(&ns, dir.path()), "9.8.7");
    ours(&ns, &["status"]).said(0, &installed.stdout);
    drop(api);
    assert_eq!(ours(&ns, &["status"]).code, Some(3));

    ours(&ns, &["uninstall"]).said(0, &format!("removed /run/docker.sock and {BOOT_FILE}\n"));
    restart(&ns);
    assert_eq!(ns.run(["ls", "-A", "/run", "/etc/tmpfiles.d"]), "/etc/tmpfiles.d:\n\n/run:\n");
}

#[test]
fn a_restart_leaves_a_daemons_socket() {
    let ns = system();
    assert_eq!(ours(&ns, &["install", "-socket", "/podman.sock"]).code, Some(0));
    // A daemon takes away whatever has its socket's name.
    ns.run(["rm", LINK]);
    let python = tool("python3", "python3").display().to_string();
    ns.run([&python, "-c", "import socket; socket.socket(socket.AF_UNIX).bind('/run/docker.sock')"]);
    tmpfiles(&ns);
    ns.run(["test", "-S", LINK, "-a", "!", "-L", LINK]);
    assert_eq!(ours(&ns, &["status"]).code, Some(5));
    let refused = ours(&ns, &["install", "-socket", "/podman.sock"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    ours(&ns, &["uninstall"])
        .said(0, &format!("removed {BOOT_FILE}\n/run/docker.sock stays: gvproxy did not make it\n"));
    ns.run(["test", "-S", LINK]);
}

#[test]
fn without_root_one_line_says_so() {
    let ns = system();
    let setpriv = tool("setpriv", "util-linux");
    let unprivileged = |verb: &[&str]| {
        let mut command = ns.command(&setpriv);
        command.args(["--bounding-set=-all", "--", OURS, "docker-sock"]).args(verb);
        Ran::from(command.output().unwrap())
    };
    ns.run(["chmod", "555", "/run", "/etc/tmpfiles.d"]);
    unprivileged(&["install", "-socket", "/podman.sock"]).refused(
        1,
        &format!(
            "gvproxy docker-sock install: write {BOOT_FILE}: permission denied: this needs root, as with sudo"
        ),
    );
    // The boot file can be written, and the link not.
    ns.run(["chmod", "755", "/etc/tmpfiles.d"]);
    unprivileged(&["install", "-socket", "/podman.sock"]).refused(
        1,
        "gvproxy docker-sock install: link /run/docker.sock: permission denied: this needs root, as with sudo",
    );
    assert_eq!(ns.run(["ls", "-A", "/run", "/etc/tmpfiles.d"]), "/etc/tmpfiles.d:\n\n/run:\n");

    assert_eq!(ours(&ns, &["install", "-socket", "/podman.sock"]).code, Some(0));
    unprivileged(&["uninstall"]).refused(
        1,
        "gvproxy docker-sock uninstall: remove /run/docker.sock: permission denied: this needs root, as with sudo",
    );
    assert_eq!(unprivileged(&["status"]).code, Some(3));
}

/// macOS has no stand-in here: the property list is read by another parser, and its command run by this
/// system's `ln`.
#[test]
fn what_launchd_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (file, target) = (dir.path().join("plist"), "/var/folders/a&b/<T> é/podman.sock");
    fs::write(&file, (launchd::SYSTEM.text)(target)).unwrap();
    let ns = system();
    let python = tool("python3", "python3").display().to_string();
    let load = "import plistlib, subprocess, sys\n\
                job = plistlib.load(open(sys.argv[1], 'rb'))\n\
                assert job['RunAtLoad'] is True and job['Label'] + '.plist' == sys.argv[2], job\n\
                sys.exit(subprocess.run(job['ProgramArguments'], stderr=subprocess.DEVNULL).returncode)";
    let name = Path::new(launchd::SYSTEM.file).file_name().unwrap().to_str().unwrap();
    let run = || ns.output([&python, "-c", load, file.to_str().unwrap(), name]);
    assert!(run().status.success(), "{:?}", run());
    assert_eq!(ns.run(["readlink", LINK]).trim_end(), target);

    ns.run(["rm", LINK]);
    ns.run([&python, "-c", "import socket; socket.socket(socket.AF_UNIX).bind('/run/docker.sock')"]);
    assert_eq!(run().status.code(), Some(1), "{:?}", run());
    ns.run(["test", "-S", LINK, "-a", "!", "-L", LINK]);
    // A link to a directory is no place to make a link in.
    ns.run(["rm", LINK]);
    ns.run(["mkdir", "/run/d"]);
    ns.run(["ln", "-s", "/run/d", LINK]);
    assert_eq!(run().status.code(), Some(1), "{:?}", run());
    assert_eq!(ns.run(["ls", "-A", "/run/d"]), "");
}
