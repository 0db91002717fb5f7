//! `cargo xtask probes-budget`: what the programs may weigh that run for each packet, in a file that
//! is checked in, and how a build is held to it. Reads no instruction.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::build;
use super::code;
use super::measure::{Figures, Functions, MAX_CHAIN};

/// The file, from the repository's root.
const FILE: &str = "orb8-probes/budget.txt";

/// How to change it.
const ANEW: &str = "cargo xtask probes-budget --write";

/// What a budget leaves above what was measured, in percent: other compilers count otherwise.
const ROOM: u32 = 15;

/// How far what would be written now may be below the budget, in percent.
const SLACK: u32 = 10;

const HEADER: &str = "\
# What the programs may weigh that run for each packet. A test holds every build to it:
#     cargo test --package xtask budget
#
# instructions  of the entry function, as the kernel counts them
# stack         bytes of the entry function's frame
# chain         bytes of the deepest chain of calls, each frame rounded up to 32 as kernels before
#               6.5 do; they refuse more than 512
# helpers       all that the entry function calls of the kernel
#
# The numbers are 15 % above what the build with the LLVM named below had, because other versions
# (21 to 23) make other code. With the same LLVM, a program that became so much lighter that its
# budget would fall by more than 10 % asks for a lower one.
# `cargo xtask probes-budget` prints this file anew, with --write it writes it.
";

/// The file's content.
#[derive(Debug, PartialEq, Eq)]
struct Budget {
    /// The LLVM that made what was measured.
    llvm: u32,
    programs: BTreeMap<String, Figures>,
}

impl Budget {
    /// A budget that fits what was measured.
    fn of(llvm: u32, measured: &BTreeMap<String, Figures>) -> Self {
        let programs =
            measured.iter().map(|(name, figures)| (name.clone(), with_room(figures))).collect();
        Self { llvm, programs }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = (1..).zip(text.lines()).filter(|(_, line)| {
            !line.trim().is_empty() && !line.starts_with('#') && !line.starts_with("program ")
        });
        let llvm = lines.next().and_then(|(_, line)| line.strip_prefix("llvm ")?.parse().ok());
        let llvm = llvm.context("its first line is not `llvm` and a number")?;
        let mut programs = BTreeMap::new();
        for (number, line) in lines {
            let (name, figures) = row(line).with_context(|| {
                format!("line {number} is not a name, three numbers and helpers: {line:?}")
            })?;
            if programs.insert(name.clone(), figures).is_some() {
                bail!("line {number} is a second one for {name}");
            }
        }
        Ok(Self { llvm, programs })
    }

    fn print(&self) -> String {
        let mut text = format!("{HEADER}\nllvm {}\n\n", self.llvm);
        let mut line = |name: &str, numbers: [&str; 3], helpers: &str| {
            let [instructions, stack, chain] = numbers;
            writeln!(text, "{name:<16} {instructions:>12} {stack:>5} {chain:>5}  {helpers}")
        };
        let mut written = line("program", ["instructions", "stack", "chain"], "helpers");
        for (name, figures) in &self.programs {
            let helpers: Vec<&str> = figures.helpers.iter().map(String::as_str).collect();
            let numbers = [figures.instructions, figures.stack, figures.chain];
            let [instructions, stack, chain] = numbers.map(|number| number.to_string());
            written = written.and(line(name, [&instructions, &stack, &chain], &helpers.join(" ")));
        }
        written.expect("a String takes all that is written");
        text
    }

    /// Where a build is not within the budget, or too far below it.
    fn violations(&self, llvm: u32, measured: &BTreeMap<String, Figures>) -> Vec<String> {
        let mut found = vec![];
        for (name, figures) in measured {
            match self.programs.get(name) {
                Some(budget) => {
                    found.extend(numbers(name, figures, budget, llvm == self.llvm));
                    found.extend(helpers(name, &figures.helpers, &budget.helpers));
                }
                None => found.push(format!("{name}: has no budget in {FILE}: {ANEW}")),
            }
        }
        let gone = self.programs.keys().filter(|name| !measured.contains_key(*name));
        found.extend(gone.map(|name| format!("{name}: {FILE} has it, the object has not: {ANEW}")));
        found
    }
}

