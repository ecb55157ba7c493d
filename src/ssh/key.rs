//! The private key that logs in to the guest.
//! Owns: reading key files. May not: ask for a passphrase; the daemon has nobody to ask.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use russh::keys::{Error, PrivateKey};
use zeroize::Zeroizing;

use super::Secret;
use crate::disk::files;
use crate::sys;

/// The longest file that may be a key, in bytes. A guest may name any file (`-gateway-expose-all-protocols`).
const MAX_LEN: u64 = 1 << 20;

/// Reads a private key: Ed25519, ECDSA (P-256, P-384, P-521) or RSA, as OpenSSH, PKCS#1, PKCS#8 or SEC1 text.
///
/// # Errors
/// The file cannot be read, is not a private key, or wants a passphrase, or another one.
pub fn load(path: &Path, passphrase: Option<&Secret>) -> anyhow::Result<PrivateKey> {
    let of_file = || format!("cannot read the ssh identity {}", path.display());
    let (text, _) = files::read(path, MAX_LEN + 1).with_context(of_file)?;
    ensure!(text.len() as u64 <= MAX_LEN, "{}: longer than {MAX_LEN} bytes", of_file());
    // The text is wiped behind its use, and the key by its own type.
    let text = Zeroizing::new(text);
    sys::leave_no_core_dump();
    let text = str::from_utf8(&text).with_context(of_file)?;
    if passphrase.is_none() && wants_passphrase(text) {
        bail!(needs_passphrase(path));
    }
    match russh::keys::decode_secret_key(text, passphrase.map(|passphrase| passphrase.0.as_str())) {
        Ok(key) if key.is_encrypted() => bail!(needs_passphrase(path)),
        Ok(key) => Ok(key),
        Err(Error::KeyIsEncrypted) => bail!(needs_passphrase(path)),
        Err(error) => {
            Err(error).with_context(|| format!("{} is not a usable ssh private key", path.display()))
        }
    }
}

/// Recognises the two PEM forms of encryption, which the parser would call corrupt.
fn wants_passphrase(text: &str) -> bool {
    text.lines().any(|line| {
        line == "-----BEGIN ENCRYPTED PRIVATE KEY-----" || line.starts_with("Proc-Type: 4,ENCRYPTED")
    })
}

fn needs_passphrase(path: &Path) -> String {
    format!(
        "the ssh identity {} is protected by a passphrase; give a key without one (ssh-keygen -p removes it)",
        path.display()
    )
}
