#include "manifest.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

/* Where a value stands, for the error text. */
typedef struct place {
    const char *path;
    const json_document *document;
    size_t kernel;
} place;

static ddm_status refuse(const place *at, const char *key, const char *expected) {
    return ddm_fail(DDM_ERROR_PACK, "%s: kernels.%zu.%s: expected %s", at->path, at->kernel, key, expected);
}

static ddm_status read_text(const place *at, const json_value *object, const char *key, const char **text) {
    const json_value *value = json_member(at->document, object, key);
    if (value == NULL || value->kind != JSON_STRING || value->text[0] == '\0') {
        return refuse(at, key, "some text");
    }
    *text = value->text;
    return DDM_OK;
}

static ddm_status read_number(const place *at, const json_value *object, const char *key, int least, int most,
                              int *number) {
    const json_value *value = json_member(at->document, object, key);
    if (value == NULL || value->kind != JSON_INTEGER || value->integer < least || value->integer > most) {
        return ddm_fail(DDM_ERROR_PACK, "%s: kernels.%zu.%s: expected a whole number from %d to %d", at->path,
                        at->kernel, key, least, most);
    }
    *number = (int)value->integer;
    return DDM_OK;
}

/* As read_number, where null stands for DDM_NONE. */
static ddm_status read_optional(const place *at, const json_value *object, const char *key, int most, int *number) {
    const json_value *value = json_member(at->document, object, key);
    *number = DDM_NONE;
    return value != NULL && value->kind == JSON_NULL ? DDM_OK : read_number(at, object, key, 1, most, number);
}

static ddm_status read_noise(const place *at, const json_value *object, int *noise) {
    const json_value *value = json_member(at->document, object, "noise");
    if (value == NULL || (value->kind != JSON_NULL && value->kind != JSON_BOOL)) {
        return refuse(at, "noise", "true, false or null");
    }
    *noise = value->kind == JSON_NULL ? DDM_NONE : (int)value->integer;
    return DDM_OK;
}

/* A name without a folder in it: a manifest names no file outside its pack. */
static int is_plain(const char *name) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
    return name[0] != '.' && name[0] != '-' && strlen(name) <= 128 && strspn(name, allowed) == strlen(name);
}

static ddm_status read_cubin(const place *at, const json_value *object, ddm_entry *entry) {
    const json_value *file = json_member(at->document, object, "cubin");
    if (file == NULL || file->kind != JSON_OBJECT) {
        return refuse(at, "cubin", "a file and its sha256");
    }
    ddm_status status = read_text(at, file, "file", &entry->cubin);
    if (status == DDM_OK) {
        status = read_text(at, file, "sha256", &entry->cubin_sha256);
    }
    if (status == DDM_OK && !is_plain(entry->cubin)) {
        status = refuse(at, "cubin.file", "a plain file name");
    }
    if (status == DDM_OK &&
        (strlen(entry->cubin_sha256) != 64 || strspn(entry->cubin_sha256, "0123456789abcdef") != 64)) {
        status = refuse(at, "cubin.sha256", "64 hexadecimal digits");
    }
    return status;
}

static ddm_status read_arguments(const place *at, const json_value *object, ddm_entry *entry) {
    static const struct {
        const char *name;
        ddm_kind kind;
        int bytes;
    } kinds[] = {{"pointer", DDM_POINTER, 8}, {"i32", DDM_I32, 4}, {"scratch", DDM_SCRATCH, 8}};
    const json_value *list = json_member(at->document, object, "arguments");
    if (list == NULL || list->kind != JSON_ARRAY || list->first == 0) {
        return refuse(at, "arguments", "a list of launch arguments");
    }
    for (size_t i = list->first; i != 0; i = at->document->values[i].next) {
        const json_value *argument = &at->document->values[i];
        const char *name = NULL, *kind = NULL;
        int bytes = 0;
        if (argument->kind != JSON_OBJECT || entry->argument_count == DDM_MAX_ARGUMENTS) {
            return refuse(at, "arguments", "up to 64 arguments with name, kind and bytes");
        }
        ddm_status status = read_text(at, argument, "name", &name);
        if (status == DDM_OK) {
            status = read_text(at, argument, "kind", &kind);
        }
        if (status == DDM_OK) {
            status = read_number(at, argument, "bytes", 4, 8, &bytes);
        }
        if (status != DDM_OK) {
            return status;
        }
        size_t k = 0;
        while (k < 3 && strcmp(kinds[k].name, kind) != 0) {
            k++;
        }
        if (k == 3 || kinds[k].bytes != bytes) {
            return ddm_fail(DDM_ERROR_PACK, "%s: kernels.%zu: argument %s is a %s of %d bytes, which isn't known",
                            at->path, at->kernel, name, kind, bytes);
        }
        entry->arguments[entry->argument_count++] = kinds[k].kind;
    }
    return DDM_OK;
}

