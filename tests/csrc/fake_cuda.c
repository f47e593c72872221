/* A CUDA driver without a device. It takes PTX, as the real one also does, reads the parameter list in it, and on a
 * launch reads every argument with the size that the list declares. Nothing is ever computed. */
#include "fake_cuda.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;

enum { INVALID_VALUE = 1, NOT_INITIALISED = 3, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };

struct module {
    char entry[64];
    size_t count;
    size_t bytes[FAKE_MAX_PARAMETERS];
    int used[FAKE_MAX_PARAMETERS];
    unsigned threads; /* 0 where the PTX doesn't say */
    int shared_limit;
};

static int initialised, capability, context, modules, launches;
static fake_launch last;
static char error_text[200];

void fake_reset(int of) {
    capability = of;
    context = 1;
    modules = launches = 0;
    memset(&last, 0, sizeof last);
}

void fake_drop_context(void) {
    context = 0;
}

int fake_modules(void) {
    return modules;
}

int fake_launches(void) {
    return launches;
}

const fake_launch *fake_last_launch(void) {
    return &last;
}

static CUresult fail(CUresult code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
    return code;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    (void)error;
    *text = error_text;
    return 0;
}

CUresult cuInit(unsigned flags) {
    initialised = 1;
    return flags == 0 ? 0 : fail(INVALID_VALUE, "cuInit takes 0");
}

CUresult cuCtxGetCurrent(void **current) {
    *current = context ? &context : NULL;
    return initialised ? 0 : fail(NOT_INITIALISED, "cuInit was not called");
}

CUresult cuCtxGetDevice(int *device) {
    *device = 0;
    return context ? 0 : fail(INVALID_CONTEXT, "no current context");
}

CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 0 || (attribute != 75 && attribute != 76)) {
        return fail(INVALID_VALUE, "device %d has no attribute %d", device, attribute);
    }
    *value = attribute == 75 ? capability / 10 : capability % 10;
    return 0;
}

/* Reads `.visible .entry NAME(.param .TYPE ..., ...) .reqntid N`. */
static CUresult read_ptx(const char *ptx, struct module *module) {
    const char *entry = strstr(ptx, ".visible .entry ");
    const char *open = entry == NULL ? NULL : strchr(entry, '(');
    const char *close = open == NULL ? NULL : strchr(open, ')');
    const char *body = close == NULL ? NULL : strchr(close, '{');
    if (body == NULL || sscanf(entry, ".visible .entry %63[A-Za-z0-9_]", module->entry) != 1) {
        return fail(INVALID_IMAGE, "the image is no PTX with an entry");
    }
    for (const char *at = open; (at = strstr(at, ".param")) != NULL && at < close; at++) {
        char type[8], used[96];
        if (sscanf(at, ".param .%7[a-z0-9]", type) != 1 || module->count == FAKE_MAX_PARAMETERS) {
            return fail(INVALID_IMAGE, "a parameter of %s can't be read", module->entry);
        }
        module->bytes[module->count] = strtoul(type + 1, NULL, 10) / 8;
        snprintf(used, sizeof used, "[%s_param_%zu]", module->entry, module->count);
        module->used[module->count] = strstr(body, used) != NULL;
        module->count++;
    }
    const char *threads = strstr(close, ".reqntid ");
    module->threads = threads != NULL && threads < body ? (unsigned)strtoul(threads + 9, NULL, 10) : 0;
    return 0;
}

CUresult cuModuleLoadData(void **loaded, const void *image) {
    if (!context) {
        return fail(INVALID_CONTEXT, "no current context");
    }
    struct module *module = calloc(1, sizeof *module);
    if (module == NULL) {
        return fail(2, "out of memory");
    }
    module->shared_limit = 48 * 1024;
    CUresult result = read_ptx(image, module);
    if (result != 0) {
        free(module);
        return result;
    }
    modules++;
    *loaded = module;
    return 0;
}

CUresult cuModuleUnload(void *module) {
    free(module);
    modules--;
    return 0;
}

CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
    if (strcmp(((struct module *)module)->entry, name) != 0) {
        return fail(NOT_FOUND, "the image has no function %s", name);
    }
    *function = module;
    return 0;
}

CUresult cuFuncSetAttribute(void *function, int attribute, int value) {
    if (attribute != 8) {
        return fail(INVALID_VALUE, "attribute %d isn't known", attribute);
    }
    ((struct module *)function)->shared_limit = value;
    return 0;
}

/* One argument, read as the PTX declares it. */
static CUresult read_parameter(const struct module *module, size_t i, const void *parameter) {
    if (parameter == NULL) {
        return fail(INVALID_VALUE, "parameter %zu of %zu is missing", i, module->count);
    }
    if (module->bytes[i] == 4) {
        int32_t number;
        memcpy(&number, parameter, sizeof number);
        if (number < 0 || number >= FAKE_MAX_NUMBER) {
            return fail(INVALID_VALUE, "parameter %zu is %d, which is no size", i, (int)number);
        }
        last.value[i] = (uint64_t)number;
        return 0;
    }
    uint64_t address;
    memcpy(&address, parameter, sizeof address);
    int null_is_right = address == 0 && !module->used[i];
    if (!null_is_right && (address < FAKE_DEVICE || address >= FAKE_DEVICE + FAKE_DEVICE_BYTES)) {
        return fail(INVALID_VALUE, "parameter %zu is %llx, which is no address", i, (unsigned long long)address);
    }
    last.value[i] = address;
    return 0;
}

CUresult cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **parameters,
                        void **extra) {
    const struct module *module = function;
    if (!context) {
        return fail(INVALID_CONTEXT, "no current context");
    }
    if (extra != NULL || parameters == NULL || block_y != 1 || block_z != 1) {
        return fail(INVALID_VALUE, "a launch of this form isn't known");
    }
    if (module->threads != 0 && module->threads != block_x) {
        return fail(INVALID_VALUE, "%u threads, the PTX requires %u", block_x, module->threads);
    }
    if (shared_bytes > (unsigned)module->shared_limit) {
        return fail(INVALID_VALUE, "%u bytes of shared memory, %d are allowed", shared_bytes, module->shared_limit);
    }
    memset(&last, 0, sizeof last);
    last.count = module->count;
    for (size_t i = 0; i < module->count; i++) {
        last.bytes[i] = module->bytes[i];
        CUresult result = read_parameter(module, i, parameters[i]);
        if (result != 0) {
            return result;
        }
    }
    if (parameters[module->count] != NULL) {
        return fail(INVALID_VALUE, "there are more than the %zu parameters of the PTX", module->count);
    }
    last.grid[0] = grid_x;
    last.grid[1] = grid_y;
    last.grid[2] = grid_z;
    last.block = block_x;
    last.shared_bytes = shared_bytes;
    last.stream = stream;
    launches++;
    return 0;
}
