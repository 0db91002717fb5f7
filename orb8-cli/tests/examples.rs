//! The examples that the help shows are command lines that work.

mod support;

use orb8_cli::args::Cli;
use support::orb8;

/// The `orb8` command lines of a line of help: without remarks, redirections and other programs.
fn commands(line: &str) -> impl Iterator<Item = Vec<String>> + '_ {
    let indented = line.strip_prefix("  ").filter(|rest| rest.starts_with("orb8 "));
    indented.into_iter().flat_map(|line| line.split(';')).map(|command| {
        let command = command.trim_start();
        let end = ["  ", " | ", " > "].iter().filter_map(|mark| command.find(mark)).min();
        let command = &command[..end.unwrap_or(command.len())];
        command.split_whitespace().map(|word| word.replace('\'', "")).collect()
    })
}

#[test]
fn every_example_is_a_valid_command_line() {
    let mut checked = 0;
    for verb in ["", "status", "flows", "trace", "trace network", "verify", "bench", "completions"]
    {
        let words: Vec<&str> = verb.split_whitespace().chain(["--help"]).collect();
        let help = orb8(&words, &[], b"").out;
        let (_, examples) = help.split_once("\nExamples:\n").expect("every help has examples");
        for command in examples.lines().flat_map(commands) {
            if let Err(error) = Cli::read(&command) {
                panic!("{command:?}\n{error}");
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} examples were found");
}
