/*
 * A stand-in for VMware's libvixDiskLib: the same binary interface, over VMDK chains in a directory.
 *
 * It is for the demo, the tests and the benchmarks of a client, so it is true where clients can tell (disk
 * contents, allocated blocks, completion on foreign threads, error codes with detail bits) and stricter than
 * the original where clients go wrong: misuse that the original answers with a hang or damaged memory some
 * time later ends the process at once, with a message on standard error that names the call and the mistake
 * (guard.c).
 *
 *   library.c   InitEx, Exit           connection.c, params.c, lab_conf.c, access.c   who may open what
 *   outside.c   locks, hot-added disks
 *   disk.c      Open, Close            transfer.c, async.c                            reads, writes, threads
 *   info.c, metadata.c, allocated.c    facts about a disk
 *   vmdk_*.c                           the disks as files
 *
 * Datastore paths "[name] folder/disk.vmdk" are files $VADPIPE_LAB_ROOT/datastores/name/folder/disk.vmdk.
 * $VADPIPE_LAB_ROOT/vddk.conf says who may log in and what exists, in lines thumbprint=, user=, password=,
 * cookie=, vm=, on= (a VM that runs), snapshot=, datastore= and eager= (the path of an eagerly zeroed disk: all of
 * it is allocated), several of each, and api=HostAgent for an ESXi host; it is read again at every
 * ConnectEx and Open. Without VADPIPE_LAB_ROOT every connection is one to this machine.
 *
 * Knobs, read at InitEx:
 *
 *   VADPIPE_VDDK_LATENCY_MS=4          each request takes this long, plus up to as much again at random
 *   VADPIPE_VDDK_BANDWIDTH_MIB=100     MiB per second of each disk handle
 *   VADPIPE_VDDK_THREADS=4             threads that complete asynchronous requests
 *   VADPIPE_VDDK_SEED=1                of the order in which they do
 *   VADPIPE_VDDK_FAULT=read:17:14011,open:2:4
 *                                      the Nth call of that kind in this process fails with that code
 *   VADPIPE_VDDK_HANG=read:9           the Nth call never completes
 *   VADPIPE_VDDK_CRASH=read:9          the Nth call aborts the process
 *   VADPIPE_VDDK_CRASH=prepare:1+      the same when the call has had its effect; + also in _FAULT and _HANG,
 *                                      for prepare, end, cleanup, write, flush and close
 *   VADPIPE_VDDK_CUT=write:9:8         the Nth write does half of its work, then fails with that code
 *   VADPIPE_VDDK_LOSE=write:9          the Nth write succeeds, and nothing is written
 *   VADPIPE_VDDK_ONCE=dir              a fault fires once over all processes: it leaves a marker in dir
 *   VADPIPE_VDDK_QAB=unsupported|all|null
 *                                      QueryAllocatedBlocks fails, or (as on NFS) says all is allocated, or succeeds
 *                                      without a list
 *   VADPIPE_VDDK_GARBAGE=1             a failed ConnectEx or Open leaves a pointer to nothing behind
 *   VADPIPE_VDDK_LEAK=1                ConnectEx prints the login to standard output and standard error
 *   VADPIPE_VDDK_COUNTERS=file         Exit appends calls, bytes and live objects as one line of JSON
 *   VADPIPE_VDDK_SLOW_EXIT=1           Exit takes a second, as the original's does
 *   VADPIPE_VDDK_HOTADD=1              this machine is a VM that can hot-add disks (outside.c)
 *   VADPIPE_VDDK_SPACE_MIB=8           writes that make this process allocate more fail: the datastore is full
 *   VADPIPE_VDDK_SAN=1                 this machine sees the disks of the datastores (transport san)
 *
 * A disk has one writer alone or any number of readers, and no writer while its VM is on; others are refused with
 * FILE_ALREADY_LOCKED. What a handle allocates by writing is listed by later handles only, as with the original.
 *
 * LACKS="name name" of make builds a library without these functions (vddk_build.py).
 *
 * Kinds of calls: connect disconnect prepare end cleanup open close info query read write flush wait metadata
 * manage init. Reads and writes count synchronous and asynchronous calls together.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "async.h"
#include "disk.h"
#include "errors.h"
#include "generation.h"
#include "knobs.h"
#include "log.h"
#include "outside.h"

/* ---- the configuration file ------------------------------------------------------------------------- */

static char *trim(char *text)
{
    text += strspn(text, " \t\"");
    size_t length = strlen(text);
    while (length > 0 && (isspace((unsigned char)text[length - 1]) || text[length - 1] == '"')) {
        length--;
    }
    text[length] = '\0';
    return text;
}

