"""The rules: a file of /sys or /proc/sys, where the rule holds, and its best value for each goal.

A value is written as it is; ">=N" and "<=N" are met by any number on that side. None: leave it as it is. A file that
offers a choice ("none [mq-deadline]") is only set to what it offers. Nothing here makes data less safe: the write cache
of a device, for instance, is never touched, because to the kernel "write through" means that no flush is needed
(Documentation/ABI/stable/sysfs-block).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# What changes a setting: this command, only the host of this container, a parameter of the kernel's command line, or
# the daemon's unit file (systemd).
Means = Literal["apply", "host", "boot", "unit"]
Goal = Literal["latency", "throughput", "quiet"]
GOALS: tuple[Goal, ...] = ("latency", "throughput", "quiet")

DOCS = "https://docs.kernel.org"
BLOCK = "https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block"


class Rule(NamedTuple):
    area: str
    path: str  # below the root; * matches; FILE#NAME is the value of that name in a table
    where: str  # one of iomesh.tuning.machine.CONDITIONS
    latency: str | None
    throughput: str | None
    quiet: str | None  # few wake-ups and little power
    reason: str
    gain: str
    source: str
    means: Means = "apply"


QUEUE = "sys/block/*/queue"
CPU = "sys/devices/system/cpu/cpu[0-9]*"
NET = "proc/sys/net"

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule("devices", f"{QUEUE}/scheduler", "flash", "none", "none", "none",
         "the log writes in order and the device has queues of its own: sorting costs CPU and a lock",
         "less CPU per I/O; up to a few % of IOPS at high depth", f"{DOCS}/block/switching-sched.html"),
    Rule("devices", f"{QUEUE}/scheduler", "hdd", "mq-deadline", "mq-deadline", "mq-deadline",
         "reads must not wait behind large writes of the log and of cleaning",
         "bounded read latency under writes", f"{DOCS}/block/deadline-iosched.html"),
    Rule("devices", f"{QUEUE}/rq_affinity", "flash", "2", "2", None,
         "completes a request on the core that submitted it, which is the reactor's",
         "fewer cache misses; small", BLOCK),
    Rule("devices", f"{QUEUE}/nomerges", "nvme", "2", None, None,
         "random reads are never adjacent, and the log joins its writes itself: looking for merges is in vain",
         "less CPU per I/O; small", BLOCK),
    Rule("devices", "sys/module/nvme/parameters/poll_queues", "always", ">=1", None, None,
         "engine.iopoll needs queues without interrupts: nvme.poll_queues=1, and engine.iopoll = true in node.toml",
         "no interrupt per I/O, for a core that polls", f"{DOCS}/admin-guide/kernel-parameters.html", "boot"),
    Rule("interrupts", "proc/sys/kernel/numa_balancing", "several nodes", "0", "0", None,
         "it unmaps pages to see who uses them; reactors and their memory stay where they are",
         "fewer page faults in the reactors", f"{DOCS}/admin-guide/sysctl/kernel.html#numa-balancing"),
    Rule("processor", f"{CPU}/cpufreq/scaling_governor", "always", "performance", "performance", None,
         "the clock of a core that waits for I/O is lowered, and the next request meets a slow core",
         "latency at low depth", f"{DOCS}/admin-guide/pm/cpufreq.html"),
    Rule("processor", f"{CPU}/cpuidle/state*/disable", "deep state", "1", None, "0",
         "leaving a deep idle state takes longer than a fast device needs for a read",
         "latency at depth 1: up to the state's exit latency per wake-up; costs power",
         f"{DOCS}/admin-guide/pm/cpuidle.html"),
    Rule("memory", "sys/kernel/mm/transparent_hugepage/enabled", "always", "madvise", None, None,
         "`always` makes page faults wait for compaction in processes that did not ask for huge pages",
         "fewer outliers of latency", f"{DOCS}/admin-guide/mm/transhuge.html"),
    Rule("io_uring", "proc/sys/kernel/io_uring_disabled", "always", "<=1", "<=1", "<=1",
         "with 2 no process may use io_uring, and the daemon does not start; with 1 root may",
         "the daemon starts", f"{DOCS}/admin-guide/sysctl/kernel.html#io-uring-disabled"),
    Rule("io_uring", "proc/self/limits#Max locked memory", "always", ">=67108864", ">=67108864", ">=67108864",
         "this shell's: without CAP_IPC_LOCK, registered buffers (56 MiB a reactor) count; LimitMEMLOCK= in the unit",
         "pages are not pinned with each I/O", "https://man7.org/linux/man-pages/man2/io_uring_register.2.html",
         "unit"),
    Rule("network", f"{NET}/ipv4/tcp_slow_start_after_idle", "always", "0", "0", None,
         "a connection between nodes that was idle begins with a small window again",
         "the first large writes after a pause", f"{DOCS}/networking/ip-sysctl.html"),
    Rule("network", f"{NET}/core/rmem_max", "always", None, ">=4194304", None,
         "limits the receive buffer that a program may ask for", "throughput over long or fast links",
         f"{DOCS}/admin-guide/sysctl/net.html"),
    Rule("network", f"{NET}/core/wmem_max", "always", None, ">=4194304", None,
         "limits the send buffer that a program may ask for", "throughput over long or fast links",
         f"{DOCS}/admin-guide/sysctl/net.html"),
)
# fmt: on
