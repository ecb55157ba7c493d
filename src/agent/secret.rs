//! The secret by which the host and its guests' agents know each other, whatever their addresses are. Nobody
//! says it: each shows by a MAC (HMAC-SHA256) over a nonce of either that it has it, the agent first, so that
//! nothing is asked of anybody else.
//!
//! ```text
//! host    PROVE <its nonce>
//! agent   PROOF <its nonce> <MAC of "agent" and both nonces>
//! host    PROOF <MAC of "host", both nonces and the line> <the line>
//! ```
//!
//! Nonces belong to one connection, so that no proof is good for another, and no MAC of one side's is one of
//! the other's.
//! Owns: the secret, and these lines. May not: show the secret. Read next: `../agent.rs`, the host's part of
//! a connection; `../guest/agent.rs`.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::Refusal;
use crate::disk::files;
use crate::sys;
use crate::text::{quote, reason};

/// Bytes of a secret.
const LEN: RangeInclusive<usize> = 16..=4096;
/// More of the file is not read, in bytes: what is longer is no secret with blanks around it.
const MAX_LEN: u64 = 8192;
/// Begins the line that asks for a proof.
const PROVE: &[u8] = b"PROVE ";
/// Begins the lines that give one.
const PROOF: &[u8] = b"PROOF ";
/// Characters of a nonce, 128 bits.
const NONCE: usize = 32;
/// Characters of a MAC, 256 bits.
const MAC: usize = 64;
/// What a MAC begins with. All that follows but the line has a fixed length, so that no two messages are the
/// same bytes.
const HOST: &[u8] = b"gvproxy agent 1 host";
const AGENT: &[u8] = b"gvproxy agent 1 agent";

/// What the host and its guests' agents have and nobody else, as the key that its type wipes. No log shows
/// it.
#[derive(Clone)]
pub struct SharedSecret(Arc<Hmac<Sha256>>);

impl SharedSecret {
    /// That of `file`, where one is named.
    ///
    /// # Errors
    /// The file has no name or cannot be read or others may read it, or what is there is no secret.
    pub(crate) fn find(file: Option<&OsStr>) -> Result<Option<Self>> {
        let Some(file) = file else { return Ok(None) };
        ensure!(!file.is_empty(), "agent-secret-file is empty: it names a file, or is left out");
        Self::read(Path::new(file)).map(Some)
    }

    fn read(path: &Path) -> Result<Self> {
        let of_file = || format!("agent secret file {}", quote(path.display().to_string()));
        let text = files::read_private(path, MAX_LEN);
        let text = text.map_err(|error| anyhow!(reason(&error))).with_context(of_file)?;
        sys::leave_no_core_dump();
        Self::of(text.trim_ascii()).with_context(of_file)
    }

    fn of(text: &[u8]) -> Result<Self> {
        let len = text.len();
        ensure!(LEN.contains(&len), "a secret has {} to {} bytes, not {len}", LEN.start(), LEN.end());
        let key = Hmac::new_from_slice(text).map_err(|_| anyhow!("no key of a MAC"))?;
        Ok(Self(Arc::new(key)))
    }

    fn mac(&self, side: &[u8], host: &[u8], agent: &[u8], line: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::clone(&self.0);
        for part in [side, host, agent, line] {
            mac.update(part);
        }
        mac
    }

