//! A container image of any size, as `docker save` writes it, around bytes that nothing can compress and
//! whose checksum is known.
//! Owns: one temporary file. Read next: `vm.rs`, which has the image that it is built upon.

use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::tool;
use crate::vm::{self, Noise};

/// How many of the bytes a caller can look at.
const KEPT: usize = 4 << 20;
const CHUNK: usize = 64 << 10;
const BLOCK: usize = 512;

/// An image with what `localhost/busybox:test` has, and the file `/data` in a layer of its own.
#[derive(Debug)]
pub struct Archive {
    file: tempfile::NamedTempFile,
    /// SHA-256 of `/data`, in hexadecimal.
    pub sha256: String,
    /// The first bytes of `/data`.
    pub first: Vec<u8>,
}

impl Archive {
    pub const NAME: &'static str = "localhost/big:test";

    /// Writes one with that many MiB in `/data`.
    pub fn write(megabytes: usize) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut tar = BufWriter::with_capacity(1 << 20, file.as_file());
        let (mut data, mut layer, mut first) = (Sha256::start(), Sha256::start(), Vec::with_capacity(KEPT));
        let base = base();
        add(&mut tar, "base.tar", &base);

        let length = megabytes << 20;
        let head = header("data", length);
        let end = [0; 2 * BLOCK];
        tar.write_all(&header("layer.tar", head.len() + length + end.len())).unwrap();
        let mut both = |bytes: &[u8]| {
            layer.write(bytes);
            tar.write_all(bytes).unwrap();
        };
        both(&head);
        let mut chunk = vec![0; CHUNK];
        let mut noise = Noise::default();
        for _ in 0..length / CHUNK {
            noise.fill(&mut chunk);
            data.write(&chunk);
            both(&chunk);
            if first.len() < KEPT {
                first.extend_from_slice(&chunk);
            }
        }
        both(&end);

        let mut whole_base = Sha256::start();
        whole_base.write(&base);
        let layers = [whole_base, layer].map(|layer| format!("sha256:{}", layer.finish()));
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": layers},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [Self::NAME], "Layers": ["base.tar", "layer.tar"]}]);
        add(&mut tar, "config.json", config.to_string().as_bytes());
        add(&mut tar, "manifest.json", manifest.to_string().as_bytes());
        tar.write_all(&end).unwrap();
        tar.flush().unwrap();
        drop(tar);
        Self { file, sha256: data.finish(), first }
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

/// The layer of the image that the machine comes with.
fn base() -> Vec<u8> {
    let mut tar = Command::new(tool("tar", "tar"));
    let output = tar.arg("-xOf").arg(vm::image()).arg("layer.tar").output().expect("tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn add(tar: &mut impl Write, name: &str, bytes: &[u8]) {
    tar.write_all(&header(name, bytes.len())).unwrap();
    tar.write_all(bytes).unwrap();
    tar.write_all(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()]).unwrap();
}

/// The header of a regular file in a tar archive (POSIX.1-2017, pax, "ustar Interchange Format").
fn header(name: &str, length: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let size = format!("{length:011o}\0");
    for (at, field) in [
        (0, name),
        (100, "0000644\0"),
        (108, "0000000\0"),
        (116, "0000000\0"),
        (124, &size),
        (136, "00000000000\0"),
        (148, "        "),
        (156, "0"),
        (257, "ustar\x0000"),
    ] {
        header[at..at + field.len()].copy_from_slice(field.as_bytes());
    }
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// `sha256sum`, as it reads.
struct Sha256(Child);

impl Sha256 {
    fn start() -> Self {
        let mut command = Command::new(tool("sha256sum", "coreutils"));
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum"))
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.stdin.as_mut().unwrap().write_all(bytes).expect("sha256sum reads");
    }

    fn finish(mut self) -> String {
        drop(self.0.stdin.take());
        let mut line = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut line).expect("its output");
        assert!(self.0.wait().expect("wait").success());
        line.split(' ').next().unwrap().to_owned()
    }
}
