/* Who may write and read a volume's log: epochs, fences, leases, fragments, the metadata service (docs/ownership.md).

   Three nodes keep replicas, of which a fragment needs two. One process per epoch is that epoch's owner. A process that
   crashes is one that takes no further step, and a new attempt has a new epoch. Messages are steps of `Network`, which
   may take them late or never.

   A record is a bit. A fragment, what a replica holds of it, and a log are sets of records. Of two records in a
   fragment the later one has the higher bit. `known` is what a client knows to be there: acknowledged, or read. What
   must hold (MUST) is:

   - the log of every new owner has all of `known`, and so has the log of an owner that serves a read;
   - no owner tells a client of a record that a later owner's log lacks, and a record that was left out stays out;
   - a power cut leaves a copy of everything known;
   - a fragment has one writer, and an owner is turned away only when its right is lost.

   rules.py has the bounds, the rules and the situations; its names are the switches here. */

/* Bounds. */
#ifndef RECORDS
#define RECORDS 1         /* that clients write in all, 1 or 2 */
#endif
#ifndef EPOCHS
#define EPOCHS 2          /* 2 or 3 */
#endif
#ifndef SWITCHES
#define SWITCHES 1        /* times that an owner goes on in its spare fragment */
#endif
#ifndef CUTS
#define CUTS 1            /* power cuts, each of one node. With more than one, only what was flushed is promised */
#endif
#ifndef LEASES
#define LEASES 0          /* 0: leases are taken to work; only the last owner serves reads */
#endif
#ifndef FLUSHES
#define FLUSHES 0         /* 1: clients flush */
#endif
#ifndef FAILED_FLUSHES
#define FAILED_FLUSHES 0  /* of devices */
#endif

/* The rules. -DNAME=1 breaks one. */
#ifndef ACK_ONE
#define ACK_ONE 0               /* 1: one member is enough for an acknowledgement */
#endif
#ifndef ACK_UNORDERED
#define ACK_UNORDERED 0         /* 1: an acknowledgement does not wait for earlier records */
#endif
#ifndef LATE_ANSWER
#define LATE_ANSWER 0           /* 1: a late answer from an ended fragment counts for the next one */
#endif
#ifndef NO_FENCE
#define NO_FENCE 0              /* 2: a node accepts records of a lower epoch */
#endif
#ifndef FORGET_EPOCH
#define FORGET_EPOCH 0          /* 2: a power cut takes the node's epoch */
#endif
#ifndef LEASE_ONE
#define LEASE_ONE 0             /* 3: a lease from one member is enough to serve reads */
#endif
#ifndef NO_LEASE_WAIT
#define NO_LEASE_WAIT 0         /* 3: a node accepts a fence while its lease runs */
#endif
#ifndef FORGET_LEASE
#define FORGET_LEASE 0          /* 3: a restarted node does not wait for the lease that it may have given */
#endif
#ifndef FORGET_SPARE
#define FORGET_SPARE 0          /* 4: a new owner asks for no answers about the spare fragment */
#endif
#ifndef CANDIDATE_ONE
#define CANDIDATE_ONE 0         /* 4: an answer from one candidate is enough */
#endif
#ifndef TRUST_DOUBTFUL
#define TRUST_DOUBTFUL 0        /* 5: a doubtful replica's answer counts like any other */
#endif
#ifndef DOUBT_ENDS_EARLY
#define DOUBT_ENDS_EARLY 0      /* 5: the first record that is sent again ends the doubt */
#endif
#ifndef DOUBTFUL_FLUSHES
#define DOUBTFUL_FLUSHES 0      /* 5: a doubtful replica confirms a flush */
#endif
#ifndef ANSWER_IS_COPY
#define ANSWER_IS_COPY 0        /* 6: the answer to a fence counts as a flushed copy */
#endif
#ifndef SERVE_EARLY
#define SERVE_EARLY 0           /* 6: a new owner serves before its update of the metadata is known to be done */
#endif
#ifndef IGNORE_END
#define IGNORE_END 0            /* 6: a new owner takes what lies beyond the end of an ended fragment */
#endif
#ifndef OPEN_ONLY
#define OPEN_ONLY 0             /* 6: a new owner leaves fragments that are over as they are, stable or not */
#endif
#ifndef REUSE_NUMBER
#define REUSE_NUMBER 0          /* 6: a new owner begins the fragment that was its predecessor's spare */
#endif
#ifndef RESERVE_NOTHING
#define RESERVE_NOTHING 0       /* 6: raising the epoch does not reserve the number of the fragment that will begin */
#endif
#ifndef NO_COMPARE
#define NO_COMPARE 0            /* metadata: an update replaces whatever is stored */
#endif
#ifndef UNKNOWN_IS_DONE
#define UNKNOWN_IS_DONE 0       /* metadata: an owner takes the next spare to be agreed without an answer */
#endif
#ifndef OWN_IS_REFUSED
#define OWN_IS_REFUSED 0        /* metadata: a repeated update that finds its own value is taken to be refused */
#endif
#ifndef RETRY_FLUSH
#define RETRY_FLUSH 0           /* flush: a device that failed one is asked again, and believed */
#endif