fn row(line: &str) -> Option<(String, Figures)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let mut number = || words.next()?.parse().ok();
    let (instructions, stack, chain) = (number()?, number()?, number()?);
    let helpers = words.map(str::to_owned).collect();
    Some((name, Figures { instructions, stack, chain, helpers }))
}

/// What is measured, with room for other compilers; stacks in the steps in which they grow.
fn with_room(measured: &Figures) -> Figures {
    let room = |value: u32| (value * (100 + ROOM)).div_ceil(100);
    Figures {
        instructions: room(measured.instructions),
        stack: room(measured.stack).next_multiple_of(8),
        chain: room(measured.chain).next_multiple_of(32).min(MAX_CHAIN),
        helpers: measured.helpers.clone(),
    }
}

fn numbers(name: &str, measured: &Figures, budget: &Figures, same_llvm: bool) -> Vec<String> {
    let anew = with_room(measured);
    let compared = [
        ("instructions", measured.instructions, anew.instructions, budget.instructions),
        ("bytes of stack", measured.stack, anew.stack, budget.stack),
        ("bytes of stack along a chain of calls", measured.chain, anew.chain, budget.chain),
    ];
    let compared = compared.into_iter().filter_map(|(what, value, anew, budget)| {
        if value > budget {
            Some(format!(
                "{name}: {value} {what}, more than its budget of {budget}: make it lighter or, if \
                 it is worth that to every packet, {ANEW}"
            ))
        } else if same_llvm && u64::from(anew) * 100 < u64::from(budget) * u64::from(100 - SLACK) {
            Some(format!(
                "{name}: {value} {what}, far below its budget of {budget}: lower it to {anew} with \
                 {ANEW}"
            ))
        } else {
            None
        }
    });
    compared.collect()
}

fn helpers(name: &str, measured: &BTreeSet<String>, budget: &BTreeSet<String>) -> Vec<String> {
    let more = measured.difference(budget).map(|helper| {
        format!("{name}: calls {helper}, which its budget does not name: leave it out, or {ANEW}")
    });
    let less = budget
        .difference(measured)
        .map(|helper| format!("{name}: its budget names {helper}, which it does not call: {ANEW}"));
    more.chain(less).collect()
}

/// What is built now.
struct Built {
    llvm: u32,
    measured: BTreeMap<String, Figures>,
    /// What no budget allows.
    refused: Vec<String>,
}

/// Builds the agent's programs, if they are not fresh, and weighs them.
fn built(root: &Path) -> anyhow::Result<Built> {
    let objects = build::build(root)?;
    let object = objects.first().context("the build made no object")?;
    let bytes = std::fs::read(object).with_context(|| format!("read {}", object.display()))?;
    let functions = code::read(&bytes)?;
    let functions = Functions::new(&functions);
    let (measured, refused) = (functions.per_packet()?, functions.violations()?);
    Ok(Built { llvm: build::compiler()?.llvm(), measured, refused })
}

/// Where a build is not as the file at `root` says.
fn check(root: &Path, built: &Built) -> anyhow::Result<Vec<String>> {
    let text =
        std::fs::read_to_string(root.join(FILE)).with_context(|| format!("read {FILE}: {ANEW}"))?;
    let budget = Budget::parse(&text).with_context(|| format!("read {FILE}: {ANEW}"))?;
    Ok(budget.violations(built.llvm, &built.measured))
}

/// Prints the budget that fits what is built now, and fails unless that is within the one that is
/// checked in; or writes it to its file, unless a program does what no budget allows.
pub(crate) fn print_or_write(root: &Path, write: bool) -> anyhow::Result<()> {
    let built = built(root)?;
    let text = Budget::of(built.llvm, &built.measured).print();
    let mut violations = built.refused.clone();
    if !write {
        print!("{text}");
        violations.extend(check(root, &built)?);
    }
    if !violations.is_empty() {
        bail!("the programs do what they may not:\n{}", violations.join("\n"));
    }
    if write {
        std::fs::write(root.join(FILE), text).with_context(|| format!("write {FILE}"))?;
        println!("{FILE}");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
