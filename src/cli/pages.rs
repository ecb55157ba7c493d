//! The manual page and the completions of shells, made from a table of flags. Owns: their forms. May not: know a flag.
//! Read next: `table.rs`; `tests/pages.rs`, which keeps the files in share/ as they are here.

use super::table::{Flag, Kind};

/// A program that has pages.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// As it is typed.
    pub name: &'static str,
    /// What it is, in a line without a capital or a stop.
    pub summary: &'static str,
    /// Paragraphs about it.
    pub description: &'static [&'static str],
    /// Words that stand in place of flags, with what they do.
    pub commands: &'static [(&'static str, &'static str)],
    /// Its flags, bytewise by name.
    pub flags: &'static [Flag],
    /// Exit statuses and when they come.
    pub statuses: &'static [(u8, &'static str)],
}

/// The daemon.
pub const GVPROXY: Program = Program {
    name: "gvproxy",
    summary: "the network of a virtual machine, and its sockets on the host",
    description: &[
        "Takes the Ethernet frames of a virtual machine from its hypervisor and is the network behind them: DHCP, DNS, and TCP, UDP and \
         pings to wherever the host can reach. Brings ports and sockets out of the machine, and sockets of the host into it. It needs no \
         privilege.",
        "A flag is written with one dash or two, its value after a space or an equals sign. A flag without a value, such as -debug, takes \
         one only after an equals sign.",
    ],
    commands: &[("docker-sock", "Keep /var/run/docker.sock as a link to a machine's socket")],
    flags: super::table::FLAGS,
    statuses: &[
        (0, "After SIGTERM or SIGINT, or when the virtual machine has left."),
        (1, "A failure, at the start or later."),
        (2, "A usage error."),
        (3, "Of -qmp-status only: a machine has no network card that is connected."),
    ],
};

/// A page of section 1 in the man macros, see man(7).
pub fn man(program: &Program) -> String {
    let name = program.name;
    let mut page = format!(
        ".\\\" Made from the table of flags: see tests/pages.rs.\n.TH {} 1 \"\" \"{name}\" \"User Commands\"\n.SH NAME\n{name} \\- {}\n\
         .SH SYNOPSIS\n.B {name}\n.RI [ FLAG ...]\n",
        name.to_uppercase(),
        roff(program.summary),
    );
    for (word, _) in program.commands {
        page.push_str(&format!(".br\n.B {name} {}\n.RI [ ARGUMENT ...]\n", roff(word)));
    }
    page.push_str(".SH DESCRIPTION\n");
    for (index, paragraph) in program.description.iter().enumerate() {
        page.push_str(if index == 0 { "" } else { ".PP\n" });
        page.push_str(&format!("{}\n", roff(paragraph)));
    }
    if !program.commands.is_empty() {
        page.push_str(".SH COMMANDS\n");
    }
    for (word, what) in program.commands {
        page.push_str(&format!(".TP\n.B {}\n{}.\n", roff(word), roff(what)));
    }
    page.push_str(".SH OPTIONS\n");
    for flag in program.flags {
        let value = match flag.kind {
            Kind::Bool => "",
            Kind::Int(_) => " \\fINUMBER\\fR",
            Kind::Text(_) | Kind::List => " \\fITEXT\\fR",
        };
        let more = match flag.kind {
            Kind::Bool => String::new(),
            Kind::Int(default) => format!(" The default is {default}."),
            Kind::Text("") => String::new(),
            Kind::Text(default) => format!(" The default is {default}."),
            Kind::List => " May be repeated.".to_owned(),
        };
        page.push_str(&format!(
            ".TP\n\\fB\\-{}\\fR{value}\n{}.{}\n",
            roff(flag.name),
            roff(flag.help),
            roff(&more)
        ));
    }
    if !program.statuses.is_empty() {
        page.push_str(".SH EXIT STATUS\n");
    }
    for (status, when) in program.statuses {
        page.push_str(&format!(".TP\n.B {status}\n{}\n", roff(when)));
    }
    page
}

