//! macOS: a property list of launchd, which runs `ln` once when the system starts. See launchd.plist(5).
//! Owns: nothing. Read next: `mod.rs`.
//!
//! `ln` without `-f` makes the link where there is nothing and fails everywhere else; `-n` does so at a link
//! to a directory too.

use super::System;

/// See the module. launchd reads the directory when the system starts: nothing has to be loaded now.
pub const SYSTEM: System = System {
    link: "/var/run/docker.sock",
    file: "/Library/LaunchDaemons/gvproxy.docker-sock.plist",
    text,
    target,
};

const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<!-- Made by `gvproxy docker-sock install`; `gvproxy docker-sock uninstall` removes it. -->
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>gvproxy.docker-sock</string>
	<key>RunAtLoad</key>
	<true/>
	<key>ProgramArguments</key>
	<array>
		<string>/bin/ln</string>
		<string>-sn</string>
		<string>"#;
const TAIL: &str = "</string>
		<string>/var/run/docker.sock</string>
	</array>
</dict>
</plist>
";

fn text(target: &str) -> String {
    format!("{HEAD}{}{TAIL}", escape(target))
}

fn target(text: &str) -> Option<String> {
    let escaped = text.strip_prefix(HEAD)?.strip_suffix(TAIL)?;
    // `&` last, so that what it brings is not taken for another entity.
    let target = escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    (escape(&target) == escaped).then_some(target)
}

fn escape(path: &str) -> String {
    path.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_changed_text_is_none_of_ours() {
        let good = text("/var/folders/a&b/<T>/podman.sock");
        assert_eq!(target(&good).as_deref(), Some("/var/folders/a&b/<T>/podman.sock"));
        for changed in [
            String::new(),
            good.replace("-sn", "-sfn"),
            good.replace("&lt;", "<"),
            good.replace("&amp;", "&"),
            good.replace("podman", "</string><string>"),
            format!("{good}\n"),
        ] {
            assert_eq!(target(&changed), None, "{changed}");
        }
    }

    proptest! {
        #[test]
        fn every_path_comes_back(path: String) {
            prop_assert_eq!(target(&text(&path)), Some(path));
        }
    }
}
