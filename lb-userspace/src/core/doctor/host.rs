//! This host and its kernel → findings.

use super::{Facts, Finding, Weight, finding};
use crate::core::config::{Config, Probe};

/// The oldest kernel that is tested.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// Capabilities that the agent needs, by bit (`linux/capability.h`), and what for.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// What probing with frames of one's own needs.
const CAP_NET_RAW: u32 = 13;
/// Files that the agent has open apart from probes.
const OWN_FILES: u64 = 100;
/// Share of a table in percent, from which on it is too full.
const FULL_PERCENT: u64 = 90;

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(agent(facts));
    found.extend(kernel(facts));
    found.extend(btf(facts));
    found.extend(capabilities(facts));
    found.extend(bpffs(facts));
    found.extend(jit(facts));
    found.extend(clock(facts));
    found.extend(open_files(config, facts));
    found.extend(neighbour_tables(config, facts));
    found.extend(tables(facts));
    found
}

fn agent(facts: &Facts) -> Option<Finding> {
    facts.agent.is_none().then(|| {
        let what = "no agent answers";
        let why =
            "what is pinned goes on forwarding, but nobody checks health or follows the network's changes";
        finding("agent", Weight::Note, "sluice agent", (what, why), ["systemctl start sluice".to_owned()])
    })
}

fn kernel(facts: &Facts) -> Option<Finding> {
    let version = facts.host.kernel.filter(|version| *version < OLDEST_KERNEL)?;
    let what = format!("Linux {}.{}", version.0, version.1);
    let why = "the program needs Linux 6.1 or later; an older kernel may refuse it";
    let fix = ["apt-get install linux-image-amd64 && reboot".to_owned()];
    Some(finding("kernel", Weight::Error, "the kernel", (what, why), fix))
}

fn btf(facts: &Facts) -> Option<Finding> {
    (facts.host.btf == Some(false)).then(|| {
        let what = "/sys/kernel/btf/vmlinux does not exist";
        let why =
            "the maps describe their types (BTF), which a kernel without CONFIG_DEBUG_INFO_BTF may refuse";
        let fix = ["install a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are".to_owned()];
        finding("btf", Weight::Error, "the kernel", (what, why), fix)
    })
}

fn capabilities(facts: &Facts) -> Vec<Finding> {
    let Some(held) = facts.host.capabilities else { return Vec::new() };
    let has = |bit: u32| held >> bit & 1 == 1;
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| *name).collect();
    let mut found = Vec::new();
    if !missing.is_empty() {
        let what = format!("this command lacks {}", missing.join(", "));
        let why = "an agent that is started so cannot load or attach the program, and some checks are left out here";
        found.push(finding(
            "capabilities",
            Weight::Error,
            "this user",
            (what, why),
            ["sudo sluice doctor".to_owned()],
        ));
    } else if !has(CAP_NET_RAW) {
        let what = "this command lacks CAP_NET_RAW";
        let why =
            "no packets can be sent to find out whether backends have the VIPs; the agent does not need it";
        found.push(finding(
            "capabilities",
            Weight::Note,
            "this user",
            (what, why),
            ["sudo sluice doctor".to_owned()],
        ));
    }
    found
}

fn bpffs(facts: &Facts) -> Option<Finding> {
    (facts.host.bpffs == Some(false)).then(|| {
        let what = format!("{} is not on a BPF filesystem", facts.host.pin_dir);
        let why = "what is pinned must outlive the agent; the agent mounts one at /sys/fs/bpf if it may, which under \
                   systemd it may not, and elsewhere it does not start";
        let fix = ["mount -t bpf bpf /sys/fs/bpf".to_owned()];
        finding("bpffs", Weight::Warning, &facts.host.pin_dir, (what, why), fix)
    })
}

