//! A forked copy of this process that holds a copy of every descriptor, as any child does between
//! fork and exec.

use std::io;
use std::os::fd::AsRawFd as _;

/// Kills and collects the copy, also when the work panics.
struct Copy(libc::pid_t);

impl Drop for Copy {
    fn drop(&mut self) {
        // SAFETY: our own child, which nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// Runs `work` while a copy of this process holds all descriptors that are open now.
///
/// # Panics
/// If the kernel refuses.
pub fn while_descriptors_are_held<T>(work: impl FnOnce() -> T) -> T {
    let (reader, writer) = io::pipe().unwrap_or_else(|error| panic!("pipe: {error}"));
    let (reader_fd, writer_fd) = (reader.as_raw_fd(), writer.as_raw_fd());
    // SAFETY: the copy makes system calls only, and ends without returning from here.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mut byte = 0_u8;
        // SAFETY: descriptors that are open, and a byte of our own. The read ends when the last
        // writer is gone, so that the copy never outlives this process.
        unsafe {
            libc::close(writer_fd);
            libc::read(reader_fd, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    assert!(pid > 0, "fork: {}", io::Error::last_os_error());
    let _copy = Copy(pid);
    work()
}
