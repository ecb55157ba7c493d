//! What the pages say of `gvproxy docker-sock` beside its flags. Owns: that text. Read next: `command.rs`;
//! `../cli/pages.rs`.

use super::command::INSTALL;
use crate::cli::pages::Program;

/// Its page.
pub const DOCKER_SOCK: Program = Program {
    name: "gvproxy-docker-sock",
    summary: "keep /var/run/docker.sock as a link to a machine's socket",
    synopsis: &[
        ("gvproxy docker-sock install", "[-prefix PATH] [-socket PATH]"),
        ("gvproxy docker-sock status", "[-prefix PATH]"),
        ("gvproxy docker-sock uninstall", "[-prefix PATH]"),
    ],
    description: &[
        "Some clients look for Docker's API at `/var/run/docker.sock` and nowhere else. `gvproxy \
         docker-sock` makes that path a link to the socket of a podman machine, and lets the system make \
         it again at every start.",
        "It never replaces or removes the socket of another daemon, nor a file or link that it did not make.",
        "Its flags are written as those of `gvproxy`.",
    ],
    commands: &[
        ("install", "Make the link, now and at every start of the system"),
        ("status", "Print where the link leads, who made it, and whether a daemon answers there"),
        ("uninstall", "Remove the link, and the file that makes it at every start"),
    ],
    flags: INSTALL,
    statuses: &[
        ("0", "Done. Of `status`: installed, and a daemon answers."),
        ("1", "A failure."),
        ("2", "A usage error."),
        ("3", "Of `status`: installed, but no daemon answers."),
        ("4", "Of `status`: not installed."),
        ("5", "Of `status`: something that gvproxy did not make is at that path."),
        ("6", "Of `status`: the link is missing, or the file that makes it at every start was changed."),
    ],
    environment: &[("SUDO_UID", "The user whose podman machine is meant, without `-socket`. sudo sets it.")],
    files: &[
        ("/var/run/docker.sock", "The link."),
        (
            "/etc/tmpfiles.d/gvproxy-docker-sock.conf",
            "On Linux: makes the link at every start, see tmpfiles.d(5).",
        ),
        ("/Library/LaunchDaemons/gvproxy.docker-sock.plist", "On macOS: the same, see launchd.plist(5)."),
    ],
    examples: &[
        (
            "The link to the socket of the default podman machine, on Linux:",
            "sudo gvproxy docker-sock install\ngvproxy docker-sock status",
        ),
        (
            "On macOS, or for another machine:",
            "sudo gvproxy docker-sock install \\\n  \
             -socket \"$(podman machine inspect --format '{{.ConnectionInfo.PodmanSocket.Path}}')\"",
        ),
    ],
    see_also: &["gvproxy(1)", "podman-machine(1)", "tmpfiles.d(5)"],
};
