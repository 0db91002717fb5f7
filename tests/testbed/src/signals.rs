//! The end of a program by Ctrl-C or SIGTERM: the kernel and the reaper remove what it made.

/// Ends the process on SIGINT and SIGTERM with the shell's exit code, after these words.
#[allow(clippy::print_stderr, reason = "said to the person who stopped it")]
pub fn end_on_signals(words: &'static str) {
    // SAFETY: a signal set is plain data that the next call fills.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is ours. Threads started from here on inherit the mask; programs do not, since
    // the testbed starts them with an empty one.
    unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both are ours and outlive the call.
        unsafe { libc::sigwait(&raw const set, &raw mut signal) };
        eprintln!("\n{words}");
        std::process::exit(128 + signal);
    });
}
