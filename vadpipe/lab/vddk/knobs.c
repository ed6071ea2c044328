#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "errors.h"
#include "generation.h"
#include "guard.h"
#include "knobs.h"
#include "log.h"

struct knobs knobs;
struct totals totals;

static const char *const CALL_NAMES[CALL_KINDS] = {
#define CALL_NAME(name, text) [CALL_##name] = text,
    COUNTED_CALLS(CALL_NAME)
#undef CALL_NAME
};

enum fault_action { FAIL, HANG, CRASH, CUT, LOSE };
static const char *const ACTION_NAMES[] = {
    [FAIL] = "fault", [HANG] = "hang", [CRASH] = "crash", [CUT] = "cut", [LOSE] = "lose"};

static struct fault {
    enum fault_action action;
    enum counted_call call;
    uint64_t number; /* the Nth call of this kind in this process, from 1 */
    int code;
    bool late; /* when the call has had its effect: only its answer is lost */
} faults[64];
static size_t fault_count;
static atomic_uint_fast64_t calls[CALL_KINDS];
static atomic_uint_fast64_t injected;
static const char *once_directory;

_Noreturn static void bad_knob(const char *name, const char *value, const char *expected)
{
    misuse("InitEx", "environment variable %s='%s' cannot be parsed: expected %s", name, value, expected);
}

static double number_knob(const char *name, double fallback)
{
    const char *value = getenv(name);
    if (value == NULL || *value == '\0') {
        return fallback;
    }
    char *end;
    double number = strtod(value, &end);
    if (*end != '\0' || !(number >= 0)) {
        bad_knob(name, value, "a number that is not negative");
    }
    return number;
}

static void parse_fault(const char *knob, enum fault_action action, const char *item)
{
    bool coded = action == FAIL || action == CUT;
    const char *expected = coded ? "<call>:<number>[+]:<code>, ..." : "<call>:<number>[+], ...";
    char name[16];
    unsigned long long number = 0;
    int code = 0;
    int used = 0;
    sscanf(item, "%15[a-z]:%llu%n", name, &number, &used);
    bool late = used > 0 && item[used] == '+';
    const char *rest = item + used + late;
    used = 0;
    bool complete = !coded || (sscanf(rest, ":%d%n", &code, &used) == 1 && used > 0);
    if (number == 0 || !complete || rest[used] != '\0') {
        bad_knob(knob, item, expected);
    }
    if (fault_count == sizeof faults / sizeof *faults) {
        bad_knob(knob, item, "at most 64 faults in all");
    }
    for (enum counted_call call = 0; call < CALL_KINDS; call++) {
        bool has_effect = call == CALL_PREPARE || call == CALL_END || call == CALL_CLEANUP ||
                          call == CALL_WRITE || call == CALL_FLUSH || call == CALL_CLOSE;
        bool fits = action == CUT || action == LOSE ? call == CALL_WRITE && !late : has_effect || !late;
        if (strcmp(name, CALL_NAMES[call]) == 0 && fits) {
            faults[fault_count++] = (struct fault){action, call, number, code, late};
            return;
        }
    }
    bad_knob(knob, item, "a call such as read, write, open or connect; with + one that changes something");
}

static void read_faults(const char *knob, enum fault_action action)
{
    const char *value = getenv(knob);
    char list[1024];
    if (value == NULL) {
        return;
    }
    if (strlen(value) >= sizeof list) {
        bad_knob(knob, value, "a list shorter than 1024 characters");
    }
    strcpy(list, value);
    char *rest = list;
    for (char *item = strsep(&rest, ","); item != NULL; item = strsep(&rest, ",")) {
        if (*item != '\0') {
            parse_fault(knob, action, item);
        }
    }
}

void knobs_read(void)
{
    knobs.latency_ns = (uint64_t)(number_knob("VADPIPE_VDDK_LATENCY_MS", 0) * 1e6);
    knobs.bytes_per_s = (uint64_t)(number_knob("VADPIPE_VDDK_BANDWIDTH_MIB", 0) * 1048576);
    knobs.threads = (unsigned)number_knob("VADPIPE_VDDK_THREADS", 4);
    knobs.seed = (uint64_t)number_knob("VADPIPE_VDDK_SEED", 1);
    knobs.slow_exit = number_knob("VADPIPE_VDDK_SLOW_EXIT", 0) > 0;
    knobs.hot_add = number_knob("VADPIPE_VDDK_HOTADD", 0) > 0;
    knobs.garbage = number_knob("VADPIPE_VDDK_GARBAGE", 0) > 0;
    knobs.leak = number_knob("VADPIPE_VDDK_LEAK", 0) > 0;
    knobs.space = (uint64_t)(number_knob("VADPIPE_VDDK_SPACE_MIB", 1e12) * 16);
    knobs.san = number_knob("VADPIPE_VDDK_SAN", 0) > 0;
    if (knobs.threads < 1 || knobs.threads > 64) {
        bad_knob("VADPIPE_VDDK_THREADS", getenv("VADPIPE_VDDK_THREADS"), "1 to 64");
    }
    const char *allocated = getenv("VADPIPE_VDDK_QAB");
    if (allocated != NULL && strcmp(allocated, "all") == 0) {
        knobs.allocated = ALLOCATED_ALL;
    } else if (allocated != NULL && strcmp(allocated, "unsupported") == 0) {
        knobs.allocated = ALLOCATED_UNSUPPORTED;
    } else if (allocated != NULL && strcmp(allocated, "null") == 0) {
        knobs.allocated = ALLOCATED_NULL;
    } else if (allocated != NULL && *allocated != '\0') {
        bad_knob("VADPIPE_VDDK_QAB", allocated, "'all', 'unsupported' or 'null'");
    }
    once_directory = getenv("VADPIPE_VDDK_ONCE");
    fault_count = 0; /* a failed InitEx may be followed by another one */
    read_faults("VADPIPE_VDDK_FAULT", FAIL);
    read_faults("VADPIPE_VDDK_HANG", HANG);
    read_faults("VADPIPE_VDDK_CRASH", CRASH);
    read_faults("VADPIPE_VDDK_CUT", CUT);
    read_faults("VADPIPE_VDDK_LOSE", LOSE);
}

