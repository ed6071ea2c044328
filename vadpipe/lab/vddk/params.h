/* Connection parameters: allocated, copied, checked. */
#ifndef PARAMS_H
#define PARAMS_H

#include <stdbool.h>

#include "vixdisklib.h"

/* Absent or zeroed parameters mean this machine. */
bool params_local(const VixDiskLibConnectParams *params);
/* Abort on what the real library dereferences without looking; a vix code for what it refuses. */
int params_check(const char *call, const VixDiskLibConnectParams *params, bool vm_needed);
/* The moref in vmxSpec, NULL without one. */
const char *params_vm(const VixDiskLibConnectParams *params);
/* To be released with FreeConnectParams; NULL when out of memory. */
VixDiskLibConnectParams *params_copy(const VixDiskLibConnectParams *params);

#endif
