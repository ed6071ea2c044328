#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "errors.h"
#include "guard.h"

static const struct {
    int code;
    const char *text;
} TEXTS[] = {
#define VIX_ROW(name, code, text) {code, text},
    VIX_ERRORS(VIX_ROW)
#undef VIX_ROW
};

VixError vix_error(int code)
{
    static atomic_uint detail;
    if (code == VIX_OK || code == VIX_E_BUFFER_TOOSMALL) {
        return (VixError)code; /* clients compare the answer to a size probe without masking it */
    }
    uint64_t serial = atomic_fetch_add(&detail, 1) & 0xffff;
    return (uint64_t)code | serial << 16 | UINT64_C(1) << 40;
}

VIX_EXPORT char *VixDiskLib_GetErrorText(VixError error, const char *locale)
{
    if (locale != NULL) {
        misuse(__func__, "locale must be NULL");
    }
    int code = (int)(error & 0xffff);
    char text[128];
    snprintf(text, sizeof text, "Error %d", code);
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        if (TEXTS[i].code == code) {
            snprintf(text, sizeof text, "%s", TEXTS[i].text);
        }
    }
    char *copy = object_new(OBJECT_TEXT, strlen(text) + 1);
    return copy == NULL ? NULL : strcpy(copy, text);
}

VIX_EXPORT void VixDiskLib_FreeErrorText(char *text)
{
    object_free(OBJECT_TEXT, text, __func__);
}
