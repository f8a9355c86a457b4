//! Memory and processor time of processes, from proc(5).

use std::fs;
use std::time::Duration;

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) resident_kib: u64,
    pub(super) peak_kib: u64,
}

/// `VmRSS` and `VmHWM` of a process; none once it is gone.
pub(super) fn memory(process: u32) -> Option<Memory> {
    parse_memory(&fs::read_to_string(format!("/proc/{process}/status")).ok()?)
}

/// User and system time of a process so far; none once it is gone.
pub(super) fn processor_time(process: u32) -> Option<Duration> {
    parse_times(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// Kernel release, processor model and how many processors there are to use.
pub(super) fn machine() -> (String, String, usize) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()).unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    let processor = model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
    (kernel, processor, std::thread::available_parallelism().map_or(1, usize::from))
}

fn parse_memory(status: &str) -> Option<Memory> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix("kB")?.trim().parse().ok();
    Some(Memory { resident_kib: field("VmRSS:")?, peak_kib: field("VmHWM:")? })
}

fn parse_times(stat: &str) -> Option<Duration> {
    // The command in parentheses may hold blanks and parentheses itself; what follows the last one is regular.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // USER_HZ is 100 on every architecture that Linux runs our programs on.
    Some(Duration::from_millis((user + system) * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc() {
        let own = std::process::id();
        let memory = memory(own).unwrap();
        assert!(memory.resident_kib > 100 && memory.peak_kib >= memory.resident_kib);
        assert!(processor_time(own).is_some() && processor_time(u32::MAX).is_none());
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 0 0 0 0 150 50 0 0 20 0";
        assert_eq!(parse_times(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse_memory("Name:\tx\n"), None);
    }
}