/* Situations that the model must get into, or it would prove nothing about them. -DNAME=1 makes one an error. */
#ifndef DOUBT_ENDS
#define DOUBT_ENDS 0            /* a doubtful replica has everything again */
#endif
#ifndef ALL_DOUBTFUL
#define ALL_DOUBTFUL 0          /* a take-over of a fragment of which every replica is doubtful */
#endif
#ifndef LATE_WRITE
#define LATE_WRITE 0            /* a record arrives at a member after it was given up */
#endif
#ifndef UNKNOWN_WRITES
#define UNKNOWN_WRITES 0        /* a write is acknowledged while the answer to an update is unknown */
#endif
#ifndef THIRD_SERVES
#define THIRD_SERVES 0          /* an owner serves after two take-overs */
#endif
#ifndef UNACKNOWLEDGED_FOUND
#define UNACKNOWLEDGED_FOUND 0  /* a take-over finds a record that was never acknowledged */
#endif
#ifndef FLUSH_AFTER_FAILURE
#define FLUSH_AFTER_FAILURE 0   /* a flush is confirmed although a device has failed one */
#endif

#define NODES 3
#define ALL 7                   /* every node is a candidate of every spare fragment; a fragment needs two */
#define FRAGMENTS (2 + SWITCHES + 2 * (EPOCHS - 1))
#define NONE 255

/* What must hold. A trace prints the words. */
#define MUST(holds, words) if :: holds :: else -> printf(words); printf("\n"); assert(false) fi
#define SITUATION(name, occurs) \
    if :: (name) && (occurs) -> printf("reached: this situation\n"); assert(false) :: else fi

#define BIT(n) (1 << (n))
#define IN(part, whole) (((part) & ~(whole)) == 0)
#define LOWEST(set) ((set) & (0 - (set)))
#define PREFIX(held, sent) (((sent) & ~(held)) -> ((held) & (LOWEST((sent) & ~(held)) - 1)) : (held))

/* The metadata service's record of the volume: changed by compare-and-swap, as a whole. */
byte stored_epoch = 1, stored_current = 0, stored_spare = 1, stored_next = 2;
byte stored_log;                                /* the records of the fragments that are over */

/* Fragments, as their writer knows them. */
byte writer[FRAGMENTS];                         /* epoch, or 0 */
byte members[FRAGMENTS];                        /* nodes */
byte left_out[FRAGMENTS];                       /* the member that was given up when the fragment ended */
byte sent[FRAGMENTS], committed[FRAGMENTS];     /* records */

/* Nodes. */
#define AT(node, fragment) ((node) * FRAGMENTS + (fragment))
byte held[NODES * FRAGMENTS];                   /* records that a read returns */
byte stable[NODES * FRAGMENTS];                 /* records that a power cut leaves */
bool doubtful[NODES * FRAGMENTS];
byte fenced[NODES];                             /* the highest epoch that the node has heard of, durable */
byte lease[NODES];                              /* the epoch that has the node's lease, or 0 */
bool failed[NODES];                             /* its device has failed a flush: nothing more is written to it */
byte dropped[NODES];                            /* records that a failed flush has dropped from the device's cache */

