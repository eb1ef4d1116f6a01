"""Planted bugs, to check that the simulation finds them: their names in `planted(...)`, and the effect of each."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from simulation.runs import Outcome, run_all

ROOT = Path(__file__).parent.parent.parent
ENGINE = ROOT / "build" / "planted"  # `make planted`
SEEDS_MAX = 2000  # each bug is found within this many seeds

# Of volumes with replicas, which the simulation of several nodes shows.
CLUSTER_BUGS = {
    "any_copy_is_same": "any sealed copy of a segment counts, though it may lack records",
    "copy_error_ignored": "a record commits although a member of its replica set has not written it",
    "copy_flush_ignored": "a flush is confirmed although a device of another node has failed it",
    "copy_kept_unflushed": "a copy of a segment is made and counts before it is on stable media",
    "copy_kept_unverified": "a copy of a segment is made and counts although it is not what the source had",
    "copy_not_completed": "a copy is sealed and counts although it lacks records that a new owner keeps",
    "doubtful_goes_on": "a node writes to, and seals, a replica that a power cut may have taken records from",
    "doubtful_not_sent_again": "a copy that a failed flush has made doubtful is sealed with what is read there",
    "doubtful_not_written_again": "recovery writes only those records again that no device made stable",
    "doubtful_trusted": "a replica that may lack what a power cut took is opened as it is",
    "dropped_cache_trusted": "a device that has lost its cache in a failed flush is trusted after a restart",
    "fence_awaits_no_copy": "a fence is answered while a copy is made for the former owner",
    "fence_forgotten": "a node that restarts has forgotten which owners it must refuse",
    "fence_ignored": "a node writes for an owner that a newer one has fenced off",
    "fragment_begins_early": "a fragment begins while records before it are not committed",
    "fragment_end_ignored": "a record counts although a later fragment begins before it",
    "fragment_not_agreed": "records commit before the metadata service knows their replica set",
    "fragment_not_complete": "the log ends within a fragment that has ended, though its members do not answer",
    "fragment_numbers_not_reserved": "two owners may give the same number to different fragments",
    "lease_forgotten": "a node that restarts does not wait for leases that it may have given",
    "needed_copy_dropped": "a copy is dropped while fewer others work than the volume wants",
    "needed_copy_removed": "copies with records behind the checkpoint are removed because they are incomplete",
    "no_lease_wait": "a fence is answered while leases run",
    "no_leases": "reads are served without leases",
    "one_lease_is_enough": "reads are served while one member of the fragment gives a lease",
    "record_after_give_up": "a record that was begun before a copy was given up commits without that member",
    "reboot_unnoticed": "a flush is confirmed by a node that had a power cut since it was written to",
    "served_unagreed": "a new owner serves before the metadata service has agreed to its fragment",
    "shorter_replica_kept": "a segment that a former owner has sealed too short is used as it is",
    "shorter_prefix_taken": "a new owner leaves out records that one of the copies lacks",
    "stale_copy_pulled": "a copy is made of a replica that is open, shorter, or of another owner",
    "stop_taken_for_timeout": "a device has failed because its process was stopped for longer than a request may take",
    "trim_without_lease": "a trim of blocks that are not mapped is acknowledged without leases",
    "unknown_is_done": "an update of the metadata that is not answered is taken for done",
    "unsettled_rebuilt": "segments that the newest checkpoint does not cover are rebuilt elsewhere",
    "update_not_compared": "an update of the metadata replaces what another owner has stored",
}
BUGS = {
    "acknowledge_early": "a write is acknowledged once it is copied, not when its record has committed",
    "adopt_without_flush": "recovery assumes that what it read is stable; it may be in a device's cache only",
    "alone_not_disowned": "what a deleted snapshot alone had is still counted as its heir's when it is gone",
    "any_record_is_proof": "recovery takes any record after a missing one as proof of loss, and refuses the volume",
    "branch_one_low": "a clone takes the last segment of its snapshot for one of its own log",
    "buffer_reused_early": "a record's buffer is used again while a given-up write may still read it",
    "changed_under_checkpoint": "a leaf that a checkpoint still has to write is changed before it is written",
    "checkpoint_without_drain": "a checkpoint does not wait for what was appended before it",
    "checkpoint_without_flush": "the metadata's pointer moves to a checkpoint that is not on stable media yet",
    "checkpoint_without_rest": "a checkpoint counts later writes as part of it, and stays due (a fault that existed)",
    "cleaned_by_newest_nodes": "cleaning drops map nodes that recovery from the newest checkpoint needs",
    "cleaned_without_flush": "cleaning gives up blocks although what overwrote them is not on stable media yet",
    "cookie_of_another": "a reply to a client carries the cookie of another request that is under way",
    "counter_not_of_checkpoint": "the map nodes that a checkpoint writes are left out of its counts of live blocks",
    "cut_before_checkpoint": "recovery cuts off records that the checkpoint needs (a fault that existed)",
    "detached_refused": "a clone that was detached is refused until its next checkpoint",
    "detached_unchecked": "a clone is cut off from its parent though its newest checkpoint still inherits",
    "dead_block_forgotten": "of what only a deleted snapshot had, a block in each segment is never counted as dead",
    "empty_record_kept": "an empty record keeps a buffer that other volumes wait for (a fault that existed)",
    "erased_though_not": "a volume is deleted although an error kept its segments on a device (a fault that existed)",
    "flush_retried": "a flush that fails is asked for again, and what it answers then is believed",
    "flush_skipped": "a flush flushes no device",
    "flush_told_early": "a client is told of its flush before it is done",
    "fua_not_passed_on": "what a client writes with FUA is written without",
    "fua_without_flush": "a write with FUA is acknowledged without a flush",
    "half_a_write_told": "a write is acknowledged although its end was not taken when the connection was stopped",
    "half_a_restore_served": "a crash during a point-in-time restore leaves half of it, because nothing records it",
    "half_undone_served": "a crash while a restore is undone leaves half of that restore (a fault that existed)",
    "header_edited_in_place": "a record placed again gets its new header where a given-up write may read the old one",
    "idle_flush_twice": "an idle log waits twice for one flush; later waiters never wake (a fault that existed)",
    "inherited_for_ever": "a clone that overwrites a block counts it as inherited still",
    "journal_not_rewritten": "a store assumes that the newest journal block that it read is stable after a flush",
    "journal_without_flush": "a change of the store's directory counts as durable before it was flushed",
    "late_write_commits": "a write that was given up counts for the record's next placement when it is answered",
    "merge_conflict_missed": "a block is written while bytes of it are being merged",
    "merge_reads_early": "a merge reads its block before what was logged before is committed",
    "number_given_again": "recovery numbers segments above those that it finds, not above what was promised",
    "order_in_record_reversed": "replay applies the entries of one record in the wrong order",
    "own_counted_twice": "what the head alone has is still counted as its alone when a snapshot is made of it",
    "moment_overshot": "a restore to a point in time replays one record too many",
    "rank_off_by_one": "in compacted segments a bit is counted wrong before each 64-bit boundary",
    "removed_while_needed": "a segment is removed that the newest checkpoint's map still points into",
    "replay_one_less": "recovery does not replay the newest record",
    "replay_one_more": "recovery replays the checkpoint's own record once more",
    "restore_keeps_nodes": "a volume that goes back to a snapshot keeps the map nodes that are cached",
    "restore_pins_nothing": "a volume restored to a snapshot treats the snapshot's blocks as its own alone",
    "restore_told_early": "a volume has gone back to a snapshot before that is durable",
    "rewritten_unlooked": "evacuation writes a block again as it has read it, whatever was written there since",
    "sealed_under_write": "a segment is sealed, and slabs freed, while a given-up write to it is still running",
    "sealed_unflushed": "a segment is sealed although the flush of its footer has failed",
    "shared_block_freed": "deleting a snapshot gives up what the next one shares with it",
    "slabs_free_early": "a deleted segment's slabs are given away before the deletion is durable",
    "snapshot_without_space": "a snapshot is made while writes wait for space",
    "stable_is_committed": "a record's header says that what was committed is stable, flushed or not",
    "tail_not_rewritten": "recovery assumes that what it read of open segments is stable after a flush",
    "time_runs_back": "after a restart with the clock set back, records get older times (a fault that existed)",
    "told_while_applied": "a write is acknowledged before the rest of its record is in the map (a fault that existed)",
    "torn_record_kept": "recovery does not notice that a record is torn",
    "window_cleaned": "segments behind the oldest mark are cleaned as if there were none",
    "zero_one_short": "a trim leaves out the last block of each range",
    "zeros_not_replayed": "recovery does not replay trims",
}


def find(bug: str, seeds: Iterable[int] = range(SEEDS_MAX), processes: int = 2) -> tuple[Outcome | None, int]:
    """The first failing run with this bug, and the number of runs until then."""
    runs = 0
    for outcome in run_all(seeds, processes, cluster=bug in CLUSTER_BUGS, planted=bug, engine=ENGINE):
        runs += 1
        if outcome.wrong:
            return outcome, runs
    return None, runs


def find_all(
    bugs: Iterable[str], seeds: Iterable[int] = range(SEEDS_MAX), processes: int = 2
) -> Iterator[tuple[str, Outcome | None, int]]:
    for bug in bugs:
        yield bug, *find(bug, seeds, processes)


def in_sources() -> set[str]:
    """The names planted in the engine's sources."""
    found: set[str] = set()
    for path in (ROOT / "ext").rglob("*.pyx"):
        for piece in path.read_text().split('planted(b"')[1:]:
            found.add(piece.partition('"')[0])
    return found


if __name__ == "__main__":
    for name, outcome, count in find_all(sys.argv[1:] or [*BUGS, *CLUSTER_BUGS]):
        print(f"{name:28} {f'after {count:4}: {outcome}' if outcome else f'NOT FOUND in {count}'}", flush=True)
