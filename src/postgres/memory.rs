//! How much memory there is for this process: the machine's, or what its control group may take where that is less.

use std::fs;

/// Where Linux tells what the machine has.
const MACHINE: &str = "/proc/meminfo";
/// Where a process of a container finds its group's limit, in either version of the control groups.
const GROUP: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
/// Which group this process is in, as one of systemd's units is.
const OWN_GROUP: &str = "/proc/self/cgroup";

/// Bytes; none where the system does not tell.
pub(super) fn total() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let machine = read(MACHINE).and_then(|text| of_machine(&text));
    let own = read(OWN_GROUP).and_then(|text| limit_of_own(&text));
    let groups = GROUP.map(str::to_owned).into_iter().chain(own);
    machine.into_iter().chain(groups.filter_map(|path| of_group(&read(&path)?))).min()
}

/// Where the limit of a process's own group stands.
fn limit_of_own(groups: &str) -> Option<String> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(format!("/sys/fs/cgroup/{group}/memory.max"))
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// A group's limit; none where it is `max`.
fn of_group(limit: &str) -> Option<u64> {
    limit.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_is_read_as_linux_tells_it() {
        assert_eq!(of_machine("MemTotal:       24684160 kB\nMemFree:   1 kB\n"), Some(24_684_160 << 10));
        assert_eq!(of_machine("MemFree:   1 kB\n"), None);
        assert_eq!(of_group("536870912\n"), Some(512 << 20));
        assert_eq!(of_group("max\n"), None);
        assert_eq!(of_group(""), None);
        let own = limit_of_own("1:name=systemd:/\n0::/system.slice/allocator.service\n");
        assert_eq!(own.as_deref(), Some("/sys/fs/cgroup/system.slice/allocator.service/memory.max"));
    }
}