    /// What an agent says to a host that asks for a proof by `line`; `None` where that asks for none.
    ///
    /// # Errors
    /// The system has no source of randomness.
    pub(crate) fn prove(&self, line: &[u8]) -> io::Result<Option<Proof>> {
        let Some(host) = line.strip_prefix(PROVE).filter(|nonce| nonce.len() == NONCE) else {
            return Ok(None);
        };
        Ok(Some(Proof { secret: self.clone(), host: host.to_vec(), agent: nonce()? }))
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

/// Whether a line of the host's asks for a proof.
pub(crate) fn is_challenge(line: &[u8]) -> bool {
    line.starts_with(PROVE)
}

/// What the host says to an agent that is to prove itself, on one connection.
#[derive(Debug)]
pub(super) struct Challenge {
    secret: SharedSecret,
    nonce: Vec<u8>,
}

impl Challenge {
    pub(super) fn new(secret: &SharedSecret) -> io::Result<Self> {
        Ok(Self { secret: secret.clone(), nonce: nonce()? })
    }

    /// Asks for the proof, without the end of the line.
    pub(super) fn line(&self) -> Vec<u8> {
        [PROVE, &self.nonce].concat()
    }

    /// `line` with the host's own proof, for an agent that has given its proof by `answer`.
    pub(super) fn meet(&self, answer: &[u8], line: &[u8]) -> Result<Vec<u8>, Refusal> {
        let Self { secret, nonce } = self;
        let (agent, mac) = fields::<NONCE>(answer).ok_or_else(|| Refusal::NoProof(quote(answer)))?;
        if !is_mac(secret.mac(AGENT, nonce, agent, b""), mac) {
            return Err(Refusal::OtherSecret);
        }
        Ok([PROOF, &hex(secret.mac(HOST, nonce, agent, line)), b" ", line].concat())
    }
}

/// What an agent says to a host that is to prove itself in turn, on one connection.
#[derive(Debug)]
pub(crate) struct Proof {
    secret: SharedSecret,
    host: Vec<u8>,
    agent: Vec<u8>,
}

impl Proof {
    /// Without its end.
    pub(crate) fn line(&self) -> Vec<u8> {
        let Self { secret, host, agent } = self;
        [PROOF, agent, b" ", &hex(secret.mac(AGENT, host, agent, b""))].concat()
    }

    /// The line behind the host's own proof; `None` where the proof is wrong.
    pub(crate) fn check<'a>(&self, said: &'a [u8]) -> Option<&'a [u8]> {
        let (mac, line) = fields::<MAC>(said)?;
        is_mac(self.secret.mac(HOST, &self.host, &self.agent, line), mac).then_some(line)
    }
}

/// What stands behind `PROOF`: so many characters, a blank, the rest.
fn fields<const FIRST: usize>(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = line.strip_prefix(PROOF)?.split_at_checked(FIRST)?;
    Some((first, rest.strip_prefix(b" ")?))
}

fn nonce() -> io::Result<Vec<u8>> {
    Ok(format!("{:032x}", sys::random_seed()?).into_bytes())
}

fn hex(mac: Hmac<Sha256>) -> Vec<u8> {
    let bytes = mac.finalize().into_bytes();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes()
}

