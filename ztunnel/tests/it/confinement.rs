//! The seccomp filter: bpf(2) opens pins and uses map elements, nothing else.

use std::{io, process::Command};

use tropis_ztunnel::confine::forbid_loading_bpf;

/// The filter cannot be taken back, so it is tried in a process of its own: this test run again with [`confined`] alone.
#[test]
fn loading_is_forbidden_and_pins_are_not() {
    let own = std::env::current_exe().unwrap();
    let child = Command::new(own).args(["--exact", "confinement::confined", "--ignored", "--nocapture"]).output().unwrap();
    assert!(child.status.success(), "{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
}

#[test]
#[ignore = "confines its process for good; run by the test above"]
fn confined() {
    let before_thread = std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        bpf(0)
    });
    forbid_loading_bpf().unwrap();
    for (command, name) in [(0, "MAP_CREATE"), (5, "PROG_LOAD"), (6, "OBJ_PIN"), (8, "PROG_ATTACH"), (28, "LINK_CREATE")] {
        assert_eq!(bpf(command), Some(libc::EPERM), "{name}");
    }
    assert_eq!(before_thread.join().unwrap(), Some(libc::EPERM), "threads that were there before are confined too");
    // Allowed, and refused by the kernel for what they were given.
    for (command, name) in [(1, "MAP_LOOKUP_ELEM"), (2, "MAP_UPDATE_ELEM"), (3, "MAP_DELETE_ELEM"), (7, "OBJ_GET")] {
        let error = bpf(command);
        assert!(error.is_some_and(|error| error != libc::EPERM), "{name}: {error:?}");
    }
}

/// Calls bpf(2) with zeroed attributes; the error, if it failed.
#[allow(unsafe_code, reason = "there is no safe way to ask for what is forbidden")]
fn bpf(command: libc::c_int) -> Option<i32> {
    let attributes = [0u64; 16];
    // SAFETY: the kernel reads `size_of_val(&attributes)` bytes from a live array; no command tried here writes to it when all is zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
    (result < 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or_default())
}
