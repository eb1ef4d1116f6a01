"""What is checked in ownership.pml: the bounds under which it must hold, the rules whose breach must be found, and the
situations that it must get into. Names are those of the model's switches.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Switch:
    """A rule to break, or a situation to get into, within bounds under which the model holds."""

    name: str
    words: str
    bounds: str
    sample: bool = False  # also checked by `make test`


BOUNDS: Mapping[str, Mapping[str, int]] = {
    "smallest": {},
    "leases": {"LEASES": 1},
    "records": {"RECORDS": 2},
    "owners": {"EPOCHS": 3},
    "switches": {"SWITCHES": 2},
    "flushes": {"FLUSHES": 1, "CUTS": 2},
    "failed flushes": {"FLUSHES": 1, "CUTS": 2, "FAILED_FLUSHES": 2},
    "records, leases": {"RECORDS": 2, "LEASES": 1},
    "owners, leases": {"EPOCHS": 3, "LEASES": 1},
}
SAMPLE_BOUNDS = ("smallest", "leases")  # also checked by `make test`

RULES = (
    Switch("ACK_ONE", "1: one member is enough for an acknowledgement", "smallest", sample=True),
    Switch("ACK_UNORDERED", "1: an acknowledgement does not wait for earlier records", "records"),
    Switch("LATE_ANSWER", "1: a late answer from an ended fragment counts for the next one", "smallest", sample=True),
    Switch("NO_FENCE", "2: a node accepts records of a lower epoch", "smallest"),
    Switch("FORGET_EPOCH", "2: a power cut takes the node's epoch", "smallest"),
    Switch("LEASE_ONE", "3: a lease from one member is enough to serve reads", "leases"),
    Switch("NO_LEASE_WAIT", "3: a node accepts a fence while its lease runs", "leases", sample=True),
    Switch("FORGET_LEASE", "3: a restarted node does not wait for a lease that it may have given", "leases"),
    Switch("FORGET_SPARE", "4: a new owner needs no answers about the spare fragment", "smallest"),
    Switch("CANDIDATE_ONE", "4: an answer from one candidate is enough", "smallest", sample=True),
    Switch("TRUST_DOUBTFUL", "5: a doubtful replica's answer counts like any other", "smallest", sample=True),
    Switch("DOUBT_ENDS_EARLY", "5: the first record that is sent again ends the doubt", "records"),
    Switch("DOUBTFUL_FLUSHES", "5: a doubtful replica confirms a flush", "flushes"),
    Switch("ANSWER_IS_COPY", "6: the answer to a fence counts as a flushed copy", "smallest"),
    Switch("OPEN_ONLY", "6: a new owner does not make stable what ended fragments hold", "flushes"),
    Switch("IGNORE_END", "6: a new owner takes what lies beyond the end of an ended fragment", "owners"),
    Switch("SERVE_EARLY", "6: a new owner serves before its update of the metadata is done", "owners"),
    Switch("REUSE_NUMBER", "6: a new owner begins the fragment that was its predecessor's spare", "smallest"),
    Switch("RESERVE_NOTHING", "6: raising the epoch reserves no fragment number", "owners"),
    Switch("NO_COMPARE", "metadata: an update replaces whatever is stored", "owners"),
    Switch("UNKNOWN_IS_DONE", "metadata: an update without an answer is taken to be done", "switches", sample=True),
    Switch(
        "OWN_IS_REFUSED", "metadata: a repeated update that finds its own value is refused", "smallest", sample=True
    ),
    Switch("RETRY_FLUSH", "flush: a device that failed a flush is asked again, and believed", "failed flushes"),
)

SITUATIONS = (
    Switch(
        "UNKNOWN_WRITES", "a write is acknowledged before the answer to an update is known", "smallest", sample=True
    ),
    Switch("LATE_WRITE", "a record arrives at a member after it was given up", "smallest", sample=True),
    Switch("DOUBT_ENDS", "a doubtful replica has everything again", "smallest"),
    Switch("UNACKNOWLEDGED_FOUND", "a take-over finds a record that was never acknowledged", "smallest"),
    Switch("THIRD_SERVES", "an owner acknowledges a write after two take-overs", "owners"),
    Switch("ALL_DOUBTFUL", "every replica of a fragment that is taken over is doubtful", "flushes"),
    Switch("FLUSH_AFTER_FAILURE", "a flush is confirmed although a device has failed one", "failed flushes"),
)
