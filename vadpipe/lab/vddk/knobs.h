/* Settings from the environment, injected faults, counters. The table of the knobs is in library.c. */
#ifndef KNOBS_H
#define KNOBS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vixdisklib.h"

#define COUNTED_CALLS(X)                                                                                     \
    X(INIT, "init")                                                                                          \
    X(CONNECT, "connect")                                                                                    \
    X(DISCONNECT, "disconnect")                                                                              \
    X(PREPARE, "prepare")                                                                                    \
    X(END, "end")                                                                                            \
    X(CLEANUP, "cleanup")                                                                                    \
    X(OPEN, "open")                                                                                          \
    X(CLOSE, "close")                                                                                        \
    X(INFO, "info")                                                                                          \
    X(QUERY, "query")                                                                                        \
    X(READ, "read")                                                                                          \
    X(WRITE, "write")                                                                                        \
    X(FLUSH, "flush")                                                                                        \
    X(WAIT, "wait")                                                                                          \
    X(METADATA, "metadata")                                                                                  \
    X(MANAGE, "manage")

#define CALL_ENUMERATOR(name, text) CALL_##name,
enum counted_call { COUNTED_CALLS(CALL_ENUMERATOR) CALL_KINDS };
#undef CALL_ENUMERATOR

enum allocated_answer { ALLOCATED_TRUE, ALLOCATED_ALL, ALLOCATED_UNSUPPORTED, ALLOCATED_NULL };

struct knobs {
    uint64_t latency_ns;
    uint64_t bytes_per_s; /* of one handle; 0 = no limit */
    unsigned threads;
    uint64_t seed;
    enum allocated_answer allocated;
    bool slow_exit;
    bool hot_add; /* the transport hotadd works */
    bool garbage; /* failed calls leave pointers to nothing */
    bool leak;    /* ConnectEx prints the login */
    uint64_t space; /* chunks of 64 KiB that this process may allocate */
    bool san;     /* the transport san works */
};
extern struct knobs knobs;

struct totals {
    atomic_uint_fast64_t bytes_read;
    atomic_uint_fast64_t bytes_written;
    atomic_uint_fast64_t async_requests;
    atomic_uint_fast64_t live_connections;
    atomic_uint_fast64_t live_disks;
};
extern struct totals totals;

void knobs_read(void); /* at InitEx; a knob that cannot be parsed ends the process */
void counters_write(void);

/* What was asked for one call besides its failure. */
struct fate {
    uint64_t number; /* of the call among those of its kind */
    bool hang;       /* it never completes */
    bool cut;        /* a write: half of it is done before it fails */
    bool lost;       /* a write: it succeeds and does nothing */
};

/* Count one call. Returns the injected failure (0: none); a call chosen to crash does not return. */
VixError fault_next(enum counted_call call, struct fate *fate);
/* The same for this call when it has had its effect: only its answer is lost. */
VixError fault_after(enum counted_call call, struct fate *fate);
/* The same for a call that blocks: a call chosen to hang does not return either. */
VixError fault_blocking(enum counted_call call);
/* The same for one that has had its effect; calls of its kind are not made at once. */
VixError fault_late(enum counted_call call);

#endif
