#include <stdlib.h>
#include <string.h>

#include "connection.h"
#include "errors.h"
#include "knobs.h"
#include "lab_conf.h"
#include "log.h"
#include "outside.h"
#include "params.h"

/* Directly on an ESXi host there is nothing that could be locked. */
static int check_vcenter(const char *root, const char *call)
{
    struct lab_conf conf;
    int code = lab_conf_read(root, &conf);
    if (code == VIX_OK && lab_conf_has(&conf, "api", "HostAgent")) {
        log_warn("%s: the server is not a vCenter\n", call);
        code = VIX_E_NOT_SUPPORTED;
    }
    lab_conf_free(&conf);
    return code;
}

/* Both ends of the Storage vMotion lock, after all that they have in common: the effect is left to do. */
static VixError access_call(const char *call, enum counted_call kind, const VixDiskLibConnectParams *params,
                            const char *identity, int (*effect)(const char *, const char *, const char *))
{
    enum { MAX_IDENTITY = 50 };
    guard_call(call);
    require(params, call, "connectParams");
    require(identity, call, "identity");
    VixError error = fault_blocking(kind);
    const char *root = getenv("VADPIPE_LAB_ROOT");
    if (error != VIX_OK) {
        return error;
    }
    if (params_local(params) || root == NULL) {
        log_warn("%s: needs a vCenter\n", call);
        return vix_error(VIX_E_NOT_SUPPORTED);
    }
    int code = params_check(call, params, true);
    if (code == VIX_OK && strlen(identity) > MAX_IDENTITY) {
        log_warn("%s: the identity is longer than %d characters\n", call, MAX_IDENTITY);
        code = VIX_E_INVALID_ARG;
    }
    if (code == VIX_OK) {
        code = lab_log_in(root, params);
    }
    if (code == VIX_OK) {
        code = check_vcenter(root, call);
    }
    if (code == VIX_OK) {
        code = effect(root, params_vm(params), identity);
    }
    return code == VIX_OK ? fault_late(kind) : vix_error(code);
}

VIX_EXPORT VixError VixDiskLib_PrepareForAccess(const VixDiskLibConnectParams *params, const char *identity)
{
    return access_call(__func__, CALL_PREPARE, params, identity, lock_take);
}

VIX_EXPORT VixError VixDiskLib_EndAccess(const VixDiskLibConnectParams *params, const char *identity)
{
    return access_call(__func__, CALL_END, params, identity, lock_end);
}

VIX_EXPORT VixError VixDiskLib_Cleanup(const VixDiskLibConnectParams *params, uint32_t *cleaned,
                                       uint32_t *remaining)
{
    guard_call(__func__);
    VixError error = fault_blocking(CALL_CLEANUP);
    uint32_t counts[2] = {0, 0};
    const char *root = getenv("VADPIPE_LAB_ROOT");
    int code = VIX_OK;
    if (error == VIX_OK && !params_local(params) && root != NULL) {
        code = params_check(__func__, params, false);
        if (code == VIX_OK) {
            code = lab_log_in(root, params);
        }
        if (code == VIX_OK) {
            hot_clean(root, params_vm(params), &counts[0], &counts[1]);
            error = fault_late(CALL_CLEANUP);
        }
    }
    if (cleaned != NULL) {
        *cleaned = counts[0];
    }
    if (remaining != NULL) {
        *remaining = counts[1];
    }
    return error != VIX_OK ? error : vix_error(code);
}
