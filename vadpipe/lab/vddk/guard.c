#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guard.h"

enum phase { FRESH, RUNNING, EXITED };

static atomic_int phase = FRESH;
static pid_t owner_process;
static _Thread_local bool in_callback;

_Noreturn void misuse(const char *call, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "vixDiskLib stand-in: misuse in %s: %s\n", call, text);
    abort();
}

void require(const void *pointer, const char *call, const char *name)
{
    if (pointer == NULL) {
        misuse(call, "required parameter %s is NULL", name);
    }
}

void guard_call(const char *call)
{
    switch (atomic_load(&phase)) {
    case FRESH:
        misuse(call, "called before InitEx");
    case EXITED:
        misuse(call, "called after Exit, or after InitEx failed");
    default:
        break;
    }
    if (getpid() != owner_process) {
        misuse(call, "called after fork: the library's threads live in process %d", (int)owner_process);
    }
    if (in_callback) {
        misuse(call, "called from inside a completion callback");
    }
}

bool guard_start(void)
{
    int expected = FRESH;
    if (!atomic_compare_exchange_strong(&phase, &expected, RUNNING)) {
        return false;
    }
    owner_process = getpid();
    return true;
}

void guard_failed(void)
{
    atomic_store(&phase, FRESH);
}

void guard_exit(void)
{
    atomic_store(&phase, EXITED);
}

pid_t guard_thread(void)
{
    static _Thread_local pid_t thread;
    if (thread == 0) {
        thread = (pid_t)syscall(SYS_gettid);
    }
    return thread;
}

void guard_in_callback(bool inside)
{
    in_callback = inside;
}

void exclusion_enter(struct exclusion *exclusion, const char *call, const char *what)
{
    pid_t owner = 0;
    if (!atomic_compare_exchange_strong(&exclusion->owner, &owner, guard_thread())) {
        const char *other = atomic_load(&exclusion->call);
        misuse(call, "thread %d calls while thread %d is inside %s %s", (int)guard_thread(), (int)owner,
               other == NULL ? "a call" : other, what);
    }
    atomic_store(&exclusion->call, call);
}

void exclusion_leave(struct exclusion *exclusion)
{
    atomic_store(&exclusion->owner, 0);
}

/* ---- objects ---------------------------------------------------------------------------------------- */

struct object {
    struct object *next;
    enum object_kind kind;
    size_t size;
    void *memory;
};

/*
 * Freed objects keep their poison for this many later frees, so that a reader of freed memory sees it. Larger
 * ones (long block lists) are given back at once to keep memory bounded.
 */
enum { QUARANTINE = 256, QUARANTINE_MAX_SIZE = 16384, POISON = 0xdb, TAIL = 16, TAIL_BYTE = 0xa5 };

static pthread_mutex_t objects_lock = PTHREAD_MUTEX_INITIALIZER;
static struct object *live;
static struct object *quarantine[QUARANTINE];
static size_t quarantine_next;

void *object_new(enum object_kind kind, size_t size)
{
    struct object *object = malloc(sizeof *object);
    /* Garbage on purpose: who believes in a longer struct reads nonsense, not zeroes. */
    unsigned char *memory = malloc(size + TAIL);
    if (object == NULL || memory == NULL) {
        free(object);
        free(memory);
        return NULL;
    }
    memset(memory, 0, size);
    memset(memory + size, TAIL_BYTE, TAIL);
    *object = (struct object){.kind = kind, .size = size, .memory = memory};
    pthread_mutex_lock(&objects_lock);
    object->next = live;
    live = object;
    pthread_mutex_unlock(&objects_lock);
    return memory;
}

static struct object *unlink_live(enum object_kind kind, const void *memory)
{
    for (struct object **place = &live; *place != NULL; place = &(*place)->next) {
        struct object *object = *place;
        if (object->memory == memory && object->kind == kind) {
            *place = object->next;
            return object;
        }
    }
    return NULL;
}

void object_free(enum object_kind kind, void *memory, const char *call)
{
    if (memory == NULL) {
        return;
    }
    pthread_mutex_lock(&objects_lock);
    struct object *object = unlink_live(kind, memory);
    if (object == NULL) {
        for (size_t i = 0; i < QUARANTINE; i++) {
            if (quarantine[i] != NULL && quarantine[i]->memory == memory) {
                misuse(call, "%p was freed before", memory);
            }
        }
        misuse(call, "%p does not come from the matching call of this library", memory);
    }
    memset(memory, POISON, object->size);
    struct object *oldest = object;
    if (object->size <= QUARANTINE_MAX_SIZE) {
        oldest = quarantine[quarantine_next];
        quarantine[quarantine_next] = object;
        quarantine_next = (quarantine_next + 1) % QUARANTINE;
    }
    pthread_mutex_unlock(&objects_lock);
    if (oldest != NULL) {
        free(oldest->memory);
        free(oldest);
    }
}

bool object_known(enum object_kind kind, const void *memory)
{
    bool found = false;
    pthread_mutex_lock(&objects_lock);
    for (struct object *object = live; object != NULL; object = object->next) {
        found |= object->memory == memory && object->kind == kind;
    }
    pthread_mutex_unlock(&objects_lock);
    return found;
}

unsigned object_live(enum object_kind kind)
{
    unsigned count = 0;
    pthread_mutex_lock(&objects_lock);
    for (struct object *object = live; object != NULL; object = object->next) {
        count += object->kind == kind;
    }
    pthread_mutex_unlock(&objects_lock);
    return count;
}
