#include "ddm_kernels.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "error.h"
#include "manifest.h"
#include "sha256.h"

/* Dynamic shared memory that a kernel gets without asking. */
enum { FREE_SHARED_BYTES = 48 * 1024, MAX_FILE_BYTES = 64 * 1024 * 1024 };

struct ddm_pack {
    char *directory;
    ddm_driver driver;
    ddm_manifest manifest;
};

struct ddm_kernel {
    const ddm_pack *pack;
    const ddm_entry *entry;
    CUmodule module;
    CUfunction function;
    size_t argument_count; /* without scratch */
};

static _Thread_local char last_error[512] = "";

const char *ddm_last_error(void) {
    return last_error;
}

ddm_status ddm_fail(ddm_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return status;
}

static char *join(const char *directory, const char *file) {
    size_t size = strlen(directory) + strlen(file) + 2;
    char *path = malloc(size);
    if (path != NULL) {
        snprintf(path, size, "%s/%s", directory, file);
    }
    return path;
}

/* The whole file; free *content either way. */
static ddm_status read_file(const char *path, char **content, size_t *size) {
    *content = NULL;
    *size = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return ddm_fail(DDM_ERROR_PACK, "%s can't be read: %s", path, strerror(errno));
    }
    ddm_status status = DDM_OK;
    long length = -1;
    if (fseek(file, 0, SEEK_END) == 0) {
        length = ftell(file);
    }
    if (length < 0 || length > MAX_FILE_BYTES || fseek(file, 0, SEEK_SET) != 0) {
        status = ddm_fail(DDM_ERROR_PACK, "%s can't be read, or is larger than 64 MiB", path);
    } else if ((*content = malloc((size_t)length + 1)) == NULL) {
        status = ddm_fail(DDM_ERROR_MEMORY, "out of memory");
    } else if (fread(*content, 1, (size_t)length, file) != (size_t)length) {
        status = ddm_fail(DDM_ERROR_PACK, "%s can't be read to its end", path);
    } else {
        (*content)[length] = '\0';
        *size = (size_t)length;
    }
    fclose(file);
    return status;
}

ddm_status ddm_pack_open(const char *directory, const char *driver, ddm_pack **pack) {
    if (directory == NULL || pack == NULL) {
        return ddm_fail(DDM_ERROR_ARGUMENT, "ddm_pack_open: directory or pack is null");
    }
    *pack = NULL;
    ddm_pack *opened = calloc(1, sizeof *opened);
    char *path = join(directory, "manifest.json");
    char *content = NULL;
    size_t size = 0;
    ddm_status status = DDM_OK;
    if (opened == NULL || path == NULL || (opened->directory = join(directory, "")) == NULL) {
        status = ddm_fail(DDM_ERROR_MEMORY, "out of memory");
    }
    if (status == DDM_OK) {
        status = read_file(path, &content, &size);
    }
    if (status == DDM_OK) {
        status = ddm_manifest_read(content, size, path, &opened->manifest);
    }
    if (status == DDM_OK) {
        status = ddm_driver_open(driver, &opened->driver);
    }
    free(content);
    free(path);
    if (status != DDM_OK) {
        ddm_pack_close(opened);
        return status;
    }
    *pack = opened;
    return DDM_OK;
}

void ddm_pack_close(ddm_pack *pack) {
    if (pack != NULL) {
        ddm_driver_close(&pack->driver);
        ddm_manifest_free(&pack->manifest);
        free(pack->directory);
        free(pack);
    }
}

size_t ddm_pack_size(const ddm_pack *pack) {
    return pack == NULL ? 0 : pack->manifest.count;
}

const char *ddm_pack_name(const ddm_pack *pack, size_t index) {
    return index < ddm_pack_size(pack) ? pack->manifest.entries[index].name : NULL;
}

