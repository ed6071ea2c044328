/* vddk.conf of the lab: lines key=value that say which logins, VMs, snapshots and certificates exist. */
#ifndef LAB_CONF_H
#define LAB_CONF_H

#include <stdbool.h>
#include <stddef.h>

struct lab_conf {
    char *text;
};

int lab_conf_read(const char *root, struct lab_conf *conf); /* a vix code; free it also after a failure */
void lab_conf_free(struct lab_conf *conf);
bool lab_conf_has(const struct lab_conf *conf, const char *key, const char *value);
void lab_conf_first(const struct lab_conf *conf, const char *key, char *value, size_t size);

#endif
