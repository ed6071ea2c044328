/*
 * What keeps clients honest: misuse ends the process with a message that names the call and the mistake.
 * The real library hangs, crashes or corrupts memory in these cases, long after the mistake.
 */
#ifndef GUARD_H
#define GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Write "misuse in <call>: ..." to standard error and abort. */
_Noreturn void misuse(const char *call, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A parameter the real library dereferences without looking. */
void require(const void *pointer, const char *call, const char *name);

/* Entry check of calls that need a running library: InitEx done, Exit not, no fork, not in a callback. */
void guard_call(const char *call);

/* FRESH -> RUNNING (false when InitEx succeeded before), RUNNING -> FRESH when it fails, RUNNING -> EXITED. */
bool guard_start(void);
void guard_failed(void);
void guard_exit(void);

pid_t guard_thread(void);
void guard_in_callback(bool inside);

/* A lock that is not waited for: finding it taken is the client's mistake. */
struct exclusion {
    _Atomic(pid_t) owner;
    const char *_Atomic call;
};
void exclusion_enter(struct exclusion *exclusion, const char *call, const char *what);
void exclusion_leave(struct exclusion *exclusion);

/* Memory handed to the client: kept in a registry, poisoned when freed, freed for good only much later. */
enum object_kind { OBJECT_PARAMS, OBJECT_INFO, OBJECT_BLOCK_LIST, OBJECT_TEXT, OBJECT_KINDS };
void *object_new(enum object_kind kind, size_t size);                    /* zeroed; NULL when out of memory */
void object_free(enum object_kind kind, void *object, const char *call); /* NULL is allowed */
bool object_known(enum object_kind kind, const void *object);
unsigned object_live(enum object_kind kind);

#endif
