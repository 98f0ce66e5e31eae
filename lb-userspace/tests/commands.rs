//! Commands that need neither an agent nor a kernel, as they are typed.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).output().expect("sluice")
}

fn text(arguments: &[&str]) -> String {
    let output = sluice(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The commands that the help lists.
fn commands() -> Vec<String> {
    let help = text(&["--help"]);
    let list = help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next()).expect("a list");
    let named = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<String> =
        named.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert!(names.len() > 10 && names.contains(&"status".to_owned()), "{names:?}");
    names
}

/// Every shell is offered, and what bash is given is bash and knows every command.
#[test]
fn completions_know_every_command() {
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = text(&["completions", shell]);
        assert!(commands().iter().all(|command| script.contains(command.as_str())), "{shell}");
    }
    let script = text(&["completions", "bash"]);
    let complete = |words: &str| {
        let count = words.split(' ').count();
        let quoted: Vec<String> = words.split(' ').map(|word| format!("'{word}'")).collect();
        let ask = format!(
            "{script}\nCOMP_WORDS=({}); COMP_CWORD={}; _sluice sluice \
             \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\"",
            quoted.join(" "),
            count - 1
        );
        let mut bash = Command::new("bash")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash");
        bash.stdin.take().expect("stdin").write_all(ask.as_bytes()).expect("write");
        let output = bash.wait_with_output().expect("bash");
        assert!(output.status.success(), "{output:?}");
        let reply = String::from_utf8(output.stdout).expect("UTF-8");
        reply.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let offered = complete("sluice ");
    for command in commands() {
        assert!(offered.contains(&command), "{command}: {offered:?}");
    }
    assert_eq!(complete("sluice doc"), ["doctor"]);
    assert!(complete("sluice events --kind ").contains(&"health".to_owned()));
    assert_eq!(sluice(&["completions", "dos"]).status.code(), Some(2));
}

#[test]
fn the_manual_has_a_section_for_every_command() {
    let page = text(&["man"]);
    assert!(page.contains(".TH sluice 8"), "{}", page.lines().take(8).collect::<Vec<_>>().join("\n"));
    for command in
        commands().iter().filter(|command| !["help", "backend", "service"].contains(&command.as_str()))
    {
        let heading = format!(".SH \"SLUICE {}\"", command.to_uppercase());
        assert!(page.contains(&heading), "{heading}");
    }
    assert!(page.contains(".SH \"SLUICE SERVICE LIST\"") && page.contains(".SH \"SLUICE BACKEND DRAIN\""));
    assert!(page.contains("\nsluice doctor\n") && !page.contains("(8)"), "there are no other pages");
    let doctor = page.split(".SH \"SLUICE DOCTOR\"").nth(1).and_then(|rest| rest.split("\n.SH ").next());
    let doctor = doctor.expect("a section");
    assert!(doctor.contains(".SS OPTIONS") && doctor.contains("no\\-probe"), "{doctor}");
}
