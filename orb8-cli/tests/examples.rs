//! The examples that the help shows are command lines that work.

mod support;

use orb8_cli::args::Cli;
use support::orb8;

/// The `orb8` command lines of a line of help: without `sudo` and the settings behind it, remarks,
/// redirections and other programs.
fn commands(line: &str) -> impl Iterator<Item = Vec<String>> + '_ {
    let indented = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '));
    indented.into_iter().flat_map(|line| line.split(';')).filter_map(|command| {
        let command = command.trim_start();
        let end = ["  ", " | ", " > "].iter().filter_map(|mark| command.find(mark)).min();
        let mut command = &command[..end.unwrap_or(command.len())];
        if let Some(behind) = command.strip_prefix("sudo ") {
            let is_setting = |word: &&str| word.contains('=') && !word.starts_with('-');
            let settings = behind.split_inclusive(' ').take_while(is_setting);
            command = &behind[settings.map(str::len).sum()..];
        }
        let words = || command.split_whitespace().map(|word| word.replace('\'', "")).collect();
        command.starts_with("orb8 ").then(words)
    })
}

#[test]
fn command_lines_behind_sudo_and_settings_are_found() {
    let found = |line| commands(line).map(|words| words.join(" ")).collect::<Vec<_>>();
    assert_eq!(found("  sudo orb8 bench --pairs 1  a look"), ["orb8 bench --pairs 1"]);
    assert_eq!(found("  sudo A=1 B=x orb8 bench"), ["orb8 bench"]);
    assert_eq!(
        found("  orb8 flows --port=1 | jq; orb8 status"),
        ["orb8 flows --port=1", "orb8 status"]
    );
    assert_eq!(found("orb8 agent of its own in each round"), [""; 0]);
    assert_eq!(found("  jq . flows.json; sudo ls"), [""; 0]);
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
    assert!(checked > 25, "only {checked} examples were found");
}
