//! What a program weighs, and what its entry function must not do for each packet. Knows functions,
//! not files.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};

use super::code::{Call, Function, Instruction};

/// The stack that a whole chain of calls may take, on every kernel.
pub(super) const MAX_CHAIN: u32 = 512;

/// Kernels before 6.5 round each frame up to this, one without variables too.
const FRAME_STEP: u32 = 32;

/// The frame pointer, and how many registers there are.
const R10: u8 = 10;
const REGISTERS: usize = 11;

/// Loads of neighbouring bytes that can only be a wider load taken apart.
const SPLIT: usize = 4;

/// What compilers call without being asked to. Each costs a call and some instructions a byte.
const BUILTINS: [&str; 5] = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];

/// Helpers by number, as in `linux/bpf.h`: those that the programs use.
const HELPERS: [(i64, &str); 20] = [
    (1, "map_lookup_elem"),
    (2, "map_update_elem"),
    (3, "map_delete_elem"),
    (5, "ktime_get_ns"),
    (8, "get_smp_processor_id"),
    (26, "skb_load_bytes"),
    (46, "get_socket_cookie"),
    (68, "skb_load_bytes_relative"),
    (69, "fib_lookup"),
    (79, "skb_cgroup_id"),
    (83, "skb_ancestor_cgroup_id"),
    (84, "sk_lookup_tcp"),
    (85, "sk_lookup_udp"),
    (86, "sk_release"),
    (88, "map_pop_elem"),
    (118, "jiffies64"),
    (131, "ringbuf_reserve"),
    (132, "ringbuf_submit"),
    (133, "ringbuf_discard"),
    // Stands in the object for the kernel's function, whose number the loader puts there. The
    // kernel makes a copy between registers of it.
    (0x0b8c_a570, "cast_to_kern_ctx"),
];

/// Programs that run for each packet, by the begin of their names, and which helpers they may ask
/// each time. What a flow's first packet could have asked belongs into a function of its own.
const PER_PACKET: [(&str, &[&str]); 4] = [
    ("orb8_in_", &["get_smp_processor_id", "map_lookup_elem", "jiffies64"]),
    ("orb8_out_", &["get_smp_processor_id", "map_lookup_elem", "jiffies64"]),
    (
        "orb8_sock_",
        &[
            "get_smp_processor_id",
            "map_lookup_elem",
            "jiffies64",
            "skb_cgroup_id",
            "cast_to_kern_ctx",
        ],
    ),
    (
        "orb8_sup_",
        &[
            "get_smp_processor_id",
            "map_lookup_elem",
            "jiffies64",
            "skb_cgroup_id",
            "skb_ancestor_cgroup_id",
        ],
    ),
];

/// What one program weighs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// Of the entry function, as the kernel counts.
    pub(super) instructions: u32,
    /// Bytes of stack of the entry function.
    pub(super) stack: u32,
    /// Bytes of stack of the deepest chain of calls, as kernels before 6.5 count.
    pub(super) chain: u32,
    /// Helpers that the entry function calls.
    pub(super) helpers: BTreeSet<String>,
}

/// The functions of an object by name.
pub(super) struct Functions<'a>(BTreeMap<&'a str, &'a Function>);

impl<'a> Functions<'a> {
    pub(super) fn new(functions: &'a [Function]) -> Self {
        Self(functions.iter().map(|function| (function.name.as_str(), function)).collect())
    }

    /// What each program weighs that runs for each packet.
    pub(super) fn per_packet(&self) -> anyhow::Result<BTreeMap<String, Figures>> {
        let hot = self.0.values().filter(|program| allowed(&program.name).is_some());
        hot.map(|program| Ok((program.name.clone(), self.figures(program)?))).collect()
    }

    fn figures(&self, program: &Function) -> anyhow::Result<Figures> {
        Ok(Figures {
            instructions: u32::try_from(program.slots)?,
            stack: frame(program),
            chain: self.deepest(&program.name, &mut vec![])?.iter().map(|(_, bytes)| bytes).sum(),
            helpers: helpers(program).collect(),
        })
    }

    /// What no program may do, whatever its budget.
    pub(super) fn violations(&self) -> anyhow::Result<Vec<String>> {
        let mut found = vec![];
        for program in self.0.values().filter(|function| function.is_program) {
            let chain = self.deepest(&program.name, &mut vec![])?;
            let bytes: u32 = chain.iter().map(|(_, bytes)| bytes).sum();
            if bytes > MAX_CHAIN {
                let shown: Vec<String> =
                    chain.iter().map(|(name, bytes)| format!("{} {bytes}", short(name))).collect();
                found.push(format!(
                    "{}: {bytes} bytes of stack along {}, and kernels before 6.5 refuse more than \
                     {MAX_CHAIN}: call one after the other what calls each other, or keep less on \
                     the stack",
                    program.name,
                    shown.join(" > "),
                ));
            }
            if let Some(allowed) = allowed(&program.name) {
                found.extend(per_packet_violations(program, allowed));
            }
        }
        Ok(found)
    }

    /// The chain of calls with the most stack, each function with its frame.
    fn deepest(
        &self,
        name: &'a str,
        callers: &mut Vec<&'a str>,
    ) -> anyhow::Result<Vec<(&'a str, u32)>> {
        let function = self.0.get(name).with_context(|| format!("{name} is not in the object"))?;
        if callers.contains(&name) {
            bail!("{} calls itself, which kernels refuse", short(name));
        }
        callers.push(name);
        let mut below = vec![];
        for call in &function.calls {
            if let Call::Function(called) = call {
                let chain = self.deepest(called, callers)?;
                if bytes_of(&chain) > bytes_of(&below) {
                    below = chain;
                }
            }
        }
        callers.pop();
        let mut chain = vec![(name, frame(function).max(1).next_multiple_of(FRAME_STEP))];
        chain.extend(below);
        Ok(chain)
    }
}

