use super::*;
use crate::kind::KINDS;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

static KICKED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn kicked(_: libc::c_int) {
    KICKED.fetch_add(1, Ordering::Relaxed);
}

/// On a thread of this kind.
fn confined<R: Send + 'static>(kind: ThreadKind, work: impl FnOnce() -> R + Send + 'static) -> R {
    on().unwrap();
    let thread = std::thread::spawn(move || {
        this_thread(kind);
        work()
    });
    thread.join().unwrap()
}

fn counted(kind: ThreadKind, number: i64) -> u64 {
    let number = usize::try_from(number).unwrap();
    refused().iter().find(|call| call.kind == kind && call.number == number).map_or(0, |call| call.count)
}

/// No request, no path, no signal: none of these may succeed.
fn is_denied(kind: ThreadKind, number: i64, call: impl FnOnce() -> Errno + Send + 'static) {
    let before = counted(kind, number);
    assert_eq!(confined(kind, call), Errno::EPERM, "{kind}: call {number}");
    assert!(counted(kind, number) > before, "{kind}: call {number} is counted");
}

fn errno_of(result: libc::c_long) -> Errno {
    Errno::result(result).map_or_else(|errno| errno, |_| Errno::UnknownErrno)
}

#[test]
fn no_thread_opens_a_file_or_a_socket_or_starts_a_program_or_sends_a_signal() {
    for kind in KINDS {
        // What a backup has of its disks is in files.
        if kind != ThreadKind::Stream {
            is_denied(kind, libc::SYS_openat, || {
                Errno::from_raw(File::open("/dev/null").unwrap_err().raw_os_error().unwrap())
            });
            is_denied(kind, libc::SYS_unlink, || {
                // SAFETY: a path that is terminated.
                errno_of(unsafe { libc::syscall(libc::SYS_unlink, c"/nowhere".as_ptr()) })
            });
        }
        is_denied(kind, libc::SYS_socket, || {
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap_err()
        });
        is_denied(kind, libc::SYS_kill, || nix::sys::signal::kill(Pid::this(), None).unwrap_err());
        is_denied(kind, libc::SYS_execve, || {
            let none = std::ptr::null::<*const libc::c_char>();
            // SAFETY: a path that is terminated; no arguments, no environment.
            errno_of(unsafe { libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), none, none) })
        });
        // As they are made: with all signals blocked.
        let thread = || std::thread::Builder::new().spawn(|| ()).map(drop);
        assert_eq!(confined(kind, thread).unwrap_err().raw_os_error(), Some(libc::EPERM), "{kind}");
        let program = || std::process::Command::new("/bin/true").status().map(drop);
        assert_eq!(confined(kind, program).unwrap_err().raw_os_error(), Some(libc::EPERM), "{kind}");
        let fork = || {
            // SAFETY: a child, if there were one, would have to end at once.
            let forked = unsafe { libc::syscall(libc::SYS_fork) };
            if forked == 0 {
                // SAFETY: ends the child, if there is one.
                unsafe { libc::_exit(0) };
            }
            errno_of(forked)
        };
        assert_eq!(confined(kind, fork), Errno::EPERM, "{kind}");
        is_denied(kind, libc::SYS_mmap, || {
            let executable = libc::PROT_READ | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a mapping of its own, wherever there is room.
            errno_of(unsafe { libc::syscall(libc::SYS_mmap, 0, 4096, executable, flags, -1, 0) })
        });
        is_denied(kind, libc::SYS_ptrace, || {
            // SAFETY: no argument is read.
            errno_of(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0) })
        });
        is_denied(kind, libc::SYS_io_uring_setup, || {
            // SAFETY: fails before it looks at what is null.
            errno_of(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) })
        });
    }
}

#[test]
fn signals_go_to_threads_of_this_process_only_and_only_those_that_are_meant() {
    // SAFETY: the handler counts.
    unsafe { libc::signal(kick_signal(), kicked as *const () as libc::sighandler_t) };
    let tgkill = |group: libc::pid_t, thread: libc::pid_t, signal: libc::c_int| {
        // SAFETY: numbers only.
        unsafe { libc::syscall(libc::SYS_tgkill, group, thread, signal) }
    };
    let own = Pid::this().as_raw();
    let before = KICKED.load(Ordering::Relaxed);
    let sent = confined(ThreadKind::Disk, move || tgkill(own, nix::unistd::gettid().as_raw(), kick_signal()));
    assert_eq!(sent, 0);
    assert!(KICKED.load(Ordering::Relaxed) > before);
    is_denied(ThreadKind::Disk, libc::SYS_tgkill, move || {
        errno_of(tgkill(own, nix::unistd::gettid().as_raw(), Signal::SIGTERM as libc::c_int))
    });
    is_denied(ThreadKind::Disk, libc::SYS_tgkill, move || errno_of(tgkill(1, 1, kick_signal())));
}

