//! Whether programs may use compare-and-exchange here, asked of the kernel itself.

use std::io;
use std::os::fd::AsFd as _;

use super::sys::{self, Instruction};

/// `r0 = 0`, `exit`.
const END: [Instruction; 2] = [(0xb7, 0x00, 0, 0), (0x95, 0x00, 0, 0)];
/// `*(u64 *)(r10 - 8) = 0; r0 = 0; r1 = 1; cmpxchg(r10 - 8, r0, r1)`, and the end.
const EXCHANGE: [Instruction; 6] = [
    (0x7a, 0x0a, -8, 0),
    (0xb7, 0x00, 0, 0),
    (0xb7, 0x01, 0, 1),
    (0xdb, 0x1a, -8, 0xf1),
    END[0],
    END[1],
];
/// Not for user space, and yet what the kernel returns where it must compile a program and cannot
/// (include/linux/errno.h).
const ENOTSUPP: i32 = 524;
/// The kernel gives up on a program when a signal comes.
const TRIES: u32 = 10;

/// Whether the kernel knows compare-and-exchange (5.12 on x86, 5.18 on arm64) and compiles it.
///
/// # Errors
/// If the kernel takes no program at all now.
pub fn is_known() -> io::Result<bool> {
    let program = match load(&EXCHANGE) {
        Ok(program) => program,
        Err(error) if means_no(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let compiled = sys::is_compiled(program.as_fd())?;
    Ok(is_no_dearer(compiled, sys::is_compiled(load(&END)?.as_fd())?))
}

/// Whether a program with exchanges runs like any other, given what the kernel has compiled. One that
/// knows them and cannot compile them interprets all of a program that has them; where nothing is
/// compiled, they make nothing worse.
const fn is_no_dearer(with_exchange: bool, without: bool) -> bool {
    with_exchange || !without
}

fn load(program: &[Instruction]) -> io::Result<std::os::fd::OwnedFd> {
    let mut result = sys::load_instructions(program);
    for _ in 1..TRIES {
        match &result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                result = sys::load_instructions(program);
            }
            _ => break,
        }
    }
    result
}

fn means_no(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP))
}

#[cfg(test)]
mod tests {
    use orb8_testbed::need::{Need, met};

    use super::*;

    #[test]
    fn an_instruction_that_no_kernel_knows_means_no() {
        let name = "an_instruction_that_no_kernel_knows_means_no";
        if !met(name, &[Need::Root, Need::Bpf]) {
            return;
        }
        let unknown = [(0xdb, 0x1a, -8, 0x7f), END[0], END[1]];
        assert!(means_no(&load(&unknown).expect_err("no such operation")));
        assert!(sys::is_compiled(load(&END).expect("a program").as_fd()).is_ok());
    }

    #[test]
    fn there_is_no_cache_where_only_programs_without_exchanges_are_compiled() {
        assert!(is_no_dearer(true, true), "as on most hosts");
        assert!(!is_no_dearer(false, true), "all of the programs would be interpreted");
        assert!(is_no_dearer(false, false), "they are interpreted anyway");
        assert!(is_no_dearer(true, false), "compiled since the first was asked for");
    }

    #[test]
    fn only_what_speaks_of_the_instruction_means_no() {
        let of = io::Error::from_raw_os_error;
        assert!(means_no(&of(libc::EINVAL)) && means_no(&of(ENOTSUPP)));
        assert!(![libc::EPERM, libc::ENOMEM, libc::EAGAIN].into_iter().any(|e| means_no(&of(e))));
    }
}
