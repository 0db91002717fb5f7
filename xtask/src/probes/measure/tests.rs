//! The reader and the rules over instructions that are made by hand.

use super::super::code::{Section, Symbol, functions};
use super::*;
use crate::probes::code;

/// Section numbers of the made objects.
const TEXT: usize = 1;
const PROGRAMS: usize = 2;

type Slot = [u8; 8];

fn slot(opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Slot {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = imm.to_le_bytes();
    [opcode, dst | src << 4, o0, o1, i0, i1, i2, i3]
}

fn exit() -> Slot {
    slot(0x95, 0, 0, 0, 0)
}

fn helper(number: i32) -> Slot {
    slot(0x85, 0, 0, 0, number)
}

/// `*(u64 *)(r10 + offset) = r1`
fn store(offset: i16) -> Slot {
    slot(0x7b, 10, 1, offset, 0)
}

/// `r3 = *(u8 *)(base + offset)`
fn load_byte(base: u8, offset: i16) -> Slot {
    slot(0x71, 3, base, offset, 0)
}

/// Programs and functions as a linker leaves them: calls are between the sections, and name the
/// called function's section alone, or, where it is one of the compiler's, its own symbol.
#[derive(Default)]
struct Object {
    bytes: BTreeMap<usize, Vec<u8>>,
    named: BTreeMap<u64, code::Place>,
    symbols: Vec<Symbol>,
}

impl Object {
    fn with(mut self, section: usize, name: &str, code: &[Slot]) -> Self {
        let bytes = self.bytes.entry(section).or_default();
        let place = (section, bytes.len() as u64);
        bytes.extend(code.iter().flatten());
        let bytes = code.len() as u64 * 8;
        self.symbols.push(Symbol { name: name.to_owned(), place, bytes });
        self
    }

    /// A call from the `at`-th slot of the programs.
    fn call(&mut self, at: u64, name: &str) -> Slot {
        let (section, address) =
            self.symbols.iter().find(|symbol| symbol.name == name).expect("a symbol").place;
        let by_symbol = BUILTINS.contains(&name);
        self.named.insert(at * 8, (section, if by_symbol { address } else { 0 }));
        let slots = if by_symbol { 0 } else { i32::try_from(address / 8).expect("short") };
        slot(0x85, 0, 1, 0, slots - 1)
    }

    fn functions(self) -> anyhow::Result<Vec<Function>> {
        let mut named = self.named;
        let sections = self.bytes.into_iter().map(|(index, bytes)| {
            let is_programs = index == PROGRAMS;
            let named = if is_programs { std::mem::take(&mut named) } else { BTreeMap::new() };
            (index, Section { bytes, is_programs, named })
        });
        functions(&sections.collect(), &self.symbols)
    }
}

fn program(code: &[Slot]) -> Function {
    let object = Object::default().with(PROGRAMS, "orb8_in_eth", code);
    object.functions().expect("whole instructions").remove(0)
}

fn violations(object: Object) -> Vec<String> {
    let functions = object.functions().expect("a whole object");
    Functions::new(&functions).violations().expect("calls that end")
}

#[track_caller]
fn assert_found(violations: &[String], expected: &[&str]) {
    let found = violations.len() == expected.len()
        && violations.iter().zip(expected).all(|(violation, part)| violation.contains(part));
    assert!(found, "expected {expected:?} in:\n{}\n", violations.join("\n"));
}

#[test]
fn a_load_of_64_immediate_bits_is_two_instructions_and_hides_nothing_behind_it() {
    let second_half = slot(0, 0, 0, 0, 0x85);
    let read = program(&[slot(0x18, 1, 0, 0, 7), second_half, helper(118), exit()]);
    assert_eq!(read.slots, 4);
    assert_eq!(read.code.iter().map(|instruction| instruction.at).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(read.calls, [Call::Helper(118)]);
}

#[test]
fn code_that_is_cut_off_and_calls_of_nothing_are_refused() {
    let halved = Object::default().with(PROGRAMS, "a", &[slot(0x18, 1, 0, 0, 7)]);
    let lost = Object::default().with(PROGRAMS, "b", &[slot(0x85, 0, 1, 0, 40), exit()]);
    for (object, expected) in [
        (halved, "read a: instruction 0 lacks its second half"),
        (lost, "read b: instruction 0 calls what has no symbol"),
    ] {
        let error = object.functions().expect_err(expected);
        assert_eq!(format!("{error:#}"), expected);
    }
}

#[test]
fn calls_are_found_over_sections_within_one_and_by_symbol() {
    let mut object = Object::default()
        .with(TEXT, "first", &[slot(0x85, 0, 1, 0, 1), exit()])
        .with(TEXT, "second", &[exit()])
        .with(TEXT, "memset", &[exit()]);
    let calls = [object.call(0, "second"), object.call(1, "memset"), helper(8), exit()];
    let read = object.with(PROGRAMS, "orb8_in_eth", &calls).functions().expect("a whole object");
    let function = |name: &str| Call::Function(name.to_owned());
    assert_eq!(read[0].calls, [function("second")]);
    assert_eq!(read[3].calls, [function("second"), function("memset"), Call::Helper(8)]);
    assert_eq!(
        read.iter().map(|read| read.is_program).collect::<Vec<_>>(),
        [false, false, false, true]
    );
}

#[test]
fn a_frame_is_as_deep_as_the_lowest_byte_that_is_touched_or_lent() {
    let copy = slot(0xbf, 2, 10, 0, 0);
    let lend = |distance| slot(0x07, 2, 0, 0, distance);
    let through_r2 = |offset| slot(0x63, 2, 1, offset, 0);
    for (code, expected) in [
        (vec![exit()], 0),
        (vec![store(-8), store(-24), store(-16)], 24),
        (vec![load_byte(10, -5)], 5),
        (vec![copy, lend(-88), helper(1)], 88),
        (vec![copy, lend(-88), through_r2(8), through_r2(-8)], 96),
        // A call, another value and a place that is jumped to end what is known of a register.
        (vec![copy, lend(-88), helper(1), through_r2(-100)], 88),
        (vec![copy, lend(-88), load_byte(2, 0), slot(0xbf, 2, 1, 0, 0), through_r2(-100)], 88),
        (vec![slot(0x15, 0, 0, 2, 0), copy, lend(-88), through_r2(-100)], 88),
    ] {
        assert_eq!(frame(&program(&code)), expected, "{code:?}");
    }
}

#[test]
fn the_deepest_chain_counts_frames_in_steps_of_32_and_empty_ones_too() {
    let mut object = Object::default()
        .with(TEXT, "memset", &[exit()])
        .with(TEXT, "flat", &[store(-200), exit()])
        .with(TEXT, "deep", &[store(-208), slot(0x85, 0, 1, 0, -5), exit()]);
    let calls = [store(-8), object.call(1, "flat"), object.call(2, "deep"), exit()];
    let functions = object.with(PROGRAMS, "orb8_in_eth", &calls).functions().expect("whole");
    let measured = Functions::new(&functions).per_packet().expect("no circle");
    let expected =
        Figures { instructions: 4, stack: 8, chain: 32 + 224 + 32, helpers: BTreeSet::new() };
    assert_eq!(measured.into_iter().collect::<Vec<_>>(), [("orb8_in_eth".to_owned(), expected)]);
}

#[test]
fn a_chain_that_old_kernels_refuse_is_found_in_every_program() {
    let chain = |deep: i16, program: &str| {
        let mut object = Object::default().with(
            TEXT,
            "_RNvNtCs1_11orb8_probes7network4cold",
            &[store(deep), exit()],
        );
        let calls = [store(-256), object.call(1, "_RNvNtCs1_11orb8_probes7network4cold"), exit()];
        violations(object.with(PROGRAMS, program, &calls))
    };
    assert_found(&chain(-256, "orb8_in_eth"), &[]);
    assert_found(
        &chain(-257, "orb8_in_eth"),
        &["orb8_in_eth: 544 bytes of stack along orb8_in_eth 256 > network::cold 288"],
    );
    assert_found(&chain(-257, "orb8_pkt_in_eth"), &["orb8_pkt_in_eth: 544 bytes"]);
}

#[test]
fn a_function_that_calls_itself_is_refused() {
    let object = Object::default().with(PROGRAMS, "orb8_in_eth", &[slot(0x85, 0, 1, 0, -1)]);
    let functions = object.functions().expect("whole");
    let error = Functions::new(&functions).violations().expect_err("no chain has an end");
    assert_eq!(error.to_string(), "orb8_in_eth calls itself, which kernels refuse");
}

#[test]
fn a_call_of_memset_for_each_packet_is_found_and_one_for_a_rare_packet_is_not() {
    let mut object = Object::default().with(TEXT, "memset", &[exit()]).with(
        TEXT,
        "cold",
        &[slot(0x85, 0, 1, 0, -2), exit()],
    );
    let calls = [object.call(0, "cold"), exit(), object.call(2, "memset"), exit()];
    let object = object.with(PROGRAMS, "orb8_sock_out", &calls[..2]).with(
        PROGRAMS,
        "orb8_sup_in_raw",
        &calls[2..],
    );
    assert_found(&violations(object), &["orb8_sup_in_raw: the compiler made a call of memset"]);
}

#[test]
fn helpers_that_the_first_packet_of_a_flow_could_ask_are_found() {
    let with = |program: &str, numbers: &[i32]| {
        let code: Vec<Slot> = numbers.iter().map(|number| helper(*number)).collect();
        violations(Object::default().with(PROGRAMS, program, &code))
    };
    assert_found(&with("orb8_in_eth", &[8, 1, 118]), &[]);
    assert_found(&with("orb8_in_eth", &[5, 79]), &["calls ktime_get_ns", "calls skb_cgroup_id"]);
    assert_found(&with("orb8_sock_in", &[79, 46]), &["orb8_sock_in: calls get_socket_cookie"]);
    assert_found(&with("orb8_sup_out_pod", &[79, 84]), &["calls sk_lookup_tcp"]);
    assert_found(&with("orb8_out_raw", &[999]), &["calls helper_999"]);
    assert_found(&with("orb8_pkt_in_eth", &[5]), &[]);
    let kernel = Object::default().with(PROGRAMS, "orb8_in_eth", &[slot(0x85, 0, 2, 0, 5)]);
    assert_found(&violations(kernel), &["calls kernel_function_5"]);
}

#[test]
fn a_wide_load_that_was_taken_apart_is_found() {
    let shift = slot(0x67, 3, 0, 0, 8);
    let apart = [26, 27, 29, 28].map(|offset| load_byte(1, offset));
    assert_eq!(split_loads(&program(&apart)), [4]);
    let [first, second, third, last] = apart;
    let mixed = [first, shift, second, shift, third, shift, last];
    assert_eq!(split_loads(&program(&mixed)), [7]);
    // Three, a gap, the stack, another value in between, and a jump in between.
    let jump = slot(0x55, 3, 0, 1, 0);
    let other = slot(0xbf, 1, 2, 0, 0);
    for code in [
        vec![first, second, third],
        vec![first, second, last, load_byte(1, 31)],
        [-4, -3, -2, -1].map(|offset| load_byte(10, offset)).to_vec(),
        vec![first, second, other, third, last],
        vec![first, second, jump, third, last],
    ] {
        assert_eq!(split_loads(&program(&code)), [0; 0], "{code:?}");
    }
}

#[test]
fn mangled_names_are_told_by_their_path() {
    for (name, expected) in [
        ("_RINvNtCsdZiq718NOS4_11orb8_probes7network4coldKm2_Km0_EB4_", "network::cold"),
        ("_RNvNtCsdZiq718NOS4_11orb8_probes7sockets12is_forwarded", "sockets::is_forwarded"),
        ("orb8_in_eth", "orb8_in_eth"),
        ("_RNvCs_11orb8_probes99cut", "_RNvCs_11orb8_probes99cut"),
    ] {
        assert_eq!(short(name), expected);
    }
}