#[test]
fn a_confined_thread_computes_and_uses_what_it_was_given() {
    for kind in KINDS {
        let (mut ours, mut theirs) = std::io::pipe().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        confined(kind, move || {
            let memory: Vec<u8> = (0..64 << 20).map(|n| n as u8).collect();
            std::thread::sleep(std::time::Duration::from_millis(1));
            theirs.write_all(&memory[..4]).unwrap();
            sender.send(memory.len()).unwrap();
            let mut second = theirs.try_clone().unwrap();
            second.write_all(b"more").unwrap();
            let panic = std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new(())));
            assert!(panic.is_err());
        });
        let mut read = [0; 8];
        ours.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"\x00\x01\x02\x03more");
        assert_eq!(receiver.recv().unwrap(), 64 << 20);
    }
}

#[test]
fn a_confined_thread_has_no_capabilities_and_the_others_keep_theirs() {
    let capabilities = |thread: &str| {
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let own = nix::unistd::gettid().to_string();
    let before = capabilities(&own);
    let (sender, receiver) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    on().unwrap();
    let thread = std::thread::spawn(move || {
        this_thread(ThreadKind::Vcpu);
        sender.send(nix::unistd::gettid()).unwrap();
        let _ = wait.recv();
    });
    assert_eq!(capabilities(&receiver.recv().unwrap().to_string()), 0);
    drop(go_on);
    thread.join().unwrap();
    assert_eq!(capabilities(&own), before);
}

#[test]
fn a_refused_call_is_told_by_name() {
    let call = RefusedCall { kind: ThreadKind::Disk, number: 257, count: 1 };
    assert_eq!(call.to_string(), "a thread for a disk asked for system call 257 (openat)");
    let call = RefusedCall { kind: ThreadKind::Link, number: 500, count: 1 };
    assert_eq!(call.to_string(), "a thread for the peer's connections asked for system call 500");
}

/// On a thread that has this refused. None where the kernel has no Landlock.
fn reaching<R: Send + 'static>(
    limit: impl FnOnce() -> bool + Send + 'static,
    work: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let thread = std::thread::spawn(move || limit().then(work));
    let done = thread.join().unwrap();
    if done.is_none() {
        println!("SKIPPED what Landlock refuses: this kernel has none");
    }
    done
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn without_any_filter_nothing_is_reached_by_its_name() {
    let mut own = File::open("/dev/zero").unwrap();
    let tried = reaching(
        || reach::nothing().unwrap(),
        move || {
            own.read_exact(&mut [0; 8]).unwrap();
            let program = || std::process::Command::new("/bin/true").status();
            [errno(File::open("/dev/null")), errno(std::fs::read_dir("/")), errno(program())]
        },
    );
    assert!(tried.is_none_or(|tried| tried == [Some(libc::EACCES); 3]));
}

#[test]
fn a_service_changes_its_own_directory_and_no_other() {
    fn own() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("ftd-reach-{}", std::process::id()))
    }
    let other = own().with_extension("other");
    std::fs::create_dir(own()).unwrap();
    std::fs::write(&other, b"as it was").unwrap();
    let theirs = other.clone();
    let tried = reaching(
        || serve_from(&[&own()]).unwrap(),
        move || {
            std::fs::write(own().join("aside"), b"new").unwrap();
            std::fs::rename(own().join("aside"), own().join("store")).unwrap();
            assert_eq!(std::fs::read(&theirs).unwrap(), b"as it was");
            let program = std::process::Command::new("/bin/true").status();
            [errno(std::fs::write(&theirs, b"else")), errno(std::fs::remove_file(&theirs)), errno(program)]
        },
    );
    let untouched = std::fs::read(&other).unwrap();
    std::fs::remove_file(&other).unwrap();
    std::fs::remove_dir_all(own()).unwrap();
    assert!(tried.is_none_or(|tried| tried == [Some(libc::EACCES); 3]));
    assert_eq!(untouched, b"as it was");
}