/* Whether a fault that is due fires: with a marker directory, in the first process only. */
static bool fires(const struct fault *fault)
{
    if (once_directory == NULL) {
        return true;
    }
    char marker[PATH_MAX];
    snprintf(marker, sizeof marker, "%s/%s-%s-%llu%s", once_directory, ACTION_NAMES[fault->action],
             CALL_NAMES[fault->call], (unsigned long long)fault->number, fault->late ? "+" : "");
    int fd = open(marker, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0 && errno != EEXIST) {
        misuse("VADPIPE_VDDK_ONCE", "cannot create %s: %s", marker, strerror(errno));
    }
    if (fd < 0) {
        return false;
    }
    close(fd);
    return true;
}

static VixError fault_due(enum counted_call call, bool late, struct fate *fate)
{
    for (size_t i = 0; i < fault_count; i++) {
        const struct fault *fault = &faults[i];
        if (fault->call != call || fault->number != fate->number || fault->late != late || !fires(fault)) {
            continue;
        }
        atomic_fetch_add(&injected, 1);
        switch (fault->action) {
        case CUT:
            fate->cut = true;
            return vix_error(fault->code);
        case FAIL:
            return vix_error(fault->code);
        case LOSE:
            fate->lost = true;
            return VIX_OK;
        case HANG:
            log_warn("%s call %llu hangs as asked\n", CALL_NAMES[call], (unsigned long long)fate->number);
            fate->hang = true;
            return VIX_OK;
        case CRASH:
            fprintf(stderr, "vixDiskLib stand-in: crash as asked at %s call %llu\n", CALL_NAMES[call],
                    (unsigned long long)fate->number);
            abort();
        }
    }
    return VIX_OK;
}

VixError fault_next(enum counted_call call, struct fate *fate)
{
    *fate = (struct fate){.number = atomic_fetch_add(&calls[call], 1) + 1};
    return fault_due(call, false, fate);
}

VixError fault_after(enum counted_call call, struct fate *fate)
{
    return fault_due(call, true, fate);
}

static VixError after_hanging(VixError error, bool hang)
{
    while (hang) {
        pause();
    }
    return error;
}

VixError fault_blocking(enum counted_call call)
{
    struct fate fate;
    VixError error = fault_next(call, &fate);
    return after_hanging(error, fate.hang);
}

VixError fault_late(enum counted_call call)
{
    struct fate fate = {.number = calls[call]};
    VixError error = fault_after(call, &fate);
    return after_hanging(error, fate.hang);
}

void counters_write(void)
{
    const char *path = getenv("VADPIPE_VDDK_COUNTERS");
    if (path == NULL || *path == '\0') {
        return;
    }
    char *line = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&line, &length);
    if (stream == NULL) {
        return;
    }
    fprintf(stream, "{\"pid\": %d, \"generation\": %d, \"calls\": {", (int)getpid(), vddk_generation);
    for (enum counted_call call = 0; call < CALL_KINDS; call++) {
        fprintf(stream, "%s\"%s\": %llu", call == 0 ? "" : ", ", CALL_NAMES[call],
                (unsigned long long)calls[call]);
    }
    fprintf(stream, "}, \"async_requests\": %llu, \"bytes_read\": %llu, \"bytes_written\": %llu",
            (unsigned long long)totals.async_requests, (unsigned long long)totals.bytes_read,
            (unsigned long long)totals.bytes_written);
    fprintf(stream, ", \"injected\": %llu, \"live\": {\"connections\": %llu, \"disks\": %llu",
            (unsigned long long)injected, (unsigned long long)totals.live_connections,
            (unsigned long long)totals.live_disks);
    fprintf(stream, ", \"params\": %u, \"infos\": %u, \"block_lists\": %u, \"texts\": %u}}\n",
            object_live(OBJECT_PARAMS), object_live(OBJECT_INFO), object_live(OBJECT_BLOCK_LIST),
            object_live(OBJECT_TEXT));
    fclose(stream);
    int fd = open(path, O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, line, length) != (ssize_t)length) {
        fprintf(stderr, "vixDiskLib stand-in: cannot write the counters to %s: %s\n", path, strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    free(line);
}