static ddm_status read_entry(const place *at, const json_value *object, ddm_entry *entry) {
    const struct {
        const char *key;
        const char **text;
    } texts[] = {
        {"name", &entry->name},
        {"op", &entry->op},
        {"entry", &entry->entry},
        {"architecture", &entry->architecture},
        {"dtype", &entry->dtype},
    };
    const struct {
        const char *key;
        int least, most;
        int *number;
    } numbers[] = {
        {"num_warps", 1, 32, &entry->num_warps},
        {"shared_bytes", 0, 256 * 1024, &entry->shared_bytes},
        {"alignment", 1, 4096, &entry->alignment},
    };
    if (object->kind != JSON_OBJECT) {
        return ddm_fail(DDM_ERROR_PACK, "%s: kernels.%zu: expected an object", at->path, at->kernel);
    }
    ddm_status status = DDM_OK;
    for (size_t i = 0; status == DDM_OK && i < sizeof texts / sizeof *texts; i++) {
        status = read_text(at, object, texts[i].key, texts[i].text);
    }
    for (size_t i = 0; status == DDM_OK && i < sizeof numbers / sizeof *numbers; i++) {
        status = read_number(at, object, numbers[i].key, numbers[i].least, numbers[i].most, numbers[i].number);
    }
    if (status == DDM_OK) {
        status = read_optional(at, object, "head_dim", 1024, &entry->head_dim);
    }
    if (status == DDM_OK) {
        status = read_optional(at, object, "branches", 3, &entry->branches);
    }
    if (status == DDM_OK) {
        status = read_noise(at, object, &entry->noise);
    }
    if (status == DDM_OK) {
        status = read_cubin(at, object, entry);
    }
    if (status == DDM_OK) {
        status = read_arguments(at, object, entry);
    }
    entry->tile = json_member(at->document, object, "tile");
    if (status == DDM_OK && (entry->tile == NULL || entry->tile->kind != JSON_OBJECT)) {
        status = refuse(at, "tile", "an object of whole numbers");
    }
    return status;
}

ddm_status ddm_manifest_read(const char *content, size_t size, const char *path, ddm_manifest *manifest) {
    size_t offset = 0;
    memset(manifest, 0, sizeof *manifest);
    const json_document *document = &manifest->document;
    const char *problem = json_read(content, size, &manifest->document, &offset);
    if (problem != NULL) {
        return ddm_fail(DDM_ERROR_PACK, "%s: %s at byte %zu", path, problem, offset);
    }
    const json_value *root = &document->values[0];
    const json_value *schema = root->kind == JSON_OBJECT ? json_member(document, root, "schema") : NULL;
    if (schema == NULL || schema->kind != JSON_INTEGER || schema->integer != DDM_SCHEMA) {
        return ddm_fail(DDM_ERROR_PACK, "%s: schema: expected %d", path, DDM_SCHEMA);
    }
    const json_value *kernels = json_member(document, root, "kernels");
    if (kernels == NULL || kernels->kind != JSON_ARRAY || kernels->first == 0) {
        return ddm_fail(DDM_ERROR_PACK, "%s: kernels: expected a list that isn't empty", path);
    }
    size_t count = 0;
    for (size_t i = kernels->first; i != 0; i = document->values[i].next) {
        count++;
    }
    manifest->entries = calloc(count, sizeof *manifest->entries);
    if (manifest->entries == NULL) {
        return ddm_fail(DDM_ERROR_MEMORY, "out of memory");
    }
    for (size_t i = kernels->first; i != 0; i = document->values[i].next) {
        place at = {path, document, manifest->count};
        ddm_status status = read_entry(&at, &document->values[i], &manifest->entries[manifest->count]);
        if (status != DDM_OK) {
            return status;
        }
        manifest->count++;
    }
    return DDM_OK;
}

void ddm_manifest_free(ddm_manifest *manifest) {
    free(manifest->entries);
    json_free(&manifest->document);
    memset(manifest, 0, sizeof *manifest);
}