/* Owners, by epoch. */
mtype = { waiting, fencing, asking, serving, refused };
#define OF(epoch, node) ((epoch) * NODES + (node))
mtype state[EPOCHS + 1] = waiting;
byte current[EPOCHS + 1], spare[EPOCHS + 1];    /* fragments; before it serves: those of its predecessor */
byte reserved[EPOCHS + 1];                      /* the fragment that it begins; its spare has the next number */
byte answers[EPOCHS + 1];                       /* nodes that have accepted its fence */
byte log[EPOCHS + 1];                           /* records that a read by this owner returns */
byte leases[EPOCHS + 1];                        /* nodes whose lease it holds, in its own view */
bool update[EPOCHS + 1];                        /* an update of the metadata is under way */
byte answered[(EPOCHS + 1) * NODES];            /* records of the current fragment that a node has confirmed */
byte flushed[(EPOCHS + 1) * NODES];             /* records that a node has confirmed as stable */

/* What is promised, and the bounds. */
byte known, left_behind, written, switches, cuts, failed_flushes;

/* Scratch of single steps; no part of a state. */
hidden byte n, g, set, found;

#define LAST_OWNER writer[stored_current]
/* What a client is told is in the log of every later owner. */
#define KNOW(epoch, records) \
    MUST((epoch) >= LAST_OWNER || IN(records, stored_log), "violated: a later log lacks what a client is told of"); \
    known = known | (records)
#define PROMISE(epoch, records) if :: CUTS < 2 -> KNOW(epoch, records) :: else fi

/* A node accepts a message of an epoch unless it knows a higher one, which it keeps. */
#define ACCEPTS(node, epoch) (fenced[node] <= (epoch))
#define FENCE(node, epoch) if :: fenced[node] < (epoch) -> fenced[node] = (epoch) :: else fi

/* Taking over ----------------------------------------------------------------------------------------------------- */

#define TRUSTED_BY(epoch, node, fragment) \
    (((answers[epoch] & BIT(node)) && (TRUST_DOUBTFUL || !doubtful[AT(node, fragment)])) -> BIT(node) : 0)
#define TRUSTED(epoch, fragment) \
    (TRUSTED_BY(epoch, 0, fragment) | TRUSTED_BY(epoch, 1, fragment) | TRUSTED_BY(epoch, 2, fragment))
#define HIT(epoch, fragment, choice) \
    ((TRUSTED(epoch, fragment) & (choice)) || IN(choice, answers[epoch]))
#define ENOUGH_OF_CURRENT(epoch) HIT(epoch, current[epoch], members[current[epoch]])
#define ENOUGH_OF_SPARE(epoch) (FORGET_SPARE \
    || (CANDIDATE_ONE && TRUSTED(epoch, spare[epoch])) \
    || (HIT(epoch, spare[epoch], 3) && HIT(epoch, spare[epoch], 5) && HIT(epoch, spare[epoch], 6)))

#if FRAGMENTS > 5
#define HELD_IN_5(node) | held[AT(node, 5)]
#else
#define HELD_IN_5(node)
#endif
#if FRAGMENTS > 6
#define HELD_IN_6(node) | held[AT(node, 6)]
#else
#define HELD_IN_6(node)
#endif

/* The end of a fragment that is over is known, so its records are taken from any replica that has them. */
#define HELD_BY(node) (held[AT(node, 0)] | held[AT(node, 1)] | held[AT(node, 2)] \
    | held[AT(node, 3)] | held[AT(node, 4)] HELD_IN_5(node) HELD_IN_6(node))
#define ANSWERED_BY(epoch, node) ((answers[epoch] & BIT(node)) -> HELD_BY(node) : 0)
#define ENOUGH_OF_ENDED(epoch) (OPEN_ONLY \
    || IN(log[epoch], ANSWERED_BY(epoch, 0) | ANSWERED_BY(epoch, 1) | ANSWERED_BY(epoch, 2)))

#define ENOUGH(epoch) (ENOUGH_OF_CURRENT(epoch) && ENOUGH_OF_SPARE(epoch) && ENOUGH_OF_ENDED(epoch))

