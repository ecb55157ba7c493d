//! Manual pages, completions of shells and the tables of docs/, made from tables of flags. Owns: their
//! forms. May not: know a flag. Read next: `table.rs`; `manual.rs`; `tests/pages.rs`, which keeps the files
//! as they are made here.

use super::table::{Flag, Kind};

/// A program that has pages. Texts are sentences; what is typed, or is a name, stands between backquotes,
/// as in Markdown.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Of its manual page. For a command of another program it is the other's, a dash and the command.
    pub name: &'static str,
    /// What it is, in a line without a capital or a stop.
    pub summary: &'static str,
    /// Its command lines: what is typed literally, and the rest.
    pub synopsis: &'static [(&'static str, &'static str)],
    /// Paragraphs about it.
    pub description: &'static [&'static str],
    /// Words that stand in place of flags, with what they do.
    pub commands: &'static [(&'static str, &'static str)],
    /// Its flags, bytewise by name.
    pub flags: &'static [Flag],
    /// Exit statuses and when they come.
    pub statuses: &'static [(&'static str, &'static str)],
    /// Variables of the environment, and what they are used for.
    pub environment: &'static [(&'static str, &'static str)],
    /// Files that it uses where no flag names them.
    pub files: &'static [(&'static str, &'static str)],
    /// What one may want, and what to type for it.
    pub examples: &'static [(&'static str, &'static str)],
    /// Other manual pages, with their sections.
    pub see_also: &'static [&'static str],
}

/// A page of section 1 in the man macros, see man(7).
pub fn man(program: &Program) -> String {
    let name = program.name;
    let mut page = format!(
        ".\\\" Made by make pages.\n.TH {} 1 \"\" gvproxy \"User Commands\"\n.SH NAME\n{} \\- {}\n\
         .SH SYNOPSIS\n.nf\n",
        name.to_uppercase(),
        roff(name),
        roff(program.summary),
    );
    for (typed, rest) in program.synopsis {
        page.push_str(&format!("{} {}\n", bold(typed), roff(rest)));
    }
    page.push_str(".fi\n.SH DESCRIPTION\n");
    let paragraphs: Vec<_> = program.description.iter().map(|text| sentences(text)).collect();
    page.push_str(&paragraphs.join(".PP\n"));
    let literal = |(name, text): &(&str, &str)| (bold(name), (*text).to_owned());
    let command = |(word, what): &(&str, &str)| (bold(word), format!("{what}."));
    page.push_str(&section("COMMANDS", program.commands.iter().map(command)));
    page.push_str(&section("OPTIONS", program.flags.iter().map(option)));
    page.push_str(&section("EXIT STATUS", program.statuses.iter().map(literal)));
    page.push_str(&section("ENVIRONMENT", program.environment.iter().map(literal)));
    page.push_str(&section("FILES", program.files.iter().map(literal)));
    let examples = program.examples.iter().map(|(what, typed)| {
        let lines: String = typed.lines().map(|line| roff(line) + "\n").collect();
        format!("{}.PP\n.RS 4\n.nf\n{lines}.fi\n.RE\n", sentences(what))
    });
    page.push_str(&format!(".SH EXAMPLES\n{}", examples.collect::<Vec<_>>().join(".PP\n")));
    let others: Vec<_> = program
        .see_also
        .iter()
        .map(|other| match other.split_once('(') {
            Some((page, section)) => format!("{}({section}", bold(page)),
            None => bold(other),
        })
        .collect();
    page + &format!(".SH SEE ALSO\n{}\n", others.join(",\n"))
}

/// A section of tagged paragraphs; nothing where there are none.
fn section(title: &str, entries: impl Iterator<Item = (String, String)>) -> String {
    let entries: String = entries.map(|(tag, text)| format!(".TP\n{tag}\n{}", sentences(&text))).collect();
    if entries.is_empty() { entries } else { format!(".SH {title}\n{entries}") }
}