static ddm_status load_entry(const ddm_pack *pack, const ddm_entry *entry, ddm_kernel **kernel) {
    char *path = join(pack->directory, entry->cubin);
    char *image = NULL;
    size_t size = 0;
    char sha256[65];
    ddm_kernel *loaded = calloc(1, sizeof *loaded);
    ddm_status status = path == NULL || loaded == NULL ? ddm_fail(DDM_ERROR_MEMORY, "out of memory") : DDM_OK;
    const ddm_driver *driver = &pack->driver;
    if (status == DDM_OK) {
        status = read_file(path, &image, &size);
    }
    if (status == DDM_OK) {
        sha256_hex(image, size, sha256);
        if (strcmp(sha256, entry->cubin_sha256) != 0) {
            status = ddm_fail(DDM_ERROR_PACK, "%s was altered: its sha256 is not the manifest's", path);
        }
    }
    if (status == DDM_OK) {
        loaded->pack = pack;
        loaded->entry = entry;
        for (size_t i = 0; i < entry->argument_count; i++) {
            loaded->argument_count += entry->arguments[i] != DDM_SCRATCH;
        }
        status = ddm_driver_check(driver, driver->cuModuleLoadData(&loaded->module, image), entry->name);
    }
    if (status == DDM_OK) {
        CUresult result = driver->cuModuleGetFunction(&loaded->function, loaded->module, entry->entry);
        status = ddm_driver_check(driver, result, entry->name);
    }
    if (status == DDM_OK && entry->shared_bytes > FREE_SHARED_BYTES) {
        CUresult result = driver->cuFuncSetAttribute(
            loaded->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, entry->shared_bytes);
        status = ddm_driver_check(driver, result, entry->name);
    }
    free(image);
    free(path);
    if (status != DDM_OK) {
        ddm_kernel_unload(loaded);
        return status;
    }
    *kernel = loaded;
    return DDM_OK;
}

/* Whether code for `built` runs on a device of `capability`, and how near it is: 0 for not at all. From sm_90 on the
 * code is for one chip alone (sm_90a); before, it also runs on later chips of the same major version. */
static int fitness(const char *built, int capability) {
    int number = 0;
    if (strlen(built) > 6 || sscanf(built, "sm_%d", &number) != 1 || number > capability) {
        return 0;
    }
    return number == capability || (number < 90 && number / 10 == capability / 10) ? number : 0;
}

static int is_wanted(const ddm_entry *entry, const ddm_request *request) {
    if (strcmp(entry->op, request->op) != 0 || strcmp(entry->dtype, request->dtype) != 0) {
        return 0;
    }
    return (entry->head_dim == DDM_NONE || entry->head_dim == request->head_dim) &&
           (entry->branches == DDM_NONE || entry->branches == request->branches) &&
           (entry->noise == DDM_NONE || entry->noise == (request->noise != 0));
}

ddm_status ddm_kernel_load(ddm_pack *pack, const ddm_request *request, ddm_kernel **kernel) {
    if (pack == NULL || kernel == NULL || request == NULL || request->op == NULL || request->dtype == NULL) {
        return ddm_fail(DDM_ERROR_ARGUMENT, "ddm_kernel_load: pack, kernel, request, op or dtype is null");
    }
    *kernel = NULL;
    int capability = 0;
    if (request->architecture == NULL) {
        ddm_status status = ddm_driver_capability(&pack->driver, &capability);
        if (status != DDM_OK) {
            return status;
        }
    } else if (sscanf(request->architecture, "sm_%d", &capability) != 1) {
        return ddm_fail(DDM_ERROR_ARGUMENT, "architecture %s isn't like sm_90", request->architecture);
    }
    const ddm_entry *best = NULL;
    for (size_t i = 0; i < pack->manifest.count; i++) {
        const ddm_entry *entry = &pack->manifest.entries[i];
        int found = is_wanted(entry, request) ? fitness(entry->architecture, capability) : 0;
        if (found > (best == NULL ? 0 : fitness(best->architecture, capability))) {
            best = entry;
        }
    }
    if (best == NULL) {
        return ddm_fail(DDM_ERROR_NOT_FOUND,
                        "%s has no %s for sm_%d with dtype %s, head_dim %d, branches %d, noise %d", pack->directory,
                        request->op, capability, request->dtype, request->head_dim, request->branches, request->noise);
    }
    return load_entry(pack, best, kernel);
}