fn bytes_of(chain: &[(&str, u32)]) -> u32 {
    chain.iter().map(|(_, bytes)| bytes).sum()
}

/// The helpers that a program may ask for each packet; `None` if it is not such a program.
fn allowed(program: &str) -> Option<&'static [&'static str]> {
    PER_PACKET.iter().find(|(begin, _)| program.starts_with(begin)).map(|(_, allowed)| *allowed)
}

fn per_packet_violations(program: &Function, allowed: &[&str]) -> Vec<String> {
    let name = &program.name;
    let strange = helpers(program).filter(|helper| !allowed.contains(&helper.as_str()));
    let mut found: Vec<String> = strange
        .map(|helper| {
            format!(
                "{name}: calls {helper} for each packet: ask it once a flow, in a function that is \
                 not inlined"
            )
        })
        .collect();
    let builtins = program.calls.iter().filter_map(|call| match call {
        Call::Function(called) if BUILTINS.contains(&called.as_str()) => Some(called),
        _ => None,
    });
    found.extend(builtins.map(|called| {
        format!("{name}: the compiler made a call of {called}: write word by word instead")
    }));
    found.extend(split_loads(program).into_iter().map(|at| {
        format!(
            "{name}: {SPLIT} loads of neighbouring bytes before instruction {at}: load them as one"
        )
    }));
    found
}

/// The helpers that a function calls, by name.
fn helpers(function: &Function) -> impl Iterator<Item = String> {
    function.calls.iter().filter_map(|call| match call {
        Call::Helper(number) => {
            let known = HELPERS.iter().find(|(known, _)| known == number);
            Some(known.map_or_else(|| format!("helper_{number}"), |(_, name)| (*name).to_owned()))
        }
        Call::Kernel(number) => Some(format!("kernel_function_{number}")),
        Call::Function(_) => None,
    })
}

/// Bytes of stack of a function: how far below the frame pointer it reads, writes, or lets somebody
/// read or write.
fn frame(function: &Function) -> u32 {
    let targets = targets(function);
    let mut lowest = 0;
    // How far each register is from the frame pointer, where that is known.
    let mut known = frame_pointer_alone();
    for instruction in &function.code {
        if targets.contains(&instruction.at) {
            known = frame_pointer_alone();
        }
        if let Some(access) = instruction.access() {
            let base = known[usize::from(access.base) % REGISTERS];
            lowest = lowest.min(base.map_or(0, |base| base + access.offset));
        }
        let dst = usize::from(instruction.dst) % REGISTERS;
        let source = known[usize::from(instruction.src) % REGISTERS];
        if instruction.is_copy() {
            known[dst] = source;
        } else if instruction.is_addition() {
            known[dst] = known[dst].map(|distance| distance + instruction.imm);
            lowest = lowest.min(known[dst].unwrap_or_default());
        } else {
            forget(&mut known, instruction);
        }
    }
    u32::try_from(-lowest).unwrap_or(u32::MAX)
}

const fn frame_pointer_alone() -> [Option<i64>; REGISTERS] {
    let mut known = [None; REGISTERS];
    known[R10 as usize] = Some(0);
    known
}

/// Drops what is known of the registers that an instruction changes.
fn forget<T>(known: &mut [Option<T>; REGISTERS], instruction: &Instruction) {
    if instruction.is_call() {
        known.iter_mut().take(6).for_each(|register| *register = None);
    } else if let Some(register) = instruction.writes() {
        known[usize::from(register) % REGISTERS] = None;
    }
}

/// Where the function jumps to.
fn targets(function: &Function) -> BTreeSet<i64> {
    function.code.iter().filter_map(Instruction::jumps_to).collect()
}

/// Behind which instructions a run of single-byte loads is complete that is one load taken apart:
/// from the same register, without a jump between them. The stack is not looked at.
fn split_loads(function: &Function) -> Vec<i64> {
    let targets = targets(function);
    let mut found = vec![];
    let mut loaded: [Option<BTreeSet<i64>>; REGISTERS] = Default::default();
    for instruction in &function.code {
        if targets.contains(&instruction.at) {
            loaded = Default::default();
        }
        if let Some(access) = instruction.access()
            && access.is_load
            && access.is_byte
            && access.base != R10
        {
            let offsets =
                loaded[usize::from(access.base) % REGISTERS].get_or_insert_with(BTreeSet::new);
            offsets.insert(access.offset);
            if longest_run(offsets) >= SPLIT {
                found.push(instruction.at + 1);
                offsets.clear();
            }
        }
        if instruction.ends_block() {
            loaded = Default::default();
        }
        forget(&mut loaded, instruction);
    }
    found
}

/// How many of the offsets are neighbours, at most.
fn longest_run(offsets: &BTreeSet<i64>) -> usize {
    let (mut longest, mut run, mut last) = (0, 0, None);
    for offset in offsets {
        run = if last == Some(offset - 1) { run + 1 } else { 1 };
        longest = longest.max(run);
        last = Some(*offset);
    }
    longest
}

/// The path of a mangled name of ours, without its crate; any other name as it is.
fn short(name: &str) -> String {
    let Some((_, mut rest)) = name.split_once("orb8_probes") else { return name.to_owned() };
    let mut parts = vec![];
    loop {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Ok(length) = rest[..digits].parse::<usize>() else { break };
        let Some(part) = rest.get(digits..digits + length) else { break };
        parts.push(part);
        rest = &rest[digits + length..];
    }
    if parts.is_empty() { name.to_owned() } else { parts.join("::") }
}

#[cfg(test)]
mod tests;
