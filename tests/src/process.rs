//! Starting a process where it belongs: network namespace, control group, user, private mounts; and hearing of its end.
//!
//! A thread per process starts it and waits for it. So namespaces change on that thread only, and the kernel's "signal when the
//! parent thread dies" ends every child with the harness, however the harness ends.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::{io, thread};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sethostname};
use tokio::sync::watch;

use crate::network::namespace::Namespace;

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
    /// The network it sees.
    pub namespace: Arc<Namespace>,
    /// The control group it is placed into before it runs.
    pub group: PathBuf,
    /// Who it runs as.
    pub user: User,
    /// A mount namespace and host name of its own, for pods.
    pub sandbox: Option<Sandbox>,
    /// Where its output goes.
    pub output: Output,
}

/// Who a process runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// As the harness does.
    Root,
    /// Another user id (and group id of the same number), with these capabilities and no others.
    Limited {
        /// User and group id.
        id: u32,
        /// A bit set of capabilities, kept over exec as ambient ones.
        capabilities: u64,
    },
}

/// What a pod sees of the file system besides the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// `hostname`.
    pub hostname: String,
    /// Files and folders of the host shown at a path of the pod.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Mounts below these paths are taken away first: the harness's own.
    pub hidden: Vec<PathBuf>,
}

/// Where standard output and standard error go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Appended to a file.
    File(PathBuf),
    /// Both to pipes, with standard input, for whoever started it.
    Pipes,
}

/// A started process. Dropping this does not end it.
#[derive(Debug, Clone)]
pub struct Process {
    id: u32,
    exit: watch::Receiver<Option<ExitStatus>>,
}

/// A process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program}: {step}")]
pub struct LaunchError {
    program: String,
    step: &'static str,
    #[source]
    cause: io::Error,
}