/* The members of the next fragment: two nodes with working devices, if possible of those that have answered. */
#define WORKING (ALL & ~(failed[0] | failed[1] << 1 | failed[2] << 2))
#define TWO_OF(nodes) (IN(3, nodes) -> 3 : (IN(6, nodes) -> 6 : (IN(5, nodes) -> 5 : 0)))
#define NEXT_MEMBERS(epoch) (TWO_OF(answers[epoch] & WORKING) -> TWO_OF(answers[epoch] & WORKING) : TWO_OF(WORKING))

inline collect(e, fragment) {   /* the longest valid prefix among the answers */
    for (n : 0 .. NODES - 1) {
        if :: answers[e] & BIT(n) -> log[e] = log[e] | PREFIX(held[AT(n, fragment)], sent[fragment]) :: else fi
    }
}

/* What the log has of a fragment is written and flushed to the next fragment's members; one that knows
   a higher epoch refuses. */
inline copy(e, fragment) {
    for (n : 0 .. NODES - 1) {
        if :: (set & BIT(n)) && ACCEPTS(n, e) && !ANSWER_IS_COPY ->
              held[AT(n, fragment)] = held[AT(n, fragment)] | (sent[fragment] & log[e]);
              stable[AT(n, fragment)] = stable[AT(n, fragment)] | (sent[fragment] & log[e])
           :: else fi
    }
}

inline recover(e) {
    printf("owner %d recovers what nodes %d hold of fragments %d and %d\n", e, answers[e], current[e], spare[e]);
    SITUATION(ALL_DOUBTFUL, TRUSTED(e, current[e]) == 0);
    set = NEXT_MEMBERS(e);
    collect(e, current[e]);
    collect(e, spare[e]);
    for (g : 0 .. FRAGMENTS - 1) {
        if :: writer[g] && writer[g] < e && (!OPEN_ONLY || g == current[e] || g == spare[e]) -> copy(e, g) :: else fi
    }
    if :: IGNORE_END ->
          for (n : 0 .. NODES - 1) {
              for (g : 0 .. FRAGMENTS - 1) {
                  if :: (answers[e] & BIT(n)) && writer[g] && writer[g] < e -> log[e] = log[e] | held[AT(n, g)]
                     :: else fi
              }
          }
       :: else fi;
    current[e] = (REUSE_NUMBER -> spare[e] : reserved[e]);
    spare[e] = NONE;
    MUST(writer[current[e]] == 0, "violated: a fragment has two writers");
    writer[current[e]] = e;
    members[current[e]] = set;
    update[e] = true;
    state[e] = (SERVE_EARLY -> serving : asking)
}

/* The metadata service applies an update: of a take-over, or of an owner that goes on in its spare fragment. */
inline apply(e) {
    printf("the metadata service applies the update of owner %d: current fragment %d\n", e, current[e]);
    update[e] = false;
    if :: LAST_OWNER != e ->
          if :: LAST_OWNER < e ->
                SITUATION(UNACKNOWLEDGED_FOUND, !IN(log[e], known));
                MUST(IN(known, log[e]), "violated: a new log lacks a record that a client knows");
                MUST((log[e] & left_behind) == 0, "violated: a record is back that an earlier log had left out");
                for (g : 0 .. FRAGMENTS - 1) {
                    if :: writer[g] && writer[g] < e -> left_behind = left_behind | (sent[g] & ~log[e])
                       :: else fi
                }
             :: else fi;
          stored_log = log[e];
          stored_spare = reserved[e] + 1
       :: else ->
          stored_log = stored_log | committed[stored_current];
          stored_spare = stored_next;
          stored_next++
       fi;
    stored_epoch = e;
    stored_current = current[e];
    if :: stored_next <= stored_spare -> stored_next = stored_spare + 1 :: else fi     /* if a rule is broken */
}

/* Serving --------------------------------------------------------------------------------------------------------- */

