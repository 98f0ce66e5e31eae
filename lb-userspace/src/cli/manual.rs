//! `sluice completions` and `sluice man`: the command line → what shells and `man` know of it.

use std::io::Write;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Failure;

/// Print completions for a shell
///
/// For instance: sluice completions bash > /etc/bash_completion.d/sluice
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Print the manual page, of all commands
///
/// For instance: sluice man | gzip > /usr/local/share/man/man8/sluice.8.gz
#[derive(Debug, clap::Args)]
pub(super) struct ManArguments {}

/// Prints completions.
pub(super) fn completions(arguments: &CompletionsArguments) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Arguments::command(), "sluice", &mut text);
    write(&text)
}

/// Prints the manual page: that of the command itself, then a section for each of its commands.
pub(super) fn manual() -> Result<(), Failure> {
    let mut command = super::Arguments::command();
    command.build();
    let mut text = Vec::new();
    let man = Man::new(command.clone()).section("8");
    man.render(&mut text).map_err(Failure::failed)?;
    text = on_this_page(&String::from_utf8_lossy(&text)).into_bytes();
    for subcommand in command.get_subcommands() {
        section(subcommand, &mut text).map_err(Failure::failed)?;
    }
    write(&text)
}

/// The list of commands refers to pages of their own, which are sections of this one; what stands below the help is about the
/// exit status, which pages have a heading for.
fn on_this_page(page: &str) -> String {
    let line = |line: &str| match line.strip_prefix("sluice\\-").and_then(|rest| rest.strip_suffix("(8)")) {
        Some(command) => format!("sluice {command}\n"),
        None if line == ".SH EXTRA" => ".SH \"EXIT STATUS\"\n".to_owned(),
        None => format!("{line}\n"),
    };
    page.lines().map(line).collect()
}

/// One command as a section of the page, and those below it as more of them.
fn section(command: &Command, text: &mut Vec<u8>) -> std::io::Result<()> {
    if command.get_name() == "help" {
        return Ok(());
    }
    if command.has_subcommands() {
        return command.get_subcommands().try_for_each(|subcommand| section(subcommand, text));
    }
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    writeln!(text, ".SH \"{}\"", name.to_uppercase())?;
    let man = Man::new(command.clone());
    let mut part = Vec::new();
    man.render_synopsis_section(&mut part)?;
    man.render_description_section(&mut part)?;
    man.render_options_section(&mut part)?;
    // Below the command's own heading.
    text.extend(
        String::from_utf8_lossy(&part).replace("\n.SH ", "\n.SS ").replacen(".SH ", ".SS ", 1).bytes(),
    );
    Ok(())
}

fn write(text: &[u8]) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}
