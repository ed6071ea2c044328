#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "connection.h"
#include "disk.h"
#include "errors.h"
#include "knobs.h"
#include "lab_conf.h"
#include "log.h"
#include "params.h"

const char HOTADD[] = "hotadd";
const char SAN[] = "san";
const char TRANSPORT_MODES[] = "file:san:hotadd:nbdssl:nbd";

static struct connection *_Atomic connections; /* changed only inside Connect, which excludes itself */
static struct exclusion connecting;

/* ---- the lab's answers ------------------------------------------------------------------------------ */

static int check_login(const struct lab_conf *conf, const VixDiskLibConnectParams *params)
{
    bool accepted;
    if (params->credType == CRED_SESSIONID) {
        accepted = lab_conf_has(conf, "cookie", params->creds.sessionId.cookie);
    } else {
        accepted = lab_conf_has(conf, "user", params->creds.uid.userName) &&
                   lab_conf_has(conf, "password", params->creds.uid.password);
    }
    if (!accepted) {
        log_warn("%s: the login was refused\n", params->serverName);
        return VIX_E_HOST_USER_PERMISSIONS;
    }
    return VIX_OK;
}

static int check_datastore(const struct lab_conf *conf, const VixDiskLibConnectParams *params)
{
    if (!lab_conf_has(conf, "datastore", params->spec.datastore.datastoreMoRef)) {
        log_warn("%s: there is no datastore '%s'\n", params->serverName, params->spec.datastore.datastoreMoRef);
        return VIX_E_FILE_NOT_FOUND;
    }
    return VIX_OK;
}

static int check_vm(const struct lab_conf *conf, const VixDiskLibConnectParams *params)
{
    if (params->specType == SPEC_DATASTORE) {
        return check_datastore(conf, params);
    }
    const char *spec = params->vmxSpec;
    const char *vm = params_vm(params);
    if (spec != NULL && (vm == NULL || !lab_conf_has(conf, "vm", vm))) {
        log_warn("%s: there is no virtual machine '%s'\n", params->serverName, spec);
        return VIX_E_VM_NOT_FOUND;
    }
    return VIX_OK;
}

int lab_log_in(const char *root, const VixDiskLibConnectParams *params)
{
    struct lab_conf conf;
    int code = lab_conf_read(root, &conf);
    if (code == VIX_OK) {
        code = check_login(&conf, params);
    }
    if (code == VIX_OK) {
        code = check_vm(&conf, params);
    }
    lab_conf_free(&conf);
    return code;
}

static int check_snapshot(const struct lab_conf *conf, const struct connection *connection)
{
    const char *snapshot = connection->snapshot;
    if (snapshot != NULL && *snapshot != '\0' && !lab_conf_has(conf, "snapshot", snapshot)) {
        log_warn("%s: there is no snapshot '%s'\n", connection->params->serverName, snapshot);
        return VIX_E_SNAPSHOT_NOTFOUND;
    }
    return VIX_OK;
}

static int check_thumbprint(const struct lab_conf *conf, const VixDiskLibConnectParams *params)
{
    if (params->thumbPrint != NULL && lab_conf_has(conf, "thumbprint", params->thumbPrint)) {
        return VIX_OK;
    }
    char actual[128];
    lab_conf_first(conf, "thumbprint", actual, sizeof actual);
    log_warn("%s: certificate not trusted: expected thumbprint %s, actual thumbprint %s\n",
             params->serverName, params->thumbPrint == NULL ? "(none)" : params->thumbPrint, actual);
    return VIX_E_FAIL;
}

int connection_authorise(const struct connection *connection)
{
    struct lab_conf conf;
    int code = lab_conf_read(connection->root, &conf);
    if (code == VIX_OK) {
        code = check_thumbprint(&conf, connection->params);
    }
    if (code == VIX_OK) {
        code = check_vm(&conf, connection->params);
    }
    if (code == VIX_OK) {
        code = check_snapshot(&conf, connection);
    }
    lab_conf_free(&conf);
    return code;
}

static bool listed(const struct connection *connection, const char *key, const char *value)
{
    struct lab_conf conf;
    bool found = lab_conf_read(connection->root, &conf) == VIX_OK && lab_conf_has(&conf, key, value);
    lab_conf_free(&conf);
    return found;
}

bool connection_may_write(const struct connection *connection)
{
    const char *vm = params_vm(connection->params);
    bool on = vm != NULL && listed(connection, "on", vm);
    if (on) {
        log_warn("Open: the virtual machine '%s' is powered on and has its disks open\n", vm);
    }
    return !on;
}

bool connection_eager(const struct connection *connection, const char *path)
{
    return listed(connection, "eager", path);
}

const char *connection_transport(const struct connection *connection)
{
    if (!connection->remote) {
        return "file";
    }
    bool of_vm = params_vm(connection->params) != NULL;
    const char *const working[] = {"nbdssl", "nbd", knobs.hot_add && of_vm ? HOTADD : NULL,
                                   knobs.san && of_vm ? SAN : NULL};
    const char *mode = connection->modes == NULL ? TRANSPORT_MODES : connection->modes;
    while (*mode != '\0') {
        size_t length = strcspn(mode, ":");
        for (size_t i = 0; i < sizeof working / sizeof *working; i++) {
            if (working[i] != NULL && strlen(working[i]) == length && strncmp(mode, working[i], length) == 0) {
                return working[i];
            }
        }
        log_info("transport %.*s: not available for this disk\n", (int)length, mode);
        mode += length + (mode[length] == ':');
    }
    return NULL;
}