/// A flag's tag and text.
fn option(flag: &Flag) -> (String, String) {
    let value = if flag.value.is_empty() { String::new() } else { format!(" \\fI{}\\fR", roff(flag.value)) };
    let more = match flag.kind {
        Kind::Int(default) => format!(" The default is {default}."),
        Kind::Text(default) if !default.is_empty() => format!(" The default is {default}."),
        Kind::List => " May be repeated.".to_owned(),
        Kind::Bool | Kind::Text(_) => String::new(),
    };
    (bold(&format!("-{}", flag.name)) + &value, format!("{}.{more}", flag.help))
}

fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", roff(text))
}

/// Text with each sentence on a line of its own.
fn sentences(text: &str) -> String {
    roff(text).replace(". ", ".\n") + "\n"
}

/// Text in which nothing is a request or an escape; what stands between backquotes is bold.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('~', "\\(ti").replace('^', "\\(ha");
    let mut out = String::new();
    for (index, part) in text.split('`').enumerate() {
        out.push_str(match index {
            0 => "",
            _ if index % 2 == 1 => "\\fB",
            _ => "\\fR",
        });
        out.push_str(part);
    }
    if out.starts_with(['.', '\'']) { format!("\\&{out}") } else { out }
}

/// The table of flags of a page in docs/.
pub fn flags_table(flags: &[Flag]) -> String {
    let mut out = String::from("| flag | default | meaning |\n|---|---|---|\n");
    for flag in flags {
        let default = match flag.kind {
            Kind::Bool => "off".into(),
            Kind::Int(n) => format!("`{n}`"),
            Kind::Text("") => String::new(),
            Kind::Text(text) => format!("`{text}`"),
            Kind::List => "none; may be repeated".into(),
        };
        let value = if flag.value.is_empty() { String::new() } else { format!(" {}", flag.value) };
        out.push_str(&row(&[&format!("`-{}{value}`", flag.name), &default, flag.help]));
    }
    out
}

/// Another table there, of two columns with these titles.
pub fn table(titles: [&str; 2], entries: &[(&str, &str)]) -> String {
    let mut out = format!("{}|---|---|\n", row(&titles));
    for (name, text) in entries {
        let text = text.strip_suffix('.').unwrap_or(text);
        let name = if name.bytes().all(|byte| byte.is_ascii_digit()) {
            (*name).to_owned()
        } else {
            format!("`{name}`")
        };
        out.push_str(&row(&[&name, text]));
    }
    out
}

/// A row of a table in Markdown, where a bar ends a cell, between backquotes too.
pub(crate) fn row(cells: &[&str]) -> String {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | ")).replace("|  |", "| |")
}

/// The word behind the program's name that stands for `command`.
fn word(command: &Program) -> &'static str {
    command.name.split_once('-').map_or(command.name, |(_, word)| word)
}

