/*
 * The binary interface of libvixDiskLib, VDDK 6.7 to 9.x on x86-64 Linux: what a compiled client relies on.
 * Sizes, offsets and values are interface facts; the static assertions pin every layout.
 * Unit of all offsets, lengths and capacities here: sectors of 512 bytes.
 */
#ifndef VIXDISKLIB_H
#define VIXDISKLIB_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#define VIX_EXPORT __attribute__((visibility("default")))

typedef uint64_t VixError; /* the code is the low 16 bits */
typedef uint64_t VixDiskLibSectorType;
typedef char Bool;

typedef struct connection *VixDiskLibConnection;
typedef struct disk *VixDiskLibHandle;

typedef void VixDiskLibGenericLogFunc(const char *format, va_list arguments);
typedef void (*VixDiskLibCompletionCB)(void *data, VixError result);

enum credential_type { CRED_UID = 1, CRED_SESSIONID = 2 };
enum spec_type { SPEC_VMX = 0, SPEC_DATASTORE = 2 }; /* the second from 8.0.1 on */
enum adapter_type { ADAPTER_IDE = 1, ADAPTER_BUSLOGIC = 2, ADAPTER_LSILOGIC = 3, ADAPTER_UNKNOWN = 256 };

enum open_flag {
    OPEN_UNBUFFERED = 0x1,
    OPEN_SINGLE_LINK = 0x2,
    OPEN_READ_ONLY = 0x4,
    OPEN_COMPRESSION_MASK = 0x3f0,
};

enum { SECTOR_SIZE = 512, MIN_CHUNK_SECTORS = 128, MAX_CHUNK_SECTORS = 131072, MAX_CHUNKS_PER_CALL = 524288 };

typedef struct {
    char *vmxSpec;
    char *serverName;
    char *thumbPrint;
    long privateUse;
    int32_t credType;
    union {
        struct {
            char *userName;
            char *password;
        } uid;
        struct {
            char *cookie;
            char *userName;
            char *key;
        } sessionId;
    } creds;
    uint32_t port;
    uint32_t nfcHostPort;
    char *vimApiVer;
    char reserved[8];
    void *state;
    union {
        struct {
            char *id;
            char *datastoreMoRef;
            char *ssId;
        } object;
        struct {
            char *datastoreMoRef;
            char *diskFolder;
        } datastore;
    } spec;
    int32_t specType;
} VixDiskLibConnectParams;

_Static_assert(sizeof(VixDiskLibConnectParams) == 128, "ConnectParams");
_Static_assert(offsetof(VixDiskLibConnectParams, creds) == 40, "ConnectParams.creds");
_Static_assert(offsetof(VixDiskLibConnectParams, vimApiVer) == 72, "ConnectParams.vimApiVer");
_Static_assert(offsetof(VixDiskLibConnectParams, state) == 88, "ConnectParams.state");
_Static_assert(offsetof(VixDiskLibConnectParams, specType) == 120, "ConnectParams.specType");

typedef struct {
    uint32_t cylinders;
    uint32_t heads;
    uint32_t sectors;
} VixDiskLibGeometry;

typedef struct {
    VixDiskLibGeometry biosGeo;
    VixDiskLibGeometry physGeo;
    VixDiskLibSectorType capacity;
    int32_t adapterType;
    int32_t numLinks;
    char *parentFileNameHint;
    char *uuid;
    uint32_t logicalSectorSize; /* the last two exist from 7.0 on */
    uint32_t physicalSectorSize;
} VixDiskLibInfo;

_Static_assert(sizeof(VixDiskLibInfo) == 64, "Info");
_Static_assert(offsetof(VixDiskLibInfo, capacity) == 24, "Info.capacity");
_Static_assert(offsetof(VixDiskLibInfo, parentFileNameHint) == 40, "Info.parentFileNameHint");
_Static_assert(offsetof(VixDiskLibInfo, logicalSectorSize) == 56, "Info.logicalSectorSize");

typedef struct {
    VixDiskLibSectorType offset;
    VixDiskLibSectorType length;
} VixDiskLibBlock;

typedef struct {
    uint32_t numBlocks;
    VixDiskLibBlock blocks[];
} VixDiskLibBlockList;

_Static_assert(offsetof(VixDiskLibBlockList, blocks) == 8, "BlockList.blocks");

#endif
