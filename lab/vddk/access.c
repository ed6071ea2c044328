#include <stdlib.h>
#include <string.h>

#include "connection.h"
#include "errors.h"
#include "knobs.h"
#include "log.h"
#include "params.h"

/* Both ends of the Storage vMotion lock: the lab's vCenter moves no disks, so there is only to check. */
static VixError access_call(const char *call, enum counted_call kind, const VixDiskLibConnectParams *params,
                            const char *identity)
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
    return vix_error(code == VIX_OK ? lab_log_in(root, params) : code);
}

VIX_EXPORT VixError VixDiskLib_PrepareForAccess(const VixDiskLibConnectParams *params, const char *identity)
{
    return access_call(__func__, CALL_PREPARE, params, identity);
}

VIX_EXPORT VixError VixDiskLib_EndAccess(const VixDiskLibConnectParams *params, const char *identity)
{
    return access_call(__func__, CALL_END, params, identity);
}

VIX_EXPORT VixError VixDiskLib_Cleanup(const VixDiskLibConnectParams *params, uint32_t *cleaned,
                                       uint32_t *remaining)
{
    guard_call(__func__);
    VixError error = fault_blocking(CALL_CLEANUP);
    if (cleaned != NULL) {
        *cleaned = 0;
    }
    if (remaining != NULL) {
        *remaining = 0;
    }
    const char *root = getenv("VADPIPE_LAB_ROOT");
    if (error != VIX_OK || params_local(params) || root == NULL) {
        return error;
    }
    int code = params_check(__func__, params, false);
    return vix_error(code == VIX_OK ? lab_log_in(root, params) : code);
}
