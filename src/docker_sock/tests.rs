//! Where the link and the boot file get out of step, for both kinds of systems; `tests/docker_sock.rs` has
//! the rest.

use std::os::unix::net::UnixListener;

use super::*;

const TARGET: &str = "/somewhere/podman.sock";

/// A directory tree as each kind of system has it.
fn places() -> Vec<(tempfile::TempDir, Installation)> {
    [&tmpfiles::SYSTEM, &launchd::SYSTEM]
        .map(|system| {
            let dir = tempfile::tempdir().unwrap();
            let place = Installation::new(system, Some(dir.path()));
            (dir, place)
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

fn record(place: &Installation) {
    place.write(TARGET).unwrap();
    fs::rename(place.unfinished(), &place.file).unwrap();
}

fn ours(target: &str) -> State {
    State { recorded: Recorded::Target(target.into()), found: Found::Link(target.into()) }
}

#[test]
fn there_and_back() {
    for (dir, place) in places() {
        place.install(Path::new(TARGET)).unwrap();
        assert_eq!(place.look().unwrap(), ours(TARGET));
        assert_eq!(fs::metadata(&place.file).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(place.install(Path::new(TARGET)).unwrap(), ours(TARGET));
        assert_eq!(files(dir.path()).len(), 2, "{:?}", files(dir.path()));
        assert_eq!(place.uninstall().unwrap(), ours(TARGET));
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
        place.uninstall().unwrap();
    }
}

#[test]
fn another_target_takes_the_place_of_the_first() {
    for (dir, place) in places() {
        place.install(Path::new("/first")).unwrap();
        place.install(Path::new(TARGET)).unwrap();
        assert_eq!(place.look().unwrap(), ours(TARGET));
        assert_eq!(files(dir.path()).len(), 2);
    }
}

/// Every state that a run can leave when it is killed, on the way from nothing or from `/first` to
/// [`TARGET`].
#[test]
fn an_interrupted_install_is_finished_or_undone() {
    let half: [fn(&Installation); 6] = [
        // Before the new boot file has its name.
        |place| fs::write(place.unfinished(), "half a te").unwrap(),
        // The same, on the way to another target.
        |place| {
            place.install(Path::new(TARGET)).unwrap();
            fs::write(place.unfinished(), "half a te").unwrap();
        },
        // Before the link is made.
        record,
        // Before the first link is removed.
        |place| drop(place.install(Path::new("/first")).unwrap()),
        // After that.
        |place| {
            place.install(Path::new("/first")).unwrap();
            fs::remove_file(&place.link).unwrap();
        },
        // After the boot file was replaced.
        |place| {
            place.install(Path::new("/first")).unwrap();
            fs::remove_file(&place.link).unwrap();
            record(place);
        },
    ];
    for (step, half) in half.iter().enumerate() {
        for (dir, place) in places() {
            fs::create_dir_all(place.file.parent().unwrap()).unwrap();
            half(&place);
            place.install(Path::new(TARGET)).unwrap();
            assert_eq!(place.look().unwrap(), ours(TARGET), "step {step}");
            assert_eq!(files(dir.path()).len(), 2, "step {step}: {:?}", files(dir.path()));
        }
        for (dir, place) in places() {
            fs::create_dir_all(place.file.parent().unwrap()).unwrap();
            half(&place);
            place.uninstall().unwrap();
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
        |link| symlink("/elsewhere", link).unwrap(),
        // Where ours would lead, too: who made it did not mean it to go.
        |link| symlink(TARGET, link).unwrap(),
    ];
    for make in theirs {
        for (dir, place) in places() {
            fs::create_dir_all(place.link.parent().unwrap()).unwrap();
            make(&place.link);
            let found = place.found().unwrap();
            let error = place.install(Path::new(TARGET)).unwrap_err().to_string();
            assert!(error.starts_with(&place.link.display().to_string()), "{error}");
            let state = State { recorded: Recorded::Nothing, found };
            assert_eq!(place.look().unwrap(), state, "{error}");
            assert_eq!(place.uninstall().unwrap(), state);
            assert_eq!(place.look().unwrap(), state);
            assert!(!place.file.parent().unwrap().exists() || files(dir.path()).len() <= 1);
        }
    }
}

#[test]
fn a_link_that_somebody_led_elsewhere_stays() {
    for (dir, place) in places() {
        place.install(Path::new(TARGET)).unwrap();
        fs::remove_file(&place.link).unwrap();
        symlink("/elsewhere", &place.link).unwrap();
        let error = place.install(Path::new(TARGET)).unwrap_err().to_string();
        assert!(error.ends_with("to /elsewhere: remove it if it is not needed"), "{error}");
        place.uninstall().unwrap();
        assert_eq!(files(dir.path()), std::slice::from_ref(&place.link));
        assert_eq!(place.found().unwrap(), Found::Link("/elsewhere".into()));
    }
}

#[test]
fn a_changed_boot_file_stays() {
    let changes: [fn(&Path); 4] = [
        |file| fs::write(file, "# nothing\n").unwrap(),
        |file| fs::write(file, b"\xff").unwrap(),
        |file| fs::create_dir(file).unwrap(),
        // How a line of tmpfiles.d is switched off.
        |file| symlink("/dev/null", file).unwrap(),
    ];
    for change in changes {
        for (_dir, place) in places() {
            place.install(Path::new(TARGET)).unwrap();
            fs::remove_file(&place.file).unwrap();
            change(&place.file);
            let before = place.look().unwrap();
            assert_eq!(before.recorded, Recorded::Changed);
            for error in [place.install(Path::new(TARGET)).unwrap_err(), place.uninstall().unwrap_err()] {
                assert!(error.to_string().contains("is not as gvproxy wrote it"), "{error}");
            }
            assert_eq!(place.look().unwrap(), before);
        }
    }
}

#[test]
fn nothing_is_left_when_the_link_cannot_be_made() {
    for (dir, place) in places() {
        // The record's directory is there, and the link's is not.
        fs::create_dir_all(place.file.parent().unwrap()).unwrap();
        let place = Installation { is_tree: false, ..place };
        let error = place.install(Path::new(TARGET)).unwrap_err().to_string();
        assert_eq!(error, format!("link {}: no such file or directory", place.link.display()));
        assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
    }
}

#[test]
fn targets_that_cannot_be_meant() {
    for (dir, place) in places() {
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        fs::create_dir_all(place.link.parent().unwrap()).unwrap();
        let itself = place.link.parent().unwrap().join(".").join(place.link.file_name().unwrap());
        for (target, reason) in [
            (Path::new("podman.sock"), "not an absolute path"),
            (Path::new("/a\nb"), "a boot file cannot hold this name"),
            (&file, "not a socket"),
            (&itself, "the link would lead to itself"),
        ] {
            let error = place.install(target).unwrap_err().to_string();
            assert!(error.starts_with("-socket \"") && error.ends_with(reason), "{error}");
        }
        assert_eq!(files(dir.path()), [file]);
    }
}

#[test]
fn a_system_without_boot_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = Installation { is_tree: false, ..Installation::new(&tmpfiles::SYSTEM, Some(dir.path())) };
    let error = place.install(Path::new(TARGET)).unwrap_err().to_string();
    assert!(error.ends_with("would not make the link again after a restart"), "{error}");
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
}
