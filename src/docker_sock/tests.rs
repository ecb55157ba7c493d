//! Where the link and the boot file get out of step, for both kinds of systems; `tests/docker_sock.rs` has
//! the rest.

use std::os::unix::net::UnixListener;

use super::*;
use crate::sys::files::mode;

const TARGET: &str = "/somewhere/podman.sock";

/// A directory tree as each kind of system has it.
fn installations() -> Vec<(tempfile::TempDir, Installation)> {
    [&tmpfiles::SYSTEM, &launchd::SYSTEM]
        .map(|system| {
            let dir = tempfile::tempdir().unwrap();
            let installation = Installation::new(system, Some(dir.path()));
            (dir, installation)
        })
        .into()
}

/// Every file below, and where links lead.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

fn record(installation: &Installation) {
    installation.write(TARGET).unwrap();
    fs::rename(installation.unfinished(), &installation.file).unwrap();
}

fn ours(target: &str) -> State {
    State { recorded: Recorded::Target(target.into()), found: Found::Link(target.into()) }
}

#[test]
fn there_and_back() {
    for (dir, installation) in installations() {
        installation.install(Path::new(TARGET)).unwrap();
        assert_eq!(installation.look().unwrap(), ours(TARGET));
        assert_eq!(mode(&fs::metadata(&installation.file).unwrap()), Some(MODE));
        assert_eq!(installation.install(Path::new(TARGET)).unwrap(), ours(TARGET));
        assert_eq!(files(dir.path()).len(), 2, "{:?}", files(dir.path()));
        assert_eq!(installation.uninstall().unwrap(), ours(TARGET));
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
        installation.uninstall().unwrap();
    }
}

#[test]
fn another_target_takes_the_place_of_the_first() {
    for (dir, installation) in installations() {
        installation.install(Path::new("/first")).unwrap();
        installation.install(Path::new(TARGET)).unwrap();
        assert_eq!(installation.look().unwrap(), ours(TARGET));
        assert_eq!(files(dir.path()).len(), 2);
    }
}

/// Every state that a run can leave when it is killed, on the way from nothing or from `/first` to
/// [`TARGET`].
#[test]
fn an_interrupted_install_is_finished_or_undone() {
    let half: [fn(&Installation); 6] = [
        // Before the new boot file has its name.
        |installation| fs::write(installation.unfinished(), "half a te").unwrap(),
        // The same, on the way to another target.
        |installation| {
            installation.install(Path::new(TARGET)).unwrap();
            fs::write(installation.unfinished(), "half a te").unwrap();
        },
        // Before the link is made.
        record,
        // Before the first link is removed.
        |installation| drop(installation.install(Path::new("/first")).unwrap()),
        // After that.
        |installation| {
            installation.install(Path::new("/first")).unwrap();
            fs::remove_file(&installation.link).unwrap();
        },
        // After the boot file was replaced.
        |installation| {
            installation.install(Path::new("/first")).unwrap();
            fs::remove_file(&installation.link).unwrap();
            record(installation);
        },
    ];
    for (step, half) in half.iter().enumerate() {
        for (dir, installation) in installations() {
            fs::create_dir_all(installation.file.parent().unwrap()).unwrap();
            half(&installation);
            installation.install(Path::new(TARGET)).unwrap();
            assert_eq!(installation.look().unwrap(), ours(TARGET), "step {step}");
            assert_eq!(files(dir.path()).len(), 2, "step {step}: {:?}", files(dir.path()));
        }
        for (dir, installation) in installations() {
            fs::create_dir_all(installation.file.parent().unwrap()).unwrap();
            half(&installation);
            installation.uninstall().unwrap();
            assert_eq!(files(dir.path()), Vec::<PathBuf>::new(), "step {step}");
        }
    }
}