#define NEXT_RECORD BIT(written)
#define UNCOMMITTED(epoch) (sent[current[epoch]] & ~committed[current[epoch]])
#define HAS(epoch, node, record) (!(members[current[epoch]] & BIT(node)) || (answered[OF(epoch, node)] & (record)))
#define HAS_ONE(epoch, record) \
    ((answered[OF(epoch, 0)] | answered[OF(epoch, 1)] | answered[OF(epoch, 2)]) & (record))
#define COMMITS(epoch, record) (UNCOMMITTED(epoch) & (record) \
    && (ACK_UNORDERED || (record) == LOWEST(UNCOMMITTED(epoch))) \
    && ((HAS(epoch, 0, record) && HAS(epoch, 1, record) && HAS(epoch, 2, record)) \
        || (ACK_ONE && HAS_ONE(epoch, record))))

inline commit(e, record) {
    printf("owner %d acknowledges record %d\n", e, record);
    SITUATION(UNKNOWN_WRITES, spare[e] == NONE);
    SITUATION(THIRD_SERVES, e == 3);
    committed[current[e]] = committed[current[e]] | (record);
    log[e] = log[e] | (record);
    PROMISE(e, record)
}

#define MAY_READ(epoch) (LEASES \
    -> (LEASE_ONE -> (leases[epoch] & members[current[epoch]]) : IN(members[current[epoch]], leases[epoch])) \
    : epoch >= LAST_OWNER)

inline go_on(e, node) {         /* in the spare fragment, without this member; nobody is asked */
    printf("owner %d gives up node %d and goes on in fragment %d\n", e, node, spare[e]);
    switches++;
    g = current[e];
    left_out[g] = BIT(node);
    current[e] = spare[e];
    spare[e] = (UNKNOWN_IS_DONE -> spare[e] + 1 : NONE);
    MUST(writer[current[e]] == 0 || writer[current[e]] == e, "violated: a fragment has two writers");
    writer[current[e]] = e;
    members[current[e]] = ALL & ~BIT(node);
    sent[current[e]] = sent[g] & ~committed[g];
    for (n : 0 .. NODES - 1) {
        if :: !LATE_ANSWER -> answered[OF(e, n)] = 0 :: else fi
    }
    update[e] = true
}

#define AWAITS(epoch) (state[epoch] == asking || (state[epoch] == serving && spare[epoch] == NONE))
#define OWN_IS_STORED(epoch) (stored_epoch == (epoch) && stored_current == current[epoch])

#define COVERED(epoch, node, fragment) \
    (held[AT(node, fragment)] | (DOUBTFUL_FLUSHES -> answered[OF(epoch, node)] : 0))

/* A flush covers what each member holds, unless it is doubtful. It is confirmed to the client when every fragment of
   this owner is stable on the members that were not given up. */
inline flush(e, node) {
    printf("node %d flushes for owner %d\n", node, e);
    for (g : 0 .. FRAGMENTS - 1) {
        if :: writer[g] == e && (!doubtful[AT(node, g)] || DOUBTFUL_FLUSHES) ->
              flushed[OF(e, node)] = flushed[OF(e, node)] | COVERED(e, node, g)
           :: else fi;
        stable[AT(node, g)] = stable[AT(node, g)] | (held[AT(node, g)] & ~dropped[node])
    }
    g = 0                                       /* a loop cannot end a d_step */
}

#define STABLE_AT(epoch, node, fragment) \
    (!(members[fragment] & ~left_out[fragment] & BIT(node)) || IN(committed[fragment], flushed[OF(epoch, node)]))
#define STABLE_IN(epoch, fragment) (writer[fragment] != (epoch) || committed[fragment] == 0 \
    || ((members[fragment] & ~left_out[fragment] & WORKING) \
        && STABLE_AT(epoch, 0, fragment) && STABLE_AT(epoch, 1, fragment) && STABLE_AT(epoch, 2, fragment)))

inline confirm_flush(e) {
    found = 1;
    for (g : 0 .. FRAGMENTS - 1) {
        if :: !STABLE_IN(e, g) -> found = 0 :: else fi
    }
    if :: found ->
          printf("owner %d confirms a flush\n", e);
          SITUATION(FLUSH_AFTER_FAILURE, failed_flushes);
          KNOW(e, log[e])
       :: else fi
}

