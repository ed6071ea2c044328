/* The library's threads: asynchronous requests, and the simulated network that every request passes. */
#ifndef ASYNC_H
#define ASYNC_H

#include "disk.h"

struct request {
    struct request *next;
    struct disk *disk;
    uint64_t start;
    uint64_t count;
    uint8_t *buffer;
    bool write;
    VixDiskLibCompletionCB callback;
    void *data;
    VixError injected; /* the result, when a fault was asked for */
    struct fate fate;
    uint64_t due_ns;
};

int async_start(void); /* at InitEx; a vix code */
void async_stop(void); /* at Exit, with nothing outstanding */

/* Take a request that was checked. VIX_ASYNC: the callback runs now (disks of this machine) or later. */
VixError async_submit(const struct request *request);
/* Do what a request asks for, from any thread, with the faults that were asked for. Its result. */
VixError request_run(struct request *request);
/* Sleep as long as the simulated link takes for a synchronous request. */
void async_delay(struct disk *disk, uint64_t bytes);

#endif