#[test]
fn what_is_not_ours_stays() {
    let theirs: [fn(&Path); 5] = [
        |link| drop(UnixListener::bind(link).unwrap()),
        |link| fs::write(link, "text").unwrap(),
        |link| fs::create_dir(link).unwrap(),
        |link| symlink("/elsewhere".as_ref(), link).unwrap(),
        // Where ours would lead, too: who made it did not mean it to go.
        |link| symlink(TARGET.as_ref(), link).unwrap(),
    ];
    for make in theirs {
        for (dir, installation) in installations() {
            fs::create_dir_all(installation.link.parent().unwrap()).unwrap();
            make(&installation.link);
            let found = installation.found().unwrap();
            let error = installation.install(Path::new(TARGET)).unwrap_err().to_string();
            assert!(error.starts_with(&installation.link.display().to_string()), "{error}");
            let state = State { recorded: Recorded::Nothing, found };
            assert_eq!(installation.look().unwrap(), state, "{error}");
            assert_eq!(installation.uninstall().unwrap(), state);
            assert_eq!(installation.look().unwrap(), state);
            assert!(!installation.file.parent().unwrap().exists() || files(dir.path()).len() <= 1);
        }
    }
}

#[test]
fn a_link_that_somebody_led_elsewhere_stays() {
    for (dir, installation) in installations() {
        installation.install(Path::new(TARGET)).unwrap();
        fs::remove_file(&installation.link).unwrap();
        symlink("/elsewhere".as_ref(), &installation.link).unwrap();
        let error = installation.install(Path::new(TARGET)).unwrap_err().to_string();
        assert!(error.ends_with("to /elsewhere: remove it if it is not needed"), "{error}");
        installation.uninstall().unwrap();
        assert_eq!(files(dir.path()), std::slice::from_ref(&installation.link));
        assert_eq!(installation.found().unwrap(), Found::Link("/elsewhere".into()));
    }
}

#[test]
fn a_changed_boot_file_stays() {
    let changes: [fn(&Path); 4] = [
        |file| fs::write(file, "# nothing\n").unwrap(),
        |file| fs::write(file, b"\xff").unwrap(),
        |file| fs::create_dir(file).unwrap(),
        // How a line of tmpfiles.d is switched off.
        |file| symlink("/dev/null".as_ref(), file).unwrap(),
    ];
    for change in changes {
        for (_dir, installation) in installations() {
            installation.install(Path::new(TARGET)).unwrap();
            fs::remove_file(&installation.file).unwrap();
            change(&installation.file);
            let before = installation.look().unwrap();
            assert_eq!(before.recorded, Recorded::Changed);
            for error in
                [installation.install(Path::new(TARGET)).unwrap_err(), installation.uninstall().unwrap_err()]
            {
                assert!(error.to_string().contains("is not as gvproxy wrote it"), "{error}");
            }
            assert_eq!(installation.look().unwrap(), before);
        }
    }
}

#[test]
fn nothing_is_left_when_the_link_cannot_be_made() {
    for (dir, installation) in installations() {
        // The record's directory is there, and the link's is not.
        fs::create_dir_all(installation.file.parent().unwrap()).unwrap();
        let installation = Installation { is_tree: false, ..installation };
        let error = installation.install(Path::new(TARGET)).unwrap_err().to_string();
        assert_eq!(error, format!("link {}: no such file or directory", installation.link.display()));
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn targets_that_cannot_be_meant() {
    for (dir, installation) in installations() {
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        fs::create_dir_all(installation.link.parent().unwrap()).unwrap();
        let itself =
            installation.link.parent().unwrap().join(".").join(installation.link.file_name().unwrap());
        for (target, reason) in [
            (Path::new("podman.sock"), "not an absolute path"),
            (Path::new("/a\nb"), "a boot file cannot hold this name"),
            (&file, "not a socket"),
            (&itself, "the link would lead to itself"),
        ] {
            let error = installation.install(target).unwrap_err().to_string();
            assert!(error.starts_with("-socket \"") && error.ends_with(reason), "{error}");
        }
        assert_eq!(files(dir.path()), [file]);
    }
}

#[test]
fn a_system_without_boot_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let installation =
        Installation { is_tree: false, ..Installation::new(&tmpfiles::SYSTEM, Some(dir.path())) };
    let error = installation.install(Path::new(TARGET)).unwrap_err().to_string();
    assert!(error.ends_with("would not make the link again after a restart"), "{error}");
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
}