fn jit(facts: &Facts) -> Option<Finding> {
    (facts.host.jit == Some(0)).then(|| {
        let why = "the program is interpreted, at a fraction of its speed";
        let fix = ["sysctl -w net.core.bpf_jit_enable=1".to_owned()];
        finding("jit", Weight::Warning, "net.core.bpf_jit_enable", ("the BPF JIT is off", why), fix)
    })
}

fn clock(facts: &Facts) -> Option<Finding> {
    (facts.host.clock_synchronised == Some(false)).then(|| {
        let what = "no time service keeps it right";
        let why = "events and logs of several hosts cannot be compared, and certificates may seem expired; forwarding \
                   does not depend on it";
        finding("clock", Weight::Note, "the clock", (what, why), ["timedatectl set-ntp true".to_owned()])
    })
}

/// Each probe under way is an open file.
fn open_files(config: &Config, facts: &Facts) -> Option<Finding> {
    let probed = config.services.iter().filter(|service| service.health.probe != Probe::None);
    let probes: u64 = probed.map(|service| service.backends.len() as u64).sum();
    let needed = probes.saturating_add(OWN_FILES);
    let most = facts.host.open_files.filter(|most| *most < needed)?;
    let what = format!("a process may open {most} files, and {probes} backends are probed");
    let why = "probes that find no free file are left out, so a dead backend may go unnoticed";
    let fix = [
        "mkdir -p /etc/systemd/system/sluice.service.d".to_owned(),
        format!(
            "printf '[Service]\\nLimitNOFILE={}\\n' > /etc/systemd/system/sluice.service.d/limits.conf",
            needed.next_power_of_two()
        ),
        "systemctl daemon-reload && systemctl restart sluice".to_owned(),
    ];
    Some(finding("limits", Weight::Warning, "open files", (what, why), fix))
}

fn neighbour_tables(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut addresses: Vec<_> = config.services.iter().flat_map(|service| &service.backends).collect();
    addresses.sort_by_key(|backend| backend.address);
    addresses.dedup_by_key(|backend| backend.address);
    let check = |family: &str, v4: bool, most: Option<u64>| {
        let count = addresses.iter().filter(|backend| backend.address.is_ipv4() == v4).count() as u64;
        let most = most.filter(|most| count.saturating_mul(2) > *most)?;
        let what = format!("the table holds {most} entries, and {count} backends may need one each");
        let why = "a backend without an entry cannot be reached; other hosts of the segment take entries too";
        let wanted = count.saturating_mul(4).next_power_of_two();
        let setting = format!("net.{family}.neigh.default.gc_thresh3");
        let fix = [format!("sysctl -w {setting}={wanted}")];
        Some(finding("limits", Weight::Warning, setting, (what, why), fix))
    };
    let [v4, v6] = facts.host.neighbours_max;
    [check("ipv4", true, v4), check("ipv6", false, v6)].into_iter().flatten().collect()
}

/// Tables of the datapath that are nearly full.
fn tables(facts: &Facts) -> Vec<Finding> {
    let Some(agent) = &facts.agent else { return Vec::new() };
    let check = |name: &str, key: &str, entries: u64, size: u64, why: &str| {
        let full = size > 0 && entries.saturating_mul(100) >= size.saturating_mul(FULL_PERCENT);
        full.then(|| {
            let what = format!("{entries} of {size} entries are taken");
            let fix = [
                format!("in {}: raise {key}", agent.agent.config),
                "sluice detach && systemctl restart sluice".to_owned(),
            ];
            finding("limits", Weight::Warning, name, (what, why), fix)
        })
    };
    let flows = "flows that lose their entry follow the ring, and so may move when backends change";
    let nat = "connections that find no room are dropped";
    let found = [
        check(
            "the flow table",
            "agent.flow_table_size",
            agent.flow_table.entries,
            agent.flow_table.size,
            flows,
        ),
        check("the NAT table", "agent.nat_table_size", agent.nat.entries, agent.nat.size, nat),
    ];
    found.into_iter().flatten().collect()
}