#define FENCE_STEP(node) \
    :: d_step { state[e] == fencing && !(answers[e] & BIT(node)) && ACCEPTS(node, e) \
                && (lease[node] == 0 || NO_LEASE_WAIT) -> \
                printf("node %d accepts the fence of epoch %d\n", node, e); \
                fenced[node] = e; answers[e] = answers[e] | BIT(node) }
#define GO_ON_STEP(node) \
    :: d_step { state[e] == serving && switches < SWITCHES && spare[e] != NONE \
                && (members[current[e]] & BIT(node)) && IN(ALL & ~BIT(node), WORKING) -> go_on(e, node) }
#define LEASE_STEP(node) \
    :: d_step { LEASES && state[e] == serving && (members[current[e]] & BIT(node)) && !(leases[e] & BIT(node)) \
                && ACCEPTS(node, e) && (lease[node] == 0 || lease[node] == e) -> \
                printf("node %d gives owner %d a lease\n", node, e); \
                FENCE(node, e); lease[node] = e; leases[e] = leases[e] | BIT(node) }
#define FLUSH_STEP(node) \
    :: d_step { FLUSHES && state[e] == serving && !failed[node] && ACCEPTS(node, e) && answered[OF(e, node)] \
                && !IN(answered[OF(e, node)], flushed[OF(e, node)]) -> FENCE(node, e); flush(e, node) }

proctype Owner(byte e) {
    do
    :: d_step { state[e] == waiting && stored_epoch < e && (stored_epoch == e - 1 || NO_COMPARE) ->
                printf("owner %d raises the epoch\n", e);
                stored_epoch = e; current[e] = stored_current; spare[e] = stored_spare; log[e] = stored_log;
                reserved[e] = stored_next;
                if :: !RESERVE_NOTHING -> stored_next = stored_next + 2 :: else fi;
                state[e] = fencing }
    FENCE_STEP(0) FENCE_STEP(1) FENCE_STEP(2)
    :: d_step { state[e] == fencing && ENOUGH(e) && TWO_OF(WORKING) -> recover(e) }

    :: d_step { AWAITS(e) && OWN_IS_STORED(e) && !OWN_IS_REFUSED ->
                printf("owner %d finds its update done\n", e);
                spare[e] = stored_spare; state[e] = serving }
    :: d_step { AWAITS(e) && (stored_epoch != e || (OWN_IS_REFUSED && OWN_IS_STORED(e))) ->
                printf("owner %d is turned away\n", e);
                MUST(stored_epoch != e, "violated: an owner is turned away although its right is not lost");
                state[e] = refused }

    :: d_step { state[e] == serving && written < RECORDS ->
                printf("owner %d sends record %d in fragment %d\n", e, NEXT_RECORD, current[e]);
                sent[current[e]] = sent[current[e]] | NEXT_RECORD; written++ }
    :: d_step { state[e] == serving && COMMITS(e, 1) -> commit(e, 1) }
    :: d_step { state[e] == serving && COMMITS(e, 2) -> commit(e, 2) }
    :: d_step { state[e] == serving && MAY_READ(e) && (known != log[e]) ->
                printf("owner %d serves a read\n", e);
                MUST(IN(known, log[e]), "violated: a read lacks a record that a client knows");
                PROMISE(e, log[e]) }
    GO_ON_STEP(0) GO_ON_STEP(1) GO_ON_STEP(2)
    LEASE_STEP(0) LEASE_STEP(1) LEASE_STEP(2)
    FLUSH_STEP(0) FLUSH_STEP(1) FLUSH_STEP(2)
    :: d_step { FLUSHES && state[e] == serving && !IN(log[e], known) -> confirm_flush(e) }
    od
}

/* Network, nodes and power ---------------------------------------------------------------------------------------- */

