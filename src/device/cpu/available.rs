//! How much memory this process may still take: what the machine has, and what control groups (containers, batch systems)
//! leave of it.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes that the system can still give, where it says so.
pub(super) fn available() -> Option<usize> {
    let machine = of_machine(&read_to_string("/proc/meminfo").ok()?)?;
    let membership = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = of_groups(&membership, Path::new("/sys/fs/cgroup"));
    Some(groups.map_or(machine, |groups| machine.min(groups)))
}

fn of_machine(meminfo: &str) -> Option<usize> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Names of one version of control groups: folder of the hierarchy, limit, usage, and the part of the usage that gives way.
struct Version {
    folder: &'static str,
    limit: &'static str,
    usage: &'static str,
    cache: &'static str,
}

const V1: Version = Version {
    folder: "memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};

const V2: Version = Version {
    folder: "",
    limit: "memory.max",
    usage: "memory.current",
    cache: "inactive_file",
};

/// The least that the groups of a process leave, each bounded by those above it; None without a limit. `membership` is
/// its /proc/…/cgroup, `root` where the groups are mounted.
fn of_groups(membership: &str, root: &Path) -> Option<usize> {
    let of_line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let version = match controllers {
            "" => V2,
            list if list.split(',').any(|name| name == "memory") => V1,
            _ => return None,
        };
        let hierarchy = root.join(version.folder);
        // Inside of a container the path is often the host's, and what is mounted the container's own group: the root.
        Path::new(path)
            .ancestors()
            .filter_map(|group| {
                left(
                    &hierarchy.join(group.strip_prefix("/").unwrap_or(group)),
                    &version,
                )
            })
            .min()
    };
    membership.lines().filter_map(of_line).min()
}

/// What one group's own limit leaves. Cached files count as used, but give way.
fn left(group: &Path, version: &Version) -> Option<usize> {
    let number = |file: &str| {
        read_to_string(group.join(file))
            .ok()?
            .trim()
            .parse::<usize>()
            .ok()
    };
    let (limit, usage) = (number(version.limit)?, number(version.usage)?);
    let stat = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = stat
        .lines()
        .find_map(|line| line.strip_prefix(version.cache)?.trim().parse::<usize>().ok());
    Some(limit.saturating_sub(usage.saturating_sub(cache.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_how_much_in_kibibytes() {
        assert_eq!(
            of_machine("MemTotal: 9 kB\nMemAvailable:   7 kB\n"),
            Some(7 * 1024)
        );
        assert_eq!(of_machine("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn the_tightest_group_counts_without_its_cache() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let of = |membership: &str| of_groups(membership, root.path());
        assert_eq!(of("0::/job/step\n"), None);
        put("job/memory.max", "1000\n");
        put("job/memory.current", "900\n");
        put("job/memory.stat", "anon 1\ninactive_file 300\nactive_file 7\n");
        put("job/step/memory.max", "max\n");
        put("job/step/memory.current", "10\n");
        assert_eq!(of("0::/job/step\n"), Some(400));
        assert_eq!(of("0::/\n"), None);
        put("memory/memory.limit_in_bytes", "500\n");
        put("memory/memory.usage_in_bytes", "700\n");
        put("memory/memory.stat", "inactive_file 9\ntotal_inactive_file 250\n");
        assert_eq!(of("4:cpu:/\n3:memory:/host/path\n0::/job\n"), Some(50));
    }
}
