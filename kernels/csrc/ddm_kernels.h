/* Launches the kernels of an ahead-of-time pack through the CUDA driver, without Python, CUDA's runtime or nvcc.
 *
 * The driver is opened when a pack is opened, so a program that links this starts on a machine without one. Nothing is
 * thrown and nothing ends the process: a function returns a status, and ddm_last_error() says in words what was wrong.
 * Handles may be used from several threads at a time; opening, loading and closing one belong to one thread.
 *
 * The caller owns the CUDA context: it must be current on the thread that loads, launches or unloads a kernel.
 */
#ifndef DDM_KERNELS_H
#define DDM_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ddm_status {
    DDM_OK = 0,
    DDM_ERROR_ARGUMENT = 1,  /* the call itself: a null pointer, a wrong number or kind of launch arguments */
    DDM_ERROR_PACK = 2,      /* the folder isn't a pack, or a file of it was altered */
    DDM_ERROR_DRIVER = 3,    /* no CUDA driver, or one that lacks a function */
    DDM_ERROR_CUDA = 4,      /* the driver refused; its own words stand in the error */
    DDM_ERROR_NOT_FOUND = 5, /* the pack has no such kernel for this device */
    DDM_ERROR_MEMORY = 6     /* out of host memory */
} ddm_status;

typedef struct ddm_pack ddm_pack;
typedef struct ddm_kernel ddm_kernel;

/* What went wrong in this thread's last call that didn't return DDM_OK. Never null; valid until the thread's next. */
const char *ddm_last_error(void);

/* Open the pack in `directory`. `driver` is the path of a driver library, or null for libcuda.so.1. */
ddm_status ddm_pack_open(const char *directory, const char *driver, ddm_pack **pack);

/* Close a pack after all of its kernels. Null is allowed. */
void ddm_pack_close(ddm_pack *pack);

size_t ddm_pack_size(const ddm_pack *pack);

/* The name of kernel `index` in the manifest's order, or null beyond the last. */
const char *ddm_pack_name(const ddm_pack *pack, size_t index);

/* Which kernel is wanted. head_dim belongs to "indicator_attention", branches and noise to "guided_step", and branches to
 * "projected_guidance"; what doesn't belong to the op is ignored. `architecture` is like "sm_90", or null for that of the
 * current context's device. */
typedef struct ddm_request {
    const char *op;
    const char *dtype; /* "fp16", "bf16" or "fp32" */
    const char *architecture;
    int head_dim;
    int branches;
    int noise;
} ddm_request;

ddm_status ddm_kernel_load(ddm_pack *pack, const ddm_request *request, ddm_kernel **kernel);

/* As ddm_kernel_load, for the kernel of one name. */
ddm_status ddm_kernel_load_named(ddm_pack *pack, const char *name, ddm_kernel **kernel);

/* Unload a kernel whose launches have finished. Null is allowed. */
void ddm_kernel_unload(ddm_kernel *kernel);

/* A number of the kernel's tile, such as "block_m", which the grid follows from; 0 where it has none of that name. */
int ddm_kernel_tile(const ddm_kernel *kernel, const char *name);

typedef enum ddm_kind { DDM_POINTER = 0, DDM_I32 = 1, DDM_SCRATCH = 2 } ddm_kind;

/* How many arguments a launch takes, and of which kind. Scratch, which the compiler added, isn't among them. */
size_t ddm_kernel_argument_count(const ddm_kernel *kernel);
ddm_kind ddm_kernel_argument_kind(const ddm_kernel *kernel, size_t index);

typedef struct ddm_argument {
    ddm_kind kind;
    union {
        uint64_t pointer; /* a device address, a multiple of the kernel's alignment */
        int32_t i32;
    } value;
} ddm_argument;

static inline ddm_argument ddm_pointer(uint64_t address) {
    ddm_argument argument;
    argument.kind = DDM_POINTER;
    argument.value.pointer = address;
    return argument;
}

static inline ddm_argument ddm_i32(int32_t number) {
    ddm_argument argument;
    argument.kind = DDM_I32;
    argument.value.i32 = number;
    return argument;
}

/* Launch on `stream`, a CUstream or null. `arguments` are copied: they may go once the call returns. */
ddm_status ddm_kernel_launch(const ddm_kernel *kernel, const uint32_t grid[3], void *stream,
                             const ddm_argument *arguments, size_t count);

#ifdef __cplusplus
}
#endif

#endif