/* A record arrives at a member, in any order and however late: also after its sender has given the member up. */
inline arrive(node, fragment, record) {
    printf("node %d writes record %d of fragment %d\n", node, record, fragment);
    FENCE(node, writer[fragment]);
    held[AT(node, fragment)] = held[AT(node, fragment)] | record;
    if :: held[AT(node, fragment)] == sent[fragment] || DOUBT_ENDS_EARLY ->
          SITUATION(DOUBT_ENDS, doubtful[AT(node, fragment)]);
          doubtful[AT(node, fragment)] = false
       :: else fi;
    SITUATION(LATE_WRITE, (left_out[fragment] & BIT(node)));
    if :: current[writer[fragment]] == fragment || LATE_ANSWER ->
          answered[OF(writer[fragment], node)] = answered[OF(writer[fragment], node)] | record
       :: else fi
}

inline cut(node) {
    printf("node %d has a power cut\n", node);
    cuts++;
    found = 0;
    for (g : 0 .. FRAGMENTS - 1) {
        doubtful[AT(node, g)] = doubtful[AT(node, g)] || held[AT(node, g)];
        held[AT(node, g)] = stable[AT(node, g)];
        for (n : 0 .. NODES - 1) { found = found | held[AT(n, g)] }
    }
    MUST(IN(known, found), "violated: a power cut takes the last copy of a record that a client knows");
    if :: FORGET_LEASE -> lease[node] = 0 :: else fi;
    if :: FORGET_EPOCH -> fenced[node] = 0 :: else fi
}

inline fail_flush(node) {
    printf("a flush fails on node %d\n", node);
    failed_flushes++;
    for (g : 0 .. FRAGMENTS - 1) { dropped[node] = dropped[node] | (held[AT(node, g)] & ~stable[AT(node, g)]) }
    if :: !RETRY_FLUSH -> failed[node] = true :: else fi
}

#define ARRIVE_STEP(node, fragment, record) \
    :: d_step { (members[fragment] & BIT(node)) && (sent[fragment] & ~held[AT(node, fragment)] & (record)) \
                && !failed[node] && (NO_FENCE || ACCEPTS(node, writer[fragment])) -> arrive(node, fragment, record) }
#define ARRIVE_STEPS(fragment) \
    ARRIVE_STEP(0, fragment, 1) ARRIVE_STEP(1, fragment, 1) ARRIVE_STEP(2, fragment, 1) \
    ARRIVE_STEP(0, fragment, 2) ARRIVE_STEP(1, fragment, 2) ARRIVE_STEP(2, fragment, 2)
#define APPLY_STEP(epoch) \
    :: d_step { update[epoch] && (stored_epoch == epoch || NO_COMPARE) -> apply(epoch) }
/* A lease runs out: at the owner first, then at the node. In one step, because between them nothing new can happen. */
#define RUN_OUT_STEP(node) \
    :: d_step { lease[node] -> \
                printf("the lease of node %d runs out\n", node); \
                leases[lease[node]] = leases[lease[node]] & ~BIT(node); lease[node] = 0 }
#define CUT_STEP(node) \
    :: d_step { cuts < CUTS -> cut(node) }
#define FAIL_FLUSH_STEP(node) \
    :: d_step { FLUSHES && failed_flushes < FAILED_FLUSHES && !failed[node] -> fail_flush(node) }

proctype Network() {
    do
    ARRIVE_STEPS(0) ARRIVE_STEPS(1) ARRIVE_STEPS(2) ARRIVE_STEPS(3) ARRIVE_STEPS(4)
#if FRAGMENTS > 5
    ARRIVE_STEPS(5)
#endif
#if FRAGMENTS > 6
    ARRIVE_STEPS(6)
#endif
    APPLY_STEP(1) APPLY_STEP(2)
#if EPOCHS > 2
    APPLY_STEP(3)
#endif
    RUN_OUT_STEP(0) RUN_OUT_STEP(1) RUN_OUT_STEP(2)
    CUT_STEP(0) CUT_STEP(1) CUT_STEP(2)
    FAIL_FLUSH_STEP(0) FAIL_FLUSH_STEP(1) FAIL_FLUSH_STEP(2)
    od
}

init {
    atomic {
        writer[0] = 1; members[0] = 3;
        state[1] = serving; current[1] = 0; spare[1] = 1;
        for (n : 1 .. EPOCHS) { run Owner(n) }
        run Network()
    }
}
