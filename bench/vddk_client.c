/*
 * The reference of bench/vddk_latency.py: read a disk in one process, with the next request issued at each
 * completion. Prints the seconds.  vddk_client LIBRARY DEPTH BYTES THUMBPRINT DISK
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "vixdisklib.h"

enum { REQUEST_SECTORS = 2048, MAX_DEPTH = 256 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t freed = PTHREAD_COND_INITIALIZER;
static size_t places[MAX_DEPTH];
static size_t free_places;

static void quiet(const char *format, va_list arguments)
{
    (void)format, (void)arguments;
}

static void must(VixError error, const char *call)
{
    if (error != 0 && error != 25000) {
        fprintf(stderr, "%s: %llu\n", call, (unsigned long long)error);
        exit(1);
    }
}

static void completed(void *data, VixError error)
{
    must(error, "ReadAsync");
    pthread_mutex_lock(&lock);
    places[free_places++] = (size_t)data;
    pthread_cond_signal(&freed);
    pthread_mutex_unlock(&lock);
}

static size_t take_place(void)
{
    pthread_mutex_lock(&lock);
    while (free_places == 0) {
        pthread_cond_wait(&freed, &lock);
    }
    size_t place = places[--free_places];
    pthread_mutex_unlock(&lock);
    return place;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int count, char **words)
{
    if (count != 6) {
        return 2;
    }
    void *library = dlopen(words[1], RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    size_t depth = strtoul(words[2], NULL, 10);
    uint64_t sectors = strtoull(words[3], NULL, 10) / SECTOR_SIZE;
#define FIND(result, name, ...) result (*name)(__VA_ARGS__) = dlsym(library, "VixDiskLib_" #name)
    FIND(VixError, InitEx, uint32_t, uint32_t, VixDiskLibGenericLogFunc *, VixDiskLibGenericLogFunc *,
         VixDiskLibGenericLogFunc *, const char *, const char *);
    FIND(VixDiskLibConnectParams *, AllocateConnectParams, void);
    FIND(VixError, ConnectEx, VixDiskLibConnectParams *, Bool, const char *, const char *, VixDiskLibConnection *);
    FIND(VixError, Open, VixDiskLibConnection, const char *, uint32_t, VixDiskLibHandle *);
    FIND(VixError, ReadAsync, VixDiskLibHandle, uint64_t, uint64_t, void *, VixDiskLibCompletionCB, void *);
    FIND(VixError, Wait, VixDiskLibHandle);
    FIND(VixError, Close, VixDiskLibHandle);
    FIND(VixError, Disconnect, VixDiskLibConnection);
    FIND(void, FreeConnectParams, VixDiskLibConnectParams *);
    FIND(void, Exit, void);

    must(InitEx(6, 7, quiet, quiet, quiet, NULL, NULL), "InitEx");
    VixDiskLibConnectParams *params = AllocateConnectParams();
    params->vmxSpec = "moref=vm-1";
    params->serverName = "vc";
    params->thumbPrint = words[4];
    params->credType = CRED_UID;
    params->creds.uid.userName = "u";
    params->creds.uid.password = "password";
    VixDiskLibConnection connection;
    VixDiskLibHandle handle;
    must(ConnectEx(params, 1, "snapshot-1", "nbdssl", &connection), "ConnectEx");
    must(Open(connection, words[5], OPEN_READ_ONLY, &handle), "Open");
    size_t bytes = (size_t)REQUEST_SECTORS * SECTOR_SIZE;
    char *memory = mmap(NULL, depth * bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (size_t place = 0; place < depth; place++) {
        places[free_places++] = place;
    }
    double started = now();
    for (uint64_t sector = 0; sector < sectors; sector += REQUEST_SECTORS) {
        size_t place = take_place();
        must(ReadAsync(handle, sector, REQUEST_SECTORS, memory + place * bytes, completed, (void *)place), "ReadAsync");
    }
    for (size_t place = 0; place < depth; place++) {
        take_place();
    }
    printf("%f\n", now() - started);
    Wait(handle);
    Close(handle);
    Disconnect(connection);
    FreeConnectParams(params);
    Exit();
    return 0;
}
