/* A pack's manifest.json, checked field by field. */
#ifndef DDM_MANIFEST_H
#define DDM_MANIFEST_H

#include "ddm_kernels.h"
#include "json.h"

enum { DDM_SCHEMA = 1, DDM_MAX_ARGUMENTS = 64, DDM_NONE = -1 };

/* One kernel. Strings belong to the manifest's document; sizes are in bytes; what an op hasn't is DDM_NONE. */
typedef struct ddm_entry {
    const char *name;
    const char *op;
    const char *entry;
    const char *architecture;
    const char *dtype;
    const char *cubin;
    const char *cubin_sha256;
    int head_dim;
    int branches;
    int noise;
    int num_warps;
    int shared_bytes;
    int alignment;
    const json_value *tile;
    size_t argument_count; /* scratch included */
    ddm_kind arguments[DDM_MAX_ARGUMENTS];
} ddm_entry;

typedef struct ddm_manifest {
    json_document document;
    ddm_entry *entries;
    size_t count;
} ddm_manifest;

/* Read `content`; `path` is what an error calls it. Free the manifest either way. */
ddm_status ddm_manifest_read(const char *content, size_t size, const char *path, ddm_manifest *manifest);
void ddm_manifest_free(ddm_manifest *manifest);

#endif