int connection_resolve(const struct connection *connection, const char *path, char **file)
{
    *file = NULL;
    if (!connection->remote) {
        if (*path != '/') {
            log_warn("'%s': a local disk needs an absolute path\n", path);
            return VIX_E_FILE_NAME_INVALID;
        }
        *file = strdup(path);
        return *file == NULL ? VIX_E_OUT_OF_MEMORY : VIX_OK;
    }
    char datastore[256];
    int used = 0;
    if (sscanf(path, "[%255[^]/]] %n", datastore, &used) != 1 || used == 0 || path[used] == '\0' ||
        strcmp(datastore, "..") == 0 || strstr(path + used, "..") != NULL) {
        log_warn("'%s': a disk path has the form '[datastore] folder/disk.vmdk'\n", path);
        return VIX_E_FILE_NAME_INVALID;
    }
    if (asprintf(file, "%s/datastores/%s/%s", connection->root, datastore, path + used) < 0) {
        return VIX_E_OUT_OF_MEMORY;
    }
    return VIX_OK;
}

/* ---- connecting ------------------------------------------------------------------------------------- */

static char *copy_text(const char *text)
{
    return text == NULL ? NULL : strdup(text);
}

/* What a library may print past its log functions, e.g. from a part that was built for debugging. */
static void print_login(const VixDiskLibConnectParams *params)
{
    bool session = params->credType == CRED_SESSIONID;
    FILE *const streams[] = {stdout, stderr};
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        fprintf(streams[i], "connecting as %s with '%s'\n",
                session ? params->creds.sessionId.userName : params->creds.uid.userName,
                session ? params->creds.sessionId.cookie : params->creds.uid.password);
        fprintf(streams[i], "ticket: 52f1a9b3-88d7-cafe\n");
        fflush(streams[i]);
    }
}

static VixError connect_to(const char *call, const VixDiskLibConnectParams *params, bool read_only,
                           const char *snapshot, const char *modes, VixDiskLibConnection *result)
{
    guard_call(call);
    require(result, call, "connection");
    *result = NULL;
    exclusion_enter(&connecting, call, "(connections are made one at a time)");
    const char *root = params_local(params) ? NULL : getenv("VADPIPE_LAB_ROOT");
    int code = params_local(params) ? VIX_OK : params_check(call, params, true);
    if (knobs.leak && root != NULL) {
        print_login(params);
    }
    VixError error = fault_blocking(CALL_CONNECT);
    if (code == VIX_OK && error == VIX_OK && root != NULL) {
        code = lab_log_in(root, params);
    } else if (code == VIX_OK && error == VIX_OK && !params_local(params)) {
        log_warn("%s: VADPIPE_LAB_ROOT is not set: only local disks can be opened\n", params->serverName);
    }
    struct connection *connection = NULL;
    if (code == VIX_OK && error == VIX_OK && (connection = calloc(1, sizeof *connection)) != NULL) {
        connection->live = true;
        connection->remote = root != NULL;
        connection->read_only = read_only;
        connection->params = params_local(params) ? NULL : params_copy(params);
        connection->snapshot = copy_text(snapshot);
        connection->modes = copy_text(modes);
        connection->root = copy_text(root);
        connection->next = connections;
        connections = connection;
        atomic_fetch_add(&totals.live_connections, 1);
        *result = connection;
    } else if (code == VIX_OK && error == VIX_OK) {
        code = VIX_E_OUT_OF_MEMORY;
    }
    if (connection == NULL && knobs.garbage) {
        *result = (VixDiskLibConnection)(uintptr_t)0xdead;
    }
    exclusion_leave(&connecting);
    return error != VIX_OK ? error : vix_error(code);
}

VIX_EXPORT VixError VixDiskLib_Connect(const VixDiskLibConnectParams *params,
                                       VixDiskLibConnection *connection)
{
    return connect_to(__func__, params, false, NULL, NULL, connection);
}

VIX_EXPORT VixError VixDiskLib_ConnectEx(const VixDiskLibConnectParams *params, Bool read_only,
                                         const char *snapshot, const char *modes,
                                         VixDiskLibConnection *connection)
{
    return connect_to(__func__, params, read_only != 0, snapshot, modes, connection);
}

struct connection *connection_enter(VixDiskLibConnection handle, const char *call)
{
    guard_call(call);
    require(handle, call, "connection");
    struct connection *connection = connections;
    while (connection != NULL && connection != handle) {
        connection = connection->next;
    }
    if (connection == NULL) {
        misuse(call, "%p is not a connection of this library", (void *)handle);
    }
    if (!connection->live) {
        misuse(call, "the connection was used after Disconnect");
    }
    exclusion_enter(&connection->busy, call, "of the same connection");
    return connection;
}

void connection_leave(struct connection *connection)
{
    exclusion_leave(&connection->busy);
}

VIX_EXPORT VixError VixDiskLib_Disconnect(VixDiskLibConnection handle)
{
    struct connection *connection = connection_enter(handle, __func__);
    VixError error = fault_blocking(CALL_DISCONNECT);
    disks_disconnect(connection, __func__);
    connection->live = false;
    object_free(OBJECT_PARAMS, connection->params, __func__);
    free(connection->snapshot);
    free(connection->modes);
    free(connection->root);
    connection->params = NULL;
    connection->snapshot = connection->modes = connection->root = NULL;
    atomic_fetch_sub(&totals.live_connections, 1);
    connection_leave(connection);
    return error;
}

VIX_EXPORT VixError VixDiskLib_GetConnectParams(const VixDiskLibConnection handle,
                                                VixDiskLibConnectParams **params)
{
    struct connection *connection = connection_enter(handle, __func__);
    require(params, __func__, "connectParams");
    static const VixDiskLibConnectParams local;
    *params = params_copy(connection->remote ? connection->params : &local);
    connection_leave(connection);
    return vix_error(*params == NULL ? VIX_E_OUT_OF_MEMORY : VIX_OK);
}