/// Whether `hex` is that MAC, in a time that does not depend on how much of it is right.
fn is_mac(mac: Hmac<Sha256>, hex: &[u8]) -> bool {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = hex.as_chunks();
    let bytes = pairs.iter().map(|&[high, low]| u8::try_from(digit(high)? << 4 | digit(low)?).ok());
    let bytes: Option<Vec<u8>> = bytes.collect();
    rest.is_empty() && bytes.is_some_and(|bytes| mac.verify_slice(&bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SharedSecret {
        SharedSecret::of(text.as_bytes()).unwrap()
    }

    #[cfg(unix)]
    #[test]
    fn files() {
        use std::fs::{self, Permissions};
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let read = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            SharedSecret::find(Some(path.as_os_str())).map_err(|error| format!("{error:#}"))
        };
        let of = |secret: &SharedSecret| hex(secret.mac(b"", b"", b"", b""));
        let (shortest, longest) = ("x".repeat(16), "x".repeat(4096));
        for text in [&shortest, &longest, &format!("{longest}\n"), &format!(" {shortest}\r\n")] {
            assert_eq!(of(&read(text, 0o600).unwrap().unwrap()), of(&secret(text.trim())));
        }
        for (text, mode, why) in [
            (&shortest, 0o644, "its mode is 0644, want 0600: others could read it"),
            (&shortest, 0o640, "its mode is 0640"),
            (&"x".repeat(15), 0o600, "a secret has 16 to 4096 bytes, not 15"),
            (&"x".repeat(4097), 0o600, "16 to 4096 bytes, not 4097"),
            (&"x".repeat(10_000), 0o600, "16 to 4096 bytes, not 8192"),
            (&" \n".repeat(40), 0o600, "not 0"),
        ] {
            let said = read(text, mode).unwrap_err();
            assert!(
                said.contains(why) && said.starts_with("agent secret file") && !said.contains("xxx"),
                "{said}"
            );
        }
        for (file, why) in
            [(dir.path().as_os_str(), "not a regular file"), (OsStr::new(""), "agent-secret-file is empty")]
        {
            let said = format!("{:#}", SharedSecret::find(Some(file)).unwrap_err());
            assert!(said.contains(why), "{said}");
        }
        assert!(SharedSecret::find(None).unwrap().is_none());
        assert_eq!(format!("{:?}", secret(&shortest)), "SharedSecret(..)");
    }

    #[test]
    fn each_side_believes_the_other_with_the_same_secret_only() {
        let (ours, other) = (secret(&"x".repeat(16)), secret(&"x".repeat(17)));
        let challenge = Challenge::new(&ours).unwrap();
        let asked = challenge.line();
        let proof = ours.prove(&asked).unwrap().unwrap();
        let met = challenge.meet(&proof.line(), b"/run/a").unwrap();
        assert_eq!(proof.check(&met), Some(&b"/run/a"[..]));
        // Another line, another secret at either side, and the MAC in another place.
        assert_eq!(proof.check(&[&met[..met.len() - 1], b"b"].concat()), None);
        let lying = other.prove(&asked).unwrap().unwrap();
        assert_eq!(challenge.meet(&lying.line(), b"/run/a"), Err(Refusal::OtherSecret));
        assert_eq!(lying.check(&met), None);
        assert_eq!(proof.check(&proof.line()), None);
        // What was recorded of one connection, on the next.
        let next = Challenge::new(&ours).unwrap();
        assert_eq!(next.meet(&proof.line(), b"/run/a"), Err(Refusal::OtherSecret));
        assert_eq!(ours.prove(&asked).unwrap().unwrap().check(&met), None);
        // The host's own words back.
        let mirror = [PROOF, &asked[PROVE.len()..], b" ", &met[PROOF.len()..PROOF.len() + MAC]].concat();
        assert_eq!(challenge.meet(&mirror, b"/run/a"), Err(Refusal::OtherSecret));
    }

    #[test]
    fn what_is_no_proof() {
        let ours = secret(&"x".repeat(16));
        let challenge = Challenge::new(&ours).unwrap();
        for answer in
            [&b"OK"[..], b"ERR no", b"", b"PROOF", b"PROOF ", b"PROVE 00000000000000000000000000000000"]
        {
            assert_eq!(challenge.meet(answer, b"/a"), Err(Refusal::NoProof(quote(answer))));
        }
        let right = ours.prove(&challenge.line()).unwrap().unwrap().line();
        for wrong in [
            &right[..right.len() - 1],
            &right[..right.len() - 2],
            &[&right[..], b"0"].concat(),
            &[&right[..], b"00"].concat(),
        ] {
            assert_eq!(challenge.meet(wrong, b"/a"), Err(Refusal::OtherSecret));
        }
        for line in [&b"/run/a"[..], b"PROVE", b"PROVE ", b"PROVE 0", &[&challenge.line()[..], b"0"].concat()]
        {
            assert!(ours.prove(line).unwrap().is_none());
        }
    }

    /// RFC 4231, 4.4: the MAC is HMAC-SHA256, over the parts one behind the other.
    #[test]
    fn a_mac_is_that_of_the_standard() {
        let mac = || SharedSecret::of(&[0xaa; 20]).unwrap().mac(&[0xdd; 20], &[0xdd; 10], &[], &[0xdd; 20]);
        let expected = b"773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe";
        assert_eq!(hex(mac()), expected);
        assert!(is_mac(mac(), expected) && !is_mac(mac(), &expected[..62]) && !is_mac(mac(), b""));
    }
}