/// For bash, with or without bash-completion; also that of macOS, which is 3.2 and has no `mapfile`.
/// `commands` are those of `program` that have flags of their own.
pub fn bash(program: &Program, commands: &[Program]) -> String {
    let name = program.name;
    let mut script = format!(
        r#"# Completion of {name}. Made by make pages.
_{name}() {{
    local IFS=$'\n' word=${{COMP_WORDS[COMP_CWORD]}} flag=${{COMP_WORDS[COMP_CWORD - 1]}} words
    # -flag=value is three words.
    [ "$word" = = ] && word=
    [ "$flag" = = ] && flag=${{COMP_WORDS[COMP_CWORD - 2]}}
    COMPREPLY=()
"#
    );
    for command in commands {
        script.push_str(&format!(
            "    if [ \"$COMP_CWORD\" -gt 1 ] && [ \"${{COMP_WORDS[1]}}\" = {} ]; then\n",
            word(command)
        ));
        script.extend(bash_lines(command, 2).iter().map(|line| format!("        {line}\n")));
        script.push_str("        return\n    fi\n");
    }
    script.extend(bash_lines(program, 1).iter().map(|line| format!("    {line}\n")));
    script + &format!("}}\ncomplete -o filenames -F _{name} {name}\n")
}

/// What bash does to complete a word of `program`, of which the first is the one with index `first`.
fn bash_lines(program: &Program, first: usize) -> Vec<String> {
    let names = |wanted: fn(&Flag) -> bool| {
        let flags = program.flags.iter().filter(|flag| wanted(flag));
        flags.map(|flag| format!("-{0}|--{0}", flag.name)).collect::<Vec<_>>().join("|")
    };
    let mut lines = vec!["case $flag in".to_owned()];
    for (flags, action) in [
        (names(Flag::is_path), "COMPREPLY=($(compgen -f -- \"$word\")); return"),
        (names(|flag| flag.kind != Kind::Bool && !flag.is_path()), "return"),
    ] {
        if !flags.is_empty() {
            lines.push(format!("{flags}) {action} ;;"));
        }
    }
    let flags: Vec<_> = program.flags.iter().map(|flag| format!("-{}", flag.name)).collect();
    lines.extend(["esac".to_owned(), format!("words=$'{}'", flags.join("\\n"))]);
    let words: Vec<_> = program.commands.iter().map(|(word, _)| *word).collect();
    if !words.is_empty() {
        lines.push(format!("[ \"$COMP_CWORD\" -eq {first} ] && words+=$'\\n{}'", words.join("\\n")));
    }
    lines.push("COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))".to_owned());
    lines
}

/// For zsh: a file `_PROGRAM` in a directory of `$fpath`. `commands` as for [`bash`].
pub fn zsh(program: &Program, commands: &[Program]) -> String {
    let mut script = format!("#compdef {}\n# Made by make pages.\n", program.name);
    for command in commands {
        script.push_str(&format!(
            "if (( CURRENT > 2 )) && [[ $words[2] = {} ]]; then\n\
             \x20   shift words\n    (( CURRENT-- ))\n    {}    return\nfi\n",
            word(command),
            zsh_arguments(command)
        ));
    }
    script + &zsh_arguments(program)
}

fn zsh_arguments(program: &Program) -> String {
    let escaped = |text: &str| {
        let text = text.replace('\\', "\\\\").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
        text.replace('\'', "'\\''")
    };
    let mut call = String::from("_arguments");
    for flag in program.flags {
        let many = if flag.kind == Kind::List { "*" } else { "" };
        let value = if flag.value.is_empty() { String::new() } else { format!(":{}:", escaped(flag.value)) };
        let files = if flag.is_path() { "_files" } else { "" };
        call.push_str(&format!(" \\\n    '{many}-{}[{}]{value}{files}'", flag.name, escaped(flag.summary())));
    }
    let words: Vec<_> = program.commands.iter().map(|(word, _)| *word).collect();
    if !words.is_empty() {
        call.push_str(&format!(" \\\n    '1::command:({})'", words.join(" ")));
    }
    call + "\n"
}

/// For fish. `commands` as for [`bash`].
pub fn fish(program: &Program, commands: &[Program]) -> String {
    let name = program.name;
    let words: Vec<_> = commands.iter().map(word).collect();
    let mut script = format!("# Completion of {name}. Made by make pages.\ncomplete -c {name} -f\n");
    let outside = match words[..] {
        [] => String::new(),
        _ => format!(" -n 'not __fish_seen_subcommand_from {}'", words.join(" ")),
    };
    script.push_str(&fish_lines(name, program, " -n __fish_is_first_token", &outside));
    for command in commands {
        let inside = format!("__fish_seen_subcommand_from {}", word(command));
        let verbs: Vec<_> = command.commands.iter().map(|(verb, _)| *verb).collect();
        let verb = format!(" -n '{inside}; and not __fish_seen_subcommand_from {}'", verbs.join(" "));
        script.push_str(&fish_lines(name, command, &verb, &format!(" -n '{inside}'")));
    }
    script
}

/// `first` and `when` are the conditions of the commands and of the flags.
fn fish_lines(name: &str, program: &Program, first: &str, when: &str) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut lines = String::new();
    for (word, what) in program.commands {
        lines.push_str(&format!("complete -c {name}{first} -a {word} -d '{}'\n", quoted(what)));
    }
    for flag in program.flags {
        let value = match flag.kind {
            Kind::Bool => "",
            _ if flag.is_path() => " -r -F",
            _ => " -x",
        };
        lines.push_str(&format!(
            "complete -c {name}{when} -o {}{value} -d '{}'\n",
            flag.name,
            quoted(flag.summary())
        ));
    }
    lines
}
