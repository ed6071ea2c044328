/* Connections: whom a client logged in as, and what its handles may open. */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <stdbool.h>

#include "guard.h"
#include "vixdisklib.h"

struct connection {
    struct connection *next; /* every connection ever made: a stale pointer is recognised */
    bool live;
    bool remote;
    bool read_only;
    VixDiskLibConnectParams *params; /* own copy; NULL when local */
    char *snapshot;
    char *modes;
    char *root; /* the lab's directory */
    struct exclusion busy;
};

struct connection *connection_enter(VixDiskLibConnection connection, const char *call);
void connection_leave(struct connection *connection);

/* Log in to the lab at root: a vix code, with the reason logged. */
int lab_log_in(const char *root, const VixDiskLibConnectParams *params);
/* What Open finds out: the certificate, the VM, the snapshot; a vix code, with the reason logged. */
int connection_authorise(const struct connection *connection);
/* Whether its VM does not run: a VM has its disks open for itself alone. */
bool connection_may_write(const struct connection *connection);
/* Whether a disk of the lab is eagerly zeroed. */
bool connection_eager(const struct connection *connection, const char *path);
/* The first mode of the connection that works here ("file", "nbdssl", "nbd", HOTADD and SAN if so set), or NULL. */
const char *connection_transport(const struct connection *connection);
/* The file that a disk path of the interface means; malloc'ed. */
int connection_resolve(const struct connection *connection, const char *path, char **file);

extern const char TRANSPORT_MODES[];
extern const char HOTADD[];
extern const char SAN[];

#endif