/// Text in which nothing is a request or an escape.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// For bash, with or without bash-completion; also that of macOS, which is 3.2 and has no `mapfile`.
pub fn bash(program: &Program) -> String {
    let name = program.name;
    let function = name.replace('-', "_");
    let names = |wanted: fn(Kind) -> bool| {
        let flags = program.flags.iter().filter(|flag| wanted(flag.kind));
        flags.map(|flag| format!("-{0}|--{0}", flag.name)).collect::<Vec<_>>().join("|")
    };
    let all: Vec<_> = program.flags.iter().map(|flag| format!("-{}", flag.name)).collect();
    let words: Vec<_> = program.commands.iter().map(|(word, _)| *word).collect();
    let numbers = names(|kind| matches!(kind, Kind::Int(_)));
    let texts = names(|kind| matches!(kind, Kind::Text(_) | Kind::List));
    let number = if numbers.is_empty() { String::new() } else { format!("    {numbers}) return ;;\n") };
    format!(
        "# Completion of {name}, made from the table of flags: see tests/pages.rs.\n_{function}() {{\n\
         \x20   local IFS=$'\\n' word=${{COMP_WORDS[COMP_CWORD]}} flag=${{COMP_WORDS[COMP_CWORD - 1]}}\n\
         \x20   # -flag=value is three words.\n\
         \x20   [ \"$word\" = = ] && word=\n\
         \x20   [ \"$flag\" = = ] && flag=${{COMP_WORDS[COMP_CWORD - 2]}}\n\
         \x20   COMPREPLY=()\n    case $flag in\n{number}\
         \x20   {texts})\n        COMPREPLY=($(compgen -f -- \"$word\"))\n        return\n        ;;\n    esac\n\
         \x20   local words='{}'\n    [ \"$COMP_CWORD\" -eq 1 ] && words+=$'\\n{}'\n\
         \x20   COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n}}\ncomplete -o filenames -F _{function} {name}\n",
        all.join("\n"),
        words.join("\\n"),
    )
}

/// For zsh: a file `_PROGRAM` in a directory of `$fpath`.
pub fn zsh(program: &Program) -> String {
    let escaped = |text: &str| {
        let text = text.replace('\\', "\\\\").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
        text.replace('\'', "'\\''")
    };
    let mut script =
        format!("#compdef {}\n# Made from the table of flags: see tests/pages.rs.\n_arguments", program.name);
    for flag in program.flags {
        let (many, value) = match flag.kind {
            Kind::Bool => ("", ""),
            Kind::Int(_) => ("", ":number:"),
            Kind::Text(_) => ("", ":text:_files"),
            Kind::List => ("*", ":text:_files"),
        };
        script.push_str(&format!(" \\\n    '{many}-{}[{}]{value}'", flag.name, escaped(flag.help)));
    }
    let words: Vec<_> = program.commands.iter().map(|(word, _)| *word).collect();
    if !words.is_empty() {
        script.push_str(&format!(" \\\n    '1::command:({})'", words.join(" ")));
    }
    script + "\n"
}

/// For fish.
pub fn fish(program: &Program) -> String {
    let name = program.name;
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut script = format!(
        "# Completion of {name}, made from the table of flags: see tests/pages.rs.\ncomplete -c {name} -f\n"
    );
    for (word, what) in program.commands {
        script.push_str(&format!(
            "complete -c {name} -n __fish_is_first_token -a {word} -d '{}'\n",
            quoted(what)
        ));
    }
    for flag in program.flags {
        let value = match flag.kind {
            Kind::Bool => "",
            Kind::Int(_) => " -x",
            Kind::Text(_) | Kind::List => " -r -F",
        };
        script.push_str(&format!("complete -c {name} -o {}{value} -d '{}'\n", flag.name, quoted(flag.help)));
    }
    script
}
