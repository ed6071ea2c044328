#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "errors.h"
#include "lab_conf.h"
#include "log.h"

int lab_conf_read(const char *root, struct lab_conf *conf)
{
    char *path = NULL;
    conf->text = NULL;
    if (asprintf(&path, "%s/vddk.conf", root) < 0) {
        return VIX_E_OUT_OF_MEMORY;
    }
    FILE *stream = fopen(path, "re");
    size_t size = 0;
    /* The file has no NUL: up to it is all of it. An empty file gives no text, which lists nothing. */
    if (stream == NULL || (getdelim(&conf->text, &size, '\0', stream) < 0 && ferror(stream))) {
        log_warn("%s: the lab cannot be reached: %s\n", path, strerror(errno));
    }
    free(path);
    if (stream == NULL) {
        return VIX_E_CANNOT_CONNECT_TO_HOST;
    }
    fclose(stream);
    return VIX_OK;
}

void lab_conf_free(struct lab_conf *conf)
{
    free(conf->text);
    conf->text = NULL;
}

/* The next value of a key: its start and length without surrounding blanks. */
static bool next_value(const char **cursor, const char *key, const char **value, size_t *length)
{
    size_t key_length = strlen(key);
    while (*cursor != NULL && **cursor != '\0') {
        const char *line = *cursor + strspn(*cursor, " \t\r\n");
        size_t rest = strcspn(line, "\n");
        *cursor = line + rest;
        if (strncmp(line, key, key_length) != 0) {
            continue;
        }
        const char *equals = line + key_length + strspn(line + key_length, " \t");
        if (*equals != '=') {
            continue;
        }
        const char *end = line + rest;
        *value = equals + 1 + strspn(equals + 1, " \t");
        while (end > *value && isspace((unsigned char)end[-1])) {
            end--;
        }
        *length = end > *value ? (size_t)(end - *value) : 0;
        return true;
    }
    return false;
}

bool lab_conf_has(const struct lab_conf *conf, const char *key, const char *value)
{
    bool thumbprint = strcmp(key, "thumbprint") == 0; /* hex pairs: case has no meaning */
    const char *cursor = conf->text;
    const char *listed;
    size_t length;
    while (next_value(&cursor, key, &listed, &length)) {
        if (strlen(value) == length &&
            (thumbprint ? strncasecmp(listed, value, length) : strncmp(listed, value, length)) == 0) {
            return true;
        }
    }
    return false;
}

void lab_conf_first(const struct lab_conf *conf, const char *key, char *value, size_t size)
{
    const char *cursor = conf->text;
    const char *listed;
    size_t length;
    bool found = next_value(&cursor, key, &listed, &length);
    snprintf(value, size, "%.*s", found ? (int)length : 6, found ? listed : "(none)");
}
