/* Open disks: the handle of the interface and the one way into its data. */
#ifndef DISK_H
#define DISK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "connection.h"
#include "guard.h"
#include "knobs.h"
#include "vmdk.h"

enum disk_state { DISK_OPEN, DISK_CLOSED, DISK_DISCONNECTED };

struct disk {
    struct disk *next; /* every disk ever opened: a stale pointer is recognised */
    enum disk_state state;
    struct connection *connection;
    struct chain *chain;
    const char *transport;
    uint32_t flags;
    bool remote;  /* asynchronous calls go to the library's threads */
    bool eager;   /* all of it is zeroed, so all is allocated */
    int attached; /* descriptor of a hot-added disk (outside.h), or -1 */
    struct exclusion busy;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t settled;
    unsigned outstanding;  /* requests whose callback has not begun */
    unsigned delivering;   /* requests whose callback runs */
    uint64_t link_free_ns; /* when the simulated link has carried what was asked so far */
    uint8_t *taken;        /* one bit per smallest chunk: allocated by a write of this handle; NULL: not writable */
};

/* Enter and leave a call on a handle. Aborts on a handle that is NULL, unknown, closed, or in use. */
struct disk *disk_enter(VixDiskLibHandle handle, const char *call);
void disk_leave(struct disk *disk);
unsigned disk_outstanding(struct disk *disk);
void disk_wait(struct disk *disk);

/* Read or write a checked range, from any thread; a vix code. */
int disk_transfer(struct disk *disk, uint64_t start, uint64_t count, uint8_t *buffer, bool write);

/* Before a write: remember the chunks that it will allocate. This handle does not list them; a vix code. */
int disk_note_write(struct disk *disk, uint64_t start, uint64_t count);

/* Disconnect closes what was opened through a connection. */
void disks_disconnect(const struct connection *connection, const char *call);
/* How many requests of all disks are outstanding. */
unsigned disks_outstanding(void);

/* vixDiskLib.nfcAio.Session settings of the configuration file; Open refuses too large a product. */
extern uint64_t session_buffer_bytes;
extern uint64_t session_buffer_count;

#endif