static void apply_setting(const char *path, char *line)
{
    char *value = line;
    const char *name = trim(strsep(&value, "="));
    if (*name == '#' || *name == '\0') {
        return;
    }
    if (value == NULL) {
        log_warn("%s: '%s' is not of the form name=value\n", path, name);
        return;
    }
    value = trim(value);
    if (strcmp(name, "vixDiskLib.nfcAio.Session.BufSizeIn64KB") == 0) {
        session_buffer_bytes = strtoull(value, NULL, 10) * 65536;
    } else if (strcmp(name, "vixDiskLib.nfcAio.Session.BufCount") == 0) {
        session_buffer_count = strtoull(value, NULL, 10);
    } else if (strcmp(name, "tmpDirectory") == 0) {
        snprintf(tmp_directory, sizeof tmp_directory, "%s", value);
    }
}

static int read_configuration(const char *path)
{
    FILE *stream = fopen(path, "re");
    if (stream == NULL) {
        log_warn("InitEx: cannot read the configuration file %s: %s\n", path, strerror(errno));
        return VIX_E_FILE_NOT_FOUND;
    }
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, stream) >= 0) {
        apply_setting(path, line);
    }
    free(line);
    fclose(stream);
    return VIX_OK;
}

/* ---- life ------------------------------------------------------------------------------------------- */

static int start(uint32_t major, uint32_t minor, const char *directory, const char *configuration)
{
    bool too_old = major < 6 || (major == 6 && minor < 5);
    if (too_old || major > (uint32_t)vddk_generation) {
        log_warn("InitEx: version %u.%u was asked for, this library offers 6.5 to %d\n", major, minor,
                 vddk_generation);
        return VIX_E_INVALID_ARG;
    }
    log_info("VDDK %d stand-in, libDir '%s'\n", vddk_generation, directory == NULL ? "" : directory);
    if (vddk_generation >= 7) {
        log_warn("VDDK_PhoneHome: not configured\n"); /* healthy systems say so too, and at this level */
    }
    int code = configuration == NULL ? VIX_OK : read_configuration(configuration);
    return code == VIX_OK ? async_start() : code;
}

static VixError initialise(uint32_t major, uint32_t minor, VixDiskLibGenericLogFunc *info,
                           VixDiskLibGenericLogFunc *warn, const char *directory, const char *configuration)
{
    if (!guard_start()) {
        log_warn("InitEx: the library was initialised before: once per process\n");
        return vix_error(VIX_E_DISK_SUBSYSTEM_INIT_FAIL);
    }
    log_start(info, warn);
    knobs_read();
    VixError error = fault_blocking(CALL_INIT);
    if (error == VIX_OK) {
        error = vix_error(start(major, minor, directory, configuration));
    }
    if (error != VIX_OK) {
        guard_failed(); /* the client may try again, with another version or file */
    }
    return error;
}

/* The panic function is part of the interface; this library's panics abort, they do not call. */
VIX_EXPORT VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, VixDiskLibGenericLogFunc *info,
                                      VixDiskLibGenericLogFunc *warn, VixDiskLibGenericLogFunc *panic,
                                      const char *directory, const char *configuration)
{
    (void)panic;
    return initialise(major, minor, info, warn, directory, configuration);
}

VIX_EXPORT VixError VixDiskLib_Init(uint32_t major, uint32_t minor, VixDiskLibGenericLogFunc *info,
                                    VixDiskLibGenericLogFunc *warn, VixDiskLibGenericLogFunc *panic,
                                    const char *directory)
{
    (void)panic;
    return initialise(major, minor, info, warn, directory, NULL);
}

VIX_EXPORT void VixDiskLib_Exit(void)
{
    guard_call(__func__);
    unsigned outstanding = disks_outstanding();
    if (outstanding > 0) {
        misuse(__func__, "%u asynchronous requests are outstanding", outstanding);
    }
    guard_exit();
    async_stop();
    log_info("Exit: live: %u connections, %u disks, %u params, %u infos, %u block lists, %u texts\n",
             (unsigned)totals.live_connections, (unsigned)totals.live_disks, object_live(OBJECT_PARAMS),
             object_live(OBJECT_INFO), object_live(OBJECT_BLOCK_LIST), object_live(OBJECT_TEXT));
    counters_write();
    if (knobs.slow_exit) {
        sleep(1);
    }
}

VIX_EXPORT const char *VixDiskLib_ListTransportModes(void)
{
    return TRANSPORT_MODES;
}
