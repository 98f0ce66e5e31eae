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
    assert!(page.contains(".SH \"EXIT STATUS\"\n"));
    let doctor = page.split(".SH \"SLUICE DOCTOR\"").nth(1).and_then(|rest| rest.split("\n.SH ").next());
    let doctor = doctor.expect("a section");
    assert!(doctor.contains(".SS OPTIONS") && doctor.contains("no\\-probe"), "{doctor}");
}

/// Where nobody hears what a command says, its status still tells; and what cannot be printed is no panic.
#[test]
fn the_exit_status_does_not_depend_on_who_listens() {
    let folder = std::env::temp_dir().join(format!("sluice-unheard-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let [wrong, good] =
        [("wrong", "[agent]\n"), ("good", "[agent]\ninterfaces = [\"lo\"]\n")].map(|(name, text)| {
            let file = folder.join(name);
            std::fs::write(&file, text).expect("a file");
            file.display().to_string()
        });
    let full = || std::fs::File::create("/dev/full").expect("/dev/full");
    let closed = || std::io::pipe().expect("a pipe").1;
    let status = |arguments: &[&str], stdout: Stdio, stderr: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(arguments).stdout(stdout).stderr(stderr).status().expect("sluice").code()
    };
    let socket = folder.join("nobody").display().to_string();
    let asked = ["--socket", &socket, "status"];
    for (arguments, code) in [(&["check", &wrong][..], 2), (&["check", "/nonexistent"], 1), (&asked, 3)] {
        assert_eq!(status(arguments, Stdio::null(), full().into()), Some(code), "{arguments:?}");
        assert_eq!(status(arguments, Stdio::null(), closed().into()), Some(code), "{arguments:?}");
    }
    assert_eq!(status(&["check", &good], closed().into(), Stdio::null()), Some(0), "as with `| head`");
    let unprinted = Command::new(env!("CARGO_BIN_EXE_sluice")).args(["check", &good]).stdout(full()).output();
    let unprinted = unprinted.expect("sluice");
    assert_eq!(unprinted.status.code(), Some(1), "{unprinted:?}");
    assert!(
        String::from_utf8_lossy(&unprinted.stderr).starts_with("sluice: standard output: "),
        "{unprinted:?}"
    );
    std::fs::remove_dir_all(folder).expect("removed");
}

/// What could not be kept to is refused before anybody is asked.
#[test]
fn what_would_be_ignored_is_a_usage_error() {
    for (arguments, told) in [
        (&["backend", "drain", "web", "web1", "--timeout", "5s"][..], "--wait"),
        (&["events", "-n", "10001"], "10000"),
    ] {
        let output = sluice(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
}
