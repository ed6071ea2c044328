/* Management calls: the names are part of the interface, no mover calls them; each says "not supported". */
#include "errors.h"
#include "guard.h"
#include "knobs.h"
#include "log.h"

static VixError refuse(const char *call)
{
    guard_call(call);
    VixError error = fault_blocking(CALL_MANAGE);
    log_warn("%s: not supported by the stand-in\n", call);
    return error != VIX_OK ? error : vix_error(VIX_E_NOT_SUPPORTED);
}

/* A refusal needs no arguments, and the calling convention does not mind that they are not named. */
#define REFUSE(name)                                                                                         \
    VIX_EXPORT VixError VixDiskLib_##name(void);                                                             \
    VIX_EXPORT VixError VixDiskLib_##name(void)                                                              \
    {                                                                                                        \
        return refuse(__func__);                                                                             \
    }

REFUSE(SetInjectedFault)
REFUSE(Create)
REFUSE(CreateChild)
REFUSE(IsAttachPossible)
REFUSE(Attach)
REFUSE(Clone)
REFUSE(SpaceNeededForClone)
REFUSE(Grow)
REFUSE(Shrink)
REFUSE(Defragment)
REFUSE(Rename)
REFUSE(Unlink)
REFUSE(CheckRepair)
