//! A real sshd on a loopback port of its own, the service behind it, and a dialer that leads there.
//! Owns: a temporary directory, its processes, and their end. May not: touch the machine's own sshd.

use std::fs::{self, Permissions};
use std::future::Future;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gvproxy::addr::{HostPort, ListenAddress, SshDest};
use gvproxy::dial::Dial;
use gvproxy::forward::ssh;
use gvproxy::permits::Permits;
use gvproxy::ssh::Penalties;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Longer than anything here takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Bounds a step that must come to an end.
pub async fn soon<F: Future>(what: &str, step: F) -> F::Output {
    timeout(PATIENCE, step).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Waits until `met` holds.
pub async fn eventually(what: &str, met: impl Fn() -> bool) {
    soon(what, async {
        while !met() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// An sshd, its keys, and a service on a unix socket.
#[derive(Debug)]
pub struct Sshd {
    pub dir: TempDir,
    pub addr: SocketAddrV4,
    pub user: String,
    pub dials: Arc<AtomicUsize>,
    pub penalties: Arc<Penalties>,
    /// More lines for sshd's configuration.
    pub options: &'static str,
    /// It runs in a user namespace with an /etc/passwd of its own.
    has_own_users: bool,
    forwards: AtomicUsize,
    child: Option<Child>,
    service: JoinHandle<()>,
}

impl Sshd {
    /// Makes keys and the service; sshd itself waits for [`Sshd::start`].
    pub async fn prepare() -> Self {
        let dir = tempfile::Builder::new().prefix("gvssh").tempdir().unwrap();
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", text(&dir.path().join("host"))]);
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", text(&dir.path().join("id"))]);
        fs::copy(dir.path().join("id.pub"), dir.path().join("authorized")).unwrap();
        let user = String::from_utf8(run("id", &["-un"])).unwrap().trim().to_owned();
        let service = tokio::spawn(serve(UnixListener::bind(dir.path().join("service.sock")).unwrap()));
        // Free now and, as the kernel hands out ports in turn, most likely still free when sshd binds it.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let addr = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        Self {
            dir,
            addr,
            user,
            dials: Arc::default(),
            penalties: Arc::default(),
            options: "",
            has_own_users: false,
            forwards: AtomicUsize::new(0),
            child: None,
            service,
        }
    }

    /// A running one.
    pub async fn new() -> Self {
        let mut sshd = Self::prepare().await;
        sshd.start().await;
        sshd
    }

    /// A running one that knows `user` by `password` alone.
    pub async fn with_password(user: &str, password: &str) -> Self {
        let mut sshd = Self::prepare().await;
        let hash = String::from_utf8(run("openssl", &["passwd", "-6", password])).unwrap();
        let users = format!(
            "root:x:0:0::/:/bin/sh\n{user}:{}:1000:1000::/:/bin/sh\nsshd:x:101:65534::/:/bin/false\n",
            hash.trim()
        );
        fs::write(sshd.path("passwd"), users).unwrap();
        fs::write(sshd.path("authorized"), "").unwrap();
        sshd.user = user.to_owned();
        sshd.options = "PasswordAuthentication yes";
        sshd.has_own_users = true;
        sshd.start().await;
        sshd
    }

    /// As which user sshd runs inside is all that makes it another user's: the files stay those of the test.
    fn command(&self) -> Command {
        if !self.has_own_users {
            return Command::new("/usr/sbin/sshd");
        }
        let script = format!(
            "mount --bind {} /etc/passwd && exec unshare --user --map-user=1000 --map-group=1000 \"$@\"",
            text(&self.path("passwd"))
        );
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh", "/usr/sbin/sshd"]);
        command
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts sshd and waits until it answers.
    pub async fn start(&mut self) {
        // The directory that Debian's sshd wants when it runs as root; its service file makes it otherwise.
        if geteuid().is_root() {
            fs::create_dir_all("/run/sshd").unwrap();
        }
        // Its penalties (since 9.8) are for an address, and here everybody has the same.
        let penalties = ["-o", "PerSourcePenalties=no"];
        let mut looking = Command::new("/usr/sbin/sshd");
        looking.args(["-t", "-f", "/dev/null", "-h", text(&self.path("host"))]).args(penalties);
        let knows = looking.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        // Of two lines of the same kind, sshd takes the first.
        let config = format!(
            "{}\nListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nUsePAM no\nStrictModes no\nPidFile none\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nLogLevel VERBOSE\nMaxStartups 100\n",
            self.options,
            self.addr,
            text(&self.path("host")),
            text(&self.path("authorized")),
        );
        fs::write(self.path("config"), config).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = self
            .command()
            .args(["-D", "-e", "-f", text(&self.path("config"))])
            .args(if knows { &penalties[..] } else { &[] })
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start sshd ({error}); install openssh-server"));
        self.child = Some(child);
        self.wait().await;
    }

    /// Starts Dropbear instead, which takes the keys of a user from below his home: it gets another there.
    /// Its version, such as `2022.83`.
    pub async fn start_dropbear(&mut self) -> String {
        let (home, passwd, key) = (self.path("home"), self.path("passwd"), self.path("dropbear"));
        fs::create_dir_all(home.join(".ssh")).unwrap();
        fs::copy(self.path("authorized"), home.join(".ssh/authorized_keys")).unwrap();
        fs::set_permissions(home.join(".ssh/authorized_keys"), Permissions::from_mode(0o600)).unwrap();
        let users = format!("{}:x:0:0::{}:/bin/sh\n", self.user, text(&home));
        fs::write(&passwd, users).unwrap();
        run("dropbearkey", &["-t", "ed25519", "-f", text(&key)]);
        let script = r#"mount --bind "$1" /etc/passwd && exec dropbear -F -E -s -r "$2" -p "$3" -P "$2.pid""#;
        let log = fs::File::create(self.path("log")).unwrap();
        // It sets its groups (since 2025.89), which a user namespace of one user may not.
        let user: &[_] = if geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
        let child = Command::new("unshare")
            .args(user)
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([text(&passwd), text(&key), &self.addr.to_string()])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("unshare");
        self.child = Some(child);
        self.wait().await;
        let version = Command::new("dropbear").arg("-V").output().expect("dropbear");
        let version = String::from_utf8([version.stdout, version.stderr].concat()).unwrap();
        version.trim().strip_prefix("Dropbear v").expect("a version of Dropbear").to_owned()
    }

    /// Waits until it answers.
    async fn wait(&mut self) {
        let start = Instant::now();
        loop {
            if let Ok(mut stream) = TcpStream::connect(self.addr).await {
                let mut hello = [0; 4];
                if timeout(PATIENCE, stream.read_exact(&mut hello)).await.is_ok_and(|read| read.is_ok()) {
                    assert_eq!(&hello, b"SSH-");
                    return;
                }
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "sshd: {ended:?}\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends sshd and its sessions, as a reboot would.
    pub fn stop(&mut self) {
        let sessions = self.sessions();
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for pid in sessions {
            // It may have ended on its own.
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// Freezes the sessions there are, but not the listener: a guest that vanished without a word.
    pub fn freeze_sessions(&self) {
        let sessions = self.sessions();
        assert!(!sessions.is_empty(), "no session to freeze");
        for pid in sessions {
            kill_process(pid, Signal::STOP).unwrap();
        }
    }

    /// Has them go on.
    pub fn thaw_sessions(&self) {
        for pid in self.sessions() {
            kill_process(pid, Signal::CONT).unwrap();
        }
    }

    /// Every descendant of the listener.
    pub fn sessions(&self) -> Vec<Pid> {
        let Some(child) = &self.child else { return Vec::new() };
        let mut family = vec![i32::try_from(child.id()).unwrap()];
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap();
            parents.push((pid, parent.parse::<i32>().unwrap()));
        }
        let mut at = 0;
        while let Some(&parent) = family.get(at) {
            family.extend(parents.iter().filter(|pair| pair.1 == parent).map(|pair| pair.0));
            at += 1;
        }
        family.into_iter().skip(1).filter_map(Pid::from_raw).collect()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A forward to the service, with the default key.
    pub fn forward(&self) -> Forward {
        self.forward_to("service.sock", "id")
    }

    /// A forward to the socket `dest` that logs in with the key `identity`.
    pub fn forward_to(&self, dest: &str, identity: &str) -> Forward {
        self.try_forward(dest, identity).unwrap()
    }

    pub fn try_forward(&self, dest: &str, identity: &str) -> anyhow::Result<Forward> {
        let socket = self.path(&format!("forward-{}", self.forwards.fetch_add(1, Ordering::Relaxed)));
        let to = SshDest {
            sshd: self.addr.into(),
            user: self.user.clone(),
            path: text(&self.path(dest)).to_owned(),
            key: Some(self.path(identity)),
            passphrase: None,
            password: None,
            secure: false,
        };
        gvproxy::ssh::load_key(&self.path(identity), None)?;
        let bound = gvproxy::listen::bind(&ListenAddress::parse(socket.as_os_str())?)?;
        let (stop, stopped) = watch::channel(false);
        let (dialer, penalties) = (self.dialer(), Arc::clone(&self.penalties));
        let run = async move { ssh::run(bound, to, dialer, penalties, &Permits::new(0), stopped).await };
        let task = tokio::spawn(run);
        Ok(Forward { socket, stop, task })
    }

    pub fn dialer(&self) -> Arc<Loopback> {
        Arc::new(Loopback { dials: Arc::clone(&self.dials) })
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
        self.service.abort();
        if std::thread::panicking() {
            eprintln!("--- sshd's log\n{}---", self.log());
        }
    }
}

/// A forward that runs.
#[derive(Debug)]
pub struct Forward {
    pub socket: PathBuf,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Forward {
    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends one line and reads it back.
    pub async fn echo(&self) -> io::Result<()> {
        let mut client = self.connect().await;
        client.write_all(b"Ehello").await?;
        client.shutdown().await?;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await?;
        if answer == b"hello" {
            Ok(())
        } else {
            Err(io::Error::other(format!("instead of an echo: {answer:?}")))
        }
    }

    pub async fn stop(self) {
        self.stop.send(true).unwrap();
        timeout(PATIENCE, self.task).await.expect("the forward ends").unwrap().unwrap();
    }
}

/// Reaches loopback as if it were the virtual network.
#[derive(Debug)]
pub struct Loopback {
    dials: Arc<AtomicUsize>,
}

impl Dial for Loopback {
    fn dial(&self, remote: &HostPort, limit: Duration) -> impl Future<Output = io::Result<TcpStream>> + Send {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let remote = (remote.host.clone(), remote.port);
        async move {
            let mut guest = timeout(limit, TcpStream::connect(remote)).await??;
            guest.set_nodelay(true)?;
            let (near, mut far) = UnixStream::pair()?;
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut far, &mut guest).await });
            // Streams of any family are used by the same calls.
            TcpStream::from_std(OwnedFd::from(near.into_std()?).into())
        }
    }
}

/// The service in the guest. The first byte says what a client wants: `E` to have its bytes back, `G` and a
/// u64 to be sent that many bytes, `P` to have its bytes counted and summed, `H` to be sent nothing and have
/// nothing read.
async fn serve(listener: UnixListener) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            // A client may leave at any time.
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: UnixStream) -> io::Result<()> {
    match stream.read_u8().await? {
        b'E' => {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        }
        b'G' => {
            let count = stream.read_u64().await?;
            let mut pattern = Pattern::default();
            pattern.write(&mut stream, count).await?;
            stream.shutdown().await
        }
        b'P' => {
            let (count, sum) = sum(&mut stream).await?;
            stream.write_u64(count).await?;
            stream.write_u64(sum).await
        }
        b'H' => std::future::pending().await,
        other => Err(io::Error::other(format!("unknown request {other}"))),
    }
}

/// Bytes that repeat nowhere near a packet's or a buffer's length, and their sum.
#[derive(Default, Debug)]
pub struct Pattern {
    at: u64,
    hasher: DefaultHasher,
}

impl Pattern {
    pub async fn write(&mut self, stream: &mut (impl AsyncWriteExt + Unpin), count: u64) -> io::Result<()> {
        let mut left = usize::try_from(count).unwrap();
        let mut block = vec![0; 65_521];
        while left > 0 {
            let length = left.min(block.len());
            for word in block.chunks_mut(8) {
                self.at =
                    self.at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.copy_from_slice(&self.at.to_be_bytes()[..word.len()]);
            }
            self.hasher.write(&block[..length]);
            stream.write_all(&block[..length]).await?;
            left -= length;
        }
        Ok(())
    }

    pub fn sum(&self) -> u64 {
        self.hasher.finish()
    }
}

/// Reads to the end; the count and the sum of what came.
pub async fn sum(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<(u64, u64)> {
    let mut hasher = DefaultHasher::new();
    let mut block = vec![0; 1 << 18];
    let mut count = 0;
    loop {
        let length = stream.read(&mut block).await?;
        if length == 0 {
            return Ok((count, hasher.finish()));
        }
        hasher.write(&block[..length]);
        count += length as u64;
    }
}

/// Runs a tool to its end and returns what it printed.
pub fn run(tool: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(tool).args(args).output().unwrap_or_else(|error| {
        panic!("cannot run {tool} ({error}); install openssh-client, dropbear-bin, openssl, coreutils")
    });
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