/// The pipes of a process started with `Output::Pipes`.
#[derive(Debug)]
pub struct Pipes {
    /// Its standard input.
    pub stdin: std::process::ChildStdin,
    /// Its standard output.
    pub stdout: std::process::ChildStdout,
    /// Its standard error.
    pub stderr: std::process::ChildStderr,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How it ended, if it did.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit.wait_for(Option::is_some).await.map(|status| *status);
        // The watching thread went without a word: only when the harness itself is ending.
        status.ok().flatten().unwrap_or_else(|| ExitStatus::from_raw(Signal::SIGKILL as i32))
    }

    /// Sends a signal, unless it ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.status().is_some() {
            return Ok(());
        }
        let id = i32::try_from(self.id).expect("process ids are positive i32");
        match kill(Pid::from_raw(id), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Starts a process whose output goes to a file. Blocks for the time of fork and exec.
pub fn start(launch: Launch) -> Result<Process, LaunchError> {
    spawn(launch).map(|(process, _)| process)
}

/// Starts a process and gives its pipes (`launch.output` must be `Pipes`).
pub fn start_piped(launch: Launch) -> Result<(Process, Pipes), LaunchError> {
    let (process, pipes) = spawn(launch)?;
    Ok((process, pipes.expect("the caller asked for pipes")))
}

type Spawned = Result<(u32, Option<Pipes>), (&'static str, io::Error)>;

fn spawn(launch: Launch) -> Result<(Process, Option<Pipes>), LaunchError> {
    let program = launch.program.display().to_string();
    let failed = |(step, cause)| LaunchError { program: program.clone(), step, cause };
    let (tell_start, started) = mpsc::sync_channel::<Spawned>(1);
    let (tell_exit, exit) = watch::channel(None);
    let watch = move || match fork(&launch) {
        Ok(mut child) => {
            let pipes = take_pipes(&mut child);
            let _ = tell_start.send(Ok((child.id(), pipes)));
            if let Ok(status) = child.wait() {
                let _ = tell_exit.send(Some(status));
            }
        }
        Err(error) => drop(tell_start.send(Err(error))),
    };
    thread::Builder::new().name("process".to_owned()).spawn(watch).map_err(|cause| failed(("start a thread", cause)))?;
    let (id, pipes) = started.recv().expect("the thread tells before it ends").map_err(failed)?;
    Ok((Process { id, exit }, pipes))
}

fn take_pipes(child: &mut Child) -> Option<Pipes> {
    Some(Pipes { stdin: child.stdin.take()?, stdout: child.stdout.take()?, stderr: child.stderr.take()? })
}

/// Prepares this thread and starts the process from it.
fn fork(launch: &Launch) -> Result<Child, (&'static str, io::Error)> {
    let group =
        OpenOptions::new().write(true).open(launch.group.join("cgroup.procs")).map_err(|error| ("open its control group", error))?;
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).env_clear().envs(launch.environment.iter().map(|(key, value)| (key, value)));
    redirect(&mut command, &launch.output).map_err(|error| ("open its log", error))?;
    if let Some(sandbox) = &launch.sandbox {
        enclose(sandbox).map_err(|error| ("prepare its mount namespace", error))?;
        // As in a container; programs look for their files from there.
        command.current_dir("/");
    }
    launch.namespace.enter().map_err(|error| ("enter its network namespace", error))?;
    become_in_child(&mut command, group, launch.user);
    command.spawn().map_err(|error| ("fork and exec", error))
}

fn redirect(command: &mut Command, output: &Output) -> io::Result<()> {
    match output {
        Output::File(path) => {
            let log = OpenOptions::new().create(true).append(true).open(path)?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        }
        Output::Pipes => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }
    Ok(())
}

/// Gives the calling thread (and what it starts) mounts and a host name of its own.
fn enclose(sandbox: &Sandbox) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    sethostname(&sandbox.hostname)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    // Opened before `/run` is covered: their paths may lie there.
    let sources = sandbox.binds.iter().map(|(source, _)| File::open(source)).collect::<io::Result<Vec<_>>>()?;
    let mut covered = mounts_below(&sandbox.hidden)?;
    covered.reverse();
    for mount_point in covered {
        match umount2(&mount_point, MntFlags::MNT_DETACH) {
            // Another run removed what it was mounted on meanwhile, which took the mount along.
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let run = fs::canonicalize("/var/run").unwrap_or_else(|_| PathBuf::from("/run"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &run, Some("tmpfs"), flags, Some("mode=755,size=16m"))?;
    for ((source, target), handle) in sandbox.binds.iter().zip(&sources) {
        // Only below our own `/run` may something be made; elsewhere it would be the host's.
        if fs::canonicalize(target).is_err() && (target.starts_with("/var/run") || target.starts_with(&run)) {
            make_mount_point(target, source, handle)?;
        }
        let source = format!("/proc/thread-self/fd/{}", handle.as_raw_fd());
        mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    Ok(())
}

fn make_mount_point(target: &Path, source: &Path, handle: &File) -> io::Result<()> {
    if handle.metadata()?.is_dir() {
        return fs::create_dir_all(target);
    }
    let folder = target.parent().ok_or_else(|| io::Error::other(format!("{} has no folder", source.display())))?;
    fs::create_dir_all(folder)?;
    File::create(target).map(drop)
}

/// Mount points below any of `roots`, outermost first.
fn mounts_below(roots: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(mount_points(&table).filter(|point| roots.iter().any(|root| point.starts_with(root))).collect())
}

/// The mount points that a `mountinfo` table lists.
pub fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> {
    // proc(5): field 5 is the mount point; blanks in it are written as \040.
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(point.replace("\\040", " ")))
}

/// What the child does between fork and exec: join its group, die with this thread, become its user.
#[expect(unsafe_code, reason = "nothing else runs code between fork and exec")]
fn become_in_child(command: &mut Command, group: File, user: User) {
    // SAFETY: the closure makes only system calls (write, prctl, setgroups, setgid, setuid, capset) on values made before the fork;
    // it neither allocates nor takes a lock, so it may run in the child of a process with threads.
    unsafe {
        command.pre_exec(move || {
            join(group.as_raw_fd())?;
            if let User::Limited { id, capabilities } = user {
                become_user(id, capabilities)?;
            }
            // After the change of user, which clears it.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())
        });
    }
}

#[expect(unsafe_code, reason = "runs between fork and exec, where only system calls are allowed")]
fn join(group: RawFd) -> io::Result<()> {
    // SAFETY: one byte of a static string; the descriptor is open for as long as the closure that holds its file.
    check(unsafe { libc::write(group, b"0".as_ptr().cast(), 1) } as i64)
}

#[expect(unsafe_code, reason = "runs between fork and exec, where only system calls are allowed")]
fn become_user(id: u32, capabilities: u64) -> io::Result<()> {
    /// linux/capability.h: `_LINUX_CAPABILITY_VERSION_3`, two words a set.
    const VERSION_3: u32 = 0x2008_0522;
    let [low, high] = [capabilities as u32, (capabilities >> 32) as u32];
    let header: [u32; 2] = [VERSION_3, 0];
    // effective, permitted, inheritable; for the low and for the high word.
    let sets: [u32; 6] = [low, low, low, high, high, high];
    // SAFETY: plain system calls; header and sets have the layout that capset(2) documents and live on this stack.
    unsafe {
        // Not to be regained by exec either. Numbers that this kernel does not know are refused, which is as good.
        for capability in (0..64u64).filter(|capability| capabilities & (1 << capability) == 0) {
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        check(libc::syscall(libc::SYS_setresuid, id, id, id))?;
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()))?;
        for capability in (0..64u64).filter(|capability| capabilities & (1 << capability) != 0) {
            check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0).into())?;
        }
    }
    Ok(())
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Finds a command as a shell would, in `folders`.
pub fn find(command: &OsStr, folders: &[PathBuf]) -> Option<PathBuf> {
    if Path::new(command).is_absolute() {
        return Path::new(command).is_file().then(|| PathBuf::from(command));
    }
    folders.iter().map(|folder| folder.join(command)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mount_points() {
        let table = "22 1 0:20 / /run rw - tmpfs tmpfs rw\n30 22 0:4 net:[4026532] /run/netns/a\\040b rw - nsfs nsfs rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/run"), PathBuf::from("/run/netns/a b")]);
    }

    #[test]
    fn finds_commands_like_a_shell() {
        assert_eq!(find(OsStr::new("sh"), &["/nowhere".into(), "/bin".into()]), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find(OsStr::new("/bin/sh"), &[]), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find(OsStr::new("/bin/there-is-no-such"), &[]), None);
    }
}