ddm_status ddm_kernel_load_named(ddm_pack *pack, const char *name, ddm_kernel **kernel) {
    if (pack == NULL || name == NULL || kernel == NULL) {
        return ddm_fail(DDM_ERROR_ARGUMENT, "ddm_kernel_load_named: pack, name or kernel is null");
    }
    *kernel = NULL;
    for (size_t i = 0; i < pack->manifest.count; i++) {
        if (strcmp(pack->manifest.entries[i].name, name) == 0) {
            return load_entry(pack, &pack->manifest.entries[i], kernel);
        }
    }
    return ddm_fail(DDM_ERROR_NOT_FOUND, "%s has no kernel called %s", pack->directory, name);
}

void ddm_kernel_unload(ddm_kernel *kernel) {
    if (kernel != NULL) {
        if (kernel->module != NULL) {
            /* A context that is gone took its modules with it; there is nothing left to do about an error. */
            (void)kernel->pack->driver.cuModuleUnload(kernel->module);
        }
        free(kernel);
    }
}

int ddm_kernel_tile(const ddm_kernel *kernel, const char *name) {
    if (kernel == NULL || name == NULL) {
        return 0;
    }
    const json_value *value = json_member(&kernel->pack->manifest.document, kernel->entry->tile, name);
    return value != NULL && value->kind == JSON_INTEGER && value->integer > 0 && value->integer <= 65536
               ? (int)value->integer
               : 0;
}

size_t ddm_kernel_argument_count(const ddm_kernel *kernel) {
    return kernel == NULL ? 0 : kernel->argument_count;
}

ddm_kind ddm_kernel_argument_kind(const ddm_kernel *kernel, size_t index) {
    if (kernel != NULL) {
        for (size_t i = 0; i < kernel->entry->argument_count; i++) {
            if (kernel->entry->arguments[i] != DDM_SCRATCH && index-- == 0) {
                return kernel->entry->arguments[i];
            }
        }
    }
    return DDM_SCRATCH;
}

ddm_status ddm_kernel_launch(const ddm_kernel *kernel, const uint32_t grid[3], void *stream,
                             const ddm_argument *arguments, size_t count) {
    static const char *const kinds[] = {"pointer", "i32", "scratch"};
    if (kernel == NULL || grid == NULL || (arguments == NULL && count > 0)) {
        return ddm_fail(DDM_ERROR_ARGUMENT, "ddm_kernel_launch: kernel, grid or arguments is null");
    }
    const ddm_entry *entry = kernel->entry;
    if (count != kernel->argument_count) {
        return ddm_fail(DDM_ERROR_ARGUMENT, "%s takes %zu arguments, %zu were given", entry->name,
                        kernel->argument_count, count);
    }
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) {
        return ddm_fail(DDM_ERROR_ARGUMENT, "%s: the grid is empty", entry->name);
    }
    ddm_argument values[DDM_MAX_ARGUMENTS];
    void *parameters[DDM_MAX_ARGUMENTS + 1] = {NULL};
    size_t given = 0;
    for (size_t i = 0; i < entry->argument_count; i++) {
        if (entry->arguments[i] == DDM_SCRATCH) {
            values[i] = ddm_pointer(0); /* no shipped kernel has scratch: its size was checked at compilation */
        } else {
            values[i] = arguments[given];
            if (values[i].kind != entry->arguments[i]) {
                const char *found = values[i].kind == DDM_POINTER ? "pointer" : "i32";
                return ddm_fail(DDM_ERROR_ARGUMENT, "%s: argument %zu is a %s, expected a %s", entry->name, given,
                                found, kinds[entry->arguments[i]]);
            }
            if (values[i].kind == DDM_POINTER && values[i].value.pointer % (unsigned)entry->alignment != 0) {
                return ddm_fail(DDM_ERROR_ARGUMENT, "%s: argument %zu is not aligned to %d bytes", entry->name, given,
                                entry->alignment);
            }
            given++;
        }
        parameters[i] = values[i].kind == DDM_I32 ? (void *)&values[i].value.i32 : (void *)&values[i].value.pointer;
    }
    const ddm_driver *driver = &kernel->pack->driver;
    unsigned threads = 32 * (unsigned)entry->num_warps;
    CUresult result = driver->cuLaunchKernel(kernel->function, grid[0], grid[1], grid[2], threads, 1, 1,
                                             (unsigned)entry->shared_bytes, (CUstream)stream, parameters, NULL);
    return ddm_driver_check(driver, result, entry->name);
}
